// Frames that come and go under their addresses: recall, restore, what is freed meanwhile, and what fails.

#include <unistd.h>

#include <cstring>

#include "background.h"
#include "check.h"
#include "peer.h"
#include "stage.h"
#include "test_device.h"

using namespace peer;
using namespace vrb;

TEST(motion, contents_survive_a_recall) {
  Stage stage;
  stage.pause();
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}, {5, SLOT_PARK, 9, 3 * MIB}, {6, SLOT_PARK, 9, 8 * MIB}});
  stage.expect_left({4, 5, 6});
  CHECK(!is_readable(stage.pointer) && !is_readable(stage.pointer + 3 * FRAME - 1));
  CHECK_EQ(stats(stage.rig.client).mapped_bytes, uint64_t{0});
  CHECK_EQ(stats(stage.rig.client).copied_out_bytes, 3 * FRAME);
  CHECK_EQ(stats(stage.rig.client).allocated_bytes, 3 * FRAME);
  stage.peer.lend(3, "weights", 1, {{6, FRAME, SLOT_RESTORE | SLOT_DIRTY, 9, 8 * MIB}, {4, FRAME, SLOT_RESTORE, 9, 0}});
  stage.peer.lend(3, "weights", 1, {{5, FRAME, SLOT_RESTORE, 9, 3 * MIB}});
  stage.resumed();
  for (int i = 0; i < 3; ++i) {
    const std::size_t at = static_cast<std::size_t>(i) * FRAME;
    CHECK_EQ(text(stage.pointer + at, 2), std::string(2, static_cast<char>('a' + i)));
    CHECK(std::memcmp(stage.pointer + at, stage.pointer + at + 1, FRAME - 1) == 0);
  }
  CHECK_EQ(stats(stage.rig.client).copied_in_bytes, 3 * FRAME);
}

TEST(motion, a_recall_without_park_only_unmaps) {
  Stage stage(VRB_DROP);
  stage.pause();
  stage.peer.recall(3, {{5, 0, 0, 0}});
  stage.expect_left({5});
  CHECK(is_readable(stage.pointer) && !is_readable(stage.pointer + FRAME) && is_readable(stage.pointer + 2 * FRAME));
  CHECK_EQ(stats(stage.rig.client).copied_out_bytes, uint64_t{0});
  stage.peer.lend(3, "weights", 2, {{5}});
  CHECK(is_readable(stage.pointer + FRAME));
}

TEST(motion, memory_in_use_is_not_given_up) {
  Stage stage;
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}});
  const auto left = stage.peer.expect<record::Left>();
  CHECK(left.slots == std::vector<uint64_t>{4});
  CHECK(!left.failure.empty());
  CHECK_EQ(text(stage.pointer, 1), "a");
}

TEST(motion, orders_that_come_twice_are_answered_twice) {
  Stage stage;
  const std::size_t fds = count_fds();
  stage.peer.lend(3, "weights", 1, {{4}, {5}});
  CHECK_EQ(count_fds(), fds);
  CHECK_EQ(text(stage.pointer, 1), "a");
  stage.pause();
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}});
  stage.expect_left({4});
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}, {77, 0, 0, 0}});
  stage.expect_left({4, 77});
  stage.peer.recall(1234, {{1, 0, 0, 0}});
  stage.expect_left({1});
}

namespace {

// Whether this process could write to the byte at this address, and what is there stays.
bool is_writable(void *address) {
  int ends[2];
  CHECK(::pipe(ends) == 0);
  const Fd out(ends[0]), in(ends[1]);
  const char *const byte = static_cast<const char *>(address);
  return ::write(in.get(), byte, 1) == 1 && ::read(out.get(), address, 1) == 1;
}

void seal(Stage &stage, const std::string &refusal = "") {
  Background sealing([&] {
    const char *tags[] = {"weights"};
    const vrb_status status = vrb_seal(stage.rig.client, tags, 1, 5000, nullptr);
    CHECK_EQ(static_cast<int>(status), static_cast<int>(refusal.empty() ? VRB_OK : VRB_REFUSED));
  });
  const auto asked = stage.peer.expect<record::Seal>();
  CHECK(asked.tags == std::vector<std::string>{"weights"});
  // Before the daemon hears of it nobody can write any more.
  CHECK(!is_writable(stage.pointer) && !is_writable(stage.pointer + 3 * FRAME - 1));
  if (refusal.empty()) {
    stage.peer.done(asked.request);
  } else {
    stage.peer.error(asked.request, refusal, "no");
  }
  sealing.join();
}

void unseal(Stage &stage) {
  Background unsealing([&] {
    const char *tags[] = {"weights"};
    CHECK_EQ(static_cast<int>(vrb_unseal(stage.rig.client, tags, 1, 5000, nullptr)), static_cast<int>(VRB_OK));
  });
  const auto asked = stage.peer.expect<record::Unseal>();
  CHECK(!is_writable(stage.pointer));
  stage.peer.done(asked.request);
  unsealing.join();
}

bool is_sealed(Stage &stage) {
  int sealed = 0;
  CHECK_EQ(static_cast<int>(vrb_tag_sealed(stage.rig.client, "weights", &sealed, nullptr)), static_cast<int>(VRB_OK));
  return sealed != 0;
}

}  // namespace

