// The session and its process: connections lost and renewed, packets that are none, closing, and forks.

#include <sys/wait.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "background.h"
#include "check.h"
#include "peer.h"

using namespace peer;
using namespace vrb;

namespace {

// Takes the reconnect of a client whose connection is gone.
void reattach(Peer &peer, uint64_t session = 1) {
  const auto hello = peer.accept();
  CHECK_EQ(+hello.token[0], static_cast<int>(session));
  CHECK_EQ(+hello.token[15], 0x5a);
  peer.welcome(session);
}

struct Grown {
  explicit Grown(Peer &peer) : client(attach(peer)), lease(open_lease(client, "weights")) {
    Background growing([&] { pointer = static_cast<char *>(allocate(lease, 1000)); });
    peer.serve_lease(3, {{4}});
    growing.join();
    std::strcpy(pointer, "here");
  }
  vrb_client *client;
  vrb_lease *lease;
  char *pointer = nullptr;
};

// Makes the client give its daemon up: one that was started again knows no session.
void lose(Peer &peer, vrb_lease *lease) {
  Background asking([&] { CHECK_STATUS(try_allocate(lease, FRAME), VRB_LOST); });
  peer.expect<record::Lease>();
  peer.drop();
  peer.accept();
  peer.refuse("UnknownSession", "never heard of it");
  asking.join();
}

std::size_t count_threads() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto &entry : std::filesystem::directory_iterator("/proc/self/task")) ++count;
  return count;
}

// Returns how many threads there are once there are no more than so many: one that has done its work takes a moment to go.
// With 0, once their number has not changed for a while.
std::size_t settled_threads(std::size_t at_most) {
  std::size_t last = count_threads();
  for (int same = 0; same < 20'000 && last > at_most; ++same) {
    std::this_thread::yield();
    const std::size_t now = count_threads();
    if (now != last) same = 0;
    last = now;
  }
  return last;
}

// The size of this process's addresses, in bytes.
std::size_t reserved_by_process() {
  std::size_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * 4096;
}

std::size_t count_mapped_files() {
  std::size_t count = 0;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) count += line.find("memfd:") != std::string::npos ? 1 : 0;
  return count;
}

template <class Child>
int run_in_child(Child child) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    int code = 99;
    try {
      code = child();
    } catch (const std::exception &) {
      code = 98;
    }
    ::_exit(code);
  }
  int status = 0;
  CHECK_EQ(::waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

}  // namespace

TEST(session, a_request_survives_its_connection) {
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "weights");
  void *pointer = nullptr;
  Background growing([&] { pointer = allocate(lease, 1000); });
  const auto asked = peer.expect<record::Lease>();
  peer.drop();
  reattach(peer);
  CHECK_EQ(peer.serve_lease(3, {{4}}).request, asked.request);
  growing.join();
  CHECK(is_readable(pointer));
  CHECK_EQ(stats(client).reconnects, uint64_t{1});
  // Also in the midst of a grant: what was mapped is told again, and not mapped twice.
  Background more([&] { pointer = allocate(lease, 2 * FRAME); });
  const auto second = peer.expect<record::Lease>();
  peer.lend(3, "weights", 1, {{5}});
  peer.drop();
  reattach(peer);
  CHECK_EQ(peer.expect<record::Lease>().request, second.request);
  peer.lend(3, "weights", 1, {{5}, {6}});
  peer.done(second.request, 3);
  more.join();
  CHECK(is_readable(static_cast<char *>(pointer) + 2 * FRAME - 1));
}

TEST(session, a_daemon_that_is_gone_costs_no_memory) {
  Peer peer;
  Grown grown(peer);
  Background growing([&] {
    const Outcome outcome = try_allocate(grown.lease, FRAME);
    CHECK(outcome.status == VRB_LOST);
    CHECK_EQ(std::string(outcome.error.name), "BrokerLost");
  });
  peer.expect<record::Lease>();
  peer.drop();
  // The daemon has forgotten the session: no use in trying on.
  peer.accept();
  peer.refuse("UnknownSession", "never heard of it");
  growing.join();
  CHECK_EQ(std::string(grown.pointer), "here");
  // Whoever asks next makes it try once more.
  Background again([&] { allocate(grown.lease, FRAME); });
  reattach(peer);
  peer.serve_lease(3, {{5}});
  again.join();
}

