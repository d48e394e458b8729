// The range against a naive model that keeps one entry per granule, from random seeds; and what the model can't say.

#include <map>
#include <random>
#include <set>
#include <vector>

#include "check.h"
#include "range.h"

using vrb::Range;

namespace {

constexpr uint64_t MIB = uint64_t{1} << 20;
constexpr uint64_t SLOT = 2 * MIB;

// Bytes and who has them, granule by granule: -1 no slot, 0 free, else the allocation's number.
class Model {
 public:
  explicit Model(uint64_t size_bytes) : granules_(size_bytes / Range::GRANULE_BYTES, -1) {}

  void put(uint64_t offset, uint64_t size_bytes, int what) {
    for (uint64_t i = offset / Range::GRANULE_BYTES; i < (offset + size_bytes) / Range::GRANULE_BYTES; ++i) granules_[i] = what;
  }
  bool all(uint64_t offset, uint64_t size_bytes, int what) const {
    for (uint64_t i = offset / Range::GRANULE_BYTES; i < (offset + size_bytes) / Range::GRANULE_BYTES; ++i) {
      if (granules_[i] != what) return false;
    }
    return true;
  }
  bool has_room(uint64_t size_bytes, uint64_t alignment) const {
    uint64_t run_bytes = 0;  // of free granules from i on
    for (uint64_t i = granules_.size(); i-- > 0;) {
      run_bytes = granules_[i] == 0 ? run_bytes + Range::GRANULE_BYTES : 0;
      if (run_bytes >= size_bytes && i * Range::GRANULE_BYTES % alignment == 0) return true;
    }
    return false;
  }
  uint64_t count(int what) const {
    uint64_t number = 0;
    for (const int granule : granules_) number += granule == what ? 1 : 0;
    return number;
  }

 private:
  std::vector<int> granules_;
};

struct Allocation {
  uint64_t offset, size_bytes;
  int number;
};

class Play {
 public:
  Play(uint32_t seed, uint64_t size_bytes) : random_(seed), range_(size_bytes, SLOT), model_(size_bytes) {}

  void step() {
    const uint32_t what = static_cast<uint32_t>(random_() % 100);
    if (what < 45) allocate();
    else if (what < 55) allocate_at();
    else if (what < 90) free();
    else give_back();
    check();
  }

 private:
  uint64_t size() {
    switch (random_() % 4) {
      case 0: return 1 + random_() % 2048;
      case 1: return 1 + random_() % (MIB - 1);
      case 2: return MIB + random_() % (3 * MIB);
      default: return SLOT * (1 + random_() % 3);
    }
  }

  void allocate() {
    const uint64_t wanted = size();
    const uint64_t bytes = (wanted + Range::GRANULE_BYTES - 1) / Range::GRANULE_BYTES * Range::GRANULE_BYTES;
    const uint64_t alignment = wanted >= Range::BIG_BYTES ? Range::BORDER_BYTES : Range::GRANULE_BYTES;
    auto offset = range_.allocate(wanted);
    CHECK_EQ(offset.has_value(), model_.has_room(bytes, alignment));
    if (!offset) {
      grow(wanted);
      offset = range_.allocate(wanted);
      if (!offset) return;
    }
    CHECK_EQ(*offset % alignment, uint64_t{0});
    CHECK(model_.all(*offset, bytes, 0));
    model_.put(*offset, bytes, ++last_);
    live_.push_back({*offset, bytes, last_});
  }

  // Any place at all: it is had if all of it is free, grown into what is missing if nothing of it is taken, and else refused.
  void allocate_at() {
    const uint64_t bytes = Range::GRANULE_BYTES * (1 + random_() % (3 * SLOT / Range::GRANULE_BYTES));
    const uint64_t offset = Range::GRANULE_BYTES * (random_() % ((24 * MIB - bytes) / Range::GRANULE_BYTES));
    bool had = range_.allocate_at(offset, bytes);
    CHECK_EQ(had, model_.all(offset, bytes, 0));
    while (!had) {
      const auto window = range_.plan_growth_at(offset, bytes);
      if (!window) break;
      CHECK(range_.is_hole(window->begin, window->need_bytes));
      CHECK(window->begin < offset + bytes && window->begin + window->need_bytes > offset);
      fill(*window);
      had = range_.allocate_at(offset, bytes);
    }
    CHECK_EQ(had, model_.all(offset, bytes, 0));
    if (!had) return;
    model_.put(offset, bytes, ++last_);
    live_.push_back({offset, bytes, last_});
  }

  // After a planned growth the request must fit, whatever sizes the new slots come in.
  void grow(uint64_t wanted) {
    const auto window = range_.plan_growth(wanted);
    if (!window) return;
    CHECK(range_.is_hole(window->begin, window->need_bytes));
    CHECK_EQ(window->need_bytes % SLOT, uint64_t{0});
    CHECK(window->need_bytes <= (wanted + SLOT - 1) / SLOT * SLOT);
    fill(*window);
    const auto offset = range_.allocate(wanted);
    CHECK(offset.has_value());
    range_.free(*offset);
  }

