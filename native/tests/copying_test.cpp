// Contents copied out while they stay mapped: what the answer says, what a recall or a resume makes of it, and what comes twice.

#include <cstring>
#include <string>

#include "background.h"
#include "check.h"
#include "peer.h"
#include "stage.h"
#include "test_device.h"

using namespace peer;
using namespace vrb;

namespace {

constexpr uint64_t ORDER = 31;

// The places of slots 4, 5 and 6.
constexpr CopySlot FIRST{4, 9, 0}, SECOND{5, 9, 3 * MIB}, THIRD{6, 9, 8 * MIB};

struct Copying : Stage {
  explicit Copying(vrb_contents contents = VRB_KEEP) : Stage(contents) { pause(); }

  void order(std::vector<CopySlot> slots, uint64_t number = ORDER) { peer.send(record::Copy{number, 3, std::move(slots)}); }

  // Orders slots and waits until the first is in mid-copy.
  void begin(std::vector<CopySlot> slots) {
    rig.device->hold_copies();
    order(std::move(slots));
    rig.device->wait_for_copy();
  }

  // Sees to it that what was sent before has been read.
  void sync() {
    peer.send(record::PauseOrder{99, {"none"}});
    peer.expect<record::Busy>();
  }

  void expect_copied(std::vector<uint64_t> slots, uint64_t number = ORDER) {
    const auto copied = peer.expect<record::Copied>();
    CHECK_EQ(copied.order, number);
    CHECK_EQ(copied.failure, "");
    CHECK(copied.slots == slots);
  }

  void expect_failed(uint64_t number = ORDER) {
    const auto copied = peer.expect<record::Copied>();
    CHECK_EQ(copied.order, number);
    CHECK(copied.slots.empty() && !copied.failure.empty());
  }

  std::string parked(uint64_t offset_bytes) { return read_file(arena, offset_bytes, FRAME); }
  uint64_t out_bytes() { return stats(rig.client).copied_out_bytes; }

  const Fd &arena = peer.file(9);
};

std::string full(char fill) { return std::string(FRAME, fill); }

}  // namespace

TEST(copying, what_is_paused_is_copied_and_stays) {
  Copying stage;
  stage.order({FIRST, THIRD});
  stage.expect_copied({4, 6});
  CHECK_EQ(stage.parked(0), full('a'));
  CHECK_EQ(stage.parked(8 * MIB), full('c'));
  CHECK_EQ(text(stage.pointer, 1) + text(stage.pointer + 2 * FRAME, 1), "ac");
  CHECK_EQ(stage.out_bytes(), 2 * FRAME);
  stage.peer.recall(3, {{4, 0, 0, 0}});
  stage.expect_left({4});
  stage.peer.lend(3, "weights", 1, {{4, FRAME, SLOT_RESTORE, 9, 0}});
  stage.resumed();
  CHECK_EQ(text(stage.pointer, FRAME), full('a'));
  CHECK_EQ(stage.out_bytes(), 2 * FRAME);
}

TEST(copying, what_is_in_use_is_not_copied) {
  Copying stage;
  stage.resumed();
  stage.order({FIRST});
  stage.expect_failed();
  stage.peer.send(record::Copy{ORDER + 1, 1234, {FIRST}});
  stage.expect_failed(ORDER + 1);
  CHECK_EQ(stage.out_bytes(), uint64_t{0});
  CHECK_EQ(stage.parked(0), full('\0'));
}

TEST(copying, only_what_is_kept_and_there_is_copied) {
  Copying dropped(VRB_DROP);
  dropped.order({FIRST});
  dropped.expect_failed();
  Copying stage;
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}});
  stage.expect_left({4});
  stage.order({FIRST});
  stage.expect_failed();
  stage.order({{5, 8, 0}}, ORDER + 1);
  stage.expect_failed(ORDER + 1);
  stage.order({{5, 9, ARENA - MIB}}, ORDER + 2);
  stage.expect_failed(ORDER + 2);
  stage.order({{77, 9, 0}}, ORDER + 3);
  stage.expect_failed(ORDER + 3);
}

