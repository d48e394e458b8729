#include "process_memory.h"

#include <utility>

#include "client.h"
#include "status.h"

namespace vrb {
namespace {

// torch holds its allocator's lock meanwhile, so this is for what is certain to come.
constexpr uint32_t TIMEOUT_MS = 10'000;
// A pause may come between the choice of a member and the allocation; each time there is another to choose.
constexpr int TRIES_MAX = 3;

}  // namespace

ProcessMemory::ProcessMemory(Client &client, std::string tag, vrb_contents contents)
    : client_(client), tag_(std::move(tag)), contents_(contents) {}

void *ProcessMemory::allocate(uint64_t size_bytes) {
  for (int tries = 1;; ++tries) {
    Lease &member = open_member();
    try {
      return client_.allocate(member, size_bytes, TIMEOUT_MS);
    } catch (const Error &error) {
      if (error.status != VRB_WRONG_STATE || tries == TRIES_MAX) throw;
    }
  }
}

void *ProcessMemory::reserve(uint64_t size_bytes) {
  const std::lock_guard lock(mutex_);
  for (Reservation &one : reservations_) {
    if (one.taken || one.member.lease->range.size_bytes() < size_bytes || !revive(one.member)) continue;
    one.taken = true;
    return one.member.lease->base;
  }
  const std::string name = tag_ + "+e" + std::to_string(reservations_.size() + 1);
  reservations_.push_back({{&client_.open_process_lease(name, contents_, size_bytes), false}, true});
  return reservations_.back().member.lease->base;
}

ProcessMemory::Reservation *ProcessMemory::reservation_at(const void *address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  for (Reservation &one : reservations_) {
    const auto base = reinterpret_cast<uintptr_t>(one.member.lease->base);
    if (at >= base && at - base < one.member.lease->range.size_bytes()) return &one;
  }
  return nullptr;
}

bool ProcessMemory::unreserve(void *address) {
  const std::lock_guard lock(mutex_);
  Reservation *const found = reservation_at(address);
  if (found == nullptr || found->member.lease->base != address) return false;
  found->taken = false;
  return true;
}

bool ProcessMemory::is_reserved(const void *address) {
  const std::lock_guard lock(mutex_);
  return reservation_at(address) != nullptr;
}

bool ProcessMemory::has_room_for(uint64_t size_bytes) {
  vrb_info info;
  client_.get_info(info);
  const uint64_t frame = info.frame_bytes_min;
  // What begins within a frame may end within another.
  return client_.has_room_for((size_bytes + frame - 1) / frame * frame + frame);
}

void ProcessMemory::map(void *address, uint64_t size_bytes) {
  Lease *lease = nullptr;
  {
    const std::lock_guard lock(mutex_);
    Reservation *const found = reservation_at(address);
    if (found == nullptr) throw invalid_argument("these addresses are not reserved");
    lease = found->member.lease;
  }
  client_.allocate_at(*lease, static_cast<uint64_t>(static_cast<char *>(address) - lease->base), size_bytes, TIMEOUT_MS);
}

void ProcessMemory::unmap(void *address) { client_.free(address); }

std::vector<std::string> ProcessMemory::tags() {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> names;
  for (const Member &member : members_) names.push_back(member.lease->tag.name);
  for (const Reservation &one : reservations_) names.push_back(one.member.lease->tag.name);
  return names;
}

void ProcessMemory::divert(bool elsewhere) {
  const std::lock_guard lock(mutex_);
  for (Member &member : members_) member.old = elsewhere;
  for (Reservation &one : reservations_) one.member.old = elsewhere;
}

Lease &ProcessMemory::open_member() {
  const std::lock_guard lock(mutex_);
  for (const Member &member : members_) {
    if (!member.old && !client_.is_paused(member.lease->tag.name)) return *member.lease;
  }
  for (Member &member : members_) {
    if (revive(member)) return *member.lease;
  }
  return next_member();
}

// Makes a member usable again that is empty: there is nothing to bring back.
bool ProcessMemory::revive(Member &member) {
  const std::string &name = member.lease->tag.name;
  if (client_.allocated_bytes(name) != 0) return false;
  if (!client_.is_paused(name)) return !member.old;
  client_.resume({name}, 0);
  member.old = false;
  return true;
}

Lease &ProcessMemory::next_member() {
  const std::size_t number = members_.size() + 1;
  const std::string name = number == 1 ? tag_ : tag_ + "+p" + std::to_string(number);
  members_.push_back({&client_.open_process_lease(name, contents_), false});
  return *members_.back().lease;
}

}  // namespace vrb
