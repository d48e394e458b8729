// A stand-in for libcuda.so.1 on machines without a GPU, so that the CUDA device is tested there too. It keeps books and
// it refuses: what the driver was measured to do (FACTS), and what its documentation forbids, it does and forbids as well.
//
// Memory is memfds; copies are carried out only when somebody waits for them, so that a wait that is missing shows.
// Calls that a capture forbids break it, unless the thread is in relaxed mode. `fake_cuda_fail` has a call fail.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace {

using Result = int;
using Pointer = unsigned long long;

constexpr Result SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101,
                 INVALID_CONTEXT = 201, INVALID_HANDLE = 400, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901,
                 CAPTURE_IMPLICIT = 906;
constexpr uint64_t GRANULARITY = uint64_t{2} << 20;
constexpr int GLOBAL = 0, RELAXED = 2;
constexpr int READ = 1, READ_AND_WRITE = 3;
constexpr uint64_t DEVICE_BYTES = uint64_t{16} << 30;
// The last of them reaches no other's memory.
constexpr int DEVICES = 3;

struct Allocation {
  int fd;
  uint64_t size_bytes;
};

struct Mapping {
  uint64_t size_bytes;
  bool accessible;
  bool writable;
};

struct Stream {
  explicit Stream(bool blocking_) : blocking(blocking_) {}

  bool blocking;
  bool capturing = false;
  bool broken = false;
  int mode = GLOBAL;
  std::thread::id captured_by;
  std::vector<std::function<void()>> work;
};

struct Event {
  Stream *recorded_on = nullptr;
};

struct Planned {
  Result result;
  int after;
};

struct Books {
  std::mutex mutex;
  bool initialised = false;
  Pointer next_handle = 1;
  int primary_retained = 0;
  std::map<Pointer, Allocation> handles;
  std::map<Pointer, uint64_t> reserved;
  std::map<Pointer, Mapping> mapped;
  std::map<Pointer, uint64_t> registered;
  std::set<Stream *> streams;
  std::set<Event *> events;
  std::map<std::string, Planned> planned;
  std::set<int> accessors;
};

struct AccessDescription {
  int location_type, location_id, flags;
};

Books &books() {
  static Books *all = new Books;
  return *all;
}

thread_local std::vector<void *> contexts;
thread_local int capture_mode = GLOBAL;
int primary_context;

using Lock = std::lock_guard<std::mutex>;

Result planned(const char *call) {
  auto found = books().planned.find(call);
  if (found == books().planned.end()) return books().initialised ? SUCCESS : NOT_INITIALIZED;
  if (found->second.after-- > 0) return SUCCESS;
  const Result result = found->second.result;
  books().planned.erase(found);
  return result;
}

// What may not be called while somebody captures, unless the thread is relaxed.
Result forbidden_by_capture() {
  bool forbidden = false;
  for (Stream *stream : books().streams) {
    const bool mine = stream->captured_by == std::this_thread::get_id();
    const bool binds = mine ? stream->mode != RELAXED : (stream->mode == GLOBAL && capture_mode == GLOBAL);
    if (!stream->capturing || capture_mode == RELAXED || !binds) continue;
    stream->broken = true;
    forbidden = true;
  }
  return forbidden ? CAPTURE_UNSUPPORTED : SUCCESS;
}

bool is_current() { return !contexts.empty(); }

// The piece of a map that this address is in.
template <class Value>
typename std::map<Pointer, Value>::const_iterator piece_of(const std::map<Pointer, Value> &pieces, Pointer at) {
  auto after = pieces.upper_bound(at);
  return after == pieces.begin() ? pieces.end() : std::prev(after);
}

bool is_mapped(Pointer at, uint64_t size_bytes, bool accessible, bool writable = false) {
  const Pointer end = at + size_bytes;
  while (at < end) {
    const auto found = piece_of(books().mapped, at);
    if (found == books().mapped.end() || at >= found->first + found->second.size_bytes) return false;
    if (accessible && !found->second.accessible) return false;
    if (writable && !found->second.writable) return false;
    at = found->first + found->second.size_bytes;
  }
  return true;
}

bool is_device(Pointer at) {
  const auto found = piece_of(books().reserved, at);
  return found != books().reserved.end() && at < found->first + found->second;
}