TEST(copying, a_failure_is_told_with_what_was_copied) {
  Copying stage;
  stage.order({SECOND, {4, 8, 0}});
  const auto copied = stage.peer.expect<record::Copied>();
  CHECK(copied.slots == std::vector<uint64_t>{5} && !copied.failure.empty());
  stage.rig.device->copy_fails = true;
  stage.order({FIRST}, ORDER + 1);
  CHECK_EQ(stage.peer.expect<record::Copied>().failure, "memcpy: it was told to fail");
  stage.rig.device->copy_fails = false;
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}});
  stage.expect_left({4});
  CHECK_EQ(stage.parked(0), full('a'));
}

TEST(copying, a_recall_in_mid_copy_waits_for_it_and_needs_no_other) {
  Copying stage;
  stage.begin({FIRST, SECOND});
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}});
  stage.sync();
  CHECK(is_readable(stage.pointer));
  stage.rig.device->let_copies_go();
  stage.expect_left({4});
  stage.expect_copied({4, 5});
  CHECK(!is_readable(stage.pointer) && is_readable(stage.pointer + FRAME));
  CHECK_EQ(stage.out_bytes(), 2 * FRAME);
  CHECK_EQ(stage.parked(0), full('a'));
}

TEST(copying, what_was_copied_of_an_order_under_way_leaves_at_once) {
  Copying stage;
  stage.begin({FIRST, {5, 9, 3 * MIB}});
  // The second is held as well, but only after the first is done.
  stage.rig.device->let_one_copy_go();
  stage.rig.device->wait_for_copy();
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}});
  stage.expect_left({4});
  stage.rig.device->let_copies_go();
  stage.expect_copied({4, 5});
  CHECK_EQ(stage.out_bytes(), 2 * FRAME);
}

TEST(copying, what_is_recalled_is_copied_before_the_rest) {
  Copying stage;
  stage.begin({FIRST, SECOND, THIRD});
  stage.peer.recall(3, {{6, SLOT_PARK, 9, 8 * MIB}});
  stage.sync();
  stage.rig.device->let_one_copy_go();
  stage.rig.device->wait_for_copy();
  stage.rig.device->let_one_copy_go();
  stage.expect_left({6});
  stage.rig.device->let_copies_go();
  stage.expect_copied({4, 5, 6});
}

TEST(copying, a_recall_to_another_place_copies_again) {
  Copying stage;
  stage.begin({FIRST});
  stage.peer.recall(3, {{4, SLOT_PARK, 9, FRAME}});
  stage.sync();
  stage.rig.device->let_copies_go();
  stage.expect_copied({4});
  stage.expect_left({4});
  CHECK_EQ(stage.parked(FRAME), full('a'));
}

// Once it is answered, the place may have been somebody else's meanwhile.
TEST(copying, after_the_answer_a_recall_that_parks_copies_again) {
  Copying stage;
  stage.order({FIRST});
  stage.expect_copied({4});
  write_file(stage.arena, 0, full('x'));
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}});
  stage.expect_left({4});
  CHECK_EQ(stage.parked(0), full('a'));
}

TEST(copying, a_resume_calls_it_off) {
  Copying stage;
  stage.begin({FIRST, SECOND, THIRD});
  stage.resumed();
  std::memset(stage.pointer, 'z', FRAME);
  stage.rig.device->let_copies_go();
  stage.expect_failed();
  CHECK_EQ(stage.out_bytes(), FRAME);
  CHECK_EQ(stage.parked(3 * MIB), full('\0'));
}

TEST(copying, a_recall_in_the_next_pause_parks_what_is_there_now) {
  Copying stage;
  stage.begin({FIRST});
  stage.resumed();
  std::memset(stage.pointer, 'z', FRAME);
  stage.pause();
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}});
  stage.sync();
  stage.rig.device->let_copies_go();
  stage.expect_failed();
  stage.expect_left({4});
  CHECK_EQ(stage.parked(0), full('z'));
}