TEST(motion, sealed_memory_is_read_only_until_the_daemon_has_heard_that_it_is_not) {
  Stage stage;
  CHECK(is_writable(stage.pointer));
  seal(stage);
  CHECK(is_sealed(stage));
  CHECK_EQ(text(stage.pointer, 1), "a");
  CHECK_STATUS(try_allocate(stage.lease, 1), VRB_WRONG_STATE);
  unseal(stage);
  CHECK(!is_sealed(stage) && is_writable(stage.pointer) && is_writable(stage.pointer + 3 * FRAME - 1));
}

TEST(motion, sealed_memory_comes_back_read_only_with_its_contents) {
  Stage stage;
  seal(stage);
  stage.pause();
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}, {5, SLOT_PARK, 9, 3 * MIB}});
  stage.expect_left({4, 5});
  for (int round = 0; round < 2; ++round) {
    stage.peer.lend(3, "weights", 1, {{4, FRAME, SLOT_RESTORE | SLOT_DIRTY, 9, 0}, {5, FRAME, SLOT_RESTORE, 9, 3 * MIB}});
    stage.resumed();
    for (int i = 0; i < 3; ++i) {
      char *const at = stage.pointer + static_cast<std::size_t>(i) * FRAME;
      CHECK_EQ(text(at, 1), std::string(1, static_cast<char>('a' + i)));
      CHECK(!is_writable(at));
    }
    stage.pause();
    stage.peer.recall(3, {{4, 0, 0, 0}, {5, 0, 0, 0}});
    stage.expect_left({4, 5});
  }
  CHECK_EQ(stats(stage.rig.client).copied_out_bytes, 2 * FRAME);
}

TEST(motion, what_arrives_in_mid_seal_is_protected_when_it_is_filled) {
  Stage stage;
  stage.pause();
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}});
  stage.expect_left({4});
  stage.rig.device->hold_copies();
  stage.peer.grant(3, "weights", 1, {{4, FRAME, SLOT_RESTORE, 9, 0}});
  stage.peer.expect<record::Taken>();
  stage.rig.device->wait_for_copy();
  Background sealing([&] {
    const char *tags[] = {"weights"};
    CHECK_EQ(static_cast<int>(vrb_seal(stage.rig.client, tags, 1, 5000, nullptr)), static_cast<int>(VRB_OK));
  });
  const auto asked = stage.peer.expect<record::Seal>();
  CHECK(is_writable(stage.pointer) && !is_writable(stage.pointer + FRAME));
  stage.peer.done(asked.request);
  sealing.join();
  stage.rig.device->let_copies_go();
  CHECK(stage.peer.expect<record::Arrived>().slots == std::vector<uint64_t>{4});
  CHECK(!is_writable(stage.pointer));
  CHECK_EQ(text(stage.pointer, 1), "a");
}

TEST(motion, a_seal_that_is_refused_leaves_the_memory_writable) {
  Stage stage;
  seal(stage, "WrongState");
  CHECK(!is_sealed(stage) && is_writable(stage.pointer));
}

TEST(motion, a_seal_without_an_answer_leaves_the_memory_read_only) {
  Stage stage;
  const char *tags[] = {"weights"};
  Background sealing([&] {
    CHECK_EQ(static_cast<int>(vrb_seal(stage.rig.client, tags, 1, 1, nullptr)), static_cast<int>(VRB_REFUSED));
  });
  stage.peer.expect<record::Seal>();
  sealing.join();
  CHECK(is_sealed(stage) && !is_writable(stage.pointer));
  unseal(stage);
  CHECK(is_writable(stage.pointer));
}

