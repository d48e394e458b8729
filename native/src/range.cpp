#include "range.h"

#include <algorithm>
#include <iterator>

namespace vrb {
namespace {

uint64_t up(uint64_t value, uint64_t step) { return (value + step - 1) / step * step; }
uint64_t down(uint64_t value, uint64_t step) { return value / step * step; }

uint64_t alignment_of(uint64_t size_bytes) {
  return size_bytes >= Range::BIG_BYTES ? Range::BORDER_BYTES : Range::GRANULE_BYTES;
}

// Joins a span to its neighbours that touch it, and returns the whole.
std::pair<uint64_t, uint64_t> join(std::map<uint64_t, uint64_t> &spans, uint64_t offset, uint64_t size_bytes) {
  auto next = spans.lower_bound(offset);
  if (next != spans.end() && next->first == offset + size_bytes) {
    size_bytes += next->second;
    next = spans.erase(next);
  }
  if (next != spans.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == offset) {
      offset = before->first;
      size_bytes += before->second;
      spans.erase(before);
    }
  }
  return {offset, size_bytes};
}

}  // namespace

Range::Range(uint64_t size_bytes, uint64_t slot_bytes_min) : size_bytes_(size_bytes), slot_bytes_min_(slot_bytes_min) {
  holes_[0] = size_bytes;
}

void Range::drop_free(Spans::iterator span) {
  free_by_size_.erase({span->second, span->first});
  free_.erase(span);
}

void Range::put_free(uint64_t offset, uint64_t size_bytes) {
  free_[offset] = size_bytes;
  free_by_size_.insert({size_bytes, offset});
}

void Range::add_free(uint64_t offset, uint64_t size_bytes) {
  free_bytes_ += size_bytes;
  const auto next = free_.find(offset + size_bytes);
  if (next != free_.end()) {
    size_bytes += next->second;
    drop_free(next);
  }
  const auto behind = free_.lower_bound(offset);
  if (behind != free_.begin()) {
    const auto before = std::prev(behind);
    if (before->first + before->second == offset) {
      offset = before->first;
      size_bytes += before->second;
      drop_free(before);
    }
  }
  put_free(offset, size_bytes);
}

void Range::cut_free(uint64_t offset, uint64_t size_bytes) {
  const auto span = std::prev(free_.upper_bound(offset));
  const uint64_t begin = span->first;
  const uint64_t end = begin + span->second;
  drop_free(span);
  if (offset > begin) put_free(begin, offset - begin);
  if (end > offset + size_bytes) put_free(offset + size_bytes, end - offset - size_bytes);
  free_bytes_ -= size_bytes;
}

std::optional<uint64_t> Range::allocate(uint64_t size_bytes) {
  size_bytes = up(size_bytes, GRANULE_BYTES);
  const uint64_t alignment = alignment_of(size_bytes);
  for (auto it = free_by_size_.lower_bound({size_bytes, 0}); it != free_by_size_.end(); ++it) {
    const auto [span_bytes, begin] = *it;
    const uint64_t offset = up(begin, alignment);
    if (offset + size_bytes > begin + span_bytes) continue;
    take(offset, size_bytes);
    return offset;
  }
  return std::nullopt;
}

void Range::take(uint64_t offset, uint64_t size_bytes) {
  cut_free(offset, size_bytes);
  used_[offset] = size_bytes;
  allocated_bytes_ += size_bytes;
  mark_filled(offset, size_bytes);
}

bool Range::allocate_at(uint64_t offset, uint64_t size_bytes) {
  const auto behind = free_.upper_bound(offset);
  if (behind == free_.begin()) return false;
  const auto &[begin, span_bytes] = *std::prev(behind);
  if (offset + size_bytes > begin + span_bytes) return false;
  take(offset, size_bytes);
  return true;
}

bool Range::is_allocated(uint64_t offset, uint64_t size_bytes) const {
  auto behind = used_.upper_bound(offset);
  if (behind == used_.begin()) return false;
  const auto &[begin, bytes] = *--behind;
  return offset - begin <= bytes && size_bytes <= bytes - (offset - begin);
}

std::optional<uint64_t> Range::free(uint64_t offset) {
  const auto found = used_.find(offset);
  if (found == used_.end()) return std::nullopt;
  const uint64_t size_bytes = found->second;
  used_.erase(found);
  allocated_bytes_ -= size_bytes;
  add_free(offset, size_bytes);
  mark_emptied(offset, size_bytes);
  return size_bytes;
}

void Range::mark_filled(uint64_t offset, uint64_t size_bytes) {
  auto it = std::prev(slot_at_.upper_bound(offset));
  for (; it != slot_at_.end() && it->first < offset + size_bytes; ++it) {
    empty_.erase(it->second);
    kept_.erase(it->second);
    spare_.erase(it->second);
  }
}

