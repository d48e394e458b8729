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
  std::unique_ptr<Lane> lane = device_.open_lane();
  std::unique_lock lock(mutex_);
  for (;;) {
    queue.filled.wait(lock, [&] { return stopped_ || !queue.jobs.empty(); });
    if (queue.jobs.empty()) break;
    const Job job = std::move(queue.jobs.front());
    queue.jobs.pop_front();
    lock.unlock();
    Failure failure = carry_out(*lane, job);
    lock.lock();
    finished_.push_back({job.ticket, std::move(failure)});
    agent_.ring();
  }
  lock.unlock();
  lane.reset();
  lock.lock();
  queue.has_thread = false;
  thread_ended_.notify_all();
}

void Copier::stop() {
  std::unique_lock lock(mutex_);
  stopped_ = true;
  for (Queue &queue : queues_) queue.filled.notify_all();
  thread_ended_.wait(lock, [&] { return !queues_[0].has_thread && !queues_[1].has_thread; });
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
