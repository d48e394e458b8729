#include "host_device.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

namespace vrb {
namespace {

constexpr uint64_t ALIGNMENT = 2 * MIB;

Failure failed(const char *call) { return std::string(call) + ": " + std::strerror(errno); }

char *at(void *address, uint64_t offset_bytes) { return static_cast<char *>(address) + offset_bytes; }

// Reserves addresses by mapping too much and giving back what lies outside the aligned part.
void *reserve_aligned(uint64_t size_bytes) {
  const uint64_t whole = size_bytes + ALIGNMENT;
  if (whole < size_bytes) return nullptr;
  void *raw = ::mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  const uint64_t misfit = reinterpret_cast<uintptr_t>(raw) % ALIGNMENT;
  const uint64_t before = misfit == 0 ? 0 : ALIGNMENT - misfit;
  if (before > 0) ::munmap(raw, before);
  ::munmap(at(raw, before + size_bytes), whole - before - size_bytes);
  ::madvise(at(raw, before), size_bytes, MADV_DONTFORK);
  return at(raw, before);
}

// A file shorter than its mapping would answer the first touch with SIGBUS.
Failure holds(const Fd &file, uint64_t size_bytes) {
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) return failed("fstat");
  if (status.st_size < 0 || static_cast<uint64_t>(status.st_size) < size_bytes) {
    return "fstat: the file is shorter than it was said to be";
  }
  return std::nullopt;
}

Failure map_over(const Fd &file, void *address, uint64_t size_bytes) {
  if (Failure failure = holds(file, size_bytes)) return failure;
  void *got = ::mmap(address, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file.get(), 0);
  if (got == MAP_FAILED) return failed("mmap");
  if (::madvise(address, size_bytes, MADV_DONTFORK) != 0) return failed("madvise");
  return std::nullopt;
}

class HostLane final : public Lane {
 public:
  Failure start_copy(void *to, const void *from, std::size_t size_bytes) override {
    std::memcpy(to, from, size_bytes);
    return std::nullopt;
  }
  Failure start_zero(void *where, std::size_t size_bytes) override {
    std::memset(where, 0, size_bytes);
    return std::nullopt;
  }
  Failure finish() override { return std::nullopt; }
};

}  // namespace

void *HostDevice::reserve(uint64_t size_bytes) { return reserve_aligned(size_bytes); }

void HostDevice::release(void *address, uint64_t size_bytes) { ::munmap(address, size_bytes); }

Failure HostDevice::map(Fd frame, void *address, uint64_t size_bytes) {
  Failure failure = map_over(frame, address, size_bytes);
  // It may be there, only without its advice.
  if (failure) unmap(address, size_bytes);
  return failure;
}

Failure HostDevice::unmap(void *address, uint64_t size_bytes) {
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  if (::mmap(address, size_bytes, PROT_NONE, flags, -1, 0) == MAP_FAILED) return failed("mmap");
  ::madvise(address, size_bytes, MADV_DONTFORK);
  return std::nullopt;
}

Failure HostDevice::protect(void *address, uint64_t size_bytes, bool writable) {
  if (::mprotect(address, size_bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ) != 0) return failed("mprotect");
  return std::nullopt;
}

void *HostDevice::map_arena(Fd file, uint64_t size_bytes) {
  void *address = reserve_aligned(size_bytes);
  if (address == nullptr) return nullptr;
  if (map_over(file, address, size_bytes)) {
    ::munmap(address, size_bytes);
    return nullptr;
  }
  return address;
}

void HostDevice::unmap_arena(void *address, uint64_t size_bytes) { ::munmap(address, size_bytes); }

std::unique_ptr<Lane> HostDevice::open_lane() { return std::make_unique<HostLane>(); }

}  // namespace vrb
