// Pauses from outside that ask the application's callbacks first, what is told of resumes, and scopes that resume.

#include <cstring>

#include "background.h"
#include "check.h"
#include "peer.h"
#include "test_device.h"

using namespace peer;
using namespace vrb;

namespace {

constexpr const char *TAGS[] = {"weights"};

// A client with one frame (slot 4 of lease 3) whose tag is watched.
struct Engine {
  Engine() : rig(peer) {
    lease = open_lease(rig.client, "weights", VRB_DROP);
    Background growing([&] { pointer = static_cast<char *>(allocate(lease, FRAME)); });
    peer.serve_lease(3, {{4}});
    growing.join();
  }

  void watch() {
    CHECK_EQ(static_cast<int>(vrb_watch(rig.client, VRB_NOTICE_PAUSE_ASKED, "weights", nullptr)), 0);
    CHECK_EQ(static_cast<int>(vrb_watch(rig.client, VRB_NOTICE_RESUMED, nullptr, nullptr)), 0);
  }

  vrb_notice next() {
    vrb_notice notice{};
    CHECK_EQ(static_cast<int>(vrb_next_notice(rig.client, &notice, nullptr)), 0);
    return notice;
  }

  // Gives an order, and sees the application hear of it.
  void ask(uint64_t order) {
    peer.send(record::PauseOrder{order, {"weights"}});
    const vrb_notice asked = next();
    CHECK_EQ(asked.kind, static_cast<uint32_t>(VRB_NOTICE_PAUSE_ASKED));
    CHECK_EQ(asked.order, order);
    CHECK_EQ(std::string(asked.tags), "weights");
  }

  void expect_kept() {
    const vrb_notice kept = next();
    CHECK_EQ(kept.kind, static_cast<uint32_t>(VRB_NOTICE_RESUMED));
    CHECK_EQ(std::string(kept.tags), "weights");
    CHECK_EQ(kept.same_pages, uint32_t{1});
    CHECK(is_open());
  }

  bool is_open() {
    if (enter(rig.client, {"weights"}, "step").status != VRB_OK) return false;
    CHECK_OK(exit(rig.client, {"weights"}, "step"));
    return true;
  }

  // Sees that the agent has done what it was sent.
  void sync() {
    peer.send(record::PauseOrder{99, {"none"}});
    while (peer.expect<record::Busy>().order != 99) continue;
  }

  vrb_status consent(uint64_t order) { return vrb_consent(rig.client, order, nullptr); }

  Peer peer;
  Rig rig;
  vrb_lease *lease = nullptr;
  char *pointer = nullptr;
};

}  // namespace

TEST(callbacks, a_tag_that_nobody_watches_is_refused_as_ever) {
  Engine engine;
  engine.peer.send(record::PauseOrder{7, {"weights"}});
  CHECK_EQ(static_cast<int>(engine.peer.expect<record::Busy>().final), 1);
}

TEST(callbacks, gates_stay_open_until_the_application_consents) {
  Engine engine;
  engine.watch();
  engine.ask(7);
  CHECK(engine.is_open());
  CHECK_EQ(static_cast<int>(vrb_begin_callback(engine.rig.client, 7, "weights", "drain", nullptr)), 0);
  const auto calling = engine.peer.expect<record::Callback>();
  CHECK_EQ(calling.order, uint64_t{7});
  CHECK_EQ(static_cast<int>(calling.declined), 0);
  CHECK_EQ(calling.callback, "drain");
  CHECK_EQ(static_cast<int>(engine.consent(7)), 0);
  CHECK_EQ(engine.peer.expect<record::Quiet>().order, uint64_t{7});
  CHECK(!engine.is_open());
}