TEST(motion, what_cannot_be_protected_is_not_sealed) {
  Stage stage;
  const char *tags[] = {"weights"};
  stage.rig.device->protects_until_failure = 0;
  CHECK_EQ(static_cast<int>(vrb_seal(stage.rig.client, tags, 1, 5000, nullptr)), static_cast<int>(VRB_DEVICE));
  CHECK(!is_sealed(stage) && is_writable(stage.pointer));
}

TEST(motion, an_arrival_that_cannot_be_protected_has_failed) {
  Stage stage;
  seal(stage);
  stage.pause();
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}});
  stage.expect_left({4});
  stage.rig.device->protects_until_failure = 0;
  stage.peer.grant(3, "weights", 1, {{4, FRAME, SLOT_RESTORE, 9, 0}});
  stage.peer.expect<record::Taken>();
  const auto arrived = stage.peer.expect<record::Arrived>();
  CHECK(arrived.slots == std::vector<uint64_t>{4} && !arrived.failure.empty());
  CHECK(!is_readable(stage.pointer));
}

TEST(motion, what_is_not_kept_or_in_use_or_unknown_is_not_sealed) {
  Stage stage(VRB_DROP);
  const char *tags[] = {"weights"};
  const char *nothing[] = {"nothing"};
  CHECK_EQ(static_cast<int>(vrb_seal(stage.rig.client, tags, 1, 5000, nullptr)), static_cast<int>(VRB_INVALID));
  CHECK_EQ(static_cast<int>(vrb_seal(stage.rig.client, nothing, 1, 5000, nullptr)), static_cast<int>(VRB_UNKNOWN_TAG));
  CHECK_EQ(static_cast<int>(vrb_unseal(stage.rig.client, nothing, 1, 5000, nullptr)), static_cast<int>(VRB_UNKNOWN_TAG));
  Stage kept;
  CHECK_OK(enter(kept.rig.client, {"weights"}, "step"));
  CHECK_EQ(static_cast<int>(vrb_seal(kept.rig.client, tags, 1, 5000, nullptr)), static_cast<int>(VRB_NOT_QUIESCENT));
  CHECK_OK(exit(kept.rig.client, {"weights"}, "step"));
  CHECK(is_writable(kept.pointer));
}

namespace {

// The head of a DLManagedTensor (0.x), and its deleter.
struct Managed {
  const char *data;
  char between[48];
  void (*deleter)(Managed *);
};

Managed *parked(const Stage &stage, const char *pointer, std::size_t size) {
  void *managed = nullptr;
  return vrb_parked_tensor(stage.rig.client, pointer, size, 5000, &managed, nullptr) == VRB_OK ? static_cast<Managed *>(managed)
                                                                                             : nullptr;
}

}  // namespace

TEST(motion, what_is_parked_is_read_in_one_piece_and_keeps_its_file) {
  Stage stage;
  CHECK(parked(stage, stage.pointer, 10) == nullptr);
  stage.pause();
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}, {5, SLOT_PARK, 9, 3 * MIB}});
  stage.expect_left({4, 5});
  CHECK(parked(stage, stage.pointer + FRAME, FRAME + 1) == nullptr);
  stage.peer.recall(3, {{6, SLOT_PARK, 9, 8 * MIB}});
  stage.expect_left({6});
  vrb_place place{};
  CHECK(vrb_find(stage.rig.client, stage.pointer + FRAME, 2 * FRAME, &place, nullptr) == VRB_OK);
  CHECK(std::string(place.tag) == "weights" && place.contents == VRB_KEEP && place.paused == 1);
  CHECK(vrb_find(stage.rig.client, stage.pointer + FRAME, 2 * FRAME + 1, &place, nullptr) == VRB_INVALID);
  CHECK(vrb_find(stage.rig.client, stage.pointer + 3 * FRAME, 1, &place, nullptr) == VRB_INVALID);
  Managed *all = parked(stage, stage.pointer + 100, 3 * FRAME - 100);
  CHECK(all != nullptr && !is_writable(const_cast<char *>(all->data)));
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK_EQ(text(all->data + i * FRAME, 2), std::string(2, static_cast<char>('a' + i)));
    CHECK_EQ(text(all->data + (i + 1) * FRAME - 102, 2), std::string(2, static_cast<char>('a' + i)));
  }
  stage.peer.send(record::ArenaGone{1, 9});
  stage.is_silent();
  all->deleter(all);
  CHECK_EQ(stage.peer.expect<record::Taken>().batch, uint64_t{1});
}

