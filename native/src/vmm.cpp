// A program creates memory, and says only later where it is to be mapped. So a handle of ours is a promise at first: if it is
// mapped to addresses that were reserved here, frames come from the lease; if anywhere else, or if it is exported, the
// driver's own memory is made of it then, as it was asked for: that is for other software, such as torch's symmetric memory.
//
// The address space of an expandable segment is larger than the device: that tells it from other reservations.

#include "vmm.h"

#include <iterator>
#include <map>
#include <mutex>
#include <string>

#include "c_api.h"
#include "client.h"
#include "cuda_driver.h"
#include "interposer.h"
#include "status.h"

namespace vrb {
namespace {

using cuda::DevicePointer;
using cuda::Handle;
using cuda::Result;

constexpr Result ERROR_INVALID_VALUE = 1;
constexpr Result ERROR_OUT_OF_MEMORY = 2;
constexpr Result ERROR_UNKNOWN = 999;
constexpr int ALLOCATION_TYPE_PINNED = 1;

// CUmemAllocationProp, as the driver's ABI has it.
struct Properties {
  int type;
  int handle_types;
  int location_type;
  int location_id;
  void *windows;
  unsigned char flags[8];
};

// Memory that was asked for: a promise, until it is mapped to leased memory or made by the driver (`made`).
struct Promise {
  std::size_t size_bytes;
  Properties properties;
  unsigned long long flags;
  ProcessMemory *memory;
  bool is_mapped = false;
  Handle made = 0;
  bool released = false;
};

struct Calls {
  Result (*reserve)(DevicePointer *, std::size_t, std::size_t, DevicePointer, unsigned long long) = nullptr;
  Result (*unreserve)(DevicePointer, std::size_t) = nullptr;
  Result (*create)(Handle *, std::size_t, const Properties *, unsigned long long) = nullptr;
  Result (*release)(Handle) = nullptr;
  Result (*map)(DevicePointer, std::size_t, std::size_t, Handle, unsigned long long) = nullptr;
  Result (*unmap)(DevicePointer, std::size_t) = nullptr;
  Result (*set_access)(DevicePointer, std::size_t, const cuda::Access *, std::size_t) = nullptr;
  Result (*export_handle)(void *, Handle, int, unsigned long long) = nullptr;
  Result (*bind_memory)(Handle, std::size_t, Handle, std::size_t, std::size_t, unsigned long long) = nullptr;
};

struct Books {
  std::mutex mutex;
  const vrb_cudart *runtime = nullptr;
  Calls real;
  // By handle: even numbers far above those that the driver hands out.
  std::map<Handle, Promise> promises;
  // Those that are mapped to leased memory, by address.
  std::map<DevicePointer, Handle> mapped;
  Handle next = Handle{1} << 62;
  // By what they can be shared as: whether the driver makes such.
  std::map<int, Result> kinds;
  uint64_t promised_bytes = 0;

