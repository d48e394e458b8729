// What the application's threads see: connecting, allocating, pausing, scopes, and errors with their fields.

#include <dlfcn.h>
#include <sys/mman.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "background.h"
#include "check.h"
#include "peer.h"
#include "test_device.h"

using namespace peer;
using namespace vrb;

namespace {

vrb_status connect_to(const std::string &path, vrb_error &error, const char *name = "test", const char *device = "host") {
  vrb_client *client = nullptr;
  return vrb_connect(path.c_str(), name, device, "0.1.0", 2000, &client, &error);
}

// Connects while the peer answers as told, and returns what the client made of it.
template <class Answer>
vrb_error connect_against(Answer answer, vrb_status wanted) {
  Peer peer;
  vrb_error error{};
  vrb_status status = VRB_OK;
  Background connecting([&] { status = connect_to(peer.path(), error); });
  peer.accept();
  answer(peer);
  connecting.join();
  CHECK_EQ(static_cast<int>(status), static_cast<int>(wanted));
  return error;
}

// The malloc hook of a lease, looked up as torch does.
struct Hook {
  explicit Hook(vrb_lease *lease) {
    CHECK(vrb_torch_hook(lease, &number, nullptr) == VRB_OK);
    char name[32];
    std::snprintf(name, sizeof name, "vrb_torch_malloc_%02x", number);
    function = reinterpret_cast<void *(*)(ptrdiff_t, int, void *)>(dlsym(RTLD_DEFAULT, name));
    CHECK(function != nullptr);
  }
  void *malloc(ptrdiff_t size) const { return function(size, 0, nullptr); }

  uint32_t number = 0;
  void *(*function)(ptrdiff_t, int, void *) = nullptr;
};

template <class Body>
std::string thrown(Body body) {
  try {
    body();
  } catch (const std::runtime_error &error) {
    return error.what();
  }
  return {};
}

std::string hex_of(const vrb_error &error) { return {reinterpret_cast<const char *>(error.detail), error.detail_size}; }

}  // namespace

TEST(client, connects_and_tells_who_it_is) {
  Peer peer;
  vrb_client *client = nullptr;
  Background connecting([&] { client = peer::connect(peer.path(), "trainer"); });
  const auto hello = peer.accept();
  CHECK_EQ(hello.name, "trainer");
  CHECK_EQ(+hello.role, +ROLE_WORKER);
  CHECK(hello.token == Token{});
  peer.welcome(7);
  connecting.join();
  vrb_info info{};
  CHECK(vrb_get_info(client, &info, nullptr) == VRB_OK);
  CHECK_EQ(info.session, uint64_t{7});
  CHECK_EQ(info.capacity_bytes, CAPACITY);
  CHECK_EQ(info.frame_bytes_min, FRAME);
  CHECK_EQ(std::string(info.device), "host:0");
  CHECK_EQ(vrb_abi_version(), VRB_ABI_VERSION);
}

TEST(client, no_daemon_is_unavailable) {
  vrb_error error{};
  CHECK(connect_to("/tmp/there-is-no-such.sock", error) == VRB_UNAVAILABLE);
  CHECK_EQ(std::string(error.name), "BrokerUnavailable");
  CHECK_EQ(std::string(error.subject), "/tmp/there-is-no-such.sock");
  Peer peer;
  peer.stop_listening();
  CHECK(connect_to(peer.path(), error) == VRB_UNAVAILABLE);
  CHECK(connect_to(std::string(200, 'x'), error) == VRB_INVALID);
  CHECK(connect_to(peer.path(), error, "no good name") == VRB_INVALID);
  CHECK(connect_to(peer.path(), error, "test", "tpu") == VRB_INVALID);
}

