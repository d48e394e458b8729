// The part of the mover that copies out what is paused while it stays mapped, so that it can leave at once later.

#include <utility>

#include "mover.h"

namespace vrb {

// An order comes again after a reconnect. It is carried out once, since its places may be somebody else's once it is answered.
void Mover::copy(const record::Copy &order) {
  if (order.order <= background_.order || background_.waits > 0) {
    if (order.order != background_.order) {
      send(record::Copied{order.order, {}, "another order is under way or came later"});
    } else if (background_.waits == 0) {
      send(background_.report);
    }
    return;
  }
  background_ = Background{order.order};
  bool at_rest = false;
  {
    const std::lock_guard lock(book_.mutex);
    background_.lease = book_.find_lease(order.lease);
    at_rest = background_.lease != nullptr && background_.lease->is_at_rest();
  }
  if (!at_rest) background_.failure = "the lease is in use";
  for (const CopySlot &slot : order.slots) {
    if (!background_.failure.empty()) break;
    if (Failure failure = start_copying(*background_.lease, slot)) background_.failure = *failure;
  }
  report_if_copied();
}

Failure Mover::start_copying(Lease &lease, const CopySlot &order) {
  const auto found = lease.slots.find(order.slot);
  const bool there = found != lease.slots.end() && found->second.mapped && found->second.motion == Motion::none;
  if (!there || lease.contents != VRB_KEEP) return "slot " + std::to_string(order.slot) + " is not there to be copied";
  Slot &slot = found->second;
  std::vector<Copier::Chunk> chunks;
  if (Failure failure = cut_out(lease, slot, order.file, order.offset_bytes, chunks)) return failure;
  slot.motion = Motion::copying;
  const uint64_t ticket = note_copy(lease, slot, order.file);
  background_.places[order.slot] = {order.file, order.offset_bytes, ticket, false};
  ++background_.waits;
  copier_.submit_background({ticket, std::move(chunks)});
  return std::nullopt;
}

void Mover::copied_ahead(Lease &lease, Slot &slot, const Failure &failure) {
  const uint64_t number = slot.number;
  const auto recall = std::exchange(slot.recall_next, std::nullopt);
  Background::Place &place = background_.places.at(number);
  place.done = !failure;
  if (place.done) slot.parked = Parked{place.file, place.offset_bytes};
  if (failure && background_.failure.empty()) background_.failure = *failure;
  end_motion(lease, slot);
  if (recall) {
    std::vector<uint64_t> left;
    recall_slot(lease, *recall, left);
    if (!left.empty()) tell_left(lease.number, left, "");
  }
  --background_.waits;
  report_if_copied();
}

// Whether the slot can leave as it is: it was copied to where it is to be parked, in this pause, and nobody else has the place.
// That is sure only until the order is answered.
bool Mover::is_copied_to(const Slot &slot, const RecallSlot &order) const {
  if (background_.waits == 0 || background_.resumed) return false;
  const auto place = background_.places.find(slot.number);
  return place != background_.places.end() && place->second.done && place->second.file == order.file &&
         place->second.offset_bytes == order.offset_bytes;
}

// The lease is about to be used: what is copied from now on is nobody's contents any more.
void Mover::call_off_copies(const Lease &lease) {
  if (background_.waits == 0 || background_.lease != &lease) return;
  background_.resumed = true;
  for (const auto &[number, place] : background_.places) copier_.call_off(place.ticket);
}

void Mover::report_if_copied() {
  if (background_.waits > 0) return;
  record::Copied report{background_.order, {}, background_.failure};
  if (background_.resumed) report.failure = "the lease was resumed";
  for (const auto &[number, place] : background_.places) {
    if (place.done && !background_.resumed) report.slots.push_back(number);
  }
  background_.report = std::move(report);
  send(background_.report);
}

}  // namespace vrb