TEST(callbacks, a_scope_that_is_open_at_the_consent_is_waited_for) {
  Engine engine;
  engine.watch();
  engine.ask(7);
  CHECK_OK(enter(engine.rig.client, {"weights"}, "step"));
  engine.consent(7);
  CHECK_EQ(engine.peer.expect<record::Busy>().scope, "step");
  CHECK_OK(exit(engine.rig.client, {"weights"}, "step"));
  CHECK_EQ(engine.peer.expect<record::Quiet>().order, uint64_t{7});
}

TEST(callbacks, a_decline_is_told_with_its_reason) {
  Engine engine;
  engine.watch();
  engine.ask(7);
  CHECK_EQ(static_cast<int>(vrb_decline(engine.rig.client, 7, "weights", "drain", "a batch is running", nullptr)), 0);
  const auto declined = engine.peer.expect<record::Callback>();
  CHECK_EQ(static_cast<int>(declined.declined), 1);
  CHECK_EQ(declined.why, "a batch is running");
  CHECK(engine.is_open());
  CHECK_EQ(static_cast<int>(engine.consent(7)), 0);
  engine.ask(8);
}

TEST(callbacks, a_device_that_is_not_quiet_declines) {
  Engine engine;
  engine.watch();
  engine.ask(7);
  engine.rig.device->quiesce_fails = true;
  CHECK_EQ(static_cast<int>(engine.consent(7)), 0);
  CHECK_EQ(engine.peer.expect<record::Callback>().why, "a capture is under way");
  CHECK(engine.is_open());
}

TEST(callbacks, an_order_that_is_called_off_before_the_consent_leaves_the_engine_to_go_on) {
  Engine engine;
  engine.watch();
  engine.ask(7);
  engine.peer.send(record::PauseCancelled{7});
  engine.sync();
  engine.consent(7);
  engine.expect_kept();
}

TEST(callbacks, an_order_that_is_called_off_after_the_consent_does_so_too) {
  Engine engine;
  engine.watch();
  engine.ask(7);
  engine.consent(7);
  engine.peer.expect<record::Quiet>();
  engine.peer.send(record::PauseCancelled{7});
  engine.expect_kept();
}

TEST(callbacks, an_order_that_is_called_off_before_it_was_heard_of_is_not_heard_of) {
  Engine engine;
  engine.watch();
  engine.peer.send(record::PauseOrder{7, {"weights"}});
  engine.peer.send(record::PauseCancelled{7});
  engine.sync();
  engine.ask(8);
}

TEST(callbacks, an_order_that_comes_again_asks_nobody_twice) {
  Engine engine;
  engine.watch();
  engine.ask(7);
  vrb_begin_callback(engine.rig.client, 7, "weights", "drain", nullptr);
  engine.peer.expect<record::Callback>();
  engine.peer.drop();
  engine.peer.accept();
  engine.peer.welcome();
  engine.peer.send(record::PauseOrder{7, {"weights"}});
  CHECK_EQ(engine.peer.expect<record::Callback>().callback, "drain");
  engine.consent(7);
  CHECK_EQ(engine.peer.expect<record::Quiet>().order, uint64_t{7});
}

TEST(callbacks, resumes_of_others_are_told_with_whether_the_pages_are_the_same) {
  Engine engine;
  engine.watch();
  for (const bool moves : {false, true}) {
    engine.peer.state(3, true);
    if (moves) {
      engine.peer.recall(3, {{4, 0, 0, 0}});
      engine.peer.expect<record::Left>();
      engine.peer.lend(3, "weights", 2, {{4}});
    }
    engine.peer.state(3, false);
    const vrb_notice back = engine.next();
    CHECK_EQ(back.kind, static_cast<uint32_t>(VRB_NOTICE_RESUMED));
    CHECK_EQ(back.same_pages, moves ? uint32_t{0} : uint32_t{1});
  }
}

TEST(callbacks, ones_own_resume_is_not_told) {
  Engine engine;
  engine.watch();
  engine.peer.state(3, true);
  engine.sync();
  Background resuming([&] { CHECK_OK(resume(engine.rig.client, {"weights"})); });
  const auto asked = engine.peer.expect<record::Resume>();
  engine.peer.state(3, false);
  engine.peer.done(asked.request, 0, {{3, 1, "weights"}});
  resuming.join();
  engine.ask(7);
}