TEST(client, a_refusal_comes_with_its_detail) {
  const auto error = connect_against([](Peer &peer) { peer.refuse("QuotaExceeded", "too many"); }, VRB_REFUSED);
  CHECK_EQ(std::string(error.name), "QuotaExceeded");
  CHECK_EQ(std::string(error.message), "too many");
  CHECK_EQ(hex_of(error), "detail");
  connect_against([](Peer &peer) { peer.refuse("VersionMismatch", "no"); }, VRB_VERSION);
  connect_against([](Peer &peer) { peer.welcome(1, PROTOCOL + 1); }, VRB_VERSION);
  connect_against([](Peer &peer) { peer.drop(); }, VRB_UNAVAILABLE);
  connect_against([](Peer &peer) { peer.send_raw({1, 2, 3}); }, VRB_UNAVAILABLE);
  connect_against([](Peer &peer) { peer.send(record::Welcome{PROTOCOL, 1, {}, CAPACITY, {}, "t", "host:0", "0"}); },
                  VRB_UNAVAILABLE);
  connect_against([](Peer &peer) { peer.send(record::Welcome{PROTOCOL, 1, {}, CAPACITY, {0}, "t", "host:0", "0"}); },
                  VRB_UNAVAILABLE);
  connect_against([](Peer &peer) { peer.send(record::Welcome{PROTOCOL, 1, {}, CAPACITY, {FRAME}, "t", "GPU-1", "0"}); },
                  VRB_INVALID);
}

TEST(client, grows_by_frames_and_gives_them_back) {
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "weights");
  const std::size_t fds = count_fds();
  void *first = nullptr;
  Background growing([&] { first = allocate(lease, 1000); });
  const auto asked = peer.serve_lease(3, {{4}});
  growing.join();
  CHECK_EQ(asked.tag, "weights");
  CHECK_EQ(+asked.contents, 1);
  CHECK_EQ(count_fds(), fds + 1);  // the peer's frame; the client has closed its own fd
  std::memset(first, 'x', 1000);
  CHECK_EQ(read_file(peer.frame(4), 0, 3), "xxx");
  void *second = allocate(lease, 1000);  // from the same frame, without a word
  CHECK_EQ(reinterpret_cast<uintptr_t>(second) % 512, uintptr_t{0});
  CHECK_EQ(stats(client).allocations, uint64_t{2});
  CHECK_EQ(stats(client).mapped_bytes, FRAME);
  release(client, first);
  CHECK(is_readable(second));
  release(client, second);
  const auto returned = peer.expect<record::Return>();
  CHECK_EQ(returned.lease, uint64_t{3});
  CHECK(returned.slots == std::vector<uint64_t>{4});
  CHECK(!is_readable(second));
  CHECK_EQ(stats(client).mapped_bytes, uint64_t{0});
  peer.done(returned.request);
}

TEST(client, a_big_allocation_is_contiguous_and_aligned) {
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "kv", VRB_DROP);
  void *small = nullptr, *big = nullptr;
  Background growing([&] {
    small = allocate(lease, 512);
    big = allocate(lease, 11 * MIB);
  });
  peer.serve_lease(3, {{4}});
  const auto asked = peer.expect<record::Lease>();
  CHECK_EQ(asked.size_bytes, 12 * MIB);
  // In two packets, and the large frame between small ones.
  peer.lend(3, "kv", 2, {{5}, {6, LARGE_FRAME}});
  peer.lend(3, "kv", 2, {{7}});
  peer.done(asked.request, 3);
  growing.join();
  CHECK_EQ(reinterpret_cast<uintptr_t>(big) % (2 * MIB), uintptr_t{0});
  std::memset(big, 'b', 11 * MIB);
  CHECK_EQ(read_file(peer.frame(6), LARGE_FRAME - 1, 1), "b");
  CHECK_EQ(read_file(peer.frame(7), MIB - 1, 1), "b");
  release(client, big);
  CHECK_EQ(peer.expect<record::Return>().slots.size(), std::size_t{3});
  release(client, small);
}

