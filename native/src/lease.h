// A lease as its owner sees it: a range of addresses under one tag and policy, and the slots that back it.
//
// All of it is guarded by the book's mutex. Slots are added, moved and removed by the agent alone, which may therefore keep
// a reference to one across a time without the lock.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "device.h"
#include "gate.h"
#include "range.h"
#include "records.h"
#include "vrambroker/vrambroker.h"

namespace vrb {

class Client;
struct Lease;

// What a slot is in the midst of. Whatever else is asked of it waits until that is over.
enum class Motion { none, arriving, leaving, zeroing, copying, returning };

// `fresh`: it never held anything, and is not open to allocations yet. `stale`: mapped across a pause, under `zero`.
// The extent that a slot was copied to the last time that it left.
struct Parked {
  uint64_t file;
  uint64_t offset_bytes;
};

struct Slot {
  uint64_t number;
  uint64_t offset;
  uint64_t size_bytes;
  bool mapped = false;
  bool fresh = true;
  bool stale = false;
  Motion motion = Motion::none;
  std::optional<RecallSlot> recall_next;  // came while it was in motion
  std::optional<Parked> parked;           // where its contents are while it is neither mapped nor in motion
};

struct Tag {
  std::string name;
  Gate gate;
  std::vector<Lease *> leases;
  uint32_t pausers = 0;          // calls of vrb_pause under way
  uint32_t resumers = 0;         // calls of vrb_resume under way
  bool is_process_memory = false;  // paused by this process alone: torch must be told first
  bool paused_unheard = false;   // paused when the daemon knew nothing of it
  bool sealed = false;           // its frames are mapped read-only, or about to be
  // How often it was asked for that they are mapped so, or writable again; how often that was done, and what it came to.
  uint64_t protects_wanted = 0;
  uint64_t protects_done = 0;
  Failure protect_failure;
  std::set<uint64_t> orders;     // pause orders that keep the gate closed
  std::set<uint64_t> quiet;      // those of them that were answered QUIET

  bool is_paused() const;
  bool is_growing() const;
  // Whether memory may be handed out: not once the tag is paused or has been called quiet.
  bool is_open() const { return !is_paused() && pausers == 0 && quiet.empty(); }
  void set_gate() {
    if (is_paused() || pausers > 0 || !orders.empty()) {
      gate.close();
    } else {
      gate.open();
    }
  }
};

// New slots on the way for one vrb_malloc. They are placed from `next` on, and opened by the thread that asked.
struct Growth {
  bool active = false;
  uint64_t begin = 0;
  uint64_t next = 0;
  uint64_t end = 0;
  std::vector<uint64_t> arrived;
};

struct Lease {
  Lease(Client &client_, Tag &tag_, vrb_contents contents_, char *base_, Range range_)
      : client(client_), tag(tag_), contents(contents_), base(base_), range(std::move(range_)) {}

  Client &client;
  Tag &tag;
  vrb_contents contents;
  char *base;  // null once the client has ended
  Range range;
  uint64_t number = 0;  // the daemon's; 0 while it knows nothing of it
  std::map<uint64_t, Slot> slots;
  Growth growth;
  std::chrono::steady_clock::time_point spare_until{};  // when slots that were lent to spare go back
  uint32_t given_up = 0;  // growths that nobody waits for any more, and that may still bring slots
  bool paused = false;
  bool moved = false;  // some of it has left since it was paused
  bool resuming = false;  // the daemon says resident; stale slots are still being zeroed
  uint32_t zeroing = 0;
  bool sweep_due = false;
  std::optional<std::string> resume_failure;

  char *address_of(const Slot &slot) const { return base + slot.offset; }
  // Whether the daemon's orders to vacate it may be obeyed.
  bool is_at_rest() const { return paused && !resuming; }
};

inline bool Tag::is_paused() const {
  bool paused = paused_unheard;
  for (const Lease *lease : leases) paused = paused || lease->paused;
  return paused;
}

inline bool Tag::is_growing() const {
  bool growing = false;
  for (const Lease *lease : leases) growing = growing || lease->growth.active;
  return growing;
}

}  // namespace vrb
