// The rest of the mover: copies that end, the arena's files, and what is given back.

#include <algorithm>
#include <utility>

#include "mover.h"

namespace vrb {
namespace {

constexpr std::size_t SLOTS_PER_RECORD = 2048;
constexpr std::size_t FAILURE_BYTES_MAX = 1024;

}  // namespace

void Mover::submit(Copier::Direction direction, Lease &lease, const Slot &slot, uint64_t file,
                   std::vector<Copier::Chunk> chunks) {
  copier_.submit(direction, {note_copy(lease, slot, file), std::move(chunks)});
}

uint64_t Mover::note_copy(Lease &lease, const Slot &slot, uint64_t file) {
  const uint64_t ticket = next_ticket_++;
  copies_.emplace(ticket, Copy{&lease, slot.number, file, slot.size_bytes});
  if (file != 0) arena_.use(file);
  return ticket;
}

void Mover::take_copies() {
  for (const Copier::Finished &finished : copier_.take_finished()) {
    const auto found = copies_.find(finished.ticket);
    const Copy copy = found->second;
    copies_.erase(found);
    copied(copy, finished.failure);
    if (copy.file != 0) release_file(copy.file);
  }
}

void Mover::copied(const Copy &copy, const Failure &failure) {
  Lease &lease = *copy.lease;
  // A slot in motion is never removed.
  Slot &slot = lease.slots.at(copy.slot);
  if (copy.file != 0 && !failure) {
    const std::lock_guard lock(book_.mutex);
    const bool out = slot.motion == Motion::leaving || slot.motion == Motion::copying;
    uint64_t &counter = out ? book_.copied_out_bytes : book_.copied_in_bytes;
    counter += copy.size_bytes;
  }
  if (slot.motion == Motion::leaving) {
    copied_out(lease, slot, failure);
  } else if (slot.motion == Motion::copying) {
    copied_ahead(lease, slot, failure);
  } else if (slot.motion == Motion::zeroing) {
    zeroed(lease, slot, failure);
  } else {
    copied_in(lease, slot, failure);
  }
}

bool Mover::add_arena(const record::Arena &arena, std::vector<Fd> fds) {
  if (fds.size() != 1 || arena.file == 0) return false;
  arena_.add(arena.file, std::move(fds.front()), arena.size_bytes);
  fds.clear();
  send(record::Taken{arena.batch});
  return true;
}

void Mover::drop_arena(const record::ArenaGone &gone) {
  leaving_files_[gone.file] = gone.batch;
  if (!arena_.let_go(gone.file)) return;
  leaving_files_.erase(gone.file);
  send(record::Taken{gone.batch});
}

void Mover::release_file(uint64_t file) {
  arena_.done_with(file);
  const auto found = leaving_files_.find(file);
  if (found == leaving_files_.end() || !arena_.let_go(file)) return;
  send(record::Taken{found->second});
  leaving_files_.erase(found);
}

// What is sealed.

void Mover::protect() {
  struct Due {
    Tag *tag;
    bool sealed;
    uint64_t wanted;
    std::vector<Lease *> leases;
  };
  std::vector<Due> all;
  {
    const std::lock_guard lock(book_.mutex);
    for (const auto &[name, tag] : book_.tags) {
      if (tag->protects_done == tag->protects_wanted) continue;
      all.push_back({tag.get(), tag->sealed, tag->protects_wanted, tag->leases});
    }
  }
  for (const Due &due : all) {
    Failure failure;
    for (Lease *lease : due.leases) {
      if (!failure) failure = protect_slots(*lease, !due.sealed);
    }
    const std::lock_guard lock(book_.mutex);
    due.tag->protects_done = due.wanted;
    due.tag->protect_failure = failure;
    book_.changed.notify_all();
  }
}

// What is arriving is written to just now, and protected when it has arrived. One call for what lies side by side.
Failure Mover::protect_slots(Lease &lease, bool writable) {
  std::map<uint64_t, uint64_t> runs;  // end to begin
  for (const auto &[number, slot] : lease.slots) {
    if (!slot.mapped || slot.motion == Motion::arriving) continue;
    runs[slot.offset + slot.size_bytes] = slot.offset;
  }
  for (auto run = runs.begin(); run != runs.end();) {
    const uint64_t begin = run->second;
    uint64_t end = run->first;
    for (++run; run != runs.end() && run->second == end; ++run) end = run->first;
    if (Failure failure = device_.protect(lease.base + begin, end - begin, writable)) return failure;
  }
  return std::nullopt;
}

// What is given back.

void Mover::sweep() {
  std::vector<Lease *> due;
  uint64_t wanted = 0;
  {
    const std::lock_guard lock(book_.mutex);
    wanted = book_.sweeps_wanted;
    for (const auto &lease : book_.leases) {
      // While a growth is under way its new slots are empty only because nobody has taken them yet.
      if (lease->growth.active || !lease->sweep_due) continue;
      lease->sweep_due = false;
      due.push_back(lease.get());
    }
  }
  for (Lease *lease : due) {
    sweep_lease(*lease);
    return_lease_if_done(*lease);
  }
  const std::lock_guard lock(book_.mutex);
  book_.sweeps_done = wanted;
  book_.changed.notify_all();
}

// Takes the empty slots out of reach of allocations. One in motion is left for the end of that.
std::vector<uint64_t> Mover::take_empty(Lease &lease) {
  const std::lock_guard lock(book_.mutex);
  std::vector<uint64_t> taken;
  if (lease.growth.active) return taken;
  if (book_.closed) lease.range.release_kept();
  for (const uint64_t number : lease.range.empty()) {
    if (lease.slots.at(number).motion == Motion::none) taken.push_back(number);
  }
  for (const uint64_t number : taken) {
    lease.range.shut(number);
    lease.slots.at(number).motion = Motion::returning;
  }
  return taken;
}

void Mover::sweep_lease(Lease &lease) {
  std::vector<uint64_t> returned;
  for (const uint64_t number : take_empty(lease)) {
    Slot &slot = lease.slots.at(number);
    const bool stuck = slot.mapped && unmap(lease, slot);
    const std::lock_guard lock(book_.mutex);
    slot.motion = Motion::none;
    if (stuck) {
      // What can't be unmapped can still be used.
      lease.range.open(number);
      continue;
    }
    lease.range.remove(number);
    lease.slots.erase(number);
    book_.gone_slots.add(number);
    ++book_.returns;
    returned.push_back(number);
  }
  if (!returned.empty()) return_slots(lease, returned);
}

void Mover::return_slots(Lease &lease, const std::vector<uint64_t> &slots) {
  const std::lock_guard lock(book_.mutex);
  for (std::size_t begin = 0; begin < slots.size(); begin += SLOTS_PER_RECORD) {
    const std::size_t end = std::min(begin + SLOTS_PER_RECORD, slots.size());
    const std::vector<uint64_t> part(&slots[begin], &slots[begin] + (end - begin));
    channel_.send(book_.requests.add(record::Return{0, lease.number, part}, false)->packet);
  }
}

void Mover::return_lease_if_done(Lease &lease) {
  const std::lock_guard lock(book_.mutex);
  const bool holds_nothing = lease.slots.empty() && lease.range.allocations() == 0 && !lease.growth.active;
  if (!book_.closed || lease.number == 0 || !holds_nothing) return;
  channel_.send(book_.requests.add(record::Return{0, lease.number, {}}, false)->packet);
  book_.forget_number(lease);
  book_.changed.notify_all();
}

void Mover::tell_arrived(uint64_t lease, const std::vector<uint64_t> &slots, const std::string &failure) {
  send(record::Arrived{lease, slots, failure.substr(0, FAILURE_BYTES_MAX)});
}

void Mover::tell_left(uint64_t lease, const std::vector<uint64_t> &slots, const std::string &failure) {
  send(record::Left{lease, slots, failure.substr(0, FAILURE_BYTES_MAX)});
}

void Mover::release_addresses() {
  arena_.let_go_of_all();
  const std::lock_guard lock(book_.mutex);
  book_.release_ranges();
}

}  // namespace vrb