TEST(client, a_refused_growth_changes_nothing) {
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "weights");
  Background growing([&] {
    const Outcome outcome = try_allocate(lease, 1000);
    CHECK(outcome.status == VRB_REFUSED);
    CHECK_EQ(std::string(outcome.error.name), "OutOfDeviceMemory");
    CHECK_EQ(hex_of(outcome.error), "holders");
  });
  peer.error(peer.expect<record::Lease>().request, "OutOfDeviceMemory", "full", "holders");
  growing.join();
  CHECK_EQ(stats(client).allocations, uint64_t{0});
  CHECK_STATUS(try_allocate(lease, 0), VRB_INVALID);
  CHECK_STATUS(try_allocate(lease, CAPACITY + 1), VRB_INVALID);
  Background again([&] { allocate(lease, 1000); });
  peer.serve_lease(3, {{4}});
  again.join();
}

TEST(client, a_growth_given_up_is_swept_when_it_comes) {
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "weights");
  Background growing([&] {
    const Outcome outcome = try_allocate(lease, 1000, 1);
    CHECK(outcome.status == VRB_REFUSED);
    CHECK_EQ(std::string(outcome.error.name), "WaitExpired");
  });
  const auto asked = peer.expect<record::Lease>();
  growing.join();
  peer.lend(3, "weights", 1, {{4}});
  CHECK(peer.expect<record::Return>().slots == std::vector<uint64_t>{4});
  peer.done(asked.request, 3);
  Background again([&] { allocate(lease, 1000); });
  peer.serve_lease(3, {{5}});
  again.join();
}

TEST(client, what_was_freed_goes_back_before_more_is_asked_for) {
  Peer peer;
  vrb_client *client = attach(peer);
  open_lease(client, "b");
  void *pointer = nullptr;
  Background first([&] { pointer = allocate(open_lease(client, "a"), FRAME); });
  peer.serve_lease(1, {{100}});
  first.join();
  for (uint64_t turn = 0; turn < 30; ++turn) {
    const bool is_a = turn % 2 == 1;
    Background next([&] {
      release(client, pointer);
      pointer = allocate(open_lease(client, is_a ? "a" : "b"), FRAME);
    });
    CHECK(peer.expect<record::Return>().slots == std::vector<uint64_t>{100 + turn});
    peer.serve_lease(is_a ? 1 : 2, {{101 + turn}});
    next.join();
  }
  // Before a resume, too: the room may be meant for it.
  Background pausing([&] { CHECK_OK(peer::pause(client, {"b"})); });
  const auto paused = peer.expect<record::Pause>();
  peer.state(2, true);
  peer.done(paused.request);
  pausing.join();
  Background resuming([&] {
    release(client, pointer);
    CHECK_OK(resume(client, {"b"}));
  });
  peer.expect<record::Return>();
  const auto resumed = peer.expect<record::Resume>();
  peer.state(2, false);
  peer.done(resumed.request);
  resuming.join();
}

TEST(client, frees_only_what_it_gave_out) {
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "weights");
  char *pointer = nullptr;
  Background growing([&] { pointer = static_cast<char *>(allocate(lease, 4096)); });
  peer.serve_lease(3, {{4}});
  growing.join();
  int local = 0;
  CHECK(vrb_free(client, &local, nullptr) == VRB_INVALID);
  CHECK(vrb_free(client, nullptr, nullptr) == VRB_INVALID);
  CHECK(vrb_free(client, pointer + 512, nullptr) == VRB_INVALID);
  release(client, pointer);
  CHECK(vrb_free(client, pointer, nullptr) == VRB_INVALID);
}

TEST(client, null_arguments_are_told) {
  vrb_error error{};
  CHECK(vrb_connect(nullptr, "a", "host", "1", 1, nullptr, &error) == VRB_INVALID);
  CHECK(vrb_malloc(nullptr, 1, 1, nullptr, nullptr) == VRB_INVALID);
  CHECK(vrb_close(nullptr, &error) == VRB_INVALID);
  CHECK(vrb_get_info(nullptr, nullptr, &error) == VRB_INVALID);
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = nullptr;
  CHECK(vrb_lease_open(client, "no/tag", VRB_KEEP, &lease, &error) == VRB_INVALID);
  CHECK(vrb_lease_open(client, "tag", static_cast<vrb_contents>(0), &lease, &error) == VRB_INVALID);
  CHECK(vrb_pause(client, nullptr, 1, 0, 0, 1, &error) == VRB_INVALID);
  CHECK(vrb_pause(client, nullptr, 0, 0, 0, 1, &error) == VRB_OK);
}

