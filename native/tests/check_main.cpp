// Runs the cases whose names begin with one of the arguments; all of them without any. Each has a process of its own, since
// a client lives until its process ends and would go on reconnecting into the next case. VRB_TEST_SECONDS bounds each.

#include <sys/wait.h>
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

[[noreturn]] void run_here(const check::Case &one, unsigned seconds) {
  // SIGALRM ends the process: what hangs can't be told to stop.
  ::alarm(seconds);
  try {
    one.body();
  } catch (const std::exception &error) {
    std::printf("  FAILED: %s\n", error.what());
    std::exit(1);
  }
  std::exit(0);
}

bool passes(const check::Case &one, unsigned seconds) {
  std::printf("%s\n", one.name.c_str());
  std::fflush(stdout);
  const pid_t child = ::fork();
  if (child == 0) run_here(one, seconds);
  int status = 0;
  if (child < 0 || ::waitpid(child, &status, 0) != child) return false;
  if (WIFSIGNALED(status)) std::printf("  FAILED: ended by signal %d\n", WTERMSIG(status));
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
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