void Range::mark_emptied(uint64_t offset, uint64_t size_bytes) {
  const auto span = std::prev(free_.upper_bound(offset));
  const uint64_t begin = span->first;
  const uint64_t end = begin + span->second;
  auto it = std::prev(slot_at_.upper_bound(offset));
  for (; it != slot_at_.end() && it->first < offset + size_bytes; ++it) {
    const Slot &slot = slots_.at(it->second);
    if (slot.offset >= begin && slot.offset + slot.size_bytes <= end) empty_.insert(it->second);
  }
}

std::optional<Range::Window> Range::window_in(uint64_t hole, uint64_t hole_bytes, uint64_t size_bytes) const {
  const uint64_t hole_end = hole + hole_bytes;
  uint64_t start = hole;
  const auto behind = free_.lower_bound(hole);
  if (behind != free_.begin()) {
    const auto before = std::prev(behind);
    if (before->first + before->second == hole) start = before->first;
  }
  const uint64_t base = up(start, alignment_of(size_bytes));
  const uint64_t begin = std::max(hole, down(base, slot_bytes_min_));
  const auto after = free_.find(hole_end);
  const uint64_t reach = hole_end + (after == free_.end() ? 0 : after->second);
  if (base + size_bytes > reach || begin >= hole_end) return std::nullopt;
  const uint64_t need_bytes = up(std::min(base + size_bytes, hole_end) - begin, slot_bytes_min_);
  if (begin + need_bytes > hole_end) return std::nullopt;
  return Window{begin, need_bytes};
}

std::optional<Range::Window> Range::plan_growth(uint64_t size_bytes) const {
  size_bytes = up(size_bytes, GRANULE_BYTES);
  std::optional<Window> best;
  uint64_t best_hole_bytes = 0;
  for (const auto &[hole, hole_bytes] : holes_) {
    const auto window = window_in(hole, hole_bytes, size_bytes);
    if (!window) continue;
    const bool better = !best || window->need_bytes < best->need_bytes ||
                        (window->need_bytes == best->need_bytes && hole_bytes < best_hole_bytes);
    if (!better) continue;
    best = window;
    best_hole_bytes = hole_bytes;
  }
  return best;
}

std::optional<Range::Window> Range::plan_growth_at(uint64_t offset, uint64_t size_bytes) const {
  for (const auto &[hole, hole_bytes] : holes_) {
    const uint64_t hole_end = hole + hole_bytes;
    if (hole_end <= offset || hole >= offset + size_bytes) continue;
    // Slots begin and end on borders of the smallest, so holes do.
    const uint64_t begin = std::max(hole, down(offset, slot_bytes_min_));
    const uint64_t end = std::min(hole_end, up(offset + size_bytes, slot_bytes_min_));
    if ((end - begin) % slot_bytes_min_ != 0) return std::nullopt;
    return Window{begin, end - begin};
  }
  return std::nullopt;
}

bool Range::is_hole(uint64_t offset, uint64_t size_bytes) const {
  const auto behind = holes_.upper_bound(offset);
  if (behind == holes_.begin()) return false;
  const auto hole = std::prev(behind);
  return offset + size_bytes <= hole->first + hole->second;
}

uint64_t Range::end() const {
  if (slot_at_.empty()) return 0;
  const auto &[offset, slot] = *slot_at_.rbegin();
  return offset + slots_.at(slot).size_bytes;
}

void Range::place(uint64_t slot, uint64_t offset, uint64_t size_bytes) {
  const auto hole = std::prev(holes_.upper_bound(offset));
  const uint64_t begin = hole->first;
  const uint64_t end = begin + hole->second;
  holes_.erase(hole);
  if (offset > begin) holes_[begin] = offset - begin;
  if (end > offset + size_bytes) holes_[offset + size_bytes] = end - offset - size_bytes;
  slots_[slot] = Slot{offset, size_bytes, false};
  slot_at_[offset] = slot;
  slot_bytes_ += size_bytes;
}

void Range::open(uint64_t slot) {
  Slot &it = slots_.at(slot);
  if (it.open) return;
  it.open = true;
  add_free(it.offset, it.size_bytes);
  empty_.insert(slot);
}

void Range::open_kept(uint64_t slot) {
  open(slot);
  if (empty_.erase(slot) != 0) kept_.insert(slot);
}

void Range::release_kept() {
  empty_.insert(kept_.begin(), kept_.end());
  kept_.clear();
}

void Range::open_spare(uint64_t slot) {
  open(slot);
  if (empty_.erase(slot) != 0) spare_.insert(slot);
}

void Range::release_spare() {
  empty_.insert(spare_.begin(), spare_.end());
  spare_.clear();
}

void Range::shut(uint64_t slot) {
  Slot &it = slots_.at(slot);
  if (!it.open) return;
  it.open = false;
  cut_free(it.offset, it.size_bytes);
  empty_.erase(slot);
  kept_.erase(slot);
  spare_.erase(slot);
}

void Range::remove(uint64_t slot) {
  shut(slot);
  const Slot it = slots_.at(slot);
  slots_.erase(slot);
  slot_at_.erase(it.offset);
  slot_bytes_ -= it.size_bytes;
  const auto [offset, size_bytes] = join(holes_, it.offset, it.size_bytes);
  holes_[offset] = size_bytes;
}

}  // namespace vrb
