#include "auto_daemon.h"

#include <algorithm>
#include <utility>

namespace peer {

using namespace vrb;

namespace {

constexpr uint64_t ARENA_FILE = 900'000;
constexpr uint64_t ARENA_BYTES = uint64_t{4} << 30;  // sparse
constexpr std::size_t FRAMES_PER_GRANT = 16;

}  // namespace

AutoDaemon::AutoDaemon() = default;

AutoDaemon::~AutoDaemon() {
  if (thread_.joinable()) thread_.join();
}

void AutoDaemon::start() {
  thread_ = std::thread([this] {
    try {
      serve();
    } catch (...) {
      failure_ = std::current_exception();
    }
  });
}

void AutoDaemon::join() {
  thread_.join();
  if (failure_) std::rethrow_exception(failure_);
}

void AutoDaemon::serve() {
  peer_.accept();
  peer_.welcome();
  // Not waited for: what the client asks for meanwhile comes in between.
  peer_.send_arena(ARENA_FILE, ARENA_BYTES);
  while (!over_) {
    const auto record = peer_.next_or_end();
    if (!record) return;
    handle(*record);
  }
}

void AutoDaemon::handle(const FromClient &record) {
  if (const auto *asked = std::get_if<record::Lease>(&record)) {
    lend(*asked);
  } else if (const auto *paused = std::get_if<record::Pause>(&record)) {
    pause(*paused);
  } else if (const auto *resumed = std::get_if<record::Resume>(&record)) {
    resume(*resumed);
  } else if (const auto *returned = std::get_if<record::Return>(&record)) {
    take_back(*returned);
  } else if (const auto *arrived = std::get_if<record::Arrived>(&record)) {
    settled(arrived->slots);
  } else if (const auto *left = std::get_if<record::Left>(&record)) {
    CHECK_EQ(left->failure, "");
    settled(left->slots);
  } else if (const auto *bye = std::get_if<record::Bye>(&record)) {
    for (const auto &[number, lease] : leases_) CHECK(lease.slots.empty());
    peer_.done(bye->request);
    over_ = true;
  }
}

void AutoDaemon::lend(const record::Lease &asked) {
  uint64_t number = 0;
  for (const auto &[known, lease] : leases_) {
    if (lease.tag == asked.tag && lease.contents == asked.contents) number = known;
  }
  if (number == 0) {
    number = ++last_number_;
    leases_[number] = Lease{asked.tag, asked.contents, false, {}};
  }
  std::vector<Frame> frames;
  std::set<uint64_t> slots;
  for (uint64_t left = asked.size_bytes; left > 0;) {
    const uint64_t size_bytes = left >= LARGE_FRAME ? LARGE_FRAME : FRAME;
    const uint64_t slot = ++last_number_;
    leases_[number].slots[slot] = Slot{size_bytes, arena_used_, true};
    arena_used_ = (arena_used_ + size_bytes) % (ARENA_BYTES - LARGE_FRAME);
    frames.push_back({slot, size_bytes});
    slots.insert(slot);
    left -= size_bytes;
  }
  send_frames(number, frames);
  wait(slots, [this, request = asked.request, number] { peer_.done(request, number); });
}

void AutoDaemon::send_frames(uint64_t lease, const std::vector<Frame> &frames) {
  const Lease &to = leases_.at(lease);
  for (std::size_t begin = 0; begin < frames.size(); begin += FRAMES_PER_GRANT) {
    const std::size_t end = std::min(begin + FRAMES_PER_GRANT, frames.size());
    peer_.grant(lease, to.tag, to.contents, std::vector<Frame>(&frames[begin], &frames[begin] + (end - begin)));
  }
}

void AutoDaemon::pause(const record::Pause &asked) {
  std::set<uint64_t> leaving;
  for (const uint64_t number : leases_of(asked.tags)) {
    Lease &lease = leases_.at(number);
    lease.paused = true;
    peer_.state(number, true);
    if (asked.release == 0) continue;
    std::vector<RecallSlot> orders;
    for (auto &[slot, place] : lease.slots) {
      if (!std::exchange(place.here, false)) continue;
      const uint8_t flags = lease.contents == VRB_KEEP ? SLOT_PARK : 0;
      orders.push_back({slot, flags, ARENA_FILE, place.offset_bytes});
      leaving.insert(slot);
    }
    if (!orders.empty()) peer_.recall(number, orders);
  }
  wait(leaving, [this, request = asked.request] { peer_.done(request); });
}

void AutoDaemon::resume(const record::Resume &asked) {
  std::set<uint64_t> coming;
  std::vector<DoneLease> leases;
  for (const uint64_t number : leases_of(asked.tags)) {
    Lease &lease = leases_.at(number);
    std::vector<Frame> frames;
    for (auto &[slot, place] : lease.slots) {
      if (std::exchange(place.here, true)) continue;
      const uint8_t flags = lease.contents == VRB_KEEP ? SLOT_RESTORE : 0;
      frames.push_back({slot, place.size_bytes, flags, ARENA_FILE, place.offset_bytes});
      coming.insert(slot);
    }
    leases.push_back({number, static_cast<uint8_t>(frames.empty() ? 1 : 0), lease.tag});
    send_frames(number, frames);
  }
  wait(coming, [this, request = asked.request, leases] {
    for (const DoneLease &lease : leases) {
      leases_.at(lease.lease).paused = false;
      peer_.state(lease.lease, false);
    }
    peer_.done(request, 0, leases);
  });
}

void AutoDaemon::take_back(const record::Return &returned) {
  auto &slots = leases_.at(returned.lease).slots;
  if (returned.slots.empty()) slots.clear();
  for (const uint64_t slot : returned.slots) CHECK_EQ(slots.erase(slot), std::size_t{1});
  peer_.done(returned.request);
  settled(returned.slots);
}

std::vector<uint64_t> AutoDaemon::leases_of(const std::vector<std::string> &tags) const {
  std::vector<uint64_t> numbers;
  for (const auto &[number, lease] : leases_) {
    if (std::find(tags.begin(), tags.end(), lease.tag) != tags.end()) numbers.push_back(number);
  }
  return numbers;
}

void AutoDaemon::wait(std::set<uint64_t> slots, std::function<void()> then) {
  if (slots.empty()) {
    then();
  } else {
    waits_.push_back({std::move(slots), std::move(then)});
  }
}

void AutoDaemon::settled(const std::vector<uint64_t> &slots) {
  std::vector<std::function<void()>> ready;
  for (Wait &one : waits_) {
    for (const uint64_t slot : slots) one.slots.erase(slot);
    if (one.slots.empty()) ready.push_back(std::move(one.then));
  }
  waits_.erase(std::remove_if(waits_.begin(), waits_.end(), [](const Wait &one) { return one.slots.empty(); }), waits_.end());
  for (const auto &then : ready) then();
}

}  // namespace peer