  // Promises so much more, or less; returns how much it is in all.
  uint64_t promise(int64_t more_bytes) {
    const std::lock_guard lock(mutex);
    promised_bytes += static_cast<uint64_t>(more_bytes);
    return promised_bytes;
  }
};

Books &books() {
  // Never destroyed: memory is unmapped while the process exits.
  static Books *const all = new Books;
  return *all;
}

using Lock = std::unique_lock<std::mutex>;

void *address_of(DevicePointer pointer) { return reinterpret_cast<void *>(static_cast<uintptr_t>(pointer)); }

// Returns the memory of this thread's device; null where it is the driver's to answer.
ProcessMemory *memory_here() {
  Interposer *const interposer = Interposer::get();
  int ordinal = 0;
  if (interposer == nullptr || !thread_leases || books().runtime->get_device(&ordinal) != 0) return nullptr;
  Attachment *const found = interposer->answering(ordinal);
  return found == nullptr ? nullptr : found->memory.get();
}

ProcessMemory *memory_at(DevicePointer pointer) {
  Interposer *const interposer = Interposer::get();
  return interposer == nullptr ? nullptr : interposer->memory_with(address_of(pointer));
}

Result failed() {
  const Error error = current_error();
  if (is_no_memory_to_cuda(error)) return ERROR_OUT_OF_MEMORY;
  if (error.status == VRB_INVALID) return ERROR_INVALID_VALUE;
  if (Interposer *const interposer = Interposer::get()) interposer->say(error.name + ": " + error.message);
  return ERROR_UNKNOWN;
}

// Nobody is to take for leased what is not.
void say_bypassed() {
  const Error error = current_error();
  if (Interposer *const interposer = Interposer::get()) {
    interposer->say(error.name + ": " + error.message + "; what torch maps for itself now is not leased");
  }
}

// What a device has in all; 0 if that can't be told.
std::size_t device_bytes() {
  std::size_t free = 0, total = 0;
  return books().runtime->mem_get_info(&free, &total) == 0 ? total : 0;
}

Result reserve(DevicePointer *pointer, std::size_t size, std::size_t alignment, DevicePointer wanted, unsigned long long flags) {
  const Calls &real = books().real;
  ProcessMemory *const memory = pointer == nullptr || wanted != 0 ? nullptr : memory_here();
  if (memory == nullptr || size <= device_bytes()) return real.reserve(pointer, size, alignment, wanted, flags);
  try {
    *pointer = static_cast<DevicePointer>(reinterpret_cast<uintptr_t>(memory->reserve(size)));
    return cuda::SUCCESS;
  } catch (...) {
    say_bypassed();
    return real.reserve(pointer, size, alignment, wanted, flags);
  }
}

Result unreserve(DevicePointer pointer, std::size_t size) {
  ProcessMemory *const memory = memory_at(pointer);
  if (memory != nullptr && memory->unreserve(address_of(pointer))) return cuda::SUCCESS;
  return books().real.unreserve(pointer, size);
}

// Whether the driver makes memory of this kind at all: torch tries which handles it can share, once, and remembers.
Result kind_is_made(const Properties &properties) {
  constexpr std::size_t PROBE_BYTES = std::size_t{2} << 20;
  Books &all = books();
  const Lock lock(all.mutex);
  const auto known = all.kinds.find(properties.handle_types);
  if (known != all.kinds.end()) return known->second;
  Handle probe = 0;
  const Result result = all.real.create(&probe, PROBE_BYTES, &properties, 0);
  if (result == cuda::SUCCESS) all.real.release(probe);
  // There being no room is no word about the kind.
  if (result == ERROR_OUT_OF_MEMORY) return cuda::SUCCESS;
  all.kinds[properties.handle_types] = result;
  return result;
}

Result create(Handle *handle, std::size_t size, const Properties *properties, unsigned long long flags) {
  Books &all = books();
  const bool is_plain = handle != nullptr && properties != nullptr && size > 0 &&
                        properties->type == ALLOCATION_TYPE_PINNED &&
                        properties->location_type == cuda::LOCATION_TYPE_DEVICE;
  ProcessMemory *const memory = is_plain ? memory_here() : nullptr;
  if (memory == nullptr) return all.real.create(handle, size, properties, flags);
  if (const Result refused = kind_is_made(*properties)) return refused;
  const uint64_t wanted_bytes = all.promise(static_cast<int64_t>(size));
  try {
    if (memory->has_room_for(wanted_bytes)) {
      const Lock lock(all.mutex);
      *handle = all.next += 2;
      all.promises[*handle] = Promise{size, *properties, flags, memory};
      return cuda::SUCCESS;
    }
    all.promise(-static_cast<int64_t>(size));
    return ERROR_OUT_OF_MEMORY;
  } catch (...) {
    all.promise(-static_cast<int64_t>(size));
    say_bypassed();
    return all.real.create(handle, size, properties, flags);
  }
}

// Has the driver make what was promised.
Result make(Promise &promise) {
  Books &all = books();
  if (promise.made != 0) return cuda::SUCCESS;
  if (promise.is_mapped) return ERROR_INVALID_VALUE;
  const Result result = all.real.create(&promise.made, promise.size_bytes, &promise.properties, promise.flags);
  if (result == cuda::SUCCESS) all.promised_bytes -= promise.size_bytes;
  return result;
}

// Memory goes when it is neither mapped nor held, and this is the last of a handle that is neither.
void forget_if_over(std::map<Handle, Promise>::iterator found) {
  if (found->second.released && !found->second.is_mapped) books().promises.erase(found);
}

Result map(DevicePointer pointer, std::size_t size, std::size_t offset, Handle handle, unsigned long long flags) {
  Books &all = books();
  ProcessMemory *const memory = memory_at(pointer);
  if (Interposer::get() == nullptr) return all.real.map(pointer, size, offset, handle, flags);
  Lock lock(all.mutex);
  const auto found = all.promises.find(handle);
  if (found == all.promises.end()) return all.real.map(pointer, size, offset, handle, flags);
  Promise &promise = found->second;
  if (memory == nullptr || promise.made != 0) {
    const Result made = make(promise);
    return made == cuda::SUCCESS ? all.real.map(pointer, size, offset, promise.made, flags) : made;
  }
  if (offset != 0 || size != promise.size_bytes || promise.is_mapped) return ERROR_INVALID_VALUE;
  promise.is_mapped = all.mapped.emplace(pointer, handle).second;
  if (!promise.is_mapped) return ERROR_INVALID_VALUE;
  all.promised_bytes -= size;
  lock.unlock();
  try {
    memory->map(address_of(pointer), size);
    return cuda::SUCCESS;
  } catch (...) {
    const Result result = failed();
    lock.lock();
    promise.is_mapped = false;
    all.mapped.erase(pointer);
    all.promised_bytes += promise.released ? 0 : size;
    forget_if_over(found);
    return result;
  }
}

Result unmap_leased(Books &all, std::map<DevicePointer, Handle>::iterator at, std::size_t size) {
  const auto found = all.promises.find(at->second);
  if (found->second.size_bytes != size) return ERROR_INVALID_VALUE;
  try {
    found->second.memory->unmap(address_of(at->first));
  } catch (...) {
    return failed();
  }
  all.mapped.erase(at);
  found->second.is_mapped = false;
  all.promised_bytes += found->second.released ? 0 : size;
  forget_if_over(found);
  return cuda::SUCCESS;
}

Result unmap(DevicePointer pointer, std::size_t size) {
  Books &all = books();
  if (Interposer::get() != nullptr) {
    const Lock lock(all.mutex);
    const auto at = all.mapped.find(pointer);
    if (at != all.mapped.end()) return unmap_leased(all, at, size);
  }
  return all.real.unmap(pointer, size);
}

Result release(Handle handle) {
  Books &all = books();
  if (Interposer::get() == nullptr) return all.real.release(handle);
  const Lock lock(all.mutex);
  const auto found = all.promises.find(handle);
  if (found == all.promises.end() || found->second.released) return all.real.release(handle);
  Promise &promise = found->second;
  const Result result = promise.made != 0 ? all.real.release(promise.made) : cuda::SUCCESS;
  if (promise.made == 0 && !promise.is_mapped) all.promised_bytes -= promise.size_bytes;
  promise.released = true;
  forget_if_over(found);
  return result;
}

// What is leased can be read and written by every device of the process that reaches it, from the start.
Result set_access(DevicePointer pointer, std::size_t size, const cuda::Access *access, std::size_t count) {
  Books &all = books();
  if (Interposer::get() != nullptr) {
    const Lock lock(all.mutex);
    const auto behind = all.mapped.upper_bound(pointer);
    if (behind != all.mapped.begin()) {
      const auto &[begin, handle] = *std::prev(behind);
      if (pointer - begin < all.promises.at(handle).size_bytes) return cuda::SUCCESS;
    }
  }
  return all.real.set_access(pointer, size, access, count);
}

Result export_handle(void *into, Handle handle, int type, unsigned long long flags) {
  Books &all = books();
  if (Interposer::get() == nullptr) return all.real.export_handle(into, handle, type, flags);
  const Lock lock(all.mutex);
  const auto found = all.promises.find(handle);
  if (found == all.promises.end()) return all.real.export_handle(into, handle, type, flags);
  // Frames are the daemon's, and no fd of them is here any more.
  if (found->second.is_mapped) return ERROR_INVALID_VALUE;
  const Result made = make(found->second);
  return made == cuda::SUCCESS ? all.real.export_handle(into, found->second.made, type, flags) : made;
}

// torch's symmetric memory binds what it has made to a multicast object.
Result bind_memory(Handle multicast, std::size_t at, Handle handle, std::size_t offset, std::size_t size,
                   unsigned long long flags) {
  Books &all = books();
  if (Interposer::get() == nullptr) return all.real.bind_memory(multicast, at, handle, offset, size, flags);
  const Lock lock(all.mutex);
  const auto found = all.promises.find(handle);
  if (found == all.promises.end()) return all.real.bind_memory(multicast, at, handle, offset, size, flags);
  const Result made = make(found->second);
  return made == cuda::SUCCESS ? all.real.bind_memory(multicast, at, found->second.made, offset, size, flags) : made;
}

template <class Function>
void *exchange(Function *&real, void *entry, Function *ours) {
  real = reinterpret_cast<Function *>(entry);
  return reinterpret_cast<void *>(ours);
}

}  // namespace

void *driver_entry(const vrb_cudart &runtime, const char *symbol, void *real) {
  Interposer *const interposer = Interposer::get();
  if (interposer == nullptr || !interposer->leases_process()) return real;
  Books &all = books();
  const Lock lock(all.mutex);
  all.runtime = &runtime;
  const std::string name = symbol;
  if (name == "cuMemAddressReserve") return exchange(all.real.reserve, real, reserve);
  if (name == "cuMemAddressFree") return exchange(all.real.unreserve, real, unreserve);
  if (name == "cuMemCreate") return exchange(all.real.create, real, create);
  if (name == "cuMemRelease") return exchange(all.real.release, real, release);
  if (name == "cuMemMap") return exchange(all.real.map, real, map);
  if (name == "cuMemUnmap") return exchange(all.real.unmap, real, unmap);
  if (name == "cuMemSetAccess") return exchange(all.real.set_access, real, set_access);
  if (name == "cuMulticastBindMem") return exchange(all.real.bind_memory, real, bind_memory);
  if (name == "cuMemExportToShareableHandle") return exchange(all.real.export_handle, real, export_handle);
  return real;
}

}  // namespace vrb
