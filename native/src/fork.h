// What a fork may not carry over: the sockets and event fds of this process's clients.
//
// A forked child inherits every fd (close-on-exec helps only at exec), and a child that held a frame's fd would keep that
// memory alive for as long as it runs. So fds are received, used and closed under `ForkGuard`, which a fork waits for, and
// those that live longer are `ProcessFd`s, which the child closes first of all. A client remembers the generation it was
// made in; in another generation it is not this process's.
#pragma once

#include <cstdint>
#include <mutex>

namespace vrb {

// Counts the forks between the first process that used the library and this one.
uint32_t process_generation() noexcept;

// While one is held, no fork happens. Held for short: the forking thread waits for it.
class ForkGuard {
 public:
  ForkGuard();
  ~ForkGuard();
  ForkGuard(const ForkGuard &) = delete;
  ForkGuard &operator=(const ForkGuard &) = delete;
};

// Has a mutex of the whole process held across every fork, inside the ForkGuard's own, so that a child never finds it locked
// by a thread that it doesn't have.
void hold_across_forks(std::mutex &mutex);

// An fd that a forked child closes at once. Made and destroyed under a `ForkGuard` that the caller doesn't hold.
class ProcessFd {
 public:
  ProcessFd() = default;
  ProcessFd(ProcessFd &&other) noexcept;
  ProcessFd &operator=(ProcessFd &&other) noexcept;
  ProcessFd(const ProcessFd &) = delete;
  ProcessFd &operator=(const ProcessFd &) = delete;
  ~ProcessFd() { reset(); }

  // Calls `open`, which returns a new fd or -1, so that no fork comes between the opening and the book-keeping.
  template <class Open>
  static ProcessFd make(Open open) {
    ForkGuard guard;
    return ProcessFd(open());
  }

  int get() const { return number_; }
  explicit operator bool() const { return number_ >= 0; }
  void reset();

 private:
  explicit ProcessFd(int number);
  int number_ = -1;
};

}  // namespace vrb
