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

std::vector<std::string> ProcessMemory::tags() {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> names;
  for (const Lease *member : members_) names.push_back(member->tag.name);
  return names;
}

Lease &ProcessMemory::open_member() {
  const std::lock_guard lock(mutex_);
  for (Lease *member : members_) {
    if (!client_.is_paused(member->tag.name)) return *member;
  }
  for (Lease *member : members_) {
    if (client_.allocated_bytes(member->tag.name) != 0) continue;
    // There is nothing to bring back.
    client_.resume({member->tag.name}, 0);
    return *member;
  }
  return next_member();
}

Lease &ProcessMemory::next_member() {
  const std::size_t number = members_.size() + 1;
  const std::string name = number == 1 ? tag_ : tag_ + "+p" + std::to_string(number);
  members_.push_back(&client_.open_lease(name, contents_));
  return *members_.back();
}

}  // namespace vrb
