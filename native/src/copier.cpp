#include "copier.h"

#include <memory>
#include <system_error>
#include <utility>

#include "thread.h"

namespace vrb {

Failure Copier::carry_out(Lane &lane, const Job &job) {
  Failure failure;
  for (const Chunk &chunk : job.chunks) {
    failure = chunk.from == nullptr ? lane.start_zero(chunk.to, chunk.size_bytes)
                                    : lane.start_copy(chunk.to, chunk.from, chunk.size_bytes);
    if (failure) break;
  }
  // Also after a failure: what was started must be over before its memory goes.
  const Failure at_end = lane.finish();
  return failure ? failure : at_end;
}

void Copier::work(Queue &queue) {
  const std::unique_ptr<Lane> lane = device_.open_lane();
  std::unique_lock lock(mutex_);
  for (;;) {
    queue.filled.wait(lock, [&] { return !queue.jobs.empty(); });
    const Job job = std::move(queue.jobs.front());
    queue.jobs.pop_front();
    lock.unlock();
    Failure failure = carry_out(*lane, job);
    lock.lock();
    finished_.push_back({job.ticket, std::move(failure)});
    agent_.ring();
  }
}

void Copier::submit(Direction direction, Job job) {
  Queue &queue = queues_[static_cast<std::size_t>(direction)];
  const std::lock_guard lock(mutex_);
  if (!queue.has_thread) {
    try {
      start_thread(direction == Direction::out ? "vrb-copy-out" : "vrb-copy-in", [this, &queue] { work(queue); });
    } catch (const std::system_error &error) {
      finished_.push_back({job.ticket, std::string("pthread_create: ") + error.what()});
      agent_.ring();
      return;
    }
    queue.has_thread = true;
  }
  queue.jobs.push_back(std::move(job));
  queue.filled.notify_one();
}

std::vector<Copier::Finished> Copier::take_finished() {
  const std::lock_guard lock(mutex_);
  return std::exchange(finished_, {});
}

}  // namespace vrb