TEST(client, pauses_and_resumes_what_the_daemon_knows) {
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "weights");
  open_lease(client, "never_grown");
  Background growing([&] { allocate(lease, 1000); });
  peer.serve_lease(3, {{4}});
  growing.join();
  CHECK_STATUS(peer::pause(client, {"weights", "unknown"}), VRB_UNKNOWN_TAG);
  Background pausing([&] { CHECK_OK(peer::pause(client, {"weights", "never_grown", "weights"})); });
  const auto asked = peer.expect<record::Pause>();
  CHECK(asked.tags == std::vector<std::string>{"weights"});
  CHECK_EQ(+asked.release, 0);
  peer.state(3, true);
  peer.done(asked.request);
  pausing.join();
  CHECK(is_paused(client, "weights") && is_paused(client, "never_grown"));
  CHECK_STATUS(try_allocate(lease, 8), VRB_WRONG_STATE);
  CHECK_STATUS(try_allocate(open_lease(client, "never_grown"), 8), VRB_WRONG_STATE);
  CHECK_STATUS(enter(client, {"weights"}, "forward"), VRB_WRONG_STATE);
  std::vector<uint8_t> same;
  Background resuming([&] { CHECK_OK(resume(client, {"never_grown", "weights"}, &same)); });
  const auto back = peer.expect<record::Resume>();
  CHECK(back.tags == std::vector<std::string>{"weights"});
  peer.state(3, false);
  peer.done(back.request, 0, {{3, 0, "weights"}});
  resuming.join();
  CHECK(same == (std::vector<uint8_t>{1, 0}));
  CHECK(!is_paused(client, "weights") && !is_paused(client, "never_grown"));
  allocate(lease, 8);
}

TEST(client, a_pause_by_its_owner_needs_quiet) {
  Peer peer;
  Rig rig(peer);
  open_lease(rig.client, "weights");
  open_lease(rig.client, "kv");
  CHECK_OK(enter(rig.client, {"weights"}, "forward"));
  const Outcome refused = peer::pause(rig.client, {"kv", "weights"});
  CHECK(refused.status == VRB_NOT_QUIESCENT);
  CHECK(std::strstr(refused.error.message, "weights") != nullptr);
  CHECK_EQ(std::string(refused.error.subject), "forward");
  CHECK(!is_paused(rig.client, "kv"));
  CHECK_OK(enter(rig.client, {"kv", "weights"}, "more"));
  CHECK_OK(peer::exit(rig.client, {"kv", "weights"}, "more"));
  CHECK_STATUS(peer::exit(rig.client, {"kv", "weights"}, "forward"), VRB_INVALID);
  CHECK_OK(peer::exit(rig.client, {"weights"}, "forward"));
  rig.device->quiesce_fails = true;
  CHECK_STATUS(peer::pause(rig.client, {"kv", "weights"}), VRB_NOT_QUIESCENT);
  rig.device->quiesce_fails = false;
  CHECK_OK(enter(rig.client, {"weights"}, "forward"));
  CHECK_OK(peer::exit(rig.client, {"weights"}, "forward"));
  CHECK_OK(peer::pause(rig.client, {"kv", "weights"}));
  // Entering several tags enters all or none.
  CHECK_OK(resume(rig.client, {"kv"}));
  CHECK_STATUS(enter(rig.client, {"kv", "weights"}, "both"), VRB_WRONG_STATE);
  CHECK_OK(peer::pause(rig.client, {"kv"}));
}

TEST(client, a_pause_waits_for_the_growth_under_way) {
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "weights");
  void *pointer = nullptr;
  Background growing([&] { pointer = allocate(lease, 1000); });
  const auto asked = peer.expect<record::Lease>();
  Background pausing([&] { CHECK_OK(peer::pause(client, {"weights"})); });
  peer.lend(3, "weights", 1, {{4}});
  peer.done(asked.request, 3);
  growing.join();
  // The pause is asked for only now, and the memory was handed out before it.
  const auto pause = peer.expect<record::Pause>();
  CHECK(pointer != nullptr);
  peer.state(3, true);
  peer.done(pause.request);
  pausing.join();
}

