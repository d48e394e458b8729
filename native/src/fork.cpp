#include "fork.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <set>
#include <utility>
#include <vector>

namespace vrb {
namespace {

struct Process {
  std::mutex mutex;
  std::set<int> fds;
  std::vector<std::mutex *> others;
  std::atomic<uint32_t> generation{0};
};

void before_fork();
void after_fork_in_parent();
void after_fork_in_child();

// Never destroyed: threads may still use it while the process exits.
Process &process() {
  static Process *const the_process = [] {
    auto *made = new Process;
    ::pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
    return made;
  }();
  return *the_process;
}

void before_fork() {
  process().mutex.lock();
  for (std::mutex *other : process().others) other->lock();
}

void after_fork_in_parent() {
  for (std::mutex *other : process().others) other->unlock();
  process().mutex.unlock();
}

void after_fork_in_child() {
  Process &here = process();
  for (const int fd : here.fds) ::close(fd);
  here.fds.clear();
  here.generation.fetch_add(1, std::memory_order_relaxed);
  for (std::mutex *other : here.others) other->unlock();
  here.mutex.unlock();
}

}  // namespace

uint32_t process_generation() noexcept { return process().generation.load(std::memory_order_relaxed); }

void hold_across_forks(std::mutex &mutex) {
  const ForkGuard guard;
  process().others.push_back(&mutex);
}

ForkGuard::ForkGuard() { process().mutex.lock(); }

ForkGuard::~ForkGuard() { process().mutex.unlock(); }

ProcessFd::ProcessFd(int number) : number_(number) {
  if (number_ >= 0) process().fds.insert(number_);
}

ProcessFd::ProcessFd(ProcessFd &&other) noexcept : number_(std::exchange(other.number_, -1)) {}

ProcessFd &ProcessFd::operator=(ProcessFd &&other) noexcept {
  if (this != &other) {
    reset();
    number_ = std::exchange(other.number_, -1);
  }
  return *this;
}

void ProcessFd::reset() {
  if (number_ < 0) return;
  ForkGuard guard;
  process().fds.erase(number_);
  ::close(std::exchange(number_, -1));
}

}  // namespace vrb