TEST(callbacks, what_is_paused_already_needs_no_consent) {
  Engine engine;
  engine.watch();
  engine.peer.send(record::PauseOrder{7, {"weights"}});
  engine.peer.state(3, true);
  engine.sync();
  Background waiting([&] { engine.next(); });
  CHECK_EQ(engine.peer.expect<record::Quiet>().order, uint64_t{7});
  engine.peer.state(3, false);
  waiting.join();
}

TEST(callbacks, closing_ends_the_wait_and_what_waits_for_an_answer) {
  Engine engine;
  engine.watch();
  engine.ask(7);
  vrb_notice last{};
  Background waiting([&] { last = engine.next(); });
  Background closing([&] { vrb_close(engine.rig.client, nullptr); });
  const auto declined = engine.peer.expect<record::Callback>();
  CHECK_EQ(static_cast<int>(declined.declined), 1);
  waiting.join();
  CHECK_EQ(last.kind, static_cast<uint32_t>(VRB_NOTICE_CLOSED));
  engine.peer.send(record::PauseOrder{8, {"weights"}});
  CHECK_EQ(static_cast<int>(engine.peer.expect<record::Busy>().final), 1);
  release(engine.rig.client, engine.pointer);
  closing.join();
}

TEST(callbacks, a_scope_resumes_what_is_paused) {
  Engine engine;
  engine.peer.state(3, true);
  engine.sync();
  Background entering([&] {
    CHECK_EQ(static_cast<int>(vrb_use_enter_resuming(engine.rig.client, TAGS, 1, "step", 5000, nullptr)), 0);
  });
  const auto asked = engine.peer.expect<record::Resume>();
  engine.peer.state(3, false);
  engine.peer.done(asked.request, 0, {{3, 1, "weights"}});
  entering.join();
  CHECK_OK(exit(engine.rig.client, {"weights"}, "step"));
}

TEST(callbacks, a_scope_that_can_not_resume_is_not_entered) {
  Engine engine;
  engine.peer.state(3, true);
  engine.sync();
  Background entering([&] {
    const vrb_status status = vrb_use_enter_resuming(engine.rig.client, TAGS, 1, "step", 5000, nullptr);
    CHECK_EQ(static_cast<int>(status), static_cast<int>(VRB_REFUSED));
  });
  engine.peer.error(engine.peer.expect<record::Resume>().request, "OutOfDeviceMemory", "no room");
  entering.join();
  CHECK_STATUS(exit(engine.rig.client, {"weights"}, "step"), VRB_INVALID);
}

TEST(callbacks, a_scope_waits_for_what_is_about_to_be_paused) {
  Engine engine;
  engine.watch();
  engine.ask(7);
  engine.consent(7);
  engine.peer.expect<record::Quiet>();
  Background entering([&] {
    CHECK_EQ(static_cast<int>(vrb_use_enter_resuming(engine.rig.client, TAGS, 1, "step", 5000, nullptr)), 0);
  });
  engine.peer.send(record::PauseCancelled{7});
  entering.join();
  CHECK_OK(exit(engine.rig.client, {"weights"}, "step"));
}

TEST(callbacks, a_scope_does_not_wait_for_ever_for_what_is_about_to_be_paused) {
  Engine engine;
  engine.watch();
  engine.ask(7);
  engine.consent(7);
  engine.peer.expect<record::Quiet>();
  for (const uint32_t timeout_ms : {0U, 1U}) {
    vrb_error error{};
    const vrb_status status = vrb_use_enter_resuming(engine.rig.client, TAGS, 1, "step", timeout_ms, &error);
    CHECK_EQ(static_cast<int>(status), static_cast<int>(VRB_REFUSED));
    CHECK_EQ(std::string(error.name), "WaitExpired");
  }
}