TEST(client, a_tag_that_grows_is_not_quiet) {
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "weights");
  CHECK_OK(enter(client, {"weights"}, "forward"));
  CHECK_OK(peer::exit(client, {"weights"}, "forward"));
  Background growing([&] { allocate(lease, 1000); });
  const auto asked = peer.expect<record::Lease>();
  peer.send(record::PauseOrder{22, {"weights"}});
  peer.send(record::PauseOrder{23, {"none"}});
  CHECK_EQ(peer.expect<record::Busy>().order, uint64_t{23});
  peer.lend(3, "weights", 1, {{4}});
  peer.done(asked.request, 3);
  growing.join();
  CHECK_EQ(peer.expect<record::Quiet>().order, uint64_t{22});
}

TEST(client, no_memory_comes_out_of_a_tag_paused_meanwhile) {
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "weights");
  Background growing([&] { CHECK_STATUS(try_allocate(lease, 1000), VRB_WRONG_STATE); });
  const auto asked = peer.expect<record::Lease>();
  peer.lend(3, "weights", 1, {{4}});
  peer.state(3, true);
  peer.done(asked.request, 3);
  growing.join();
  CHECK(peer.expect<record::Return>().slots == std::vector<uint64_t>{4});
}

TEST(client, orders_to_pause_wait_for_scopes) {
  Peer peer;
  vrb_client *client = attach(peer);
  open_lease(client, "weights");
  open_lease(client, "kv");
  peer.send(record::PauseOrder{21, {"weights"}});
  const auto never = peer.expect<record::Busy>();
  CHECK_EQ(+never.final, 1);
  CHECK_EQ(never.tag, "weights");
  CHECK_OK(enter(client, {"weights", "kv"}, "forward"));
  CHECK_OK(enter(client, {"weights"}, "forward"));
  peer.send(record::PauseOrder{22, {"kv", "weights"}});
  const auto busy = peer.expect<record::Busy>();
  CHECK_EQ(+busy.final, 0);
  CHECK_EQ(busy.tag, "kv");
  CHECK_EQ(busy.scope, "forward");
  CHECK_STATUS(enter(client, {"weights"}, "late"), VRB_WRONG_STATE);
  CHECK_OK(peer::exit(client, {"weights", "kv"}, "forward"));
  CHECK_OK(peer::exit(client, {"weights"}, "forward"));
  CHECK_EQ(peer.expect<record::Quiet>().order, uint64_t{22});
  // Sent again after a reconnect: answered again.
  peer.send(record::PauseOrder{22, {"kv", "weights"}});
  CHECK_EQ(peer.expect<record::Quiet>().order, uint64_t{22});
  CHECK_STATUS(enter(client, {"kv"}, "late"), VRB_WRONG_STATE);
  peer.send(record::PauseCancelled{22});
  peer.send(record::PauseOrder{23, {"kv", "unknown"}});
  CHECK_EQ(+peer.expect<record::Busy>().final, 1);
  CHECK_OK(enter(client, {"kv", "weights"}, "late"));
}

TEST(client, a_quiet_tag_gives_out_no_memory_and_opens_with_its_state) {
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "weights");
  Background growing([&] { allocate(lease, 1000); });
  peer.serve_lease(3, {{4}});
  growing.join();
  CHECK_OK(enter(client, {"weights"}, "forward"));
  CHECK_OK(peer::exit(client, {"weights"}, "forward"));
  peer.send(record::PauseOrder{22, {"weights"}});
  peer.expect<record::Quiet>();
  CHECK(!is_paused(client, "weights"));
  CHECK_STATUS(try_allocate(lease, 8), VRB_WRONG_STATE);
  peer.state(3, true);
  peer.state(3, false);
  peer.send(record::PauseOrder{23, {"none"}});  // answered behind the states
  peer.expect<record::Busy>();
  allocate(lease, 8);
  CHECK_OK(enter(client, {"weights"}, "forward"));
}

