// What LD_PRELOAD puts in front of CUDA's runtime: each call goes to libvrambroker.so, which is loaded by the first of them.
//
// It is loaded into every program that a leased one starts, so it links to nothing, does nothing when it is loaded, and asks
// for the library only once CUDA's runtime is called. It is there twice, once by the name that callers of torch_memory_saver
// put into LD_PRELOAD; if both are preloaded, the one in front does the work, and the other hands on.
//
// miles looks for the names of the variables below in the file, to know whether it may ask for backups on a disk.

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

#include <cstddef>
#include <cstring>

#include "vrambroker/vrambroker.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED const char *vrb_preload_understands(void);
EXPORTED int cudaMalloc(void **pointer, size_t size);
EXPORTED int cudaFree(void *pointer);
EXPORTED int cudaMemGetInfo(size_t *free, size_t *total);
EXPORTED int cudaGetDriverEntryPoint(const char *symbol, void **entry, unsigned long long flags, int *result);
EXPORTED int cudaGetDriverEntryPointByVersion(const char *symbol, void **entry, unsigned version, unsigned long long flags,
                                              int *result);

const char *vrb_preload_understands(void) {
  return "TMS_INIT_ENABLE TMS_INIT_ENABLE_CPU_BACKUP TMS_INIT_ENABLE_DISK_BACKUP";
}

