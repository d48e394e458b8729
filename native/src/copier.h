// The copy engine: jobs go in, a thread per direction carries them out, and what is finished wakes the agent.
//
// Two directions, since the link to a GPU carries both at once: out of the frames into the arena, and into the frames.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

#include "device.h"
#include "wake.h"

namespace vrb {

class Copier {
 public:
  enum class Direction { out = 0, in = 1 };

  struct Chunk {
    char *to;
    const char *from;  // null: zeroes
    uint64_t size_bytes;
  };

  // `failure`: it is not to be gone on with.
  struct Job {
    uint64_t ticket;
    std::vector<Chunk> chunks;
    Failure failure = std::nullopt;
  };

  struct Finished {
    uint64_t ticket;
    Failure failure;
  };

  Copier(Device &device, Wake &agent) : device_(device), agent_(agent) {}

  // What the job names stays valid until it is among the finished. Agent only. If the process may have no more threads,
  // the job is finished with a failure.
  void submit(Direction direction, Job job);

  // The same for what nobody waits for, out of the frames: carried out in pieces, while there is nothing else to copy out.
  void submit_background(Job job);

  // Has a background job that somebody waits for now carried out like the others.
  void hasten(uint64_t ticket);

  // Has a background job end after the piece under way: it is finished with a failure, if it was not done.
  void call_off(uint64_t ticket);

  // Returns what was finished since the last call.
  std::vector<Finished> take_finished();

  // Lets the threads end, and waits until they touch nothing of the device any more. Nothing may be under way, and nothing
  // is submitted afterwards. Agent only.
  void stop();

 private:
  struct Queue {
    bool has_thread = false;
    std::deque<Job> jobs;
    std::deque<Job> background;
    std::condition_variable filled;
  };

  void work(Queue &queue);
  Job next_job(Queue &queue);
  void enqueue(Direction direction, std::deque<Job> &jobs, Job job);
  Job *find_background(uint64_t ticket);
  static Failure carry_out(Lane &lane, const Job &job);

  Device &device_;
  Wake &agent_;
  std::mutex mutex_;
  std::array<Queue, 2> queues_;
  std::vector<Finished> finished_;
  bool stopped_ = false;
  std::condition_variable thread_ended_;
};

}  // namespace vrb
