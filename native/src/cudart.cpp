// The calls of CUDA's runtime that native/preload stands in front of. They answer as the runtime does: by a cudaError_t.
//
// What is not the broker's to answer goes to the runtime. Out of memory is the one refusal that a program is told of as
// such; after any other the runtime is asked, so that the program behaves as without us.

#include <algorithm>
#include <string>

#include "c_api.h"
#include "client.h"
#include "interposer.h"
#include "registry.h"
#include "vmm.h"

namespace {

using vrb::Attachment;
using vrb::Interposer;

constexpr int SUCCESS = 0;
constexpr int ERROR_INVALID_VALUE = 1;
constexpr int ERROR_MEMORY_ALLOCATION = 2;

// What a size can have wrong here is that the device is smaller.
bool means_no_memory(const vrb::Error &error) { return error.status == VRB_INVALID || vrb::is_no_memory_to_cuda(error); }

// Returns what there is for this thread's device; null where the runtime is to answer alone.
Attachment *attachment(const vrb_cudart &real, Interposer *interposer) {
  int ordinal = 0;
  if (interposer == nullptr || real.get_device(&ordinal) != SUCCESS) return nullptr;
  return interposer->answering(ordinal);
}

// Asks for room, and the runtime once more.
int allocate_plain(const vrb_cudart &real, void **pointer, std::size_t size) {
  const int first = real.malloc(pointer, size);
  if (first != ERROR_MEMORY_ALLOCATION) return first;
  Interposer *const interposer = Interposer::get();
  const Attachment *const at = attachment(real, interposer);
  if (at == nullptr) return first;
  try {
    at->client->make_room(size);
  } catch (...) {
    interposer->say("no room could be made for memory that is not leased: " + vrb::current_error().message);
    return first;
  }
  const int second = real.malloc(pointer, size);
  // The first failure is not to be found by whoever asks for the last one.
  if (second == SUCCESS) real.get_last_error();
  return second;
}

}  // namespace

int vrb_cuda_malloc(const vrb_cudart *real, void **pointer, size_t size) {
  if (pointer == nullptr || size == 0) return real->malloc(pointer, size);
  Interposer *const interposer = Interposer::get();
  const Attachment *const at = vrb::thread_leases ? attachment(*real, interposer) : nullptr;
  if (at == nullptr || at->memory == nullptr) return allocate_plain(*real, pointer, size);
  // As the runtime's own call does, this makes the device's context.
  if (const int failed = real->free(nullptr)) return failed;
  try {
    *pointer = at->memory->allocate(size);
    return SUCCESS;
  } catch (...) {
    const vrb::Error error = vrb::current_error();
    if (means_no_memory(error)) return ERROR_MEMORY_ALLOCATION;
    interposer->say(error.name + ": " + error.message + "; what is allocated now is not leased");
  }
  return allocate_plain(*real, pointer, size);
}

int vrb_cuda_free(const vrb_cudart *real, void *pointer) {
  vrb::Client *const client = pointer == nullptr ? nullptr : vrb::client_at(pointer);
  if (client == nullptr) return real->free(pointer);
  if (client->is_forked()) return SUCCESS;
  try {
    client->free_when_quiet(pointer);
    return SUCCESS;
  } catch (...) {
    return ERROR_INVALID_VALUE;
  }
}

int vrb_cuda_mem_get_info(const vrb_cudart *real, size_t *free, size_t *total) {
  const int result = real->mem_get_info(free, total);
  if (result != SUCCESS) return result;
  Interposer *const interposer = Interposer::get();
  const Attachment *const at = attachment(*real, interposer);
  if (at == nullptr) return result;
  try {
    const uint64_t bytes = at->client->free_bytes();
    *free = std::min(static_cast<std::size_t>(bytes), *total);
  } catch (...) {
    const vrb::Error error = vrb::current_error();
    interposer->say(error.name + ": " + error.message + "; free memory is told as the driver has it");
  }
  return result;
}

void *vrb_driver_entry(const vrb_cudart *real, const char *symbol, void *entry) {
  return symbol == nullptr || entry == nullptr ? entry : vrb::driver_entry(*real, symbol, entry);
}

int vrb_thread_leases(int lease) {
  const int before = vrb::thread_leases ? 1 : 0;
  vrb::thread_leases = lease != 0;
  return before;
}

static vrb::ProcessMemory *memory_of(vrb_client *client) {
  const vrb::Client &of = vrb::client_of(client);
  Interposer *const interposer = Interposer::get();
  return interposer == nullptr ? nullptr : interposer->memory_of(of);
}

vrb_status vrb_process_divert(vrb_client *client, int elsewhere, vrb_error *error) {
  return vrb::guarded(error, [&] {
    if (vrb::ProcessMemory *const memory = memory_of(client)) memory->divert(elsewhere != 0);
  });
}

vrb_status vrb_process_tags(vrb_client *client, char *tags, size_t size, vrb_error *error) {
  return vrb::guarded(error, [&] {
    vrb::ProcessMemory *const memory = memory_of(client);
    std::string names;
    for (const std::string &name : memory == nullptr ? std::vector<std::string>{} : memory->tags()) {
      names += names.empty() ? name : " " + name;
    }
    if (tags == nullptr || names.size() >= size) throw vrb::invalid_argument("the tags don't fit there");
    names.copy(tags, names.size());
    tags[names.size()] = '\0';
  });
}
