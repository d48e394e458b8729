// Where libcuda is found, once for the process.
#include "cuda_driver.h"

#include "status.h"

namespace vrb::cuda {
namespace {

// What dlerror says, which is null if nobody failed.
std::string why() {
  const char *message = ::dlerror();
  return message == nullptr ? "unknown" : message;
}

void *open_library() {
  void *library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw driver_failed("dlopen: " + why());
  return library;
}

}  // namespace

void *find_symbol(void *library, const char *symbol) {
  void *entry = ::dlsym(library, symbol);
  if (entry == nullptr) throw driver_failed("dlsym: the driver is too old: " + why());
  return entry;
}

std::string Driver::name_of(Result result) const {
  const char *name = nullptr;
  if (get_error_name(result, &name) != SUCCESS || name == nullptr) return "CUresult " + std::to_string(result);
  return name;
}

const Driver &load_driver() {
  // A load that throws is tried anew by the next caller.
  static const Driver driver = [] {
    Driver loaded(open_library());
    if (const Failure failure = loaded.attempt(loaded.init, 0U)) throw driver_failed(*failure);
    return loaded;
  }();
  return driver;
}

}  // namespace vrb::cuda
