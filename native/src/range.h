// The addresses of one lease: which are backed by slots, which of those are free, and where the next slot goes.
//
// Offsets from the range's start throughout; nothing is touched or mapped here. A slot is placed (it has addresses), then
// opened (its bytes may be handed out), and removed when it is to go. Free spans run across slots that touch, so one
// allocation may span many; it is cut in granules of 512 bytes. A big request starts on a 2 MiB border, small ones pack
// into what is left beside others.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

namespace vrb {

class Range {
 public:
  static constexpr uint64_t GRANULE_BYTES = 512;
  static constexpr uint64_t BIG_BYTES = uint64_t{1} << 20;
  static constexpr uint64_t BORDER_BYTES = uint64_t{2} << 20;

  // Where slots for a request should be placed: `need_bytes` of them from `begin` on.
  struct Window {
    uint64_t begin;
    uint64_t need_bytes;
  };

  // Sizes of slots are multiples of `slot_bytes_min`.
  Range(uint64_t size_bytes, uint64_t slot_bytes_min);

  // The smallest free span that fits, lowest first. Nothing if none does.
  std::optional<uint64_t> allocate(uint64_t size_bytes);
  // Allocates these very bytes; false unless all of them are free.
  bool allocate_at(uint64_t offset, uint64_t size_bytes);
  // Whether one allocation holds all of these bytes.
  bool is_allocated(uint64_t offset, uint64_t size_bytes) const;
  // Returns the bytes freed, or nothing if no allocation starts there.
  std::optional<uint64_t> free(uint64_t offset);

  // The place where the fewest new slot bytes make room for the request: beside free spans, in a hole or at the end.
  // Nothing if the range has no addresses left for it.
  std::optional<Window> plan_growth(uint64_t size_bytes) const;
  // The first place where slots are missing among these bytes. Nothing if none are, or if addresses are that no slot fits.
  std::optional<Window> plan_growth_at(uint64_t offset, uint64_t size_bytes) const;
  // Whether these addresses are a hole.
  bool is_hole(uint64_t offset, uint64_t size_bytes) const;
  // Behind the last slot.
  uint64_t end() const;

  void place(uint64_t slot, uint64_t offset, uint64_t size_bytes);
  void open(uint64_t slot);
  // Opens a slot that was not asked for by an allocation: it is none of the empty ones until one has been in it.
  void open_kept(uint64_t slot);
  // Counts them among the empty ones after all.
  void release_kept();
  // Opens a slot that may not be needed: it is none of the empty ones until one has been in it, or it is released.
  void open_spare(uint64_t slot);
  bool has_spare() const { return !spare_.empty(); }
  void release_spare();
  // Takes an empty slot's bytes out of what may be handed out, until it is opened again or removed.
  void shut(uint64_t slot);
  void remove(uint64_t slot);

  bool is_empty(uint64_t slot) const { return empty_.count(slot) != 0; }
  // Slots that are open and hold no allocation.
  const std::set<uint64_t> &empty() const { return empty_; }

  uint64_t size_bytes() const { return size_bytes_; }
  uint64_t allocated_bytes() const { return allocated_bytes_; }
  uint64_t allocations() const { return used_.size(); }
  uint64_t free_bytes() const { return free_bytes_; }
  uint64_t slot_bytes() const { return slot_bytes_; }

 private:
  struct Slot {
    uint64_t offset, size_bytes;
    bool open;
  };
  using Spans = std::map<uint64_t, uint64_t>;  // offset to size

  void add_free(uint64_t offset, uint64_t size_bytes);
  void drop_free(Spans::iterator span);
  void put_free(uint64_t offset, uint64_t size_bytes);
  void cut_free(uint64_t offset, uint64_t size_bytes);
  void take(uint64_t offset, uint64_t size_bytes);
  void mark_filled(uint64_t offset, uint64_t size_bytes);
  void mark_emptied(uint64_t offset, uint64_t size_bytes);
  std::optional<Window> window_in(uint64_t hole, uint64_t hole_bytes, uint64_t size_bytes) const;

  uint64_t size_bytes_;
  uint64_t slot_bytes_min_;
  std::map<uint64_t, Slot> slots_;
  std::map<uint64_t, uint64_t> slot_at_;  // offset to slot
  Spans free_;
  std::set<std::pair<uint64_t, uint64_t>> free_by_size_;  // size, offset
  Spans used_;
  Spans holes_;  // addresses without a slot
  std::set<uint64_t> empty_;
  std::set<uint64_t> kept_;
  std::set<uint64_t> spare_;
  uint64_t allocated_bytes_ = 0;
  uint64_t free_bytes_ = 0;
  uint64_t slot_bytes_ = 0;
};

}  // namespace vrb
