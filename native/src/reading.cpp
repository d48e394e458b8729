#include "reading.h"

#include <utility>

#include "client.h"
#include "registry.h"
#include "status.h"

namespace vrb {

bool Reading::grant(const record::ReadGrant &grant, std::vector<Fd> fds) {
  if (grant.slots.size() != fds.size() || grant.slots.empty() || grant.lease == 0 || grant.reader == 0) return false;
  if (Reader *reader = reader_for(grant)) {
    for (std::size_t i = 0; i < fds.size(); ++i) map(*reader, grant.slots[i], std::move(fds[i]));
  }
  fds.clear();
  channel_.send(encode(record::Taken{grant.batch}));
  return true;
}

// Returns the reader, made if it is new; null for one that was let go of.
Reader *Reading::reader_for(const record::ReadGrant &grant) {
  const std::lock_guard lock(book_.mutex);
  if (Reader *known = book_.readers.find(grant.reader)) return known;
  if (gone_.has(grant.reader)) {
    // That it is gone was lost with a connection.
    tell_closed(grant.reader);
    return nullptr;
  }
  auto made = std::make_unique<Reader>(Reader{grant.reader, grant.lease, grant.writable != 0});
  made->base = static_cast<char *>(book_.reserve_range(0, made->size_bytes));
  if (made->base == nullptr) {
    made->size_bytes = 0;
    made->failure = "no addresses are left to map what was received";
  } else {
    register_range(made->base, made->size_bytes, book_.client());
  }
  return book_.readers.by_number.emplace(grant.reader, std::move(made)).first->second.get();
}

// Where a frame goes is as its sender says, who may be wrong: what does not fit there is left out.
void Reading::map(Reader &reader, const SharedSlot &slot, Fd frame) {
  if (reader.has(slot)) return;
  const uint64_t step = book_.slot_bytes_min();
  const bool aligned = slot.size_bytes > 0 && slot.offset_bytes % step == 0 && slot.size_bytes % step == 0;
  if (!aligned || !reader.is_free(slot.offset_bytes, slot.size_bytes)) return;
  char *const at = reader.base + slot.offset_bytes;
  Failure failure = device_.map(std::move(frame), at, slot.size_bytes);
  if (!failure && !reader.writable) {
    failure = device_.protect(at, slot.size_bytes, false);
    if (failure) device_.unmap(at, slot.size_bytes);
  }
  const std::lock_guard lock(book_.mutex);
  if (failure) {
    reader.failure = failure;
  } else {
    reader.mapped.emplace(slot.offset_bytes, slot);
  }
}

void Reading::close(const record::CloseReader &order) {
  const std::lock_guard lock(book_.mutex);
  if (Reader *reader = book_.readers.find(order.reader)) {
    reader->closing = true;
  } else {
    gone_.add(order.reader);
    tell_closed(order.reader);
  }
}

void Reading::settle(const record::ExportSettled &settled) {
  const std::lock_guard lock(book_.mutex);
  book_.readers.settled.push_back(settled.key);
}

Reader *Reading::find_idle() {
  const std::lock_guard lock(book_.mutex);
  if (book_.readers.asking > 0) return nullptr;
  for (const auto &[number, reader] : book_.readers.by_number) {
    if (reader->uses == 0 && !reader->stuck && (reader->closing || book_.closed)) return reader.get();
  }
  return nullptr;
}

// Nothing comes to be in use there meanwhile: the daemon lets nobody read by a reader that it wants closed.
void Reading::let_go() {
  while (Reader *reader = find_idle()) {
    if (unmap(*reader)) {
      forget(*reader);
    } else {
      const std::lock_guard lock(book_.mutex);
      reader->stuck = true;
    }
  }
}

bool Reading::unmap(Reader &reader) {
  while (!reader.mapped.empty()) {
    const auto piece = reader.mapped.begin();
    if (device_.unmap(reader.base + piece->first, piece->second.size_bytes)) return false;
    const std::lock_guard lock(book_.mutex);
    reader.mapped.erase(piece);
  }
  if (reader.base != nullptr) {
    forget_range(reader.base);
    device_.release(reader.base, reader.size_bytes);
  }
  return true;
}

void Reading::forget(Reader &reader) {
  const std::lock_guard lock(book_.mutex);
  const uint64_t number = reader.number;
  gone_.add(number);
  book_.readers.by_number.erase(number);
  tell_closed(number);
}

}  // namespace vrb
