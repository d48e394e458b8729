// A GPU as a device: which one it is, its context for the length of a call, and lanes as streams.
#include "cuda_device.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "status.h"

namespace vrb {
namespace {

using cuda::DevicePointer;
using cuda::Driver;
using cuda::Ordinal;

constexpr uint64_t ALIGNMENT = 2 * MIB;
// Launches of the process wait for a registration: at this size for some milliseconds (FACTS: host memory).
constexpr uint64_t REGISTRATION_BYTES = 128 * MIB;

DevicePointer pointer(const void *address) { return reinterpret_cast<uintptr_t>(address); }

void must(const Failure &failure) {
  if (failure) throw driver_failed(*failure);
}

int attribute(const Driver &driver, int name, Ordinal device) {
  int value = 0;
  must(driver.attempt(driver.device_get_attribute, &value, name, device));
  return value;
}

int device_count(const Driver &driver) {
  int count = 0;
  must(driver.attempt(driver.device_get_count, &count));
  return count;
}

std::string uuid_digits(const Driver &driver, Ordinal device) {
  cuda::Uuid uuid{};
  must(driver.attempt(driver.device_get_uuid, &uuid, device));
  std::string digits;
  for (const unsigned char byte : uuid.bytes) {
    char text[3];
    std::snprintf(text, sizeof text, "%02x", byte);
    digits += text;
  }
  return digits;
}

bool is_uuid(const std::string &name) { return name.rfind("GPU-", 0) == 0 || name.rfind("MIG-", 0) == 0; }

Ordinal find_uuid(const Driver &driver, const std::string &name) {
  const std::string digits = digits_of_gpu(name);
  for (int index = 0; index < device_count(driver); ++index) {
    Ordinal device = 0;
    must(driver.attempt(driver.device_get, &device, index));
    if (uuid_digits(driver, device) == digits) return device;
  }
  const char *visible = std::getenv("CUDA_VISIBLE_DEVICES");
  throw invalid_argument("no device " + name + " is visible to this process (CUDA_VISIBLE_DEVICES is " +
                             (visible == nullptr ? "not set" : visible) + ")",
                         name);
}

Ordinal find_index(const Driver &driver, const std::string &name) {
  const std::string index = name == "cuda" ? "0" : name.substr(5);
  const bool is_number = !index.empty() && index.size() <= 4 && index.find_first_not_of("0123456789") == std::string::npos;
  if (!is_number) throw invalid_argument("a device is cuda, cuda:N or a UUID, not " + name, name);
  Ordinal device = 0;
  must(driver.attempt(driver.device_get, &device, std::stoi(index)));
  return device;
}

Ordinal find_device(const Driver &driver, const std::string &name) {
  const Ordinal device = is_uuid(name) ? find_uuid(driver, name) : find_index(driver, name);
  if (attribute(driver, cuda::ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, device) == 0 ||
      attribute(driver, cuda::ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, device) == 0) {
    throw driver_failed("cuDeviceGetAttribute: device " + name + " can't map memory that another process made");
  }
  return device;
}

std::vector<cuda::Access> accessors(const Driver &driver, Ordinal owner) {
  std::vector<cuda::Access> all;
  for (int index = 0; index < device_count(driver); ++index) {
    Ordinal device = 0;
    int reaches = 1;
    must(driver.attempt(driver.device_get, &device, index));
    if (device != owner) must(driver.attempt(driver.device_can_access_peer, &reaches, device, owner));
    if (reaches != 0) all.push_back({cuda::LOCATION_TYPE_DEVICE, device, cuda::ACCESS_READWRITE});
  }
  return all;
}

std::vector<cuda::Access> read_only(std::vector<cuda::Access> accessors) {
  for (cuda::Access &one : accessors) one.flags = cuda::ACCESS_READ;
  return accessors;
}

// This thread in relaxed capture mode: what is called meanwhile breaks no capture of another thread.
class Relaxed {
 public:
  explicit Relaxed(const Driver &driver) : driver_(driver) { driver_.thread_exchange_capture_mode(&mode_); }
  ~Relaxed() { driver_.thread_exchange_capture_mode(&mode_); }
  Relaxed(const Relaxed &) = delete;
  Relaxed &operator=(const Relaxed &) = delete;

 private:
  const Driver &driver_;
  int mode_ = cuda::CAPTURE_MODE_RELAXED;  // the thread's own one, after the first exchange
};

// This thread with a context current.
class Current {
 public:
  Current(const Driver &driver, cuda::Context context)
      : driver_(driver), failure(driver.attempt(driver.context_push, context)) {}
  ~Current() {
    cuda::Context popped = nullptr;
    if (!failure) driver_.context_pop(&popped);
  }
  Current(const Current &) = delete;
  Current &operator=(const Current &) = delete;

 private:
  const Driver &driver_;

