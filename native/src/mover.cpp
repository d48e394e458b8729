#include "mover.h"

#include <algorithm>
#include <set>
#include <utility>

#include "status.h"

namespace vrb {

// Orders to bring slots in.

bool Mover::is_sound(const record::Grant &grant, std::size_t fds) const {
  if (grant.slots.size() != fds || grant.slots.empty() || grant.lease == 0 || !is_word(grant.tag)) return false;
  if (grant.contents < VRB_KEEP || grant.contents > VRB_ZERO) return false;
  std::set<uint64_t> numbers;
  for (const GrantSlot &slot : grant.slots) {
    const bool fits = slot.size_bytes > 0 && slot.size_bytes % book_.slot_bytes_min() == 0 &&
                      slot.size_bytes <= book_.welcome.capacity_bytes;
    if (!fits || slot.slot == 0 || !numbers.insert(slot.slot).second) return false;
  }
  return true;
}

Lease *Mover::lease_for(const record::Grant &grant, std::string &refusal) {
  const std::lock_guard lock(book_.mutex);
  if (Lease *known = book_.find_lease(grant.lease)) return known;
  if (book_.gone_leases.has(grant.lease)) {
    refusal = "the lease was given back";
    return nullptr;
  }
  if (book_.closed) {
    refusal = "the client is closed";
    return nullptr;
  }
  try {
    const auto contents = static_cast<vrb_contents>(grant.contents);
    Lease *lease = book_.find_lease(grant.tag, contents);
    if (lease == nullptr) lease = &book_.make_lease(grant.tag, contents);
    if (lease->number != 0) {
      refusal = "the tag has another lease of this policy";
      return nullptr;
    }
    book_.set_number(*lease, grant.lease);
    return lease;
  } catch (const Error &error) {
    refusal = error.message;
    return nullptr;
  }
}

void Mover::refuse(const record::Grant &grant, const std::string &refusal) {
  std::vector<uint64_t> numbers;
  for (const GrantSlot &slot : grant.slots) numbers.push_back(slot.slot);
  send(record::Taken{grant.batch});
  tell_arrived(grant.lease, numbers, refusal);
}

bool Mover::grant(const record::Grant &grant, std::vector<Fd> fds) {
  if (!is_sound(grant, fds.size())) return false;
  std::string refusal;
  Lease *lease = lease_for(grant, refusal);
  if (lease != nullptr) {
    import(*lease, grant, std::move(fds));
  } else {
    fds.clear();
    refuse(grant, refusal);
  }
  return true;
}

// Unplanned slots go behind all others, and behind what is set aside for the growth under way.
Slot *Mover::place(Lease &lease, const GrantSlot &order) {
  Growth &growth = lease.growth;
  uint64_t offset = 0;
  if (growth.active && growth.next + order.size_bytes <= growth.end && lease.range.is_hole(growth.next, order.size_bytes)) {
    offset = growth.next;
    growth.next += order.size_bytes;
  } else {
    offset = std::max(lease.range.end(), growth.active ? growth.end : 0);
    if (!lease.range.is_hole(offset, order.size_bytes)) return nullptr;
  }
  lease.range.place(order.slot, offset, order.size_bytes);
  Slot slot{};
  slot.number = order.slot;
  slot.offset = offset;
  slot.size_bytes = order.size_bytes;
  return &lease.slots.emplace(order.slot, slot).first->second;
}

// Returns the slot that the frame is for, or null if there is nothing to do: with a refusal, or because it is here already.
Slot *Mover::slot_for(Lease &lease, const GrantSlot &order, std::string &refusal) {
  const std::lock_guard lock(book_.mutex);
  const auto found = lease.slots.find(order.slot);
  if (found != lease.slots.end()) {
    Slot &slot = found->second;
    if (slot.size_bytes != order.size_bytes) refusal = "the slot has another size";
    const bool absent = !slot.mapped && slot.motion == Motion::none;
    return absent && refusal.empty() ? &slot : nullptr;
  }
  if (book_.gone_slots.has(order.slot)) {
    refusal = "the slot was given back";
    return nullptr;
  }
  Slot *slot = place(lease, order);
  if (slot == nullptr) refusal = "the range of tag " + lease.tag.name + " has no addresses left";
  return slot;
}

// Maps what lies side by side in one call, since a GPU's page tables are opened to it once for each.
Failure Mover::map_all(Lease &lease, std::vector<Placed> &placed) {
  for (std::size_t begin = 0, end = 0; begin < placed.size(); begin = end) {
    uint64_t next = placed[begin].slot->offset;
    std::vector<Frame> frames;
    for (; end < placed.size() && placed[end].slot->offset == next; ++end) {
      frames.push_back({std::move(placed[end].frame), placed[end].slot->size_bytes});
      next += placed[end].slot->size_bytes;
    }
    if (Failure failure = device_.map_run(std::move(frames), lease.address_of(*placed[begin].slot))) {
      // Past the first failure, frames are only let go.
      for (Placed &one : placed) one.frame.reset();
      return failure;
    }
    const std::lock_guard lock(book_.mutex);
    for (std::size_t i = begin; i < end; ++i) {
      Slot &slot = *placed[i].slot;
      slot.mapped = true;
      slot.stale = false;
      slot.motion = Motion::arriving;
      book_.mapped_bytes += slot.size_bytes;
    }
  }
  return std::nullopt;
}

void Mover::import(Lease &lease, const record::Grant &grant, std::vector<Fd> fds) {
  std::vector<Placed> placed;
  std::vector<uint64_t> arrived, refused, failed;
  std::string refusal;
  for (std::size_t i = 0; i < fds.size(); ++i) {
    const GrantSlot &order = grant.slots[i];
    std::string why;
    Slot *slot = slot_for(lease, order, why);
    if (slot != nullptr) {
      placed.push_back({slot, &order, std::move(fds[i])});
    } else if (!why.empty()) {
      refused.push_back(order.slot);
      refusal = why;
    } else if (lease.slots.at(order.slot).motion != Motion::arriving) {
      arrived.push_back(order.slot);
    }
  }
  fds.clear();
  Failure failure = map_all(lease, placed);
  send(record::Taken{grant.batch});
  for (Placed &one : placed) {
    const uint64_t number = one.slot->number;
    Failure wrong = failure ? failure : start_filling(lease, one);
    if (wrong) {
      if (!failure) failure = wrong;
      abandon(lease, *one.slot);
      failed.push_back(number);
    } else if (one.slot->motion == Motion::none) {
      arrived.push_back(number);
    }
  }
  if (!arrived.empty()) tell_arrived(lease.number, arrived, "");
  if (!failed.empty()) tell_arrived(lease.number, failed, *failure);
  if (!refused.empty()) tell_arrived(lease.number, refused, refusal);
}

// Whether a frame with nothing to restore must not show what it held before. Kept contents that come back without a copy
// were discarded: who asked for that finds the zeroes that new memory has.
static bool reads_as_zero(const Lease &lease, const Slot &slot) {
  return lease.contents == VRB_ZERO || (lease.contents == VRB_KEEP && !slot.fresh);
}

// Starts what the slot's contents need: the copy from the arena, zeroes, or nothing.
Failure Mover::start_filling(Lease &lease, const Placed &placed) {
  Slot &slot = *placed.slot;
  const GrantSlot &order = *placed.order;
  char *to = lease.address_of(slot);
  if ((order.flags & SLOT_RESTORE) != 0) {
    const auto pieces = arena_.cut(order.file, order.offset_bytes, slot.size_bytes);
    if (!pieces) return "arena: file " + std::to_string(order.file) + " has no such extent here";
    std::vector<Copier::Chunk> chunks;
    for (const ArenaMap::Piece &piece : *pieces) {
      chunks.push_back({to, piece.address, piece.size_bytes});
      to += piece.size_bytes;
    }
    submit(Copier::Direction::in, lease, slot, order.file, std::move(chunks));
  } else if ((order.flags & SLOT_DIRTY) != 0 && reads_as_zero(lease, slot)) {
    submit(Copier::Direction::in, lease, slot, 0, {{to, nullptr, slot.size_bytes}});
  } else {
    return finish(lease, slot);
  }
  return std::nullopt;
}

// The slot holds what it should: from now on nobody writes to it, if it is sealed.
Failure Mover::finish(Lease &lease, Slot &slot) {
  bool sealed = false;
  {
    const std::lock_guard lock(book_.mutex);
    sealed = lease.tag.sealed;
  }
  if (sealed) {
    if (Failure failure = device_.protect(lease.address_of(slot), slot.size_bytes, false)) return failure;
  }
  settle(lease, slot);
  return std::nullopt;
}

// The slot is mapped and holds what it should.
void Mover::settle(Lease &lease, Slot &slot) {
  const std::lock_guard lock(book_.mutex);
  slot.motion = Motion::none;
  if (std::exchange(slot.fresh, false)) {
    Growth &growth = lease.growth;
    if (growth.active && slot.offset >= growth.begin && slot.offset < growth.end) {
      growth.arrived.push_back(slot.number);
    } else if (lease.given_up > 0) {
      lease.range.open(slot.number);
    } else {
      lease.range.open_kept(slot.number);
    }
  }
  if (book_.closed || lease.range.is_empty(slot.number)) book_.want_sweep(lease);
}

// Undoes an arrival: nothing of it stays mapped, and a slot that never held anything is forgotten.
void Mover::abandon(Lease &lease, Slot &slot) {
  if (slot.mapped) unmap(lease, slot);
  const std::lock_guard lock(book_.mutex);
  slot.motion = Motion::none;
  if (slot.fresh) {
    lease.range.remove(slot.number);
    lease.slots.erase(slot.number);
  } else if (book_.closed || lease.range.is_empty(slot.number)) {
    book_.want_sweep(lease);
  }
}

void Mover::copied_in(Lease &lease, Slot &slot, const Failure &failure) {
  const uint64_t number = slot.number;
  const auto recall = std::exchange(slot.recall_next, std::nullopt);
  const Failure wrong = failure ? failure : finish(lease, slot);
  if (wrong) abandon(lease, slot);
  tell_arrived(lease.number, {number}, wrong.value_or(""));
  if (!recall) return;
  std::vector<uint64_t> left;
  recall_slot(lease, *recall, left);
  if (!left.empty()) tell_left(lease.number, left, "");
}

// Orders to vacate slots.

void Mover::recall(const record::Recall &recall) {
  std::vector<uint64_t> left;
  Lease *lease = nullptr;
  {
    const std::lock_guard lock(book_.mutex);
    lease = book_.find_lease(recall.lease);
  }
  for (const RecallSlot &order : recall.slots) {
    if (lease == nullptr) {
      left.push_back(order.slot);
    } else {
      recall_slot(*lease, order, left);
    }
  }
  if (!left.empty()) tell_left(recall.lease, left, "");
}

// Vacates the slot, or starts to, or notes that it must be; adds it to `left` if it is empty when this returns.
void Mover::recall_slot(Lease &lease, const RecallSlot &order, std::vector<uint64_t> &left) {
  const auto found = lease.slots.find(order.slot);
  if (found == lease.slots.end() || (!found->second.mapped && found->second.motion == Motion::none)) {
    left.push_back(order.slot);
    return;
  }
  Slot &slot = found->second;
  if (slot.motion == Motion::leaving) return;
  if (slot.motion != Motion::none) {
    slot.recall_next = order;
    if (slot.motion == Motion::copying) copier_.hasten(background_.places.at(slot.number).ticket);
    return;
  }
  bool at_rest = false;
  {
    const std::lock_guard lock(book_.mutex);
    at_rest = lease.is_at_rest();
  }
  const Failure failure = at_rest ? start_leaving(lease, slot, order) : "the lease is in use";
  if (failure) {
    tell_left(lease.number, {order.slot}, *failure);
  } else if (!slot.mapped) {
    left.push_back(order.slot);
  }
}

// How the contents of a slot go to an extent, cut at the borders of what is registered.
Failure Mover::cut_out(const Lease &lease, const Slot &slot, uint64_t file, uint64_t offset_bytes,
                       std::vector<Copier::Chunk> &chunks) {
  const auto pieces = arena_.cut(file, offset_bytes, slot.size_bytes);
  if (!pieces) return "arena: file " + std::to_string(file) + " has no such extent here";
  const char *from = lease.address_of(slot);
  for (const ArenaMap::Piece &piece : *pieces) {
    chunks.push_back({piece.address, from, piece.size_bytes});
    from += piece.size_bytes;
  }
  return std::nullopt;
}

Failure Mover::start_leaving(Lease &lease, Slot &slot, const RecallSlot &order) {
  if ((order.flags & SLOT_PARK) == 0 || is_copied_to(slot, order)) {
    Failure failure = unmap(lease, slot);
    if (!failure) lease.moved = true;
    end_motion(lease, slot);
    return failure;
  }
  std::vector<Copier::Chunk> chunks;
  if (Failure failure = cut_out(lease, slot, order.file, order.offset_bytes, chunks)) return failure;
  slot.motion = Motion::leaving;
  slot.parked = Parked{order.file, order.offset_bytes};
  submit(Copier::Direction::out, lease, slot, order.file, std::move(chunks));
  return std::nullopt;
}

void Mover::copied_out(Lease &lease, Slot &slot, const Failure &failure) {
  const Failure wrong = failure ? failure : unmap(lease, slot);
  if (!wrong) lease.moved = true;
  end_motion(lease, slot);
  tell_left(lease.number, {slot.number}, wrong.value_or(""));
}

Failure Mover::unmap(Lease &lease, Slot &slot) {
  Failure failure = device_.unmap(lease.address_of(slot), slot.size_bytes);
  if (failure) return failure;
  const std::lock_guard lock(book_.mutex);
  slot.mapped = false;
  book_.mapped_bytes -= slot.size_bytes;
  return std::nullopt;
}

void Mover::end_motion(Lease &lease, Slot &slot) {
  const std::lock_guard lock(book_.mutex);
  slot.motion = Motion::none;
  if (book_.closed || lease.range.is_empty(slot.number)) book_.want_sweep(lease);
}

// States, and what `zero` means for pages that stayed.

void Mover::set_state(const record::LeaseState &state) {
  const std::lock_guard lock(book_.mutex);
  Lease *lease = book_.find_lease(state.lease);
  if (lease == nullptr) return;
  if (state.paused != 0) {
    if (!lease->paused) lease->moved = false;
    lease->paused = true;
    lease->resuming = false;
    for (auto &[number, slot] : lease->slots) slot.stale = lease->contents == VRB_ZERO && slot.mapped;
  } else if (lease->is_at_rest()) {
    lease->resuming = true;
    call_off_copies(*lease);
    start_zeroing(*lease);
    open_resumed(*lease);
  }
  for (const uint64_t order : lease->tag.quiet) lease->tag.orders.erase(order);
  lease->tag.quiet.clear();
  lease->tag.set_gate();
  book_.changed.notify_all();
}

void Mover::start_zeroing(Lease &lease) {
  for (auto &[number, slot] : lease.slots) {
    if (!slot.stale || !slot.mapped || slot.motion != Motion::none) continue;
    slot.motion = Motion::zeroing;
    ++lease.zeroing;
    submit(Copier::Direction::in, lease, slot, 0, {{lease.address_of(slot), nullptr, slot.size_bytes}});
  }
}

void Mover::open_resumed(Lease &lease) {
  if (!lease.resuming || lease.zeroing > 0) return;
  lease.resuming = false;
  lease.paused = false;
  lease.tag.set_gate();
  tell_resumed(lease.tag);
  book_.changed.notify_all();
}

// Tells who watches the tag, if it was not this process that asked for it back.
void Mover::tell_resumed(const Tag &tag) {
  if (tag.resumers > 0 || tag.is_paused() || !book_.notices.is_watched(Notice::Kind::resumed, tag.name)) return;
  const bool same = std::none_of(tag.leases.begin(), tag.leases.end(), [](const Lease *lease) { return lease->moved; });
  book_.notices.add({Notice::Kind::resumed, 0, {tag.name}, same});
}

void Mover::zeroed(Lease &lease, Slot &slot, const Failure &failure) {
  end_motion(lease, slot);
  const auto recall = std::exchange(slot.recall_next, std::nullopt);
  {
    const std::lock_guard lock(book_.mutex);
    --lease.zeroing;
    // Paused again meanwhile: then it is stale again, too.
    if (!failure && lease.resuming) slot.stale = false;
    if (failure) lease.resume_failure = *failure;
    open_resumed(lease);
  }
  if (!recall) return;
  std::vector<uint64_t> left;
  recall_slot(lease, *recall, left);
  if (!left.empty()) tell_left(lease.number, left, "");
}

}  // namespace vrb
