// A thread of ours in somebody else's process: named, detached, and deaf to all signals, so that handlers run on threads
// that the application made.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <system_error>
#include <thread>
#include <utility>

namespace vrb {

// Throws std::system_error if the process may have no more threads.
template <class Work>
void start_thread(const char *name, Work work) {
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    std::thread thread(std::move(work));
    ::pthread_setname_np(thread.native_handle(), name);
    // Detached: at exit nothing of it is waited for, and what it uses is never destroyed.
    thread.detach();
  } catch (const std::system_error &) {
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw;
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace vrb