TEST(client, an_order_sent_again_behind_the_states_closes_its_gates_again) {
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "weights");
  Background growing([&] { allocate(lease, 1000); });
  peer.serve_lease(3, {{4}});
  growing.join();
  CHECK_OK(enter(client, {"weights"}, "forward"));
  CHECK_OK(peer::exit(client, {"weights"}, "forward"));
  for (int round = 0; round < 20; ++round) {
    peer.send(record::PauseOrder{22, {"weights"}});
    peer.expect<record::Quiet>();
    peer.state(3, false);
    peer.send(record::PauseOrder{22, {"weights"}});
    peer.expect<record::Quiet>();
    CHECK_STATUS(enter(client, {"weights"}, "late"), VRB_WRONG_STATE);
    peer.send(record::PauseCancelled{22});
  }
}

TEST(client, a_torch_hook_allocates_from_its_lease_in_any_thread) {
  Peer peer;
  vrb_client *client = attach(peer);
  const Hook weights(open_lease(client, "weights")), cache(open_lease(client, "cache"));
  CHECK_EQ(Hook(open_lease(client, "weights")).number, weights.number);
  Background torch([&] {
    void *pointer = weights.malloc(100);
    CHECK(pointer != nullptr && vrb_torch_last_error(nullptr) == VRB_OK);
    CHECK(cache.malloc(1 << 20) == nullptr);
    vrb_error told{};
    CHECK(vrb_torch_last_error(&told) == VRB_REFUSED);
    CHECK_EQ(std::string(told.name), "OutOfDeviceMemory");
    vrb_torch_free(pointer, 100, 0, nullptr);
    CHECK(vrb_torch_last_error(nullptr) == VRB_REFUSED);  // still that of the last malloc
  });
  CHECK_EQ(peer.serve_lease(3, {{4}}).tag, "weights");
  const auto asked = peer.expect<record::Lease>();
  CHECK_EQ(asked.tag, "cache");
  peer.error(asked.request, "OutOfDeviceMemory", "full");
  torch.join();
  CHECK_EQ(peer.expect<record::Return>().lease, uint64_t{3});
  CHECK(vrb_torch_last_error(nullptr) == VRB_OK);  // another thread's
}

TEST(client, torch_frees_are_quiet_first) {
  Peer peer;
  Rig rig(peer);
  const Hook hook(open_lease(rig.client, "weights"));
  std::array<void *, 3> pointers{};
  Background torch([&] {
    for (void *&pointer : pointers) pointer = hook.malloc(100);
  });
  peer.serve_lease(3, {{4}});
  torch.join();
  rig.device->capturing = true;
  vrb_torch_free(pointers[0], 100, 0, nullptr);
  vrb_torch_free(pointers[1], 100, 0, nullptr);
  CHECK_EQ(stats(rig.client).allocations, uint64_t{3});
  rig.device->capturing = false;
  vrb_torch_free(pointers[2], 100, 0, nullptr);
  CHECK_EQ(peer.expect<record::Return>().lease, uint64_t{3});
  CHECK_EQ(stats(rig.client).allocations, uint64_t{0});
}

TEST(client, what_a_capture_put_off_is_freed_when_the_client_closes) {
  Peer peer;
  Rig rig(peer);
  const Hook hook(open_lease(rig.client, "weights"));
  void *pointer = nullptr;
  Background torch([&] { pointer = hook.malloc(100); });
  peer.serve_lease(3, {{4}});
  torch.join();
  rig.device->capturing = true;
  vrb_torch_free(pointer, 100, 0, nullptr);
  rig.device->capturing = false;
  Background closing([&] { CHECK(vrb_close(rig.client, nullptr) == VRB_OK); });
  CHECK(peer.expect<record::Return>().slots == std::vector<uint64_t>{4});
  CHECK(peer.expect<record::Return>().slots.empty());
  peer.done(peer.expect<record::Bye>().request);
  closing.join();
}

