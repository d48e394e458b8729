// Moves frames in and out of their addresses, as the daemon orders and as allocations are freed. The agent's hands: only its
// thread calls this, and only this maps and unmaps.
//
// A slot is in one motion at a time. What comes for it meanwhile (a recall during an arrival, a free during a recall) waits
// for the end of that motion. Every order is answered, also when it failed, and also the second time (HANDLES.md, rule 5).
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "arena_map.h"
#include "book.h"
#include "channel.h"
#include "copier.h"
#include "device.h"
#include "fd.h"
#include "records.h"

namespace vrb {

class Mover {
 public:
  Mover(Book &book, Device &device, Channel &channel, Copier &copier)
      : book_(book), device_(device), channel_(channel), copier_(copier), arena_(device) {}

  // Returns false if the record contradicts itself, and the connection must be closed.
  bool grant(const record::Grant &grant, std::vector<Fd> fds);
  bool add_arena(const record::Arena &arena, std::vector<Fd> fds);
  void recall(const record::Recall &recall);
  void copy(const record::Copy &order);
  void drop_arena(const record::ArenaGone &gone);
  void set_state(const record::LeaseState &state);

  // Maps what is there of tags read-only, or writable again, where a client has asked for it.
  void protect();

  // Shows what is parked to those who asked to read it, and lets go of what nobody reads any more.
  void show_parked();

  // Takes in what the copier has finished.
  void take_copies();

  // Gives back what is free, and, once the client is closed, leases without allocations.
  void sweep();

  // Lets go of the arena's files and of the addresses of leases that hold nothing. Nothing may be in motion.
  void release_addresses();

  // Registers one more piece of the arena. Returns whether there is more to do, after a gap.
  bool register_one() { return arena_.register_one(); }

 private:
  struct Copy {
    Lease *lease;
    uint64_t slot;
    uint64_t file;  // 0: none
    uint64_t size_bytes;
  };
  // The order to copy slots out while they stay mapped that came last. `waits`: copies of it that are not done; after the
  // last, `report` is its answer. `resumed`: memory may have been in use since it came.
  struct Background {
    struct Place {
      uint64_t file, offset_bytes, ticket;
      bool done;
    };
    uint64_t order = 0;
    Lease *lease = nullptr;
    std::map<uint64_t, Place> places = {};
    std::size_t waits = 0;
    bool resumed = false;
    std::string failure = {};
    record::Copied report = {};
  };
  struct Placed {
    Slot *slot;
    const GrantSlot *order;
    Fd frame;
  };

  bool is_sound(const record::Grant &grant, std::size_t fds) const;
  Lease *lease_for(const record::Grant &grant, std::string &refusal);
  void refuse(const record::Grant &grant, const std::string &refusal);
  void import(Lease &lease, const record::Grant &grant, std::vector<Fd> fds);
  Slot *slot_for(Lease &lease, const GrantSlot &order, std::string &refusal);
  Slot *place(Lease &lease, const GrantSlot &order);
  Failure map_all(Lease &lease, std::vector<Placed> &placed);
  Failure start_filling(Lease &lease, const Placed &placed);
  Failure finish(Lease &lease, Slot &slot);
  void settle(Lease &lease, Slot &slot);
  void abandon(Lease &lease, Slot &slot);

  void recall_slot(Lease &lease, const RecallSlot &order, std::vector<uint64_t> &left);
  Failure cut_out(const Lease &lease, const Slot &slot, uint64_t file, uint64_t offset_bytes,
                  std::vector<Copier::Chunk> &chunks);
  Failure start_leaving(Lease &lease, Slot &slot, const RecallSlot &order);
  Failure unmap(Lease &lease, Slot &slot);
  void end_motion(Lease &lease, Slot &slot);
  void submit(Copier::Direction direction, Lease &lease, const Slot &slot, uint64_t file,
              std::vector<Copier::Chunk> chunks);
  uint64_t note_copy(Lease &lease, const Slot &slot, uint64_t file);

  Failure start_copying(Lease &lease, const CopySlot &order);
  void copied_ahead(Lease &lease, Slot &slot, const Failure &failure);
  bool is_copied_to(const Slot &slot, const RecallSlot &order) const;
  void call_off_copies(const Lease &lease);
  void report_if_copied();

  void copied(const Copy &copy, const Failure &failure);
  void copied_in(Lease &lease, Slot &slot, const Failure &failure);
  void copied_out(Lease &lease, Slot &slot, const Failure &failure);
  void zeroed(Lease &lease, Slot &slot, const Failure &failure);
  void start_zeroing(Lease &lease);
  void open_resumed(Lease &lease);
  void tell_resumed(const Tag &tag);

  Failure protect_slots(Lease &lease, bool writable);

  Failure find_parked(const ParkedView &view, std::vector<ArenaMap::Part> &parts);

  std::vector<uint64_t> take_empty(Lease &lease);
  void sweep_lease(Lease &lease);
  void return_lease_if_done(Lease &lease);
  void return_slots(Lease &lease, const std::vector<uint64_t> &slots);

  void send(const FromClient &record) { channel_.send(encode(record)); }
  void tell_arrived(uint64_t lease, const std::vector<uint64_t> &slots, const std::string &failure);
  void tell_left(uint64_t lease, const std::vector<uint64_t> &slots, const std::string &failure);
  void release_file(uint64_t file);

  Book &book_;
  Device &device_;
  Channel &channel_;
  Copier &copier_;
  ArenaMap arena_;
  uint64_t next_ticket_ = 1;
  std::map<uint64_t, Copy> copies_;
  Background background_;
  std::map<uint64_t, uint64_t> leaving_files_;  // file to the batch that is to be acknowledged
};

}  // namespace vrb
