// The application's side of what is sent and received: calls of its own threads.

#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "client_calls.h"
#include "status.h"

namespace vrb {
namespace {

Token draw_key() {
  Token key{};
  if (::getrandom(key.data(), key.size(), 0) != static_cast<ssize_t>(key.size())) {
    throw driver_failed(std::string("getrandom: ") + std::strerror(errno));
  }
  return key;
}

// While one is there, nothing that was received is let go of. Guarded by the book's mutex.
class Asking {
 public:
  Asking(Readers &readers, Wake &wake) : readers_(readers), wake_(wake) { ++readers_.asking; }
  ~Asking() {
    --readers_.asking;
    wake_.ring();
  }
  Asking(const Asking &) = delete;
  Asking &operator=(const Asking &) = delete;

 private:
  Readers &readers_;
  Wake &wake_;
};

bool overlap(uint64_t begin, uint64_t bytes, uint64_t offset, uint64_t size_bytes) {
  return begin < offset + size_bytes && offset < begin + bytes;
}

std::vector<ExportSlot> slots_of(const Lease &lease, uint64_t offset, uint64_t size_bytes) {
  std::vector<ExportSlot> slots;
  for (const auto &[number, slot] : lease.slots) {
    if (overlap(slot.offset, slot.size_bytes, offset, size_bytes)) slots.push_back({number, slot.offset});
  }
  return slots;
}

std::vector<ExportSlot> slots_of(const Reader &reader, uint64_t offset, uint64_t size_bytes) {
  std::vector<ExportSlot> slots;
  for (const auto &[begin, slot] : reader.mapped) {
    if (overlap(begin, slot.size_bytes, offset, size_bytes)) slots.push_back({slot.slot, begin});
  }
  return slots;
}

}  // namespace

// What is sent is the process's own, or was received: then whoever receives it maps the same frames.
record::Export Client::plan_export(const void *address, uint64_t size_bytes, bool read_only, uint64_t &offset) {
  const auto *at = static_cast<const char *>(address);
  if (const Lease *lease = book_.find_lease_at(address)) {
    offset = static_cast<uint64_t>(at - lease->base);
    if (lease->range.is_allocated(offset, size_bytes)) {
      const uint8_t flags = read_only || lease->tag.sealed ? EXPORT_READ_ONLY : 0;
      return {0, draw_key(), lease->number, flags, slots_of(*lease, offset, size_bytes)};
    }
  } else if (const Reader *reader = book_.readers.find_at(address)) {
    offset = static_cast<uint64_t>(at - reader->base);
    if (reader->covers(offset, size_bytes)) {
      const uint8_t flags = read_only || !reader->writable ? EXPORT_READ_ONLY : 0;
      return {0, draw_key(), reader->lease, flags, slots_of(*reader, offset, size_bytes)};
    }
  }
  throw invalid_argument("these bytes are in no leased allocation of this process, nor in what it has received");
}

Client::Sent Client::send(const void *address, uint64_t size_bytes, bool read_only, uint32_t timeout_ms) {
  Lock lock(book_.mutex);
  require_open();
  Sent sent{};
  const record::Export request = plan_export(address, size_bytes, read_only, sent.offset_bytes);
  sent.key = request.key;
  sent.read_only = (request.flags & EXPORT_READ_ONLY) != 0;
  ask(lock, request, timeout_ms);
  return sent;
}

void Client::send_again(const Token &key, uint32_t timeout_ms) {
  Lock lock(book_.mutex);
  require_open();
  ask(lock, record::Export{0, key, 0, EXPORT_AGAIN, {}}, timeout_ms);
}

void Client::unexport(uint32_t timeout_ms) {
  Lock lock(book_.mutex);
  require_open();
  ask(lock, record::Unexport{0}, timeout_ms);
}

std::size_t Client::take_settled(Token *keys, std::size_t most) {
  const Lock lock(book_.mutex);
  std::vector<Token> &settled = book_.readers.settled;
  const std::size_t count = std::min(most, settled.size());
  std::copy_n(settled.begin(), count, keys);
  settled.erase(settled.begin(), settled.begin() + static_cast<std::ptrdiff_t>(count));
  return count;
}

Client::Received Client::read(const Token &key, uint64_t offset, uint64_t size_bytes, uint32_t timeout_ms) {
  Lock lock(book_.mutex);
  require_open();
  const Asking asking(book_.readers, wake_);
  uint64_t number = 0;
  try {
    const record::Done done = ask(lock, record::Read{0, key}, timeout_ms, nullptr, &number);
    return find_received(done, number, offset, size_bytes);
  } catch (const Error &error) {
    // It may be answered yet, or was and is of no use. One that was refused never began.
    const bool refused = error.status == VRB_REFUSED && error.name != "WaitExpired";
    if (number != 0 && !refused) tell_read_ended(number);
    throw;
  }
}

Client::Received Client::find_received(const record::Done &done, uint64_t number, uint64_t offset, uint64_t size_bytes) {
  Reader *reader = nullptr;
  char *base = nullptr;
  if (done.claim == 0) {
    const Lease *lease = book_.find_lease(done.lease);
    if (lease != nullptr && lease->range.is_allocated(offset, size_bytes)) base = lease->base;
  } else {
    reader = book_.readers.find(done.claim);
    if (reader != nullptr && reader->covers(offset, size_bytes)) base = reader->base;
  }
  if (base == nullptr) {
    const Failure why = reader == nullptr ? std::nullopt : reader->failure;
    throw driver_failed("what was received could not be mapped: " + why.value_or("its sender has described it wrongly"));
  }
  book_.readers.uses[number] = done.claim;
  if (reader != nullptr) ++reader->uses;
  return {number, base + offset, reader == nullptr, reader == nullptr || reader->writable};
}

// What this process gave its device to do with it is waited for first, on the stream that all use unless they say otherwise (to
// wait for the others would break a capture in any thread); while that is captured, it is put off.
void Client::end_read(uint64_t number) {
  {
    const Lock lock(book_.mutex);
    reads_put_off_.push_back(number);
  }
  end_reads_put_off();
}

void Client::end_reads_put_off() {
  {
    const Lock lock(book_.mutex);
    if (reads_put_off_.empty()) return;
  }
  if (!device_->wait_stream(nullptr)) return;
  const Lock lock(book_.mutex);
  for (const uint64_t read : std::exchange(reads_put_off_, {})) {
    book_.readers.end_use(read);
    if (!book_.ended) tell_read_ended(read);
  }
  wake_.ring();
}

// Sent again until it is answered, since whoever has sent the memory keeps it until then.
void Client::tell_read_ended(uint64_t number) {
  const auto request = book_.requests.add(record::EndRead{0, number}, false);
  if (book_.link == Link::up) channel_.send(request->packet);
}

}  // namespace vrb