TEST(session, a_pause_that_a_lost_daemon_had_asked_for_is_forgotten) {
  Peer peer;
  Grown grown(peer);
  CHECK_OK(enter(grown.client, {"weights"}, "step"));
  peer.send(record::PauseOrder{7, {"weights"}});
  CHECK_EQ(peer.expect<record::Busy>().scope, "step");
  lose(peer, grown.lease);
  CHECK_OK(peer::exit(grown.client, {"weights"}, "step"));
  CHECK_OK(enter(grown.client, {"weights"}, "next"));
  CHECK_OK(peer::exit(grown.client, {"weights"}, "next"));
  release(grown.client, allocate(grown.lease, 8));
}

TEST(session, a_client_closed_after_its_daemon_was_lost_leaves_nothing_behind) {
  const auto use = [] {
    Peer peer;
    Grown grown(peer);
    peer.arena(9, 4 * MIB);
    lose(peer, grown.lease);
    release(grown.client, grown.pointer);
    CHECK(vrb_close(grown.client, nullptr) == VRB_OK);
  };
  const std::size_t threads = settled_threads(0), fds = count_fds(), reserved = reserved_by_process(),
                    files = count_mapped_files();
  for (int i = 0; i < 5; ++i) use();
  CHECK_EQ(settled_threads(threads), threads);
  CHECK_EQ(count_fds(), fds);
  CHECK(reserved_by_process() < reserved + GIB);
  CHECK_EQ(count_mapped_files(), files);
}

TEST(session, a_daemon_that_is_gone_is_named_even_if_the_wait_ends_before_the_retries) {
  Peer peer;
  Grown grown(peer);
  peer.stop_listening();
  peer.drop();
  CHECK_STATUS(try_allocate(grown.lease, FRAME, 1), VRB_LOST);
}

TEST(session, connections_that_break_at_once_are_not_renewed_in_a_rush) {
  Peer peer;
  Grown grown(peer);
  const auto began = std::chrono::steady_clock::now();
  for (int i = 0; i < 8; ++i) {
    peer.drop();
    reattach(peer);
  }
  // 10, 20 and 40 ms, and 50 each from then on.
  CHECK(std::chrono::steady_clock::now() - began >= std::chrono::milliseconds(320));
}

TEST(session, whether_it_is_lost_is_found_out) {
  Peer peer;
  Grown grown(peer);
  const auto is_lost = [&] {
    int lost = -1;
    CHECK(vrb_is_lost(grown.client, 5000, &lost, nullptr) == VRB_OK);
    return lost;
  };
  CHECK_EQ(is_lost(), 0);
  lose(peer, grown.lease);
  Background forgotten([&] { CHECK_EQ(is_lost(), 1); });
  peer.accept();
  peer.refuse("UnknownSession", "never heard of it");
  forgotten.join();
  Background found([&] { CHECK_EQ(is_lost(), 0); });
  reattach(peer);
  found.join();
}

TEST(session, it_gives_up_after_a_while) {
  Peer peer;
  Grown grown(peer);
  peer.stop_listening();
  peer.drop();
  CHECK_STATUS(try_allocate(grown.lease, FRAME), VRB_LOST);
  CHECK_OK(enter(grown.client, {"weights"}, "still open"));
  CHECK_EQ(std::string(grown.pointer), "here");
  release(grown.client, grown.pointer);
}

TEST(session, packets_that_are_no_records_end_the_connection_only) {
  Peer peer;
  Grown grown(peer);
  std::mt19937 random(7);
  const Fd file = make_file(FRAME);
  const std::size_t fds = count_fds();
  for (int i = 0; i < 60; ++i) {
    Packet packet(1 + random() % 300);
    for (uint8_t &byte : packet) byte = static_cast<uint8_t>(random());
    // Half of them with a header that fits, so that the fields are looked at.
    if (i % 2 == 0 && packet.size() >= 8) {
      packet[0] = static_cast<uint8_t>(64 + random() % 9);
      packet[1] = packet[3] = packet[6] = packet[7] = 0;
      packet[2] = static_cast<uint8_t>(i % 17);
      packet[4] = static_cast<uint8_t>(packet.size());
      packet[5] = static_cast<uint8_t>(packet.size() >> 8);
    }
    peer.send_raw(packet, std::vector<int>(static_cast<std::size_t>(i % 17), file.get()));
    while (peer.next_or_end()) {
    }
    reattach(peer);
  }
  CHECK_EQ(count_fds(), fds);
  CHECK_EQ(std::string(grown.pointer), "here");
  CHECK_EQ(stats(grown.client).mapped_bytes, FRAME);
}

