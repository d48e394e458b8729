// Compares what cuda_driver.h declares with the cuda.h of this machine, where there is one: by compiling.
#include <cuda.h>

#include <type_traits>

#include "cuda_driver.h"

namespace {

using vrb::cuda::Call;
using vrb::cuda::Driver;

// Same number of arguments, each of the same size and in the same kind of register.
template <class R, class... Theirs, class... Ours>
constexpr bool alike(R (*)(Theirs...), Call<Ours...> *) {
  if constexpr (sizeof...(Theirs) != sizeof...(Ours)) {
    return false;
  } else {
    return sizeof(R) == sizeof(vrb::cuda::Result) &&
           ((sizeof(Theirs) == sizeof(Ours) && std::is_pointer_v<Theirs> == std::is_pointer_v<Ours>) && ...);
  }
}

#define SAME(member, call) \
  static_assert(alike(decltype (&::call){}, static_cast<std::remove_const_t<decltype(Driver::member)> *>(nullptr)), #call)

SAME(init, cuInit);
SAME(get_error_name, cuGetErrorName);
SAME(device_get_count, cuDeviceGetCount);
SAME(device_get, cuDeviceGet);
SAME(device_get_uuid, cuDeviceGetUuid);
SAME(device_get_attribute, cuDeviceGetAttribute);
SAME(device_can_access_peer, cuDeviceCanAccessPeer);
SAME(primary_retain, cuDevicePrimaryCtxRetain);
SAME(primary_release, cuDevicePrimaryCtxRelease);
SAME(primary_get_state, cuDevicePrimaryCtxGetState);
SAME(context_push, cuCtxPushCurrent);
SAME(context_pop, cuCtxPopCurrent);
SAME(context_synchronize, cuCtxSynchronize);
SAME(address_reserve, cuMemAddressReserve);
SAME(address_free, cuMemAddressFree);
SAME(import_handle, cuMemImportFromShareableHandle);
SAME(release_handle, cuMemRelease);
SAME(map, cuMemMap);
SAME(set_access, cuMemSetAccess);
SAME(unmap, cuMemUnmap);
SAME(host_register, cuMemHostRegister);
SAME(host_unregister, cuMemHostUnregister);
SAME(stream_create, cuStreamCreate);
SAME(stream_destroy, cuStreamDestroy);
SAME(stream_is_capturing, cuStreamIsCapturing);
SAME(thread_exchange_capture_mode, cuThreadExchangeStreamCaptureMode);
SAME(event_create, cuEventCreate);
SAME(event_destroy, cuEventDestroy);
SAME(event_record, cuEventRecord);
SAME(event_synchronize, cuEventSynchronize);
SAME(copy_async, cuMemcpyAsync);
SAME(set_bytes_async, cuMemsetD8Async);

static_assert(sizeof(vrb::cuda::Access) == sizeof(CUmemAccessDesc));
static_assert(offsetof(vrb::cuda::Access, location_id) == offsetof(CUmemAccessDesc, location.id));
static_assert(offsetof(vrb::cuda::Access, flags) == offsetof(CUmemAccessDesc, flags));
static_assert(sizeof(vrb::cuda::Uuid) == sizeof(CUuuid));
static_assert(vrb::cuda::SUCCESS == CUDA_SUCCESS);
static_assert(vrb::cuda::ERROR_STREAM_CAPTURE_IMPLICIT == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
static_assert(vrb::cuda::ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED ==
              CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
static_assert(vrb::cuda::ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED ==
              CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED);
static_assert(vrb::cuda::HANDLE_TYPE_POSIX_FILE_DESCRIPTOR == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
static_assert(vrb::cuda::LOCATION_TYPE_DEVICE == CU_MEM_LOCATION_TYPE_DEVICE);
static_assert(vrb::cuda::ACCESS_READ == CU_MEM_ACCESS_FLAGS_PROT_READ);
static_assert(vrb::cuda::ACCESS_READWRITE == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
static_assert(vrb::cuda::HOST_REGISTER_PORTABLE == CU_MEMHOSTREGISTER_PORTABLE);
static_assert(vrb::cuda::STREAM_NON_BLOCKING == CU_STREAM_NON_BLOCKING);
static_assert(vrb::cuda::EVENT_BLOCKING_SYNC == CU_EVENT_BLOCKING_SYNC);
static_assert(vrb::cuda::EVENT_DISABLE_TIMING == CU_EVENT_DISABLE_TIMING);
static_assert(vrb::cuda::CAPTURE_MODE_RELAXED == CU_STREAM_CAPTURE_MODE_RELAXED);
static_assert(vrb::cuda::CAPTURE_STATUS_NONE == CU_STREAM_CAPTURE_STATUS_NONE);

}  // namespace

int main() { return 0; }
