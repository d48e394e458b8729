#include "parked.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "client.h"
#include "mover.h"
#include "status.h"

namespace vrb {
namespace {

constexpr std::chrono::milliseconds GRACE{2'000};

}  // namespace

// The application's side.

void Client::find(const void *address, uint64_t size_bytes, vrb_place &place) {
  const Lock lock(book_.mutex);
  const Lease *lease = book_.find_lease_at(address);
  const auto offset = lease == nullptr ? 0 : static_cast<uint64_t>(static_cast<const char *>(address) - lease->base);
  if (lease == nullptr || !lease->range.is_allocated(offset, size_bytes)) {
    throw invalid_argument("these bytes are in no leased allocation of this process");
  }
  place = vrb_place{};
  place.contents = static_cast<uint32_t>(lease->contents);
  place.paused = lease->tag.is_paused() ? 1 : 0;
  put_text(place.tag, lease->tag.name);
}

std::shared_ptr<ParkedView> Client::view_parked(const void *address, uint64_t size_bytes, uint32_t timeout_ms) {
  vrb_place place{};
  find(address, size_bytes, place);
  Lock lock(book_.mutex);
  require_open();
  Lease *lease = book_.find_lease_at(address);
  if (lease->contents != VRB_KEEP) {
    throw wrong_state("tag " + lease->tag.name + " keeps no contents, so nothing of it is parked", lease->tag.name);
  }
  const auto offset = static_cast<uint64_t>(static_cast<const char *>(address) - lease->base);
  const auto page_bytes = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  const uint64_t begin = offset / page_bytes * page_bytes;
  const uint64_t end = (offset + size_bytes + page_bytes - 1) / page_bytes * page_bytes;
  auto view = std::make_shared<ParkedView>(ParkedView{lease, begin, end - begin, offset - begin});
  book_.views_wanted.push_back(view);
  wake_.ring();
  const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms) + GRACE;
  if (!book_.changed.wait_until(lock, deadline, [&] { return view->done || book_.ended; }) || !view->done) {
    view->given_up = true;
    throw no_answer(timeout_ms);
  }
  if (view->failure) throw wrong_state(*view->failure, lease->tag.name);
  return view;
}

void Client::end_view(const ParkedView &view) noexcept {
  ::munmap(view.address, view.size_bytes);
  const Lock lock(book_.mutex);
  book_.views_ended.insert(book_.views_ended.end(), view.files.begin(), view.files.end());
  wake_.ring();
}

// The agent's.

// Finds where the contents of these addresses are. What is mapped or moving is not parked, or not yet.
Failure Mover::find_parked(const ParkedView &view, std::vector<ArenaMap::Part> &parts) {
  const Lease &lease = *view.lease;
  std::vector<const Slot *> slots;
  const uint64_t end = view.begin + view.size_bytes;
  for (const auto &[number, slot] : lease.slots) {
    if (slot.offset < end && slot.offset + slot.size_bytes > view.begin) slots.push_back(&slot);
  }
  std::sort(slots.begin(), slots.end(), [](const Slot *one, const Slot *other) { return one->offset < other->offset; });
  uint64_t next = view.begin;
  for (const Slot *slot : slots) {
    const bool parked = !slot->mapped && slot->motion == Motion::none && slot->parked && slot->offset <= next;
    if (!parked) break;
    const uint64_t skipped = next - slot->offset;
    const uint64_t size_bytes = std::min(slot->size_bytes - skipped, end - next);
    parts.push_back({slot->parked->file, slot->parked->offset_bytes + skipped, size_bytes});
    next += size_bytes;
  }
  if (next == end) return std::nullopt;
  return "tag " + lease.tag.name + " is not parked as a whole: pause it with release first";
}

void Mover::show_parked() {
  std::vector<std::shared_ptr<ParkedView>> wanted;
  std::vector<uint64_t> ended;
  {
    const std::lock_guard lock(book_.mutex);
    wanted.swap(book_.views_wanted);
    ended.swap(book_.views_ended);
  }
  for (const uint64_t file : ended) release_file(file);
  for (const auto &view : wanted) {
    std::vector<ArenaMap::Part> parts;
    Failure failure = find_parked(*view, parts);
    char *address = failure ? nullptr : arena_.show(parts, failure);
    bool given_up = false;
    {
      const std::lock_guard lock(book_.mutex);
      view->failure = failure;
      view->address = address;
      if (!failure) {
        for (const ArenaMap::Part &part : parts) view->files.push_back(part.file);
      }
      view->done = true;
      given_up = view->given_up;
      book_.changed.notify_all();
    }
    if (!given_up || failure) continue;
    ::munmap(address, view->size_bytes);
    for (const uint64_t file : view->files) release_file(file);
  }
}

}  // namespace vrb
