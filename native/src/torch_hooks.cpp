// The hooks of torch's pluggable allocator. They have no room for a lease or for an error. So there is one malloc for each
// lease, out of a fixed number of them, and whichever thread calls it for whichever pool, the lease is known; and the error
// of the last malloc is kept for the thread that made it.

#include <array>
#include <atomic>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>

#include "c_api.h"
#include "client.h"
#include "registry.h"

namespace {

// torch holds its allocator's lock meanwhile, so this is for what is certain to come.
constexpr uint32_t TIMEOUT_MS = 10'000;

std::mutex hooking;
std::array<std::atomic<vrb_lease *>, VRB_TORCH_HOOKS> hooked;

thread_local std::optional<vrb::Error> last_error;

// Out of memory is what torch is told by null, and then it tells its user so. Nothing else is to look like that. What is
// wrong with the size itself, when there is one, is that the device is smaller.
bool means_null(const vrb::Error &error, ptrdiff_t size) {
  return error.status == VRB_INVALID ? size > 0 : vrb::is_out_of_memory(error);
}

// Not noexcept: what is not out of memory goes through torch as an exception, which Python sees as a RuntimeError.
void *allocate(std::size_t hook, ptrdiff_t size) {
  try {
    last_error.reset();
    vrb::Lease &lease = vrb::lease_of(hooked[hook].load());
    if (size <= 0) throw vrb::invalid_argument("an allocation has at least one byte", lease.tag.name);
    return lease.client.allocate(lease, static_cast<uint64_t>(size), TIMEOUT_MS);
  } catch (...) {
    last_error = vrb::current_error();
  }
  if (means_null(*last_error, size)) return nullptr;
  throw std::runtime_error(last_error->name + ": " + last_error->message);
}

}  // namespace

vrb_status vrb_torch_hook(vrb_lease *lease, uint32_t *hook, vrb_error *error) {
  return vrb::guarded(error, [&] {
    const vrb::Lease &of = vrb::lease_of(lease);
    if (hook == nullptr) throw vrb::invalid_argument("hook is null");
    const std::lock_guard<std::mutex> lock(hooking);
    for (std::size_t i = 0; i < hooked.size(); ++i) {
      if (hooked[i] == nullptr) hooked[i] = lease;
      if (hooked[i] != lease) continue;
      *hook = static_cast<uint32_t>(i);
      return;
    }
    throw vrb::invalid_argument("torch allocates under " + std::to_string(VRB_TORCH_HOOKS) + " tags of a process at most",
                                of.tag.name);
  });
}

void vrb_torch_free(void *pointer, ptrdiff_t, int, void *stream) {
  if (pointer == nullptr) return;
  try {
    vrb::Client *client = vrb::client_at(pointer);
    if (client != nullptr && !client->is_forked()) client->free_after(pointer, stream);
  } catch (...) {
    // torch frees what it was given, once; for an address that it was not given there is nothing to do and nobody to tell.
  }
}

vrb_status vrb_torch_last_error(vrb_error *error) {
  if (!last_error) return VRB_OK;
  vrb::fill(error, *last_error);
  return last_error->status;
}

// vrb_torch_malloc_00 to vrb_torch_malloc_ff: torch takes a function by its name, and calls it with nothing of ours.
#define HOOK(high, low)                                                                              \
  extern "C" VRB_API void *vrb_torch_malloc_##high##low(ptrdiff_t size, int, void *);                \
  extern "C" VRB_API void *vrb_torch_malloc_##high##low(ptrdiff_t size, int, void *) {               \
    return allocate(0x##high##low, size);                                                            \
  }
#define HOOKS(high)                                                                                        \
  HOOK(high, 0) HOOK(high, 1) HOOK(high, 2) HOOK(high, 3) HOOK(high, 4) HOOK(high, 5) HOOK(high, 6)        \
  HOOK(high, 7) HOOK(high, 8) HOOK(high, 9) HOOK(high, a) HOOK(high, b) HOOK(high, c) HOOK(high, d)        \
  HOOK(high, e) HOOK(high, f)
HOOKS(0) HOOKS(1) HOOKS(2) HOOKS(3) HOOKS(4) HOOKS(5) HOOKS(6) HOOKS(7)
HOOKS(8) HOOKS(9) HOOKS(a) HOOKS(b) HOOKS(c) HOOKS(d) HOOKS(e) HOOKS(f)
static_assert(VRB_TORCH_HOOKS == 0x100, "as many hooks as the header says");