namespace {

constexpr int ERROR_UNKNOWN = 999;

constexpr std::size_t PATH_LENGTH_MAX = 4096;

// The loader is locked meanwhile, so nothing is opened here.
int find_runtime(dl_phdr_info *object, std::size_t, void *path) {
  if (object->dlpi_name == nullptr || std::strstr(object->dlpi_name, "libcudart.so") == nullptr) return 0;
  if (std::strlen(object->dlpi_name) >= PATH_LENGTH_MAX) return 0;
  std::strcpy(static_cast<char *>(path), object->dlpi_name);
  return 1;
}

// The next in the order of loading; or, where the runtime was loaded for one library alone, the runtime's.
template <class Function>
void find_real(Function *&into, const char *name) {
  void *entry = ::dlsym(RTLD_NEXT, name);
  if (entry == nullptr) {
    char path[PATH_LENGTH_MAX] = "";
    ::dl_iterate_phdr(find_runtime, path);
    void *const loaded = path[0] == '\0' ? nullptr : ::dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (loaded != nullptr) entry = ::dlsym(loaded, name);
  }
  into = reinterpret_cast<Function *>(entry);
}

vrb_cudart find_reals() {
  vrb_cudart all{};
  find_real(all.malloc, "cudaMalloc");
  find_real(all.free, "cudaFree");
  find_real(all.mem_get_info, "cudaMemGetInfo");
  find_real(all.get_device, "cudaGetDevice");
  find_real(all.get_last_error, "cudaGetLastError");
  return all;
}

struct Library {
  decltype(&vrb_cuda_malloc) malloc = nullptr;
  decltype(&vrb_cuda_free) free = nullptr;
  decltype(&vrb_cuda_mem_get_info) mem_get_info = nullptr;
  decltype(&vrb_driver_entry) driver_entry = nullptr;
};

void *open_beside(const char *folder, std::size_t length, const char *rest) {
  char path[PATH_LENGTH_MAX];
  if (length + std::strlen(rest) >= sizeof path) return nullptr;
  std::memcpy(path, folder, length);
  std::strcpy(path + length, rest);
  return ::dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

// In its own folder, or from where torch_memory_saver's stand-in is.
Library load() {
  Dl_info self{};
  if (::dladdr(reinterpret_cast<void *>(&vrb_preload_understands), &self) == 0) return {};
  const char *const slash = std::strrchr(self.dli_fname, '/');
  const std::size_t length = slash == nullptr ? 0 : static_cast<std::size_t>(slash - self.dli_fname) + 1;
  void *handle = open_beside(self.dli_fname, length, "libvrambroker.so");
  if (handle == nullptr) handle = open_beside(self.dli_fname, length, "../../_native/libvrambroker.so");
  if (handle == nullptr) return {};
  Library loaded;
  loaded.malloc = reinterpret_cast<decltype(loaded.malloc)>(::dlsym(handle, "vrb_cuda_malloc"));
  loaded.free = reinterpret_cast<decltype(loaded.free)>(::dlsym(handle, "vrb_cuda_free"));
  loaded.mem_get_info = reinterpret_cast<decltype(loaded.mem_get_info)>(::dlsym(handle, "vrb_cuda_mem_get_info"));
  loaded.driver_entry = reinterpret_cast<decltype(loaded.driver_entry)>(::dlsym(handle, "vrb_driver_entry"));
  const bool complete = loaded.malloc != nullptr && loaded.free != nullptr && loaded.mem_get_info != nullptr &&
                        loaded.driver_entry != nullptr;
  return complete ? loaded : Library{};
}

// Whether this is the one in front.
bool is_first() {
  return ::dlsym(RTLD_DEFAULT, "vrb_preload_understands") == reinterpret_cast<void *>(&vrb_preload_understands);
}

// How a program asks the runtime for the driver's entry points, with and without the version that it was built for.
struct EntryPoints {
  decltype(&cudaGetDriverEntryPoint) latest = nullptr;
  decltype(&cudaGetDriverEntryPointByVersion) by_version = nullptr;
};

vrb_cudart runtime{};
EntryPoints entry_points{};
Library library{};
pthread_once_t found = PTHREAD_ONCE_INIT;

void find() {
  runtime = find_reals();
  find_real(entry_points.latest, "cudaGetDriverEntryPoint");
  find_real(entry_points.by_version, "cudaGetDriverEntryPointByVersion");
  const bool complete = runtime.malloc != nullptr && runtime.free != nullptr && runtime.mem_get_info != nullptr &&
                        runtime.get_device != nullptr && runtime.get_last_error != nullptr;
  if (complete && is_first()) library = load();
}

const vrb_cudart &real() {
  ::pthread_once(&found, find);
  return runtime;
}

}  // namespace

int cudaMalloc(void **pointer, size_t size) {
  const vrb_cudart &it = real();
  if (library.malloc != nullptr) return library.malloc(&it, pointer, size);
  return it.malloc == nullptr ? ERROR_UNKNOWN : it.malloc(pointer, size);
}

int cudaFree(void *pointer) {
  const vrb_cudart &it = real();
  if (library.free != nullptr) return library.free(&it, pointer);
  return it.free == nullptr ? ERROR_UNKNOWN : it.free(pointer);
}

int cudaMemGetInfo(size_t *free, size_t *total) {
  const vrb_cudart &it = real();
  if (library.mem_get_info != nullptr) return library.mem_get_info(&it, free, total);
  return it.mem_get_info == nullptr ? ERROR_UNKNOWN : it.mem_get_info(free, total);
}

// Nothing but what was found is exchanged.
static int exchanged(int failed, const char *symbol, void **entry) {
  if (failed == 0 && entry != nullptr && library.driver_entry != nullptr) *entry = library.driver_entry(&runtime, symbol, *entry);
  return failed;
}

int cudaGetDriverEntryPoint(const char *symbol, void **entry, unsigned long long flags, int *result) {
  real();
  if (entry_points.latest == nullptr) return ERROR_UNKNOWN;
  return exchanged(entry_points.latest(symbol, entry, flags, result), symbol, entry);
}

int cudaGetDriverEntryPointByVersion(const char *symbol, void **entry, unsigned version, unsigned long long flags,
                                     int *result) {
  real();
  if (entry_points.by_version == nullptr) return ERROR_UNKNOWN;
  return exchanged(entry_points.by_version(symbol, entry, version, flags, result), symbol, entry);
}