TEST(motion, what_is_parked_is_read_from_the_middle_and_only_while_it_is_parked) {
  Stage stage;
  std::memcpy(stage.pointer + FRAME + 8192, "here", 4);
  stage.pause();
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}, {5, SLOT_PARK, 9, 3 * MIB}, {6, SLOT_PARK, 9, 8 * MIB}});
  stage.expect_left({4, 5, 6});
  Managed *part = parked(stage, stage.pointer + FRAME + 8192, FRAME);
  CHECK(part != nullptr);
  CHECK_EQ(text(part->data, 5), "hereb");
  part->deleter(part);
  stage.peer.lend(3, "weights", 1, {{4, FRAME, SLOT_RESTORE, 9, 0}});
  stage.peer.lend(3, "weights", 1, {{5, FRAME, SLOT_RESTORE, 9, 3 * MIB}, {6, FRAME, SLOT_RESTORE, 9, 8 * MIB}});
  stage.resumed();
  CHECK(parked(stage, stage.pointer, 1) == nullptr);
  // Idle: what was parked once may be another's by now.
  stage.pause();
  CHECK(parked(stage, stage.pointer, 1) == nullptr);
}

TEST(motion, what_was_copied_ahead_is_read_from_there) {
  Stage stage;
  stage.pause();
  stage.peer.send(record::Copy{31, 3, {{4, 9, 0}, {5, 9, 3 * MIB}, {6, 9, 8 * MIB}}});
  CHECK_EQ(stage.peer.expect<record::Copied>().slots.size(), std::size_t{3});
  CHECK(parked(stage, stage.pointer, 1) == nullptr);
  stage.peer.recall(3, {{4, 0, 0, 0}, {5, 0, 0, 0}, {6, 0, 0, 0}});
  stage.expect_left({4, 5, 6});
  Managed *all = parked(stage, stage.pointer, 3 * FRAME);
  CHECK(all != nullptr);
  CHECK_EQ(text(all->data, 1) + text(all->data + FRAME, 1) + text(all->data + 3 * FRAME - 1, 1), "abc");
  all->deleter(all);
}

TEST(motion, a_free_in_mid_recall_waits_for_its_end) {
  Stage stage;
  stage.pause();
  stage.rig.device->hold_copies();
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}, {5, 0, 0, 0}});
  stage.rig.device->wait_for_copy();
  release(stage.rig.client, stage.pointer);
  // 5 and 6 are free and at rest; 4 is being copied out, and goes only when that is over.
  stage.expect_left({5});
  CHECK(stage.peer.expect<record::Return>().slots == (std::vector<uint64_t>{5, 6}));
  CHECK(is_readable(stage.pointer));
  stage.rig.device->let_copies_go();
  stage.expect_left({4});
  CHECK(stage.peer.expect<record::Return>().slots == std::vector<uint64_t>{4});
  CHECK_EQ(stats(stage.rig.client).mapped_bytes, uint64_t{0});
}

TEST(motion, a_recall_in_mid_arrival_waits_for_its_end) {
  Stage stage;
  stage.pause();
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}});
  stage.expect_left({4});
  stage.rig.device->hold_copies();
  const uint64_t batch = stage.peer.grant(3, "weights", 1, {{4, FRAME, SLOT_RESTORE, 9, 0}});
  CHECK_EQ(stage.peer.expect<record::Taken>().batch, batch);
  stage.rig.device->wait_for_copy();
  stage.peer.recall(3, {{4, 0, 0, 0}});
  stage.peer.send(record::PauseOrder{99, {"none"}});
  stage.peer.expect<record::Busy>();
  stage.rig.device->let_copies_go();
  CHECK_EQ(stage.peer.expect<record::Arrived>().slots.front(), uint64_t{4});
  stage.expect_left({4});
  CHECK(!is_readable(stage.pointer));
}

TEST(motion, what_is_parked_is_returned_without_coming_back) {
  Stage stage;
  stage.pause();
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}, {5, SLOT_PARK, 9, FRAME}, {6, SLOT_PARK, 9, 2 * FRAME}});
  stage.expect_left({4, 5, 6});
  release(stage.rig.client, stage.pointer);
  CHECK_EQ(stage.peer.expect<record::Return>().slots.size(), std::size_t{3});
  // A grant that crossed with the return: refused, its fd closed.
  const std::size_t fds = count_fds();
  stage.peer.grant(3, "weights", 1, {{4, FRAME, SLOT_RESTORE, 9, 0}});
  stage.peer.expect<record::Taken>();
  CHECK(!stage.peer.expect<record::Arrived>().failure.empty());
  CHECK_EQ(count_fds(), fds);
  CHECK_EQ(stats(stage.rig.client).mapped_bytes, uint64_t{0});
}

