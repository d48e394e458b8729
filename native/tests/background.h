// Work on a thread of its own, so that the test can play the daemon meanwhile; its failure is the test's failure.
#pragma once

#include <exception>
#include <thread>
#include <utility>

namespace peer {

class Background {
 public:
  template <class Work>
  explicit Background(Work work)
      : thread_([this, work = std::move(work)] {
          try {
            work();
          } catch (...) {
            failure_ = std::current_exception();
          }
        }) {}
  ~Background() {
    if (thread_.joinable()) thread_.join();
  }

  void join() {
    thread_.join();
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  std::exception_ptr failure_;
  std::thread thread_;
};

}  // namespace peer
