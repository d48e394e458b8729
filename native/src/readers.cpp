#include "readers.h"

#include <iterator>

namespace vrb {

bool Reader::is_free(uint64_t offset, uint64_t bytes) const {
  if (offset > size_bytes || bytes > size_bytes - offset) return false;
  const auto behind = mapped.lower_bound(offset);
  if (behind != mapped.end() && behind->first - offset < bytes) return false;
  if (behind == mapped.begin()) return true;
  const auto before = std::prev(behind);
  return offset - before->first >= before->second.size_bytes;
}

bool Reader::has(const SharedSlot &slot) const {
  const auto found = mapped.find(slot.offset_bytes);
  return found != mapped.end() && found->second.slot == slot.slot;
}

bool Reader::covers(uint64_t offset, uint64_t bytes) const {
  if (bytes == 0 || offset > size_bytes || bytes > size_bytes - offset) return false;
  auto piece = mapped.upper_bound(offset);
  if (piece == mapped.begin()) return false;
  --piece;
  for (uint64_t next = offset; piece != mapped.end() && piece->first <= next; ++piece) {
    next = piece->first + piece->second.size_bytes;
    if (next >= offset + bytes) return true;
  }
  return false;
}

Reader *Readers::find(uint64_t number) const {
  const auto found = by_number.find(number);
  return found == by_number.end() ? nullptr : found->second.get();
}

Reader *Readers::find_at(const void *address) const {
  const auto *at = static_cast<const char *>(address);
  for (const auto &[number, reader] : by_number) {
    if (reader->base != nullptr && at >= reader->base && at < reader->base + reader->size_bytes) return reader.get();
  }
  return nullptr;
}

void Readers::end_use(uint64_t read) {
  const auto found = uses.find(read);
  if (found == uses.end()) return;
  if (Reader *reader = find(found->second)) --reader->uses;
  uses.erase(found);
}

}  // namespace vrb
