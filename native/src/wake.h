// An eventfd that wakes the agent; may be rung from any thread, and rings once however often it is rung before it is heard.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>

#include "fork.h"
#include "status.h"

namespace vrb {

class Wake {
 public:
  Wake() : fd_(ProcessFd::make([] { return ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); })) {
    if (!fd_) throw driver_failed(std::string("eventfd: ") + std::strerror(errno));
  }

  int fd() const { return fd_.get(); }

  void ring() const noexcept {
    const uint64_t one = 1;
    // Can fail only when the counter is full, and then it rings already.
    [[maybe_unused]] const ssize_t written = ::write(fd_.get(), &one, sizeof one);
  }

  void hear() const noexcept {
    uint64_t rung = 0;
    [[maybe_unused]] const ssize_t got = ::read(fd_.get(), &rung, sizeof rung);
  }

 private:
  ProcessFd fd_;
};

}  // namespace vrb
