// What is sent and received: others' frames mapped beside one's own, kept as long as they are in use, and let go of on order.

#include <unistd.h>

#include <cstring>

#include "background.h"
#include "check.h"
#include "peer.h"
#include "stage.h"
#include "test_device.h"

using namespace peer;
using namespace vrb;

namespace {

constexpr Token KEY{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
constexpr uint64_t LEASE = 70;
constexpr uint64_t READER = 41;
// Where the sender has what it sends: in the middle of its range.
constexpr uint64_t AT = 5 * FRAME;

// Whether this process could write to this address; asks the kernel, so a fault is an answer.
bool is_writable(void *address) {
  const Fd file = make_file(FRAME);
  return ::pread(file.get(), address, 1, 0) == 1;
}

struct Got {
  vrb_status status;
  vrb_received received;
  vrb_error error;
};

Got receive(vrb_client *client, uint64_t offset, std::size_t size, uint32_t timeout_ms = 5000) {
  Got got{};
  got.status = vrb_receive(client, KEY.data(), offset, size, timeout_ms, &got.received, &got.error);
  return got;
}

char *address_of(const Got &got) { return static_cast<char *>(got.received.address); }

// A client, and the frames of somebody else's lease: slots 7 and 8, side by side.
struct Sharing {
  Sharing() : rig(peer) {
    for (int i = 0; i < 2; ++i) frames.push_back(make_file(FRAME));
    write_file(frames[0], 0, "the first");
    write_file(frames[1], 0, "the second");
  }

  void grant(const std::vector<SharedSlot> &slots, uint8_t writable = 1, uint64_t reader = READER) {
    std::vector<int> fds;
    for (const SharedSlot &slot : slots) fds.push_back(frames[slot.slot - 7].get());
    peer.send(record::ReadGrant{++batch, reader, writable, LEASE, slots}, fds);
    CHECK_EQ(peer.expect<record::Taken>().batch, batch);
  }

  void done(uint64_t request, uint64_t reader = READER) { peer.send(record::Done{request, LEASE, reader, 0, {}}); }

  // Receives both frames as one piece, or what they are said to be.
  Got receive_both(uint8_t writable = 1, std::vector<SharedSlot> slots = {{7, AT, FRAME}, {8, AT + FRAME, FRAME}}) {
    Got got{};
    Background receiving([&] { got = receive(rig.client, AT, 2 * FRAME); });
    const auto asked = peer.expect<record::Read>();
    CHECK(asked.key == KEY);
    if (!slots.empty()) grant(slots, writable);
    done(asked.request);
    receiving.join();
    return got;
  }

  // Ends the use of what was received, and sees the daemon told.
  void end(const Got &got) {
    CHECK(vrb_end_read(rig.client, got.received.number, nullptr) == VRB_OK);
    const auto ended = peer.expect<record::EndRead>();
    CHECK_EQ(ended.read, got.received.number);
    peer.send(record::Done{ended.request, 0, 0, 0, {}});
  }

  void is_silent() {
    peer.send(record::PauseOrder{98, {"none"}});
    peer.expect<record::Busy>();
  }

  Peer peer;
  Rig rig;
  std::vector<Fd> frames;
  uint64_t batch = 100;
};

}  // namespace

TEST(sharing, what_is_received_is_the_senders_own_frames) {
  Sharing world;
  const Got got = world.receive_both();
  CHECK_EQ(static_cast<int>(got.status), static_cast<int>(VRB_OK));
  CHECK_EQ(got.received.own, 0U);
  CHECK_EQ(got.received.writable, 1U);
  CHECK_EQ(text(address_of(got), 9), "the first");
  CHECK_EQ(text(address_of(got) + FRAME, 10), "the second");
  std::strcpy(address_of(got) + FRAME, "written here");
  CHECK_EQ(read_file(world.frames[1], 0, 12), "written here");
}

TEST(sharing, what_is_received_to_be_read_can_not_be_written_to) {
  Sharing world;
  const Got got = world.receive_both(0);
  CHECK_EQ(got.received.writable, 0U);
  CHECK_EQ(text(address_of(got), 9), "the first");
  CHECK(!is_writable(address_of(got)));
}

TEST(sharing, receiving_again_needs_no_frames) {
  Sharing world;
  const Got first = world.receive_both();
  world.end(first);
  const std::size_t fds = count_fds();
  for (int i = 0; i < 50; ++i) {
    const Got again = world.receive_both(1, {});
    CHECK(again.received.address == first.received.address);
    world.end(again);
  }
  CHECK_EQ(count_fds(), fds);
}

TEST(sharing, what_is_not_in_use_is_let_go_of_at_once) {
  Sharing world;
  const Got got = world.receive_both();
  world.end(got);
  CHECK(is_readable(address_of(got)));
  world.peer.send(record::CloseReader{READER});
  CHECK_EQ(world.peer.expect<record::ReaderClosed>().reader, READER);
  CHECK(!is_readable(address_of(got)));
}

TEST(sharing, what_is_in_use_is_let_go_of_when_it_is_not_any_more) {
  Sharing world;
  const Got first = world.receive_both();
  const Got second = world.receive_both(1, {});
  world.peer.send(record::CloseReader{READER});
  world.is_silent();
  world.end(first);
  world.is_silent();
  CHECK_EQ(text(address_of(second), 9), "the first");
  world.end(second);
  CHECK_EQ(world.peer.expect<record::ReaderClosed>().reader, READER);
  CHECK(!is_readable(address_of(first)));
}

// The answer to a READ may be on its way when the order comes that was given after it.
TEST(sharing, nothing_is_let_go_of_while_a_read_is_asked_for) {
  Sharing world;
  Got got{};
  Background receiving([&] { got = receive(world.rig.client, AT, FRAME); });
  const auto asked = world.peer.expect<record::Read>();
  world.grant({{7, AT, FRAME}});
  world.peer.send(record::CloseReader{READER});
  world.is_silent();
  world.done(asked.request);
  receiving.join();
  CHECK_EQ(static_cast<int>(got.status), static_cast<int>(VRB_OK));
  CHECK_EQ(text(address_of(got), 9), "the first");
  world.end(got);
  world.peer.expect<record::ReaderClosed>();
}

TEST(sharing, a_reader_that_is_not_known_is_closed) {
  Sharing world;
  world.peer.send(record::CloseReader{77});
  CHECK_EQ(world.peer.expect<record::ReaderClosed>().reader, uint64_t{77});
  // What still comes for it, after a reconnect, is given back.
  const std::size_t fds = count_fds();
  world.peer.send(record::ReadGrant{5, 77, 1, LEASE, {{7, 0, FRAME}}}, {world.frames[0].get()});
  CHECK_EQ(world.peer.expect<record::ReaderClosed>().reader, uint64_t{77});
  CHECK_EQ(world.peer.expect<record::Taken>().batch, uint64_t{5});
  CHECK_EQ(count_fds(), fds);
}

TEST(sharing, what_its_sender_describes_wrongly_is_left_out) {
  const std::vector<std::vector<SharedSlot>> wrong = {
      {{7, AT, FRAME}, {8, AT, FRAME}},                              // one upon the other
      {{7, AT, FRAME}, {8, AT + FRAME / 2, FRAME}},                  // not where a frame can be
      {{7, AT, FRAME}, {8, uint64_t{1} << 62, FRAME}},               // beyond all addresses
      {{7, AT, FRAME}, {8, ~uint64_t{0} / FRAME * FRAME, FRAME}},    // whose end is before its beginning
      {{7, AT, FRAME}, {8, AT + FRAME, 2 * FRAME}},                  // longer than the frame is
      {{7, AT, FRAME}, {8, AT + 2 * FRAME, FRAME}},                  // with a hole between
  };
  for (const auto &slots : wrong) {
    Sharing world;
    const std::size_t fds = count_fds();
    const Got got = world.receive_both(1, slots);
    CHECK_EQ(static_cast<int>(got.status), static_cast<int>(VRB_DEVICE));
    world.peer.expect<record::EndRead>();
    CHECK_EQ(count_fds(), fds);
    world.peer.send(record::CloseReader{READER});
    world.peer.expect<record::ReaderClosed>();
  }
}

TEST(sharing, what_would_lie_upon_another_behind_it_is_left_out) {
  Sharing world;
  world.frames[0] = make_file(2 * FRAME);
  const Got got = world.receive_both(1, {{8, AT + FRAME, FRAME}, {7, AT, 2 * FRAME}});
  CHECK_EQ(static_cast<int>(got.status), static_cast<int>(VRB_DEVICE));
  world.peer.expect<record::EndRead>();
}

TEST(sharing, what_can_not_be_mapped_is_ended_and_said) {
  Sharing world;
  world.rig.device->maps_until_failure = 1;
  const Got got = world.receive_both();
  CHECK_EQ(static_cast<int>(got.status), static_cast<int>(VRB_DEVICE));
  CHECK(std::string(got.error.message).find("told to fail") != std::string::npos);
  world.peer.expect<record::EndRead>();
}

TEST(sharing, what_can_not_be_made_read_only_is_not_handed_out) {
  Sharing world;
  world.rig.device->protects_until_failure = 1;
  const Got got = world.receive_both(0);
  CHECK_EQ(static_cast<int>(got.status), static_cast<int>(VRB_DEVICE));
  world.peer.expect<record::EndRead>();
}

TEST(sharing, a_read_that_is_refused_never_began) {
  Sharing world;
  Got got{};
  Background receiving([&] { got = receive(world.rig.client, AT, FRAME); });
  world.peer.error(world.peer.expect<record::Read>().request, "WrongState", "it is paused");
  receiving.join();
  CHECK_EQ(static_cast<int>(got.status), static_cast<int>(VRB_REFUSED));
  world.is_silent();
}

TEST(sharing, the_end_of_a_read_is_said_until_it_is_heard) {
  Sharing world;
  const Got got = world.receive_both();
  CHECK(vrb_end_read(world.rig.client, got.received.number, nullptr) == VRB_OK);
  const auto first = world.peer.expect<record::EndRead>();
  world.peer.drop();
  world.peer.accept();
  world.peer.welcome();
  const auto again = world.peer.expect<record::EndRead>();
  CHECK_EQ(again.request, first.request);
  CHECK_EQ(again.read, got.received.number);
}

TEST(sharing, what_is_received_outlives_a_lost_connection) {
  Sharing world;
  const Got got = world.receive_both();
  world.peer.drop();
  world.peer.accept();
  world.peer.welcome();
  world.grant({{7, AT, FRAME}, {8, AT + FRAME, FRAME}});
  CHECK_EQ(text(address_of(got), 9), "the first");
  world.end(got);
}

TEST(sharing, a_client_says_goodbye_when_nothing_received_is_in_use) {
  Sharing world;
  const Got got = world.receive_both();
  Background closing([&] { CHECK(vrb_close(world.rig.client, nullptr) == VRB_OK); });
  world.is_silent();
  CHECK(is_readable(address_of(got)));
  world.end(got);
  world.peer.expect<record::ReaderClosed>();
  world.peer.done(world.peer.expect<record::Bye>().request);
  closing.join();
  CHECK(!is_readable(address_of(got)));
}

TEST(sharing, what_is_sent_names_its_slots_and_where_they_are) {
  Stage stage;
  vrb_export sent{};
  Background sending([&] {
    CHECK(vrb_send(stage.rig.client, stage.pointer + FRAME + 5, FRAME, 0, 5000, &sent, nullptr) == VRB_OK);
  });
  const auto asked = stage.peer.expect<record::Export>();
  stage.peer.done(asked.request);
  sending.join();
  CHECK_EQ(asked.lease, uint64_t{3});
  CHECK_EQ(+asked.flags, 0);
  CHECK_EQ(asked.slots.size(), std::size_t{2});
  CHECK_EQ(asked.slots[0].slot, uint64_t{5});
  CHECK_EQ(asked.slots[1].slot, uint64_t{6});
  CHECK_EQ(asked.slots[1].offset_bytes - asked.slots[0].offset_bytes, FRAME);
  CHECK_EQ(sent.offset_bytes, asked.slots[0].offset_bytes + 5);
  CHECK(std::memcmp(sent.key, asked.key.data(), sizeof sent.key) == 0);
  CHECK(asked.key != Token{});
}

TEST(sharing, what_is_sealed_is_sent_read_only) {
  Stage stage;
  const char *const tag = "weights";
  Background sealing([&] { CHECK(vrb_seal(stage.rig.client, &tag, 1, 5000, nullptr) == VRB_OK); });
  stage.peer.done(stage.peer.expect<record::Seal>().request);
  sealing.join();
  vrb_export sent{};
  Background sending([&] { CHECK(vrb_send(stage.rig.client, stage.pointer, 1, 0, 5000, &sent, nullptr) == VRB_OK); });
  const auto asked = stage.peer.expect<record::Export>();
  stage.peer.done(asked.request);
  sending.join();
  CHECK_EQ(+asked.flags, +EXPORT_READ_ONLY);
  CHECK_EQ(sent.read_only, 1U);
}

TEST(sharing, what_was_received_can_be_passed_on) {
  Sharing world;
  const Got got = world.receive_both(0);
  vrb_export sent{};
  Background sending([&] {
    CHECK(vrb_send(world.rig.client, address_of(got) + FRAME, 100, 0, 5000, &sent, nullptr) == VRB_OK);
  });
  const auto asked = world.peer.expect<record::Export>();
  world.peer.done(asked.request);
  sending.join();
  CHECK_EQ(asked.lease, LEASE);
  CHECK_EQ(+asked.flags, +EXPORT_READ_ONLY);
  CHECK_EQ(asked.slots.size(), std::size_t{1});
  CHECK_EQ(asked.slots[0].slot, uint64_t{8});
  CHECK_EQ(asked.slots[0].offset_bytes, AT + FRAME);
  CHECK_EQ(sent.offset_bytes, AT + FRAME);
}

TEST(sharing, what_is_neither_leased_nor_received_is_not_sent) {
  Stage stage;
  vrb_export sent{};
  int other = 0;
  for (const void *pointer : {static_cast<const void *>(&other), static_cast<const void *>(stage.pointer + 3 * FRAME)}) {
    CHECK(vrb_send(stage.rig.client, pointer, 4, 0, 5000, &sent, nullptr) == VRB_INVALID);
  }
  CHECK(vrb_send(stage.rig.client, stage.pointer, 0, 0, 5000, &sent, nullptr) == VRB_INVALID);
  CHECK(vrb_send(stage.rig.client, stage.pointer, 1, 0, 5000, nullptr, nullptr) == VRB_INVALID);
  stage.is_silent();
}

TEST(sharing, what_comes_back_to_its_owner_is_its_own) {
  Stage stage;
  vrb_export sent{};
  Background sending([&] { CHECK(vrb_send(stage.rig.client, stage.pointer, FRAME, 0, 5000, &sent, nullptr) == VRB_OK); });
  stage.peer.done(stage.peer.expect<record::Export>().request);
  sending.join();
  Got got{};
  Background receiving([&] { got = receive(stage.rig.client, sent.offset_bytes, FRAME); });
  stage.peer.done(stage.peer.expect<record::Read>().request, 3);
  receiving.join();
  CHECK_EQ(got.received.own, 1U);
  CHECK(got.received.address == stage.pointer);
  CHECK(vrb_end_read(stage.rig.client, got.received.number, nullptr) == VRB_OK);
  stage.peer.expect<record::EndRead>();
}

TEST(sharing, what_is_settled_is_told_once) {
  Sharing world;
  Token other = KEY;
  other[0] = 99;
  world.peer.send(record::ExportSettled{KEY});
  world.peer.send(record::ExportSettled{other});
  world.is_silent();
  uint8_t keys[1][16];
  uint32_t count = 0;
  for (const Token &wanted : {KEY, other}) {
    CHECK(vrb_take_settled(world.rig.client, keys, 1, &count, nullptr) == VRB_OK);
    CHECK_EQ(count, 1U);
    CHECK(std::memcmp(keys[0], wanted.data(), wanted.size()) == 0);
  }
  CHECK(vrb_take_settled(world.rig.client, keys, 1, &count, nullptr) == VRB_OK);
  CHECK_EQ(count, 0U);
}

TEST(sharing, work_on_the_device_is_waited_for_before_a_read_ends) {
  Sharing world;
  const Got got = world.receive_both();
  const int before = world.rig.device->stream_waits;
  world.rig.device->capturing = true;
  CHECK(vrb_end_read(world.rig.client, got.received.number, nullptr) == VRB_OK);
  CHECK_EQ(world.rig.device->stream_waits - before, 1);
  // A capture puts it off, until the next has ended.
  world.is_silent();
  const Got second = world.receive_both(1, {});
  world.rig.device->capturing = false;
  CHECK(vrb_end_read(world.rig.client, second.received.number, nullptr) == VRB_OK);
  CHECK_EQ(world.peer.expect<record::EndRead>().read, got.received.number);
  CHECK_EQ(world.peer.expect<record::EndRead>().read, second.received.number);
}