TEST(session, packets_that_carry_too_much_end_the_connection) {
  Peer peer;
  Grown grown(peer);
  const Fd file = make_file(FRAME);
  const std::size_t fds = count_fds();
  // Seventeen fds with a header that speaks of sixteen: the kernel delivers sixteen and says that it cut.
  record::Grant grant{1, 3, 1, "weights", {}};
  for (uint64_t slot = 10; slot < 26; ++slot) grant.slots.push_back({slot, FRAME, 0, 0, 0});
  peer.send_raw(encode(FromDaemon(grant), 16), std::vector<int>(17, file.get()));
  CHECK(!peer.next_or_end());
  reattach(peer);
  peer.send_raw(Packet(PACKET_BYTES_MAX + 100, 1), {file.get()});
  CHECK(!peer.next_or_end());
  reattach(peer);
  CHECK_EQ(count_fds(), fds);
  CHECK_EQ(stats(grown.client).mapped_bytes, FRAME);
}

TEST(session, records_that_contradict_themselves_end_the_connection) {
  Peer peer;
  Grown grown(peer);
  const Fd file = make_file(FRAME);
  const std::size_t fds = count_fds();
  const int fd = file.get();
  const std::vector<std::pair<FromDaemon, std::size_t>> bad = {
      {record::Grant{1, 3, 1, "weights", {{7, FRAME, 0, 0, 0}}}, 0},
      {record::Grant{1, 3, 1, "weights", {{7, FRAME, 0, 0, 0}}}, 2},
      {record::Grant{1, 3, 1, "weights", {{7, FRAME + 1, 0, 0, 0}}}, 1},
      {record::Grant{1, 3, 1, "weights", {{7, 0, 0, 0, 0}}}, 1},
      {record::Grant{1, 3, 1, "weights", {{7, CAPACITY * 2, 0, 0, 0}}}, 1},
      {record::Grant{1, 3, 1, "weights", {{7, FRAME, 0, 0, 0}, {7, FRAME, 0, 0, 0}}}, 2},
      {record::Grant{1, 3, 9, "weights", {{7, FRAME, 0, 0, 0}}}, 1},
      {record::Grant{1, 3, 1, "no/tag", {{7, FRAME, 0, 0, 0}}}, 1},
      {record::Arena{1, 9, FRAME}, 0},
      {record::Arena{1, 9, FRAME}, 2},
      {record::LeaseState{3, 1}, 1},
      {record::Welcome{PROTOCOL, 1, {}, CAPACITY, {FRAME}, "", "host:0", ""}, 0},
  };
  for (const auto &[record, count] : bad) {
    peer.send(record, std::vector<int>(count, fd));
    CHECK(!peer.next_or_end());
    reattach(peer);
  }
  CHECK_EQ(count_fds(), fds);
  // A frame shorter than it is said to be is refused, not touched.
  const Fd stump = make_file(FRAME / 2);
  peer.send(record::Grant{1, 3, 1, "weights", {{7, FRAME, 0, 0, 0}}}, {stump.get()});
  peer.expect<record::Taken>();
  CHECK(!peer.expect<record::Arrived>().failure.empty());
}

