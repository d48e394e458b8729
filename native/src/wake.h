// An eventfd that wakes the agent; may be rung from any thread, and rings once however often it is rung before it is heard.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <string>
#include <utility>

#include "fork.h"
#include "status.h"

namespace vrb {

class Wake {
 public:
  Wake() : fd_(ProcessFd::make([] { return ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); })) {
    if (!fd_) throw driver_failed(std::string("eventfd: ") + std::strerror(errno));
  }

  // Agent only, like `hear` and `close`.
  int fd() const { return fd_.get(); }

  // Does nothing once it is closed: its number may be somebody else's by then.
  void ring() noexcept {
    const uint64_t one = 1;
    const std::lock_guard lock(mutex_);
    // Can fail only when the counter is full, and then it rings already.
    if (fd_) [[maybe_unused]] const ssize_t written = ::write(fd_.get(), &one, sizeof one);
  }

  void hear() noexcept {
    uint64_t rung = 0;
    [[maybe_unused]] const ssize_t got = ::read(fd_.get(), &rung, sizeof rung);
  }

  void close() {
    // Closed behind the lock: closing takes a ForkGuard, and somebody who holds one may ring.
    ProcessFd closing;
    const std::lock_guard lock(mutex_);
    std::swap(fd_, closing);
  }

 private:
  std::mutex mutex_;  // innermost, beside the channel's
  ProcessFd fd_;
};

}  // namespace vrb
