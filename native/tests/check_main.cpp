// Runs the cases whose names begin with one of the arguments; all of them without any. VRB_TEST_SECONDS bounds each case.

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "check.h"

namespace {

bool is_wanted(const std::string &name, int count, char **arguments) {
  for (int i = 1; i < count; ++i) {
    if (name.rfind(arguments[i], 0) == 0) return true;
  }
  return count == 1;
}

bool passes(const check::Case &one, unsigned seconds) {
  std::printf("%s\n", one.name.c_str());
  std::fflush(stdout);
  // SIGALRM ends the process: whatever hangs holds locks that no later case could do without.
  ::alarm(seconds);
  try {
    one.body();
    return true;
  } catch (const std::exception &error) {
    std::printf("  FAILED: %s\n", error.what());
    return false;
  }
}

}  // namespace

int main(int count, char **arguments) {
  const char *told = std::getenv("VRB_TEST_SECONDS");
  const auto seconds = static_cast<unsigned>(told == nullptr ? 30 : std::atoi(told));
  int ran = 0, failed = 0;
  for (const check::Case &one : check::cases()) {
    if (!is_wanted(one.name, count, arguments)) continue;
    ++ran;
    failed += passes(one, seconds) ? 0 : 1;
  }
  std::printf("%d cases, %d failed\n", ran, failed);
  return ran == 0 || failed > 0 ? 1 : 0;
}