TEST(motion, a_batch_that_cannot_be_mapped_is_undone) {
  Stage stage;
  stage.pause();
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}, {5, SLOT_PARK, 9, FRAME}});
  stage.expect_left({4, 5});
  const std::size_t fds = count_fds();
  stage.rig.device->maps_until_failure = 1;
  stage.peer.grant(3, "weights", 1, {{4, FRAME, SLOT_RESTORE, 9, 0}, {5, FRAME, SLOT_RESTORE, 9, FRAME}});
  stage.peer.expect<record::Taken>();
  const auto arrived = stage.peer.expect<record::Arrived>();
  CHECK(arrived.slots == (std::vector<uint64_t>{4, 5}));
  CHECK_EQ(arrived.failure, "mmap: it was told to fail");
  CHECK(!is_readable(stage.pointer) && !is_readable(stage.pointer + FRAME));
  CHECK_EQ(count_fds(), fds);
  // And again, with success.
  stage.peer.lend(3, "weights", 1, {{4, FRAME, SLOT_RESTORE, 9, 0}, {5, FRAME, SLOT_RESTORE, 9, FRAME}});
  CHECK_EQ(text(stage.pointer, 1) + text(stage.pointer + FRAME, 1), "ab");
}

TEST(motion, a_growth_that_cannot_be_mapped_is_refused_and_forgotten) {
  Stage stage;
  stage.rig.device->maps_until_failure = 0;
  Background growing([&] { CHECK_STATUS(try_allocate(stage.lease, FRAME), VRB_REFUSED); });
  const auto asked = stage.peer.expect<record::Lease>();
  stage.peer.grant(3, "weights", 1, {{7}});
  stage.peer.expect<record::Taken>();
  CHECK(!stage.peer.expect<record::Arrived>().failure.empty());
  stage.peer.error(asked.request, "DriverFailed", "the client's kernel said no");
  growing.join();
  Background again([&] { allocate(stage.lease, FRAME); });
  stage.peer.serve_lease(3, {{8}});
  again.join();
}

TEST(motion, what_cannot_leave_stays) {
  Stage stage;
  stage.pause();
  stage.peer.recall(3, {{4, SLOT_PARK, 8, 0}});
  CHECK(!stage.peer.expect<record::Left>().failure.empty());
  stage.peer.recall(3, {{4, SLOT_PARK, 9, ARENA - MIB}});
  CHECK(!stage.peer.expect<record::Left>().failure.empty());
  stage.rig.device->copy_fails = true;
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}});
  CHECK_EQ(stage.peer.expect<record::Left>().failure, "memcpy: it was told to fail");
  stage.rig.device->copy_fails = false;
  stage.rig.device->unmap_fails = true;
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}, {5, 0, 0, 0}});
  for (int i = 0; i < 2; ++i) CHECK_EQ(stage.peer.expect<record::Left>().failure, "munmap: it was told to fail");
  CHECK_EQ(text(stage.pointer, 1) + text(stage.pointer + FRAME, 1), "ab");
  stage.rig.device->unmap_fails = false;
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}});
  stage.expect_left({4});
}

TEST(motion, a_restore_that_fails_is_undone) {
  Stage stage;
  stage.pause();
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}});
  stage.expect_left({4});
  stage.rig.device->copy_fails = true;
  stage.peer.grant(3, "weights", 1, {{4, FRAME, SLOT_RESTORE, 9, 0}});
  stage.peer.expect<record::Taken>();
  CHECK(!stage.peer.expect<record::Arrived>().failure.empty());
  CHECK(!is_readable(stage.pointer));
  stage.rig.device->copy_fails = false;
  stage.peer.grant(3, "weights", 1, {{4, FRAME, SLOT_RESTORE, 8, 0}});
  stage.peer.expect<record::Taken>();
  CHECK(!stage.peer.expect<record::Arrived>().failure.empty());
  stage.peer.lend(3, "weights", 1, {{4, FRAME, SLOT_RESTORE, 9, 0}});
  CHECK_EQ(text(stage.pointer, 1), "a");
}