// Device memory must be mapped and accessible; host memory must not lie across the border of a registration.
bool may_copy(Pointer at, uint64_t size_bytes, bool writable) {
  if (is_device(at)) return is_mapped(at, size_bytes, true, writable);
  for (const auto &[begin, registered_bytes] : books().registered) {
    const Pointer end = begin + registered_bytes;
    const bool inside = at >= begin && at + size_bytes <= end;
    const bool outside = at + size_bytes <= begin || at >= end;
    if (!inside && !outside) return false;
  }
  return true;
}

void carry_out(Stream &stream) {
  for (const auto &one : stream.work) one();
  stream.work.clear();
}

void *memory(Pointer at) { return reinterpret_cast<void *>(static_cast<uintptr_t>(at)); }
Pointer pointer(const void *at) { return reinterpret_cast<uintptr_t>(at); }

bool is_whole(Pointer at, uint64_t size_bytes) {
  const auto first = books().mapped.find(at);
  const auto last = piece_of(books().mapped, at + size_bytes - 1);
  return first != books().mapped.end() && last->first + last->second.size_bytes == at + size_bytes &&
         is_mapped(at, size_bytes, false);
}

struct Property {
  int type, handle_types, location_type, location_id;
};

}  // namespace

// The test's own side: have the call fail, once, after so many that work; and count what is still there.
API void fake_cuda_fail(const char *call, int result, int after) {
  const Lock lock(books().mutex);
  books().planned[call] = {result, after};
}

API int fake_cuda_live(const char *what) {
  const Lock lock(books().mutex);
  const std::string name = what;
  if (name == "handles") return static_cast<int>(books().handles.size());
  if (name == "mapped") return static_cast<int>(books().mapped.size());
  if (name == "reserved") return static_cast<int>(books().reserved.size());
  if (name == "registered") return static_cast<int>(books().registered.size());
  if (name == "streams") return static_cast<int>(books().streams.size() + books().events.size());
  if (name == "contexts") return books().primary_retained;
  return -1;
}

// Which devices the last cuMemSetAccess was for, as bits.
API int fake_cuda_accessors() {
  const Lock lock(books().mutex);
  int bits = 0;
  for (const int device : books().accessors) bits |= 1 << device;
  return bits;
}

API Result cuInit(unsigned) {
  const Lock lock(books().mutex);
  books().initialised = true;
  return planned("cuInit");
}

API Result cuDriverGetVersion(int *version) {
  *version = 13000;
  return SUCCESS;
}

