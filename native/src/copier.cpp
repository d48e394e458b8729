#include "copier.h"

#include <cstddef>
#include <memory>
#include <system_error>
#include <utility>

#include "thread.h"

namespace vrb {
namespace {

// What comes meanwhile waits for one piece at most: half a millisecond on a GPU's link.
constexpr uint64_t PIECE_BYTES = 32 * MIB;

// Cuts a piece off a job's front.
std::vector<Copier::Chunk> cut_piece(std::vector<Copier::Chunk> &chunks) {
  std::vector<Copier::Chunk> piece;
  uint64_t left_bytes = PIECE_BYTES;
  std::size_t whole = 0;
  while (whole < chunks.size() && chunks[whole].size_bytes <= left_bytes) {
    left_bytes -= chunks[whole].size_bytes;
    piece.push_back(chunks[whole++]);
  }
  chunks.erase(chunks.begin(), chunks.begin() + static_cast<std::ptrdiff_t>(whole));
  if (chunks.empty() || left_bytes == 0) return piece;
  Copier::Chunk &cut = chunks.front();
  piece.push_back({cut.to, cut.from, left_bytes});
  cut = {cut.to + left_bytes, cut.from + left_bytes, cut.size_bytes - left_bytes};
  return piece;
}

}  // namespace

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
    queue.filled.wait(lock, [&] { return stopped_ || !queue.jobs.empty() || !queue.background.empty(); });
    if (queue.jobs.empty() && queue.background.empty()) break;
    Job job = next_job(queue);
    lock.unlock();
    if (!job.failure) job.failure = carry_out(*lane, job);
    lock.lock();
    if (Job *rest = find_background(job.ticket)) {
      if (job.failure) *rest = std::move(job);
      continue;
    }
    finished_.push_back({job.ticket, std::move(job.failure)});
    agent_.ring();
  }
  lock.unlock();
  lane.reset();
  lock.lock();
  queue.has_thread = false;
  thread_ended_.notify_all();
}

// What is left of a background job stays in its place, where it can be hastened or called off.
Copier::Job Copier::next_job(Queue &queue) {
  std::deque<Job> &jobs = queue.jobs.empty() ? queue.background : queue.jobs;
  Job &first = jobs.front();
  if (&jobs == &queue.background && !first.failure) {
    Job piece{first.ticket, cut_piece(first.chunks)};
    if (first.chunks.empty()) jobs.pop_front();
    return piece;
  }
  Job job = std::move(first);
  jobs.pop_front();
  return job;
}

Copier::Job *Copier::find_background(uint64_t ticket) {
  Queue &queue = queues_[static_cast<std::size_t>(Direction::out)];
  for (std::deque<Job> *jobs : {&queue.background, &queue.jobs}) {
    for (Job &job : *jobs) {
      if (job.ticket == ticket) return &job;
    }
  }
  return nullptr;
}

void Copier::stop() {
  std::unique_lock lock(mutex_);
  stopped_ = true;
  for (Queue &queue : queues_) queue.filled.notify_all();
  thread_ended_.wait(lock, [&] { return !queues_[0].has_thread && !queues_[1].has_thread; });
}

void Copier::submit(Direction direction, Job job) {
  enqueue(direction, queues_[static_cast<std::size_t>(direction)].jobs, std::move(job));
}

void Copier::submit_background(Job job) {
  enqueue(Direction::out, queues_[static_cast<std::size_t>(Direction::out)].background, std::move(job));
}

void Copier::hasten(uint64_t ticket) {
  Queue &queue = queues_[static_cast<std::size_t>(Direction::out)];
  const std::lock_guard lock(mutex_);
  for (auto job = queue.background.begin(); job != queue.background.end(); ++job) {
    if (job->ticket != ticket) continue;
    queue.jobs.push_back(std::move(*job));
    queue.background.erase(job);
    return;
  }
}

void Copier::call_off(uint64_t ticket) {
  const std::lock_guard lock(mutex_);
  if (Job *job = find_background(ticket)) {
    job->chunks.clear();
    job->failure = "called off";
  }
}

void Copier::enqueue(Direction direction, std::deque<Job> &jobs, Job job) {
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
  jobs.push_back(std::move(job));
  queue.filled.notify_one();
}

std::vector<Copier::Finished> Copier::take_finished() {
  const std::lock_guard lock(mutex_);
  return std::exchange(finished_, {});
}

}  // namespace vrb
