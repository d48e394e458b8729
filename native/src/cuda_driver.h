// libcuda, opened while the process runs: nothing here is linked to it, and no CUDA header is needed to build.
//
// The few types are declared here as the driver's ABI has them (tests/cuda_abi_test.cpp compares them with cuda.h where
// that is installed). An exported symbol's ABI never changes, a new one gets a new suffix, so the symbols are looked up by
// name in the library itself: no preloaded library that wraps CUDA comes between.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "device.h"

namespace vrb::cuda {

using Result = int;
using Ordinal = int;
using DevicePointer = unsigned long long;
using Handle = unsigned long long;
using Context = struct ContextTag *;
using Stream = struct StreamTag *;
using Event = struct EventTag *;

constexpr Result SUCCESS = 0;
constexpr Result ERROR_STREAM_CAPTURE_UNSUPPORTED = 900;
constexpr Result ERROR_STREAM_CAPTURE_IMPLICIT = 906;
constexpr Result ERROR_STREAM_CAPTURE_WRONG_THREAD = 908;

// Whether a call failed because of a graph that is being captured: these results lie side by side.
inline bool is_about_capture(Result result) {
  return result >= ERROR_STREAM_CAPTURE_UNSUPPORTED && result <= ERROR_STREAM_CAPTURE_WRONG_THREAD;
}

constexpr int ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED = 102;
constexpr int ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED = 103;
constexpr int HANDLE_TYPE_POSIX_FILE_DESCRIPTOR = 1;
constexpr int LOCATION_TYPE_DEVICE = 1;
constexpr int ACCESS_READ = 1;
constexpr int ACCESS_READWRITE = 3;
constexpr unsigned HOST_REGISTER_PORTABLE = 1;
constexpr unsigned STREAM_NON_BLOCKING = 1;
constexpr unsigned EVENT_BLOCKING_SYNC = 1;
constexpr unsigned EVENT_DISABLE_TIMING = 2;
constexpr int CAPTURE_MODE_RELAXED = 2;
constexpr int CAPTURE_STATUS_NONE = 0;

// The two streams that every thread has without making them (CU_STREAM_LEGACY, CU_STREAM_PER_THREAD).
inline Stream legacy_stream() { return reinterpret_cast<Stream>(uintptr_t{1}); }
inline Stream per_thread_stream() { return reinterpret_cast<Stream>(uintptr_t{2}); }

struct Uuid {
  unsigned char bytes[16];
};

struct Access {
  int location_type;
  int location_id;
  int flags;
};

// One entry point. Throws Error if the library lacks it.
template <class... Arguments>
class Call {
 public:
  Call(void *library, const char *symbol)
      : symbol_(symbol), entry_(reinterpret_cast<Result (*)(Arguments...)>(find(library, symbol))) {}

  Result operator()(Arguments... arguments) const { return entry_(arguments...); }
  // The call as people know it: without the suffix of its version.
  std::string name() const { return symbol_.substr(0, symbol_.find("_v")); }

 private:
  static void *find(void *library, const char *symbol);

  std::string symbol_;
  Result (*entry_)(Arguments...);
};

void *find_symbol(void *library, const char *symbol);

template <class... Arguments>
void *Call<Arguments...>::find(void *library, const char *symbol) {
  return find_symbol(library, symbol);
}

class Driver {
 public:
  explicit Driver(void *library) : library_(library) {}

  // Makes the call; a failure names it and its CUresult.
  template <class... Arguments, class... Given>
  Failure attempt(const Call<Arguments...> &call, Given... given) const {
    const Result result = call(given...);
    if (result == SUCCESS) return std::nullopt;
    return call.name() + ": " + name_of(result);
  }

  std::string name_of(Result result) const;

 private:
  void *library_;  // first, since what follows is looked up in it

 public:
  const Call<unsigned> init{library_, "cuInit"};
  const Call<Result, const char **> get_error_name{library_, "cuGetErrorName"};
  const Call<int *> device_get_count{library_, "cuDeviceGetCount"};
  const Call<Ordinal *, int> device_get{library_, "cuDeviceGet"};
  const Call<Uuid *, Ordinal> device_get_uuid{library_, "cuDeviceGetUuid_v2"};
  const Call<int *, int, Ordinal> device_get_attribute{library_, "cuDeviceGetAttribute"};
  const Call<int *, Ordinal, Ordinal> device_can_access_peer{library_, "cuDeviceCanAccessPeer"};

  const Call<Context *, Ordinal> primary_retain{library_, "cuDevicePrimaryCtxRetain"};
  const Call<Ordinal> primary_release{library_, "cuDevicePrimaryCtxRelease_v2"};
  const Call<Ordinal, unsigned *, int *> primary_get_state{library_, "cuDevicePrimaryCtxGetState"};
  const Call<Context> context_push{library_, "cuCtxPushCurrent_v2"};
  const Call<Context *> context_pop{library_, "cuCtxPopCurrent_v2"};
  const Call<> context_synchronize{library_, "cuCtxSynchronize"};

  const Call<DevicePointer *, std::size_t, std::size_t, DevicePointer, unsigned long long> address_reserve{
      library_, "cuMemAddressReserve"};
  const Call<DevicePointer, std::size_t> address_free{library_, "cuMemAddressFree"};
  const Call<Handle *, void *, int> import_handle{library_, "cuMemImportFromShareableHandle"};
  const Call<Handle> release_handle{library_, "cuMemRelease"};
  const Call<DevicePointer, std::size_t, std::size_t, Handle, unsigned long long> map{library_, "cuMemMap"};
  const Call<DevicePointer, std::size_t, const Access *, std::size_t> set_access{library_, "cuMemSetAccess"};
  const Call<DevicePointer, std::size_t> unmap{library_, "cuMemUnmap"};

  const Call<void *, std::size_t, unsigned> host_register{library_, "cuMemHostRegister_v2"};
  const Call<void *> host_unregister{library_, "cuMemHostUnregister"};

  const Call<Stream *, unsigned> stream_create{library_, "cuStreamCreate"};
  const Call<Stream> stream_destroy{library_, "cuStreamDestroy_v2"};
  const Call<Stream> stream_synchronize{library_, "cuStreamSynchronize"};
  const Call<Stream, int *> stream_is_capturing{library_, "cuStreamIsCapturing"};
  const Call<int *> thread_exchange_capture_mode{library_, "cuThreadExchangeStreamCaptureMode"};
  const Call<Event *, unsigned> event_create{library_, "cuEventCreate"};
  const Call<Event> event_destroy{library_, "cuEventDestroy_v2"};
  const Call<Event, Stream> event_record{library_, "cuEventRecord"};
  const Call<Event> event_synchronize{library_, "cuEventSynchronize"};
  const Call<DevicePointer, DevicePointer, std::size_t, Stream> copy_async{library_, "cuMemcpyAsync"};
  const Call<DevicePointer, unsigned char, std::size_t, Stream> set_bytes_async{library_, "cuMemsetD8Async"};
};

// Opens and initialises libcuda, once for the process; it is never closed. Throws Error if that fails.
const Driver &load_driver();

}  // namespace vrb::cuda