TEST(session, close_returns_what_is_free_and_leaves_what_is_not) {
  Peer peer;
  Grown grown(peer);
  vrb_lease *other = open_lease(grown.client, "kv", VRB_DROP);
  void *pointer = nullptr;
  Background growing([&] { pointer = allocate(other, 1000); });
  peer.serve_lease(5, {{6}});
  growing.join();
  release(grown.client, pointer);
  peer.done(peer.expect<record::Return>().request);
  Background closing([&] { CHECK(vrb_close(grown.client, nullptr) == VRB_OK); });
  const auto whole = peer.expect<record::Return>();
  CHECK_EQ(whole.lease, uint64_t{5});
  CHECK(whole.slots.empty());
  peer.done(whole.request);
  closing.join();
  CHECK_STATUS(try_allocate(grown.lease, 8), VRB_WRONG_STATE);
  CHECK(vrb_close(grown.client, nullptr) == VRB_OK);
  CHECK_EQ(std::string(grown.pointer), "here");
  // Its memory may still be recalled and restored.
  peer.arena(9, 4 * MIB);
  peer.state(3, true);
  peer.recall(3, {{4, SLOT_PARK, 9, 0}});
  CHECK_EQ(peer.expect<record::Left>().failure, "");
  peer.lend(3, "weights", 1, {{4, FRAME, SLOT_RESTORE, 9, 0}});
  CHECK_EQ(std::string(grown.pointer), "here");
  peer.state(3, false);
  const std::size_t fds = count_fds();
  release(grown.client, grown.pointer);
  CHECK(peer.expect<record::Return>().slots == std::vector<uint64_t>{4});
  CHECK(peer.expect<record::Return>().slots.empty());
  const auto bye = peer.expect<record::Bye>();
  peer.done(bye.request);
  CHECK(!peer.next_or_end());
  CHECK(vrb_close(grown.client, nullptr) == VRB_OK);
  // The socket, the epoll and the wake.
  CHECK_EQ(count_fds(), fds - 3);
  CHECK(vrb_close(grown.client, nullptr) == VRB_OK);
}

TEST(session, a_closed_client_is_never_paused_from_outside) {
  Peer peer;
  Grown grown(peer);
  CHECK_OK(enter(grown.client, {"weights"}, "step"));
  peer.send(record::PauseOrder{7, {"weights"}});
  CHECK_EQ(+peer.expect<record::Busy>().final, 0);
  Background closing([&] { CHECK(vrb_close(grown.client, nullptr) == VRB_OK); });
  const auto waiting = peer.expect<record::Busy>();
  CHECK_EQ(waiting.order, uint64_t{7});
  CHECK_EQ(+waiting.final, 1);
  closing.join();
  CHECK_OK(peer::exit(grown.client, {"weights"}, "step"));
  peer.send(record::PauseOrder{8, {"weights"}});
  const auto late = peer.expect<record::Busy>();
  CHECK_EQ(late.order, uint64_t{8});
  CHECK_EQ(+late.final, 1);
}

TEST(session, close_of_an_idle_client_says_goodbye) {
  Peer peer;
  vrb_client *client = attach(peer);
  open_lease(client, "weights");
  Background closing([&] { CHECK(vrb_close(client, nullptr) == VRB_OK); });
  peer.done(peer.expect<record::Bye>().request);
  CHECK(!peer.next_or_end());
  closing.join();
  vrb_lease *lease = nullptr;
  CHECK(vrb_lease_open(client, "weights", VRB_KEEP, &lease, nullptr) == VRB_WRONG_STATE);
}

TEST(session, a_client_that_has_ended_leaves_nothing_behind) {
  Peer peer;
  const auto use = [&] {
    vrb_client *client = attach(peer);
    vrb_lease *lease = open_lease(client, "weights");
    void *pointer = nullptr;
    Background growing([&] { pointer = allocate(lease, 1000); });
    peer.serve_lease(3, {{4}});
    growing.join();
    // With both directions of the copier, and a file of the arena.
    peer.arena(9, 4 * MIB);
    peer.state(3, true);
    peer.recall(3, {{4, SLOT_PARK, 9, 0}});
    CHECK_EQ(peer.expect<record::Left>().failure, "");
    peer.lend(3, "weights", 1, {{4, FRAME, SLOT_RESTORE, 9, 0}});
    peer.state(3, false);
    release(client, pointer);
    CHECK(peer.expect<record::Return>().slots == std::vector<uint64_t>{4});
    Background closing([&] { CHECK(vrb_close(client, nullptr) == VRB_OK); });
    CHECK(peer.expect<record::Return>().slots.empty());
    peer.done(peer.expect<record::Bye>().request);
    CHECK(!peer.next_or_end());
    closing.join();
    CHECK(vrb_close(client, nullptr) == VRB_OK);
    CHECK_EQ(stats(client).reserved_bytes, uint64_t{0});
    CHECK(vrb_free(client, pointer, nullptr) == VRB_INVALID);
    CHECK_STATUS(try_allocate(lease, 8), VRB_WRONG_STATE);
  };
  use();
  const std::size_t threads = settled_threads(0), fds = count_fds(), reserved = reserved_by_process(),
                    files = count_mapped_files();
  for (int i = 0; i < 20; ++i) use();
  CHECK_EQ(count_fds(), fds);
  CHECK_EQ(settled_threads(threads), threads);
  // Less than a single range of it.
  CHECK(reserved_by_process() < reserved + GIB);
  CHECK_EQ(count_mapped_files(), files);
}

