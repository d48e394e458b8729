#include "book.h"

#include <algorithm>
#include <iterator>

#include "registry.h"
#include "status.h"

namespace vrb {
namespace {

// Addresses cost nothing until they are backed, so a range is made far larger than the device can fill: holes left by
// returned slots then never make it run out. But a process has 128 TiB of them, for everything that it maps: once its ranges
// have a quarter of that, new ones are only as large as the device, and a half is all that they get.
constexpr uint64_t RANGE_BYTES_ROOMY = 64 * GIB;
constexpr uint64_t RANGE_BYTES_LEAST = GIB;
constexpr uint64_t ROOMY_BYTES_MAX = 32 * 1024 * GIB;
constexpr uint64_t RESERVED_BYTES_MAX = 64 * 1024 * GIB;

uint64_t rounded_up(uint64_t size_bytes, uint64_t step) { return (size_bytes + step - 1) / step * step; }

}  // namespace

void Gone::add(uint64_t number) {
  if (!numbers_.insert(number).second) return;
  order_.push_back(number);
  if (order_.size() <= MOST) return;
  numbers_.erase(order_.front());
  order_.pop_front();
}

Tag *Book::find_tag(const std::string &name) {
  const auto found = tags.find(name);
  return found == tags.end() ? nullptr : found->second.get();
}

Tag &Book::tag(const std::string &name) {
  auto &entry = tags[name];
  if (entry == nullptr) {
    entry = std::make_unique<Tag>();
    entry->name = name;
  }
  return *entry;
}

Lease *Book::find_lease(uint64_t number) {
  const auto found = by_number_.find(number);
  return found == by_number_.end() ? nullptr : found->second;
}

Lease *Book::find_lease(const std::string &name, vrb_contents contents) {
  const Tag *of = find_tag(name);
  if (of == nullptr) return nullptr;
  for (Lease *lease : of->leases) {
    if (lease->contents == contents) return lease;
  }
  return nullptr;
}

Lease *Book::find_lease_at(const void *address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  const auto behind = by_address_.upper_bound(at);
  if (behind == by_address_.begin()) return nullptr;
  const auto found = std::prev(behind);
  return at - found->first < found->second->range.size_bytes() ? found->second : nullptr;
}

void *Book::reserve_range(uint64_t least_bytes, uint64_t &size_bytes) {
  const uint64_t capacity = welcome.capacity_bytes;
  const uint64_t least = rounded_up(std::max({capacity, RANGE_BYTES_LEAST, least_bytes}), Range::BORDER_BYTES);
  const uint64_t roomy = rounded_up(std::max({8 * capacity, RANGE_BYTES_ROOMY, least_bytes}), Range::BORDER_BYTES);
  const uint64_t reserved = registered_bytes();
  if (reserved + least > RESERVED_BYTES_MAX) return nullptr;
  size_bytes = reserved + roomy > ROOMY_BYTES_MAX ? least : roomy;
  void *base = device_.reserve(size_bytes);
  while (base == nullptr && size_bytes > least) {
    size_bytes = std::max(least, rounded_up(size_bytes / 2, Range::BORDER_BYTES));
    base = device_.reserve(size_bytes);
  }
  return base;
}

Lease &Book::make_lease(const std::string &name, vrb_contents contents, uint64_t range_bytes) {
  uint64_t size_bytes = 0;
  void *base = reserve_range(range_bytes, size_bytes);
  if (base == nullptr) throw driver_failed("no addresses are left to reserve for tag " + name);
  Tag &of = tag(name);
  Range range(size_bytes, slot_bytes_min());
  leases.push_back(std::make_unique<Lease>(client_, of, contents, static_cast<char *>(base), std::move(range)));
  Lease &lease = *leases.back();
  of.leases.push_back(&lease);
  by_address_[reinterpret_cast<uintptr_t>(base)] = &lease;
  reserved_bytes += size_bytes;
  register_range(base, size_bytes, client_);
  return lease;
}

void Book::release_ranges() {
  for (const auto &lease : leases) {
    if (lease->base == nullptr || !lease->slots.empty()) continue;
    forget_range(lease->base);
    by_address_.erase(reinterpret_cast<uintptr_t>(lease->base));
    device_.release(lease->base, lease->range.size_bytes());
    reserved_bytes -= lease->range.size_bytes();
    lease->base = nullptr;
  }
}

void Book::set_number(Lease &lease, uint64_t number) {
  lease.number = number;
  by_number_[number] = &lease;
}

void Book::forget_number(Lease &lease) {
  gone_leases.add(lease.number);
  by_number_.erase(lease.number);
  lease.number = 0;
  lease.paused = false;
  lease.tag.set_gate();
}

void Book::close_gates(uint64_t number, const Order &order) {
  for (const std::string &name : order.tags) {
    Tag &it = tag(name);
    it.orders.insert(number);
    it.set_gate();
  }
}

bool Book::is_paused(const std::vector<std::string> &names) {
  return std::all_of(names.begin(), names.end(), [&](const std::string &name) { return tag(name).is_paused(); });
}

void Book::tell_kept(const std::vector<std::string> &watched) {
  for (const std::string &name : watched) {
    if (tag(name).is_paused() || !notices.is_watched(Notice::Kind::resumed, name)) continue;
    notices.add({Notice::Kind::resumed, 0, {name}, true});
  }
}

void Book::want_sweep(Lease &lease) {
  lease.sweep_due = true;
  ++sweeps_wanted;
}

bool Book::release_spares(Clock::time_point by) {
  bool any = false;
  for (const auto &lease : leases) {
    if (!lease->range.has_spare() || lease->spare_until > by) continue;
    lease->range.release_spare();
    want_sweep(*lease);
    any = true;
  }
  return any;
}

bool Book::is_giving_back() const {
  for (const auto &lease : leases) {
    if (!lease->range.empty().empty()) return true;
    for (const auto &[number, slot] : lease->slots) {
      if (slot.motion == Motion::returning) return true;
    }
  }
  return false;
}

std::optional<Clock::time_point> Book::spares_due() const {
  std::optional<Clock::time_point> due;
  for (const auto &lease : leases) {
    if (lease->range.has_spare()) due = due ? std::min(*due, lease->spare_until) : lease->spare_until;
  }
  return due;
}

uint64_t Book::live_allocations() const {
  uint64_t count = 0;
  for (const auto &lease : leases) count += lease->range.allocations();
  return count;
}

}  // namespace vrb