  void fill(const Range::Window &window) {
    uint64_t at = window.begin;
    const uint64_t end = window.begin + window.need_bytes;
    while (at < end) {
      const uint64_t most = (end - at) / SLOT;
      const uint64_t bytes = SLOT * (1 + random_() % most);
      const uint64_t slot = ++last_slot_;
      range_.place(slot, at, bytes);
      range_.open(slot);
      CHECK(model_.all(at, bytes, -1));
      model_.put(at, bytes, 0);
      slots_[slot] = {at, bytes};
      at += bytes;
    }
  }

  void free() {
    if (live_.empty()) return;
    const std::size_t which = random_() % live_.size();
    const Allocation gone = live_[which];
    live_.erase(live_.begin() + static_cast<std::ptrdiff_t>(which));
    CHECK(!range_.free(gone.offset + Range::GRANULE_BYTES / 2));
    CHECK_EQ(range_.free(gone.offset).value_or(0), gone.size_bytes);
    CHECK(!range_.free(gone.offset));
    model_.put(gone.offset, gone.size_bytes, 0);
  }

  void give_back() {
    const std::set<uint64_t> empty = range_.empty();
    for (const uint64_t slot : empty) {
      if (random_() % 2 == 0) continue;
      range_.shut(slot);
      if (random_() % 4 == 0) {
        range_.open(slot);
        continue;
      }
      range_.remove(slot);
      const auto [offset, bytes] = slots_.at(slot);
      model_.put(offset, bytes, -1);
      slots_.erase(slot);
    }
  }

  void check() {
    std::set<uint64_t> empty;
    for (const auto &[slot, where] : slots_) {
      if (model_.all(where.first, where.second, 0)) empty.insert(slot);
    }
    CHECK(empty == range_.empty());
    CHECK_EQ(range_.free_bytes(), model_.count(0) * Range::GRANULE_BYTES);
    uint64_t allocated = 0;
    for (const Allocation &one : live_) allocated += one.size_bytes;
    CHECK_EQ(range_.allocated_bytes(), allocated);
    CHECK_EQ(range_.allocations(), live_.size());
    CHECK_EQ(range_.slot_bytes(), range_.free_bytes() + allocated);
  }

  std::mt19937 random_;
  Range range_;
  Model model_;
  std::vector<Allocation> live_;
  std::map<uint64_t, std::pair<uint64_t, uint64_t>> slots_;
  int last_ = 0;
  uint64_t last_slot_ = 0;
};

void add_slot(Range &range, uint64_t slot, uint64_t offset, uint64_t size_bytes) {
  range.place(slot, offset, size_bytes);
  range.open(slot);
}

}  // namespace

TEST(range, agrees_with_a_naive_model) {
  for (uint32_t seed = 1; seed <= 12; ++seed) {
    try {
      Play play(seed, 24 * MIB);
      for (int i = 0; i < 60; ++i) play.step();
    } catch (const check::Failed &failure) {
      throw check::Failed("seed " + std::to_string(seed) + ": " + failure.what());
    }
  }
}

TEST(range, small_ones_share_a_slot) {
  Range range(64 * MIB, SLOT);
  add_slot(range, 1, 0, SLOT);
  for (int i = 0; i < 2048; ++i) CHECK(range.allocate(1000).has_value());
  CHECK(!range.allocate(1).has_value());
}

TEST(range, growth_counts_the_free_tail_before_it) {
  Range range(64 * MIB, SLOT);
  add_slot(range, 1, 0, 2 * SLOT);
  CHECK_EQ(range.allocate(SLOT).value(), uint64_t{0});
  const auto window = range.plan_growth(3 * SLOT);
  CHECK_EQ(window->begin, 2 * SLOT);
  CHECK_EQ(window->need_bytes, 2 * SLOT);
}

TEST(range, growth_fills_a_hole_between_free_spans) {
  Range range(64 * MIB, SLOT);
  for (uint64_t slot = 0; slot < 4; ++slot) add_slot(range, slot + 1, slot * SLOT, SLOT);
  CHECK_EQ(range.allocate(4 * SLOT).value(), uint64_t{0});
  range.free(0);
  CHECK_EQ(range.allocate(SLOT).value(), uint64_t{0});
  range.remove(3);
  const auto window = range.plan_growth(3 * SLOT);
  CHECK_EQ(window->begin, 2 * SLOT);
  CHECK_EQ(window->need_bytes, SLOT);
}

TEST(range, a_full_range_plans_nothing) {
  Range range(4 * MIB, SLOT);
  add_slot(range, 1, 0, 4 * MIB);
  CHECK(range.allocate(4 * MIB).has_value());
  CHECK(!range.plan_growth(1).has_value());
  CHECK(!range.plan_growth(8 * MIB).has_value());
}

TEST(range, a_kept_slot_is_empty_only_after_use) {
  Range range(64 * MIB, SLOT);
  range.place(1, 0, SLOT);
  range.open_kept(1);
  CHECK(range.empty().empty());
  const auto offset = range.allocate(512);
  range.free(*offset);
  CHECK_EQ(range.empty().count(1), std::size_t{1});
  range.place(2, SLOT, SLOT);
  range.open_kept(2);
  range.release_kept();
  CHECK_EQ(range.empty().count(2), std::size_t{1});
}
