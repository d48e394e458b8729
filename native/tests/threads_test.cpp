// Many threads on one client: allocations of two tags that are paused, released and resumed all the while. Every allocation
// carries its owner's mark, and must still carry it whenever its tag is resident.

#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <random>

#include "auto_daemon.h"
#include "background.h"
#include "check.h"

using namespace peer;

namespace {

struct Owned {
  char *at;
  std::size_t size;
  char mark;
};

bool is_intact(const Owned &one) {
  return one.at[0] == one.mark && one.at[one.size - 1] == one.mark && one.at[one.size / 2] == one.mark;
}

std::size_t size_from(std::mt19937 &random) {
  switch (random() % 3) {
    case 0: return 1 + random() % 4096;
    case 1: return 1 + random() % MIB;
    default: return MIB + random() % (4 * MIB);
  }
}

// So much happens at least, and the threads go on until so many pauses fell between two scopes, however they are scheduled.
constexpr int ROUNDS = 150, ROUNDS_MAX = 100'000, CYCLES = 5;

// Allocates, looks and frees inside use scopes; when the tag is paused, it goes on freeing, which is always legal.
void work(vrb_client *client, vrb_lease *lease, const char *tag, uint32_t seed, const std::atomic<int> &cycles) {
  std::mt19937 random(seed);
  std::vector<Owned> live;
  for (int i = 0; i < ROUNDS || (cycles < CYCLES && i < ROUNDS_MAX); ++i) {
    if (!live.empty() && (live.size() > 12 || random() % 3 == 0)) {
      const std::size_t which = random() % live.size();
      release(client, live[which].at);
      live.erase(live.begin() + static_cast<std::ptrdiff_t>(which));
      continue;
    }
    if (enter(client, {tag}, "work").status != VRB_OK) continue;
    for (const Owned &one : live) CHECK(is_intact(one));
    const std::size_t size = size_from(random);
    auto *at = static_cast<char *>(allocate(lease, size));
    const char mark = static_cast<char>('a' + random() % 26);
    std::memset(at, mark, size);
    live.push_back({at, size, mark});
    CHECK_OK(peer::exit(client, {tag}, "work"));
    std::this_thread::yield();
  }
  for (const Owned &one : live) release(client, one.at);
}

struct Countdown {
  std::atomic<int> &left;
  ~Countdown() { --left; }
};

}  // namespace

TEST(threads, allocations_survive_pauses_of_their_tag) {
  AutoDaemon daemon;
  daemon.start();
  vrb_client *client = peer::connect(daemon.path());
  const char *const tags[] = {"weights", "optimizer"};
  std::atomic<int> running{4}, cycles{0};
  std::vector<std::unique_ptr<Background>> threads;
  for (uint32_t i = 0; i < 4; ++i) {
    threads.push_back(std::make_unique<Background>([&, i] {
      const Countdown at_end{running};
      work(client, open_lease(client, tags[i % 2]), tags[i % 2], i + 1, cycles);
    }));
  }
  std::mt19937 random(5);
  while (running > 0) {
    const char *tag = tags[random() % 2];
    vrb_lease *known = nullptr;
    CHECK(vrb_lease_open(client, tag, VRB_KEEP, &known, nullptr) == VRB_OK);
    const Outcome outcome = pause(client, {tag}, random() % 2 == 0);
    CHECK(outcome.status == VRB_OK || outcome.status == VRB_NOT_QUIESCENT);
    if (outcome.status == VRB_OK) ++cycles;
    CHECK_OK(resume(client, {tag}));
  }
  for (auto &thread : threads) thread->join();
  CHECK(cycles >= CYCLES);
  CHECK_EQ(stats(client).allocations, uint64_t{0});
  CHECK(vrb_close(client, nullptr) == VRB_OK);
  daemon.join();
  CHECK_EQ(stats(client).mapped_bytes, uint64_t{0});
}

TEST(threads, growths_of_one_lease_do_not_pile_up) {
  AutoDaemon daemon;
  daemon.start();
  vrb_client *client = peer::connect(daemon.path());
  vrb_lease *lease = open_lease(client, "weights");
  std::vector<std::unique_ptr<Background>> threads;
  std::array<void *, 8> pointers{};
  for (std::size_t i = 0; i < pointers.size(); ++i) {
    threads.push_back(std::make_unique<Background>([&, i] { pointers[i] = allocate(lease, 100 * 1024); }));
  }
  for (auto &thread : threads) thread->join();
  // Eight times 100 KiB fit one frame; without one growth at a time there would be eight.
  CHECK_EQ(stats(client).mapped_bytes, FRAME);
  for (void *pointer : pointers) release(client, pointer);
  CHECK(vrb_close(client, nullptr) == VRB_OK);
  daemon.join();
}