TEST(client, a_torch_hook_tells_only_of_memory_by_null) {
  Peer peer;
  vrb_client *client = attach(peer);
  const Hook hook(open_lease(client, "weights"));
  CHECK(hook.malloc(ptrdiff_t{1} << 50) == nullptr);  // more than the device has
  CHECK(vrb_torch_last_error(nullptr) == VRB_INVALID);
  CHECK_EQ(thrown([&] { hook.malloc(0); }), "InvalidArgument: an allocation has at least one byte");
  CHECK_OK(pause(client, {"weights"}));
  CHECK_EQ(thrown([&] { hook.malloc(100); }), "WrongState: tag weights is paused");
  CHECK(vrb_torch_last_error(nullptr) == VRB_WRONG_STATE);
  int local = 0;
  vrb_torch_free(&local, 4, 0, nullptr);  // never leased: nothing happens
}

TEST(client, torch_hooks_run_out_with_an_error) {
  Peer peer;
  vrb_client *client = attach(peer);
  uint32_t hook = 0;
  vrb_error error{};
  for (int i = 0; i <= VRB_TORCH_HOOKS; ++i) {
    vrb_lease *lease = open_lease(client, ("tag" + std::to_string(i)).c_str());
    const vrb_status status = vrb_torch_hook(lease, &hook, &error);
    // Leases of earlier cases have hooks too.
    if (status == VRB_OK) continue;
    CHECK(status == VRB_INVALID);
    CHECK_EQ(std::string(error.message), "torch allocates under 256 tags of a process at most");
    return;
  }
  CHECK(false);
}

TEST(client, ten_thousand_tags_leave_the_process_addresses) {
  Peer peer;
  vrb_client *client = attach(peer);
  for (int i = 0; i < 10'000; ++i) open_lease(client, ("tag" + std::to_string(i)).c_str());
  CHECK(stats(client).reserved_bytes <= 64 * 1024 * GIB);
  const std::size_t size = 16 * 1024 * GIB;
  void *own = ::mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(own != MAP_FAILED);
  ::munmap(own, size);
  // The last of them works like the first.
  void *pointer = nullptr;
  Background growing([&] { pointer = allocate(open_lease(client, "tag9999"), FRAME); });
  peer.serve_lease(3, {{4}});
  growing.join();
  CHECK(is_readable(pointer));
  release(client, pointer);
  peer.done(peer.expect<record::Return>().request);
  Background closing([&] { CHECK(vrb_close(client, nullptr) == VRB_OK); });
  CHECK(peer.expect<record::Return>().slots.empty());
  peer.done(peer.expect<record::Bye>().request);
  closing.join();
}

TEST(client, a_dlpack_tensor_frees_itself) {
  struct Managed {
    void *data;
    int32_t device, number, dimensions;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t offset;
    void *context;
    void (*deleter)(Managed *);
  };
  Peer peer;
  vrb_client *client = attach(peer);
  vrb_lease *lease = open_lease(client, "weights");
  void *made = nullptr;
  CHECK(vrb_tensor(lease, 0, 100, &made, nullptr) == VRB_OK);
  auto *empty = static_cast<Managed *>(made);
  CHECK(empty->data != nullptr && empty->shape[0] == 0);
  empty->deleter(empty);
  Background growing([&] { CHECK(vrb_tensor(lease, 3000, 5000, &made, nullptr) == VRB_OK); });
  peer.serve_lease(3, {{4}});
  growing.join();
  auto *tensor = static_cast<Managed *>(made);
  CHECK_EQ(tensor->dimensions, 1);
  CHECK_EQ(tensor->shape[0], int64_t{3000});
  CHECK(tensor->device == 1 && tensor->code == 1 && tensor->bits == 8 && tensor->lanes == 1 && tensor->offset == 0);
  std::memset(tensor->data, 1, 3000);
  tensor->deleter(tensor);
  CHECK(peer.expect<record::Return>().slots == std::vector<uint64_t>{4});
}