 public:
  const Failure failure;
};

}  // namespace

std::string digits_of_gpu(const std::string &name) {
  std::string digits;
  for (const char letter : name.substr(4)) {
    if (letter != '-') digits += static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  }
  return digits;
}

std::string gpu_digits(int ordinal) {
  const Driver &driver = cuda::load_driver();
  Ordinal device = 0;
  must(driver.attempt(driver.device_get, &device, ordinal));
  return uuid_digits(driver, device);
}

template <class Work>
Failure CudaDevice::inside(Work work) {
  // First of all, since making the context is itself among the calls that a capture forbids.
  const Relaxed relaxed(driver_);
  cuda::Context context = nullptr;
  if (Failure failure = context_into(&context)) return failure;
  const Current current(driver_, context);
  return current.failure ? current.failure : work();
}

// A stream of its own, so that copies wait for nobody's kernels. It is made by the first copy, which can say what failed.
class CudaLane final : public Lane {
 public:
  explicit CudaLane(CudaDevice &device) : device_(device), driver_(device.driver_) {}

  ~CudaLane() override {
    if (stream_ == nullptr && event_ == nullptr) return;
    // Nothing can be done about a failure; at the end of a process the driver may be gone already.
    device_.inside([&]() -> Failure {
      if (event_ != nullptr) driver_.event_destroy(event_);
      if (stream_ != nullptr) driver_.stream_destroy(stream_);
      return std::nullopt;
    });
  }

  Failure start_copy(void *to, const void *from, std::size_t size_bytes) override {
    return on_stream(
        [&] { return driver_.attempt(driver_.copy_async, pointer(to), pointer(from), size_bytes, stream_); });
  }

  Failure start_zero(void *at, std::size_t size_bytes) override {
    constexpr unsigned char zero = 0;
    return on_stream(
        [&] { return driver_.attempt(driver_.set_bytes_async, pointer(at), zero, size_bytes, stream_); });
  }

  Failure finish() override {
    if (stream_ == nullptr) return std::nullopt;
    return device_.inside([&]() -> Failure {
      if (Failure failure = driver_.attempt(driver_.event_record, event_, stream_)) return failure;
      return driver_.attempt(driver_.event_synchronize, event_);
    });
  }

 private:
  template <class Start>
  Failure on_stream(Start start) {
    return device_.inside([&]() -> Failure {
      if (Failure failure = open()) return failure;
      return start();
    });
  }

  // The event first, so that there is never a stream that can't be waited for.
  Failure open() {
    if (event_ == nullptr) {
      const unsigned flags = cuda::EVENT_BLOCKING_SYNC | cuda::EVENT_DISABLE_TIMING;
      if (Failure failure = driver_.attempt(driver_.event_create, &event_, flags)) return failure;
    }
    if (stream_ != nullptr) return std::nullopt;
    return driver_.attempt(driver_.stream_create, &stream_, cuda::STREAM_NON_BLOCKING);
  }

