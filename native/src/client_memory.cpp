// A client's memory: allocations out of its leases, how those grow, and what is given back.
#include <algorithm>
#include <utility>

#include "client.h"
#include "client_calls.h"
#include "status.h"

namespace vrb {
namespace {

using std::chrono::milliseconds;

// How long room that was made is kept: whoever asked for it allocates at once.
constexpr uint32_t ROOM_LASTS_MS = 10'000;
// How long a question that is answered at once may take.
constexpr uint32_t ASK_MS = 5'000;
constexpr int GROWTHS_MAX = 4;
// How often an allocation asks although it was refused, since something went back meanwhile.
constexpr int REFUSALS_MAX = 4;
// What a lease may be lent to spare: no more than this, and no more than this share of the device.
constexpr uint64_t SPARE_BYTES_MAX = 4 * GIB;
constexpr uint64_t SPARE_SHARE = 8;
// How much more a lease asks for than it needs, and than it has.
constexpr uint64_t SPARE_NEEDS = 8;
constexpr uint64_t SPARE_GROWTH = 3;
// How long after its last growth a lease keeps what it was lent to spare: longer than a model's loader pauses for.
constexpr milliseconds SPARE_LIFE{100};

}  // namespace

// Waits until what was free after so many sweeps is given back: its RETURN goes ahead of whatever the caller then asks for,
// on the same connection, so the daemon finds room that this process has just made.
void Client::give_back(Lock &lock, uint64_t sweeps, Clock::time_point deadline) {
  if (!book_.changed.wait_until(lock, deadline, [&] { return book_.sweeps_done >= sweeps; })) throw no_answer(GRACE_MS);
}

// The same, and with it what leases have to spare: nothing that the caller then asks for is refused for that.
void Client::give_back_all(Lock &lock, Clock::time_point deadline) {
  if (book_.release_spares(Clock::time_point::max())) wake_.ring();
  give_back(lock, book_.sweeps_wanted, deadline);
}

void *Client::allocate(Lease &lease, uint64_t size_bytes, uint32_t timeout_ms) {
  if (size_bytes == 0) throw invalid_argument("an allocation has at least one byte", lease.tag.name);
  const auto deadline = deadline_of(timeout_ms);
  Lock lock(book_.mutex);
  if (size_bytes > book_.welcome.capacity_bytes) {
    throw invalid_argument("the device has " + std::to_string(book_.welcome.capacity_bytes) + " bytes in all", lease.tag.name);
  }
  require_open(lease.tag);
  const uint64_t sweeps = book_.sweeps_wanted;
  for (int growths = 0, refusals = 0;;) {
    if (const auto offset = lease.range.allocate(size_bytes)) return lease.base + *offset;
    if (lease.growth.active) {
      settle_growth(lock, lease, deadline, timeout_ms);
      continue;
    }
    if (book_.sweeps_done < sweeps) {
      give_back(lock, sweeps, deadline);
      require_open(lease.tag);
      continue;
    }
    if (growths == GROWTHS_MAX) {
      throw driver_failed("the daemon granted frames that don't make up " + std::to_string(size_bytes) + " bytes in a row");
    }
    const auto window = lease.range.plan_growth(size_bytes);
    if (!window) throw driver_failed("the range of tag " + lease.tag.name + " has no addresses left");
    if (grow_or_give_back(lock, lease, *window, deadline, timeout_ms, refusals)) ++growths;
  }
}

// One growth at a time: the next may find room in what this one brings.
void Client::settle_growth(Lock &lock, Lease &lease, Clock::time_point deadline, uint32_t timeout_ms) {
  if (!book_.changed.wait_until(lock, deadline, [&] { return !lease.growth.active; })) throw no_answer(timeout_ms);
  require_open(lease.tag);
}

bool Client::grow_or_give_back(Lock &lock, Lease &lease, const Range::Window &window, Clock::time_point deadline,
                               uint32_t timeout_ms, int &refusals) {
  const uint64_t returns = book_.returns;
  bool grown = false;
  try {
    grow(lock, lease, window, left_of(deadline, timeout_ms));
    grown = true;
  } catch (const Error &error) {
    if (error.name != "OutOfDeviceMemory" || ++refusals == REFUSALS_MAX) throw;
    // All that is missing may be what leases of this process have to spare, or gave back once the daemon had been asked.
    const bool spares = book_.release_spares(Clock::time_point::max());
    if (!spares && !book_.is_giving_back() && book_.returns == returns) throw;
    wake_.ring();
    give_back(lock, book_.sweeps_wanted, deadline);
  }
  if (lease.tag.is_paused()) throw wrong_state("tag " + lease.tag.name + " was paused meanwhile", lease.tag.name);
  return grown;
}

void Client::allocate_at(Lease &lease, uint64_t offset, uint64_t size_bytes, uint32_t timeout_ms) {
  if (size_bytes == 0 || (offset | size_bytes) % Range::GRANULE_BYTES != 0) {
    throw invalid_argument("bytes are allocated in steps of " + std::to_string(Range::GRANULE_BYTES), lease.tag.name);
  }
  if (offset > lease.range.size_bytes() || size_bytes > lease.range.size_bytes() - offset) {
    throw invalid_argument("these bytes are not in the range", lease.tag.name);
  }
  const auto deadline = deadline_of(timeout_ms);
  Lock lock(book_.mutex);
  require_open(lease.tag);
  // A window may end where a slot is, so there may be one for each that lies among the bytes.
  const uint64_t growths_max = size_bytes / book_.slot_bytes_min() + GROWTHS_MAX;
  int refusals = 0;
  for (uint64_t growths = 0;;) {
    if (lease.range.allocate_at(offset, size_bytes)) return;
    if (lease.growth.active) {
      settle_growth(lock, lease, deadline, timeout_ms);
      continue;
    }
    if (growths == growths_max) throw driver_failed("the daemon granted no frames for " + std::to_string(size_bytes) + " bytes");
    const auto window = lease.range.plan_growth_at(offset, size_bytes);
    if (!window) throw invalid_argument("some of these bytes are allocated already", lease.tag.name);
    if (grow_or_give_back(lock, lease, *window, deadline, timeout_ms, refusals)) ++growths;
  }
}

// How much more than it needs a lease asks for, so that many allocations take few growths and few frames.
uint64_t Client::spare_for(const Lease &lease, const Range::Window &window) const {
  const uint64_t most = std::min(SPARE_BYTES_MAX, book_.welcome.capacity_bytes / SPARE_SHARE);
  const uint64_t wanted = std::min(std::max(SPARE_NEEDS * window.need_bytes, SPARE_GROWTH * lease.range.slot_bytes()), most);
  const uint64_t spare_bytes = wanted / book_.slot_bytes_min() * book_.slot_bytes_min();
  return lease.range.is_hole(window.begin, window.need_bytes + spare_bytes) ? spare_bytes : 0;
}

void Client::grow(Lock &lock, Lease &lease, const Range::Window &window, uint32_t timeout_ms) {
  const uint64_t spare_bytes = spare_for(lease, window);
  lease.growth = Growth{true, window.begin, window.begin, window.begin + window.need_bytes + spare_bytes, {}};
  const record::Lease request{
      0, static_cast<uint8_t>(lease.contents), window.need_bytes, spare_bytes, timeout_ms, lease.tag.name};
  try {
    ask(lock, request, timeout_ms, &lease);
  } catch (const Error &) {
    end_growth(lease);
    throw;
  }
  end_growth(lease);
}

// Opens what has arrived, for the caller first of all: it holds the lock.
void Client::end_growth(Lease &lease) {
  for (const uint64_t slot : lease.growth.arrived) lease.range.open_spare(slot);
  lease.growth = Growth{};
  lease.spare_until = Clock::now() + SPARE_LIFE;
  book_.want_sweep(lease);
  book_.changed.notify_all();
  wake_.ring();
}

void Client::free_after(void *address, void *stream) {
  free_put_off();
  free_after(PutOff{address, stream});
}

void Client::free_when_quiet(void *address) {
  free_put_off();
  free_after(PutOff{address, std::nullopt});
}

bool Client::wait_for(const std::optional<void *> &stream) {
  return stream ? device_->wait_stream(*stream) : !device_->quiesce();
}

void Client::free_after(const PutOff &one) {
  if (wait_for(one.stream)) {
    free(one.address);
    return;
  }
  const Lock lock(book_.mutex);
  put_off_.push_back(one);
}

// Tries once more what a capture has put off.
void Client::free_put_off() {
  std::vector<PutOff> waiting;
  {
    const Lock lock(book_.mutex);
    if (put_off_.empty()) return;
    waiting.swap(put_off_);
  }
  for (const PutOff &one : waiting) free_after(one);
}

bool Client::has_room_for(uint64_t size_bytes) {
  Lock lock(book_.mutex);
  require_open();
  if (ask(lock, record::AskFree{0}, ASK_MS).free_bytes >= size_bytes) return true;
  give_back_all(lock, deadline_of(ASK_MS));
  return ask(lock, record::AskFree{0}, ASK_MS).free_bytes >= size_bytes;
}

uint64_t Client::free_bytes() {
  Lock lock(book_.mutex);
  require_open();
  // What is free in this process already is as good as what the daemon has.
  give_back_all(lock, deadline_of(ASK_MS));
  return ask(lock, record::AskFree{0}, ASK_MS).free_bytes;
}

void Client::make_room(uint64_t size_bytes) {
  Lock lock(book_.mutex);
  require_open();
  give_back_all(lock, deadline_of(ASK_MS));
  ask(lock, record::MakeRoom{0, size_bytes, ROOM_LASTS_MS, 0}, 0);
}

void Client::free(void *address) {
  const Lock lock(book_.mutex);
  Lease *lease = book_.find_lease_at(address);
  if (lease == nullptr) throw invalid_argument("this address was never leased");
  const auto offset = static_cast<uint64_t>(static_cast<char *>(address) - lease->base);
  if (!lease->range.free(offset)) throw invalid_argument("no allocation starts at this address", lease->tag.name);
  if (lease->range.empty().empty() && !book_.closed) return;
  book_.want_sweep(*lease);
  wake_.ring();
}

}  // namespace vrb