TEST(copying, an_order_that_comes_again_is_carried_out_once_and_answered_again) {
  Copying stage;
  stage.begin({FIRST});
  stage.order({FIRST});
  stage.order({});
  stage.sync();
  stage.rig.device->let_copies_go();
  stage.expect_copied({4});
  write_file(stage.arena, 0, full('x'));
  stage.order({FIRST});
  stage.expect_copied({4});
  CHECK_EQ(stage.parked(0), full('x'));
  stage.order({FIRST}, ORDER - 1);
  stage.expect_failed(ORDER - 1);
  CHECK_EQ(stage.out_bytes(), FRAME);
}

TEST(copying, an_order_is_answered_over_a_new_connection) {
  Copying stage;
  stage.begin({FIRST});
  stage.peer.drop();
  stage.peer.accept();
  stage.peer.welcome();
  stage.peer.state(3, true);
  stage.order({FIRST});
  stage.sync();
  stage.rig.device->let_copies_go();
  stage.expect_copied({4});
  CHECK_EQ(stage.out_bytes(), FRAME);
}

TEST(copying, one_order_at_a_time) {
  Copying stage;
  stage.begin({FIRST});
  stage.order({SECOND}, ORDER + 1);
  stage.expect_failed(ORDER + 1);
  stage.rig.device->let_copies_go();
  stage.expect_copied({4});
}

TEST(copying, a_free_in_mid_copy_waits_for_its_end) {
  Copying stage;
  stage.begin({FIRST});
  release(stage.rig.client, stage.pointer);
  CHECK(stage.peer.expect<record::Return>().slots == (std::vector<uint64_t>{5, 6}));
  CHECK(is_readable(stage.pointer));
  stage.rig.device->let_copies_go();
  stage.expect_copied({4});
  CHECK(stage.peer.expect<record::Return>().slots == std::vector<uint64_t>{4});
}

TEST(copying, an_arena_file_goes_when_it_is_copied_to_no_more) {
  Copying stage;
  stage.begin({FIRST});
  stage.peer.send(record::ArenaGone{70, 9});
  stage.sync();
  stage.rig.device->let_copies_go();
  stage.expect_copied({4});
  CHECK_EQ(stage.peer.expect<record::Taken>().batch, uint64_t{70});
}

// A piece is 32 MiB, so this slot takes two; what is recalled meanwhile goes between them.
TEST(copying, a_recall_goes_before_the_rest_of_a_copy) {
  constexpr uint64_t LARGE = 64 * MIB;
  Peer peer;
  Rig rig(peer);
  peer.lend(3, "weights", 1, {{4, LARGE}, {5}});
  char *pointer = nullptr;
  vrb_lease *lease = open_lease(rig.client, "weights");
  pointer = static_cast<char *>(allocate(lease, LARGE + FRAME));
  std::memset(pointer, 'a', LARGE + FRAME);
  const Fd &file = peer.arena(9, LARGE + FRAME);
  Background pausing([&] { CHECK_OK(peer::pause(rig.client, {"weights"})); });
  const auto asked = peer.expect<record::Pause>();
  peer.state(3, true);
  peer.done(asked.request);
  pausing.join();
  rig.device->hold_copies();
  peer.send(record::Copy{ORDER, 3, {{4, 9, 0}}});
  rig.device->wait_for_copy();
  peer.recall(3, {{5, SLOT_PARK, 9, LARGE}});
  peer.send(record::PauseOrder{99, {"none"}});
  peer.expect<record::Busy>();
  rig.device->let_one_copy_go();
  rig.device->wait_for_copy();
  rig.device->let_one_copy_go();
  CHECK(peer.expect<record::Left>().slots == std::vector<uint64_t>{5});
  rig.device->let_copies_go();
  CHECK(peer.expect<record::Copied>().slots == std::vector<uint64_t>{4});
  CHECK_EQ(read_file(file, 0, LARGE + FRAME), std::string(LARGE + FRAME, 'a'));
}