API Result cuGetErrorName(Result result, const char **name) {
  static const std::map<Result, const char *> names = {{SUCCESS, "CUDA_SUCCESS"},
                                                       {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
                                                       {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
                                                       {4, "CUDA_ERROR_DEINITIALIZED"},
                                                       {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
                                                       {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
                                                       {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"}};
  const auto found = names.find(result);
  *name = found == names.end() ? nullptr : found->second;
  return found == names.end() ? INVALID_VALUE : SUCCESS;
}

API Result cuDeviceGetCount(int *count) {
  *count = DEVICES;
  return SUCCESS;
}

API Result cuDeviceGet(int *device, int index) {
  *device = index;
  return index >= 0 && index < DEVICES ? SUCCESS : INVALID_DEVICE;
}

API Result cuDeviceGetUuid_v2(unsigned char *bytes, int device) {
  for (int i = 0; i < 16; ++i) bytes[i] = static_cast<unsigned char>(0xA0 + i);
  bytes[0] = static_cast<unsigned char>(bytes[0] + device);
  return SUCCESS;
}

API Result cuDeviceGetAttribute(int *value, int, int) {
  *value = 1;
  return SUCCESS;
}

API Result cuDeviceTotalMem_v2(std::size_t *size_bytes, int) {
  *size_bytes = DEVICE_BYTES;
  return SUCCESS;
}

API Result cuDeviceCanAccessPeer(int *reaches, int device, int peer) {
  *reaches = device != DEVICES - 1 && peer != DEVICES - 1;
  return SUCCESS;
}

API Result cuDevicePrimaryCtxRetain(void **context, int) {
  // The driver takes a tenth of a second, in which other threads come to the same point.
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  const Lock lock(books().mutex);
  if (const Result result = planned("cuDevicePrimaryCtxRetain")) return result;
  ++books().primary_retained;
  *context = &primary_context;
  return SUCCESS;
}

API Result cuDevicePrimaryCtxRelease_v2(int) {
  const Lock lock(books().mutex);
  if (books().primary_retained == 0) return INVALID_CONTEXT;
  --books().primary_retained;
  return SUCCESS;
}

API Result cuDevicePrimaryCtxGetState(int, unsigned *flags, int *active) {
  const Lock lock(books().mutex);
  *flags = 0;
  *active = books().primary_retained > 0;
  return SUCCESS;
}

API Result cuCtxPushCurrent_v2(void *context) {
  contexts.push_back(context);
  return context == &primary_context ? SUCCESS : INVALID_CONTEXT;
}

API Result cuCtxPopCurrent_v2(void **context) {
  if (contexts.empty()) return INVALID_CONTEXT;
  *context = contexts.back();
  contexts.pop_back();
  return SUCCESS;
}

API Result cuCtxGetCurrent(void **context) {
  *context = contexts.empty() ? nullptr : contexts.back();
  return SUCCESS;
}

API Result cuCtxSynchronize() {
  const Lock lock(books().mutex);
  if (!is_current()) return INVALID_CONTEXT;
  bool captured = false;
  for (Stream *stream : books().streams) {
    captured = captured || stream->capturing;
    stream->broken = stream->broken || stream->capturing;
  }
  if (captured) return CAPTURE_UNSUPPORTED;
  for (Stream *stream : books().streams) carry_out(*stream);
  return planned("cuCtxSynchronize");
}

API Result cuMemGetAllocationGranularity(std::size_t *size_bytes, const Property *, int) {
  *size_bytes = GRANULARITY;
  return SUCCESS;
}

API Result cuMemCreate(Pointer *handle, std::size_t size_bytes, const Property *property, unsigned long long) {
  const Lock lock(books().mutex);
  if (const Result result = planned("cuMemCreate")) return result;
  if (size_bytes == 0 || size_bytes % GRANULARITY != 0 || property->type != 1) return INVALID_VALUE;
  if (size_bytes > DEVICE_BYTES) return OUT_OF_MEMORY;
  const int fd = ::memfd_create("fake-cuda", MFD_CLOEXEC);
  if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(size_bytes)) != 0) return OUT_OF_MEMORY;
  *handle = books().next_handle++;
  books().handles[*handle] = {fd, size_bytes};
  return SUCCESS;
}

API Result cuMemRelease(Pointer handle) {
  const Lock lock(books().mutex);
  const auto found = books().handles.find(handle);
  if (found == books().handles.end()) return INVALID_VALUE;
  ::close(found->second.fd);
  books().handles.erase(found);
  return planned("cuMemRelease");
}

API Result cuMemExportToShareableHandle(void *fd, Pointer handle, int, unsigned long long) {
  const Lock lock(books().mutex);
  if (const Result result = planned("cuMemExportToShareableHandle")) return result;
  const auto found = books().handles.find(handle);
  if (found == books().handles.end()) return INVALID_VALUE;
  *static_cast<int *>(fd) = ::fcntl(found->second.fd, F_DUPFD_CLOEXEC, 0);
  return SUCCESS;
}

API Result cuMemImportFromShareableHandle(Pointer *handle, void *fd, int) {
  const Lock lock(books().mutex);
  if (const Result result = planned("cuMemImportFromShareableHandle")) return result;
  const int number = static_cast<int>(reinterpret_cast<uintptr_t>(fd));
  struct stat status {};
  if (::fstat(number, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size == 0) return INVALID_VALUE;
  *handle = books().next_handle++;
  books().handles[*handle] = {::fcntl(number, F_DUPFD_CLOEXEC, 0), static_cast<uint64_t>(status.st_size)};
  return SUCCESS;
}

API Result cuMemAddressReserve(Pointer *at, std::size_t size_bytes, std::size_t alignment, Pointer, unsigned long long) {
  const Lock lock(books().mutex);
  if (const Result result = planned("cuMemAddressReserve")) return result;
  alignment = std::max<std::size_t>(alignment, GRANULARITY);
  const std::size_t whole = size_bytes + alignment;
  if (size_bytes == 0 || size_bytes % GRANULARITY != 0 || whole < size_bytes) return INVALID_VALUE;
  void *raw = ::mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return OUT_OF_MEMORY;
  *at = (pointer(raw) + alignment - 1) / alignment * alignment;
  ::munmap(raw, *at - pointer(raw));
  ::munmap(memory(*at + size_bytes), pointer(raw) + whole - *at - size_bytes);
  books().reserved[*at] = size_bytes;
  return SUCCESS;
}

API Result cuMemAddressFree(Pointer at, std::size_t size_bytes) {
  const Lock lock(books().mutex);
  const auto found = books().reserved.find(at);
  if (found == books().reserved.end() || found->second != size_bytes) return INVALID_VALUE;
  const auto mapping = books().mapped.lower_bound(at);
  if (mapping != books().mapped.end() && mapping->first < at + size_bytes) return INVALID_VALUE;
  books().reserved.erase(found);
  ::munmap(memory(at), size_bytes);
  return SUCCESS;
}

API Result cuMemMap(Pointer at, std::size_t size_bytes, std::size_t offset, Pointer handle, unsigned long long) {
  const Lock lock(books().mutex);
  if (const Result result = planned("cuMemMap")) return result;
  const auto found = books().handles.find(handle);
  const auto next = books().mapped.lower_bound(at);
  const auto before = piece_of(books().mapped, at);
  const bool taken = (next != books().mapped.end() && next->first < at + size_bytes) ||
                     (before != books().mapped.end() && before->first + before->second.size_bytes > at);
  if (found == books().handles.end() || found->second.size_bytes != size_bytes || offset != 0 || taken ||
      !is_device(at) || !is_device(at + size_bytes - 1)) {
    return INVALID_VALUE;
  }
  if (::mmap(memory(at), size_bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, found->second.fd, 0) == MAP_FAILED) {
    return OUT_OF_MEMORY;
  }
  books().mapped[at] = {size_bytes, false, false};
  return SUCCESS;
}

API Result cuMemSetAccess(Pointer at, std::size_t size_bytes, const AccessDescription *access, std::size_t count) {
  const Lock lock(books().mutex);
  if (const Result result = planned("cuMemSetAccess")) return result;
  if (count == 0 || !is_whole(at, size_bytes)) return INVALID_VALUE;
  books().accessors.clear();
  const int flags = access[0].flags;
  for (std::size_t i = 0; i < count; ++i) {
    const bool known = access[i].location_type == 1 && access[i].location_id < DEVICES && access[i].flags == flags &&
                       (flags == READ || flags == READ_AND_WRITE);
    if (!known || !books().accessors.insert(access[i].location_id).second) return INVALID_VALUE;
  }
  const bool writable = flags == READ_AND_WRITE;
  ::mprotect(memory(at), size_bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ);
  for (auto one = books().mapped.find(at); one != books().mapped.end() && one->first < at + size_bytes; ++one) {
    one->second.accessible = true;
    one->second.writable = writable;
  }
  return SUCCESS;
}

API Result cuMemGetAccess(unsigned long long *flags, const void *, Pointer at) {
  const Lock lock(books().mutex);
  if (!is_mapped(at, 1, true)) return INVALID_VALUE;
  *flags = is_mapped(at, 1, true, true) ? READ_AND_WRITE : READ;
  return SUCCESS;
}

API Result cuMemUnmap(Pointer at, std::size_t size_bytes) {
  const Lock lock(books().mutex);
  if (const Result result = planned("cuMemUnmap")) return result;
  if (size_bytes == 0 || !is_whole(at, size_bytes)) return INVALID_VALUE;
  books().mapped.erase(books().mapped.find(at), books().mapped.lower_bound(at + size_bytes));
  ::mmap(memory(at), size_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  return SUCCESS;
}

API Result cuMemHostRegister_v2(void *at, std::size_t size_bytes, unsigned) {
  const Lock lock(books().mutex);
  if (const Result result = planned("cuMemHostRegister")) return result;
  if (!is_current()) return INVALID_CONTEXT;
  if (const Result result = forbidden_by_capture()) return result;
  if (!books().registered.emplace(pointer(at), size_bytes).second) return INVALID_VALUE;
  return SUCCESS;
}

API Result cuMemHostUnregister(void *at) {
  const Lock lock(books().mutex);
  if (!is_current()) return INVALID_CONTEXT;
  if (const Result result = forbidden_by_capture()) return result;
  return books().registered.erase(pointer(at)) == 1 ? SUCCESS : INVALID_VALUE;
}

API Result cuStreamCreate(Stream **stream, unsigned flags) {
  const Lock lock(books().mutex);
  if (const Result result = planned("cuStreamCreate")) return result;
  if (!is_current()) return INVALID_CONTEXT;
  *stream = new Stream(flags == 0);
  books().streams.insert(*stream);
  return SUCCESS;
}

API Result cuStreamDestroy_v2(Stream *stream) {
  const Lock lock(books().mutex);
  if (books().streams.erase(stream) == 0) return INVALID_HANDLE;
  delete stream;
  return SUCCESS;
}

API Result cuStreamBeginCapture_v2(Stream *stream, int mode) {
  const Lock lock(books().mutex);
  stream->capturing = true;
  stream->broken = false;
  stream->mode = mode;
  stream->captured_by = std::this_thread::get_id();
  return SUCCESS;
}

API Result cuStreamEndCapture(Stream *stream, void **graph) {
  const Lock lock(books().mutex);
  stream->capturing = false;
  *graph = nullptr;
  return stream->broken ? CAPTURE_INVALIDATED : SUCCESS;
}

API Result cuGraphDestroy(void *) { return SUCCESS; }

API Result cuStreamSynchronize(Stream *stream) {
  const Lock lock(books().mutex);
  if (const Result result = planned("cuStreamSynchronize")) return result;
  if (pointer(stream) <= 2) {
    for (Stream *one : books().streams) {
      if (!one->blocking) continue;
      if (one->capturing) return CAPTURE_IMPLICIT;
      carry_out(*one);
    }
    return SUCCESS;
  }
  if (stream->capturing) {
    stream->broken = true;
    return CAPTURE_UNSUPPORTED;
  }
  carry_out(*stream);
  return SUCCESS;
}

API Result cuStreamIsCapturing(Stream *stream, int *status) {
  const Lock lock(books().mutex);
  *status = 0;
  if (pointer(stream) > 2) {
    *status = stream->capturing ? 1 : 0;
    return SUCCESS;
  }
  const auto seen = [](const Stream *one) { return one->capturing && one->blocking; };
  const bool implicit = pointer(stream) == 1 && std::any_of(books().streams.begin(), books().streams.end(), seen);
  return implicit ? CAPTURE_IMPLICIT : SUCCESS;
}

API Result cuThreadExchangeStreamCaptureMode(int *mode) {
  std::swap(*mode, capture_mode);
  return SUCCESS;
}

API Result cuEventCreate(Event **event, unsigned) {
  const Lock lock(books().mutex);
  if (const Result result = planned("cuEventCreate")) return result;
  if (!is_current()) return INVALID_CONTEXT;
  *event = new Event;
  books().events.insert(*event);
  return SUCCESS;
}

API Result cuEventDestroy_v2(Event *event) {
  const Lock lock(books().mutex);
  if (books().events.erase(event) == 0) return INVALID_HANDLE;
  delete event;
  return SUCCESS;
}

API Result cuEventRecord(Event *event, Stream *stream) {
  const Lock lock(books().mutex);
  if (const Result result = planned("cuEventRecord")) return result;
  event->recorded_on = stream;
  return SUCCESS;
}

API Result cuEventSynchronize(Event *event) {
  const Lock lock(books().mutex);
  if (const Result result = planned("cuEventSynchronize")) return result;
  if (const Result result = forbidden_by_capture()) return result;
  if (event->recorded_on != nullptr) carry_out(*event->recorded_on);
  return SUCCESS;
}

API Result cuMemcpyAsync(Pointer to, Pointer from, std::size_t size_bytes, Stream *stream) {
  const Lock lock(books().mutex);
  if (const Result result = planned("cuMemcpyAsync")) return result;
  if (!is_current()) return INVALID_CONTEXT;
  if (!may_copy(to, size_bytes, true) || !may_copy(from, size_bytes, false)) return INVALID_VALUE;
  stream->work.push_back([=] { std::memcpy(memory(to), memory(from), size_bytes); });
  return SUCCESS;
}

API Result cuMemsetD8Async(Pointer at, unsigned char value, std::size_t size_bytes, Stream *stream) {
  const Lock lock(books().mutex);
  if (const Result result = planned("cuMemsetD8Async")) return result;
  if (!is_current()) return INVALID_CONTEXT;
  if (!is_device(at) || !may_copy(at, size_bytes, true)) return INVALID_VALUE;
  stream->work.push_back([=] { std::memset(memory(at), value, size_bytes); });
  return SUCCESS;
}

API Result cuStreamQuery(Stream *stream) {
  const Lock lock(books().mutex);
  return stream->work.empty() ? SUCCESS : 600;
}
