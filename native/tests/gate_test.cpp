// The gate: entering and closing can't miss each other, and the last one out is told so.

#include <atomic>
#include <thread>
#include <vector>

#include "check.h"
#include "gate.h"

using vrb::Gate;

TEST(gate, counts_and_names_who_is_inside) {
  Gate gate;
  CHECK(gate.is_quiet() && !gate.was_used());
  CHECK(gate.enter("forward") && gate.enter("forward") && gate.enter("backward"));
  CHECK(gate.was_used() && !gate.is_quiet());
  CHECK(gate.exit("forward") == Gate::Exit::inside_still);
  CHECK(gate.exit("nobody") == Gate::Exit::was_not_inside);
  CHECK(gate.exit("forward") == Gate::Exit::inside_still);
  CHECK_EQ(gate.scope_inside(), "backward");
  gate.close();
  CHECK(!gate.enter("late") && !gate.is_quiet());
  CHECK(gate.exit("backward") == Gate::Exit::last_out_of_closed);
  CHECK(gate.is_quiet() && gate.scope_inside().empty());
  gate.open();
  CHECK(gate.enter("late"));
  CHECK(gate.exit("late") == Gate::Exit::last_out);
}

TEST(gate, nobody_is_inside_once_it_is_closed_and_quiet) {
  Gate gate;
  std::atomic<bool> paused{false}, wrong{false}, over{false};
  std::vector<std::thread> users;
  for (int i = 0; i < 4; ++i) {
    users.emplace_back([&] {
      while (!over) {
        if (!gate.enter("use")) continue;
        if (paused) wrong = true;
        gate.exit("use");
      }
    });
  }
  for (int i = 0; i < 500; ++i) {
    gate.close();
    while (!gate.is_quiet()) std::this_thread::yield();
    paused = true;
    std::this_thread::yield();
    paused = false;
    gate.open();
  }
  over = true;
  for (std::thread &user : users) user.join();
  CHECK(!wrong);
}