TEST(session, a_forked_child_owns_nothing) {
  Peer peer;
  Grown grown(peer);
  CHECK_OK(enter(grown.client, {"weights"}, "around the fork"));
  const std::size_t fds = count_fds();
  const int code = run_in_child([&] {
    // Socket, epoll and wake are gone here.
    if (count_fds() != fds - 3) return 1;
    if (is_readable(grown.pointer)) return 2;
    if (vrb_free(grown.client, grown.pointer, nullptr) != VRB_FORKED) return 3;
    if (try_allocate(grown.lease, 8).status != VRB_FORKED) return 4;
    if (peer::pause(grown.client, {"weights"}).status != VRB_FORKED) return 5;
    if (vrb_close(grown.client, nullptr) != VRB_FORKED) return 6;
    // As a `with` block that the child leaves does.
    const Outcome left = peer::exit(grown.client, {"weights"}, "around the fork");
    if (left.status != VRB_OK) return 8;
    vrb_torch_free(grown.pointer, 0, 0, nullptr);
    uint32_t hook = 0;
    if (vrb_torch_hook(grown.lease, &hook, nullptr) != VRB_FORKED) return 7;
    return 0;
  });
  CHECK_EQ(code, 0);
  CHECK_EQ(std::string(grown.pointer), "here");
  CHECK_EQ(count_fds(), fds);
  CHECK_EQ(stats(grown.client).reconnects, uint64_t{0});
  CHECK_OK(peer::exit(grown.client, {"weights"}, "around the fork"));
  Background growing([&] { allocate(grown.lease, FRAME); });
  peer.serve_lease(3, {{5}});
  growing.join();
}

TEST(session, a_forked_child_may_connect_on_its_own) {
  Peer peer;
  Grown grown(peer);
  Peer own;
  Background child([&] {
    const int code = run_in_child([&] {
      vrb_client *client = peer::connect(own.path());
      char *pointer = static_cast<char *>(allocate(open_lease(client, "weights"), 1000));
      pointer[0] = 'x';
      return vrb_close(client, nullptr) == VRB_OK ? 0 : 1;
    });
    CHECK_EQ(code, 0);
  });
  own.accept();
  own.welcome(2);
  own.serve_lease(3, {{4}});
  child.join();
  CHECK_EQ(read_file(own.frame(4), 0, 1), "x");
  CHECK_EQ(std::string(grown.pointer), "here");
}

// Not a test of its own: what the next one runs in a process of its own, with the peer's path in the environment.
TEST(helper_process, ends_with_everything_alive) {
  const char *path = std::getenv("VRB_PEER_PATH");
  if (path == nullptr) return;
  vrb_client *client = peer::connect(path);
  allocate(open_lease(client, "weights"), 1000);
  std::thread([client] {
    for (;;) stats(client);
  }).detach();
  std::exit(0);
}

TEST(session, the_process_may_end_with_everything_alive) {
  Peer peer;
  Background child([&] {
    const int code = run_in_child([&] {
      ::setenv("VRB_PEER_PATH", peer.path().c_str(), 1);
      ::execl("/proc/self/exe", "vrambroker_tests", "helper_process.", nullptr);
      return 97;
    });
    CHECK_EQ(code, 0);
  });
  peer.accept();
  peer.welcome();
  peer.serve_lease(3, {{4}});
  child.join();
}
