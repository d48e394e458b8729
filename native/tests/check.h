// Just enough of a test framework: named cases that register themselves, checks that say where and what, and a deadline for
// each case, since a test that hangs tells nobody anything.
#pragma once

#include <cstdio>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace check {

// Says so at once: a case whose other threads wait for the failed one ends by its alarm, and would take the reason with it.
struct Failed : std::runtime_error {
  explicit Failed(const std::string &what) : std::runtime_error(what) { std::fprintf(stderr, "  %s\n", what.c_str()); }
};

struct Case {
  std::string name;
  std::function<void()> body;
};

inline std::vector<Case> &cases() {
  static std::vector<Case> all;
  return all;
}

struct Registered {
  Registered(const char *group, const char *name, std::function<void()> body) {
    cases().push_back({std::string(group) + "." + name, std::move(body)});
  }
};

[[noreturn]] inline void fail(const char *file, int line, const std::string &what) {
  throw Failed(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

template <class A, class B>
void equal(const A &a, const B &b, const char *text, const char *file, int line) {
  if (a == b) return;
  std::ostringstream told;
  told << text << ": " << a << " is not " << b;
  fail(file, line, told.str());
}

}  // namespace check

#define TEST(group, name)                                                           \
  static void group##_##name();                                                     \
  static const check::Registered group##_##name##_case(#group, #name, group##_##name); \
  static void group##_##name()

#define CHECK(claim)                                        \
  do {                                                      \
    if (!(claim)) check::fail(__FILE__, __LINE__, #claim); \
  } while (false)

#define CHECK_EQ(a, b) check::equal((a), (b), #a " == " #b, __FILE__, __LINE__)