  CudaDevice &device_;
  const Driver &driver_;
  cuda::Event event_ = nullptr;
  cuda::Stream stream_ = nullptr;
};

CudaDevice::CudaDevice(const std::string &kind)
    : driver_(cuda::load_driver()), ordinal_(find_device(driver_, kind)), access_(accessors(driver_, ordinal_)), read_access_(read_only(access_)) {}

CudaDevice::~CudaDevice() {
  if (context_.load() != nullptr) driver_.primary_release(ordinal_);
}

Failure CudaDevice::context_into(cuda::Context *context) {
  *context = context_.load();
  if (*context != nullptr) return std::nullopt;
  if (Failure failure = driver_.attempt(driver_.primary_retain, context, ordinal_)) return failure;
  cuda::Context nobodys = nullptr;
  // Retaining is counted, so threads that come here at once need no lock: all but one give theirs back.
  if (!context_.compare_exchange_strong(nobodys, *context)) driver_.primary_release(ordinal_);
  return std::nullopt;
}

void *CudaDevice::reserve(uint64_t size_bytes) {
  DevicePointer address = 0;
  if (driver_.address_reserve(&address, size_bytes, ALIGNMENT, 0, 0) != cuda::SUCCESS) return nullptr;
  return reinterpret_cast<void *>(static_cast<uintptr_t>(address));
}

void CudaDevice::release(void *address, uint64_t size_bytes) { driver_.address_free(pointer(address), size_bytes); }

// The mapping alone keeps the memory afterwards; a handle kept would keep it beyond the unmapping.
Failure CudaDevice::map_one(const Frame &frame, char *address) {
  cuda::Handle handle = 0;
  void *fd = reinterpret_cast<void *>(static_cast<uintptr_t>(frame.fd.get()));
  if (Failure failure =
          driver_.attempt(driver_.import_handle, &handle, fd, cuda::HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)) {
    return failure;
  }
  Failure failure = driver_.attempt(driver_.map, pointer(address), frame.size_bytes, std::size_t{0}, handle, 0ULL);
  const Failure at_release = driver_.attempt(driver_.release_handle, handle);
  if (!failure && at_release) driver_.unmap(pointer(address), frame.size_bytes);
  return failure ? failure : at_release;
}

Failure CudaDevice::map(Fd frame, void *address, uint64_t size_bytes) {
  std::vector<Frame> frames;
  frames.push_back({std::move(frame), size_bytes});
  return map_run(std::move(frames), address);
}

Failure CudaDevice::map_run(std::vector<Frame> frames, void *address) {
  const Relaxed relaxed(driver_);
  char *const begin = static_cast<char *>(address);
  std::vector<uint64_t> mapped;
  uint64_t mapped_bytes = 0;
  Failure failure;
  for (const Frame &frame : frames) {
    failure = map_one(frame, begin + mapped_bytes);
    if (failure) break;
    mapped.push_back(frame.size_bytes);
    mapped_bytes += frame.size_bytes;
  }
  if (!failure && mapped_bytes > 0) {
    failure = driver_.attempt(driver_.set_access, pointer(begin), mapped_bytes, access_.data(), access_.size());
  }
  if (!failure) return std::nullopt;
  uint64_t offset_bytes = 0;
  for (const uint64_t size_bytes : mapped) {
    driver_.unmap(pointer(begin + offset_bytes), size_bytes);
    offset_bytes += size_bytes;
  }
  return failure;
}

Failure CudaDevice::unmap(void *address, uint64_t size_bytes) {
  const Relaxed relaxed(driver_);
  return driver_.attempt(driver_.unmap, pointer(address), size_bytes);
}

// In place, on the live mapping, 0.5 ms per GiB. A kernel that writes to it afterwards kills its context.
Failure CudaDevice::protect(void *address, uint64_t size_bytes, bool writable) {
  const Relaxed relaxed(driver_);
  const std::vector<cuda::Access> &access = writable ? access_ : read_access_;
  return driver_.attempt(driver_.set_access, pointer(address), size_bytes, access.data(), access.size());
}

void *CudaDevice::map_arena(Fd file, uint64_t size_bytes) { return host_.map_arena(std::move(file), size_bytes); }

void CudaDevice::unmap_arena(void *address, uint64_t size_bytes) { host_.unmap_arena(address, size_bytes); }

uint64_t CudaDevice::registration_bytes() const { return REGISTRATION_BYTES; }

Failure CudaDevice::register_host(void *address, uint64_t size_bytes) {
  return inside(
      [&] { return driver_.attempt(driver_.host_register, address, size_bytes, cuda::HOST_REGISTER_PORTABLE); });
}

void CudaDevice::unregister_host(void *address) {
  inside([&]() -> Failure {
    driver_.host_unregister(address);
    return std::nullopt;
  });
}

std::unique_ptr<Lane> CudaDevice::open_lane() { return std::make_unique<CudaLane>(*this); }

// Synchronising a context during a capture breaks the capture, in every mode. The driver tells without harm only of
// captures on blocking streams and on this thread's own default stream; torch captures on neither, so the Python client
// asks torch before it comes here. A capture that nobody saw is broken by this, and the pause is refused: the work that
// it holds back could not be waited for.
Failure CudaDevice::quiesce() {
  unsigned flags = 0;
  int active = 0;
  if (Failure failure = driver_.attempt(driver_.primary_get_state, ordinal_, &flags, &active)) return failure;
  if (active == 0) return std::nullopt;
  return inside([&]() -> Failure {
    for (const cuda::Stream stream : {cuda::legacy_stream(), cuda::per_thread_stream()}) {
      int status = cuda::CAPTURE_STATUS_NONE;
      const cuda::Result result = driver_.stream_is_capturing(stream, &status);
      if (result == cuda::ERROR_STREAM_CAPTURE_IMPLICIT || (result == cuda::SUCCESS && status != cuda::CAPTURE_STATUS_NONE)) {
        return "cuStreamIsCapturing: a CUDA graph is being captured";
      }
      if (result != cuda::SUCCESS) return "cuStreamIsCapturing: " + driver_.name_of(result);
    }
    return driver_.attempt(driver_.context_synchronize);
  });
}

bool CudaDevice::wait_stream(void *stream) {
  bool waited = true;
  inside([&]() -> Failure {
    const auto on = static_cast<cuda::Stream>(stream);
    int status = cuda::CAPTURE_STATUS_NONE;
    cuda::Result result = driver_.stream_is_capturing(on, &status);
    if (result == cuda::SUCCESS && status == cuda::CAPTURE_STATUS_NONE) result = driver_.stream_synchronize(on);
    // After any other error no work of this context will run any more.
    waited = status == cuda::CAPTURE_STATUS_NONE && !cuda::is_about_capture(result);
    return std::nullopt;
  });
  return waited;
}

}  // namespace vrb