TEST(motion, zero_means_zero_on_dirty_frames_and_on_pages_that_stayed) {
  Stage stage(VRB_ZERO);
  stage.pause();
  stage.peer.recall(3, {{4, 0, 0, 0}});
  stage.expect_left({4});
  stage.rig.device->hold_copies();
  const std::string dirt(FRAME, 'x');
  // As a frame looks that another session has written to.
  Fd dirty = make_file(FRAME);
  write_file(dirty, 0, dirt);
  stage.peer.send(record::Grant{50, 3, 3, "weights", {{4, FRAME, SLOT_DIRTY, 0, 0}}}, {dirty.get()});
  stage.peer.expect<record::Taken>();
  stage.rig.device->wait_for_copy();
  stage.rig.device->let_copies_go();
  CHECK_EQ(stage.peer.expect<record::Arrived>().slots.front(), uint64_t{4});
  Background resuming([&] { CHECK_OK(resume(stage.rig.client, {"weights"})); });
  const auto asked = stage.peer.expect<record::Resume>();
  stage.peer.state(3, false);
  stage.peer.done(asked.request, 0, {{3, 0, "weights"}});
  resuming.join();
  CHECK(!is_paused(stage.rig.client, "weights"));
  const std::string zeroes(3 * FRAME, '\0');
  CHECK(std::memcmp(stage.pointer, zeroes.data(), zeroes.size()) == 0);
}

TEST(motion, kept_contents_that_were_discarded_come_back_as_zero) {
  Stage stage;
  stage.pause();
  stage.peer.send(record::Recall{3, {{4, 0, 0, 0}}});
  stage.expect_left({4});
  const std::string dirt(FRAME, 'x');
  Fd dirty = make_file(FRAME);
  write_file(dirty, 0, dirt);
  stage.peer.send(record::Grant{50, 3, VRB_KEEP, "weights", {{4, FRAME, SLOT_DIRTY, 0, 0}}}, {dirty.get()});
  stage.peer.expect<record::Taken>();
  stage.peer.expect<record::Arrived>();
  stage.resumed();
  CHECK_EQ(text(stage.pointer, FRAME), std::string(FRAME, '\0'));
  CHECK_EQ(text(stage.pointer + FRAME, FRAME), std::string(FRAME, 'b'));
}

TEST(motion, a_resume_is_over_only_when_all_is_zero) {
  Stage stage(VRB_ZERO);
  stage.pause();
  stage.rig.device->hold_copies();
  Background resuming([&] { CHECK_OK(resume(stage.rig.client, {"weights"})); });
  const auto asked = stage.peer.expect<record::Resume>();
  stage.peer.state(3, false);
  stage.peer.done(asked.request, 0, {{3, 1, "weights"}});
  stage.rig.device->wait_for_copy();
  CHECK(is_paused(stage.rig.client, "weights"));
  CHECK_STATUS(enter(stage.rig.client, {"weights"}, "early"), VRB_WRONG_STATE);
  // Paused again and recalled while it is being zeroed.
  stage.peer.state(3, true);
  stage.peer.recall(3, {{4, 0, 0, 0}});
  stage.peer.send(record::PauseOrder{99, {"none"}});
  stage.peer.expect<record::Busy>();
  stage.rig.device->let_copies_go();
  stage.expect_left({4});
  resuming.join();
  CHECK(is_paused(stage.rig.client, "weights"));
}

TEST(motion, an_arena_file_goes_when_its_copies_are_done) {
  Stage stage;
  stage.pause();
  stage.rig.device->hold_copies();
  stage.peer.recall(3, {{4, SLOT_PARK, 9, 0}});
  stage.rig.device->wait_for_copy();
  stage.peer.send(record::ArenaGone{70, 9});
  stage.peer.send(record::ArenaGone{71, 8});
  CHECK_EQ(stage.peer.expect<record::Taken>().batch, uint64_t{71});
  stage.rig.device->let_copies_go();
  stage.expect_left({4});
  CHECK_EQ(stage.peer.expect<record::Taken>().batch, uint64_t{70});
  stage.peer.recall(3, {{5, SLOT_PARK, 9, 0}});
  CHECK(!stage.peer.expect<record::Left>().failure.empty());
}

TEST(motion, an_unasked_grant_makes_its_range) {
  Peer peer;
  Rig rig(peer);
  peer.lend(3, "claimed", 2, {{4}, {5, LARGE_FRAME}});
  CHECK(!is_paused(rig.client, "claimed"));
  CHECK_EQ(stats(rig.client).mapped_bytes, FRAME + LARGE_FRAME);
  void *pointer = allocate(open_lease(rig.client, "claimed", VRB_DROP), 5 * FRAME);
  std::memset(pointer, 1, 5 * FRAME);
  release(rig.client, pointer);
  CHECK(peer.expect<record::Return>().slots == (std::vector<uint64_t>{4, 5}));
}
