// What the device's tests share: a claim that ends its test when it is wrong, a list of tests, and the process's fds.
#pragma once

#include <dirent.h>

#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "device.h"

#define CHECK(claim)                                                                        \
  do {                                                                                      \
    if (!(claim)) throw test::Wrong(__FILE__ ":" + std::to_string(__LINE__) + ": " #claim); \
  } while (false)

namespace test {

struct Wrong : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Test {
  const char *name;
  std::function<void()> run;
};

constexpr int SKIPPED = 77;

// Runs them all; returns the process's exit status.
inline int run_all(const std::vector<Test> &tests) {
  int wrong = 0;
  for (const Test &test : tests) {
    std::string why;
    try {
      test.run();
    } catch (const std::exception &error) {
      why = error.what();
      if (why.empty()) why = "an exception without words";
      ++wrong;
    }
    std::printf("%s %s%s%s\n", why.empty() ? "ok  " : "FAIL", test.name, why.empty() ? "" : ": ", why.c_str());
    std::fflush(stdout);
  }
  std::printf("%zu tests, %d failed\n", tests.size(), wrong);
  return wrong == 0 ? 0 : 1;
}

// A call that must work; its failure is the message.
inline void must(const vrb::Failure &failure) {
  if (failure) throw Wrong(*failure);
}

inline int open_fds() {
  DIR *folder = ::opendir("/proc/self/fd");
  int count = 0;
  while (::readdir(folder) != nullptr) ++count;
  ::closedir(folder);
  return count;
}

}  // namespace test
