// The hooks of torch's pluggable allocator. They have no room for a lease or an error: the lease is the innermost region of
// the thread, and the error of the last call is kept for the thread that made it.

#include <optional>
#include <vector>

#include "c_api.h"
#include "client.h"
#include "registry.h"

namespace {

// torch holds its allocator's lock meanwhile, so this is for what is certain to come.
constexpr uint32_t TIMEOUT_MS = 10'000;

thread_local std::vector<vrb_lease *> regions;
thread_local std::optional<vrb::Error> last_error;

template <class Body>
void remembered(Body body) noexcept {
  try {
    last_error.reset();
    body();
  } catch (...) {
    last_error = vrb::current_error();
  }
}

}  // namespace

void vrb_region_push(vrb_lease *lease) {
  remembered([&] { regions.push_back(lease); });
}

void vrb_region_pop(void) {
  if (!regions.empty()) regions.pop_back();
}

void *vrb_torch_malloc(ptrdiff_t size, int, void *) {
  void *pointer = nullptr;
  remembered([&] {
    if (regions.empty()) throw vrb::wrong_state("this thread is in no region, so there is no lease to allocate from");
    if (size <= 0) throw vrb::invalid_argument("an allocation has at least one byte");
    vrb::Lease &lease = vrb::lease_of(regions.back());
    pointer = lease.client.allocate(lease, static_cast<uint64_t>(size), TIMEOUT_MS);
  });
  return pointer;
}

void vrb_torch_free(void *pointer, ptrdiff_t, int, void *) {
  remembered([&] {
    if (pointer == nullptr) return;
    vrb::Client *client = vrb::client_at(pointer);
    if (client == nullptr) throw vrb::invalid_argument("this address was never leased");
    if (!client->is_forked()) client->free(pointer);
  });
}

vrb_status vrb_torch_last_error(vrb_error *error) {
  if (!last_error) return VRB_OK;
  vrb::fill(error, *last_error);
  return last_error->status;
}
