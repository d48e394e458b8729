// Who makes frames in these tests, in place of the daemon: memfds for `host`, the driver's own memory for CUDA.
#pragma once

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <memory>

#include "check.h"
#include "cuda_driver.h"

namespace test {

class FrameSource {
 public:
  virtual ~FrameSource() = default;
  // A new frame that reads as zero, known by its fd alone.
  virtual vrb::Fd make(uint64_t size_bytes) = 0;
  // Whether what is mapped there may be written to; what is there stays.
  virtual bool is_writable(void *address) = 0;
};

class MemfdSource final : public FrameSource {
 public:
  vrb::Fd make(uint64_t size_bytes) override {
    vrb::Fd fd(::memfd_create("test-frame", MFD_CLOEXEC));
    CHECK(fd && ::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) == 0);
    return fd;
  }

  // Asks the kernel, so a fault is an answer.
  bool is_writable(void *address) override {
    int ends[2];
    CHECK(::pipe(ends) == 0);
    const vrb::Fd out(ends[0]), in(ends[1]);
    return ::write(in.get(), address, 1) == 1 && ::read(out.get(), address, 1) == 1;
  }
};

class CudaSource final : public FrameSource {
 public:
  vrb::Fd make(uint64_t size_bytes) override {
    const vrb::cuda::Driver &driver = vrb::cuda::load_driver();
    Property property{};
    property.type = 1;  // CU_MEM_ALLOCATION_TYPE_PINNED
    property.handle_types = vrb::cuda::HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    property.location_type = vrb::cuda::LOCATION_TYPE_DEVICE;
    vrb::cuda::Handle handle = 0;
    must(driver.attempt(create_, &handle, size_bytes, &property, 0ULL));
    int fd = -1;
    must(driver.attempt(export_, static_cast<void *>(&fd), handle, property.handle_types, 0ULL));
    must(driver.attempt(driver.release_handle, handle));
    return vrb::Fd(fd);
  }

  bool is_writable(void *address) override {
    const vrb::cuda::Driver &driver = vrb::cuda::load_driver();
    const Location location{vrb::cuda::LOCATION_TYPE_DEVICE, 0};
    unsigned long long flags = 0;
    must(driver.attempt(get_access_, &flags, &location, reinterpret_cast<uintptr_t>(address)));
    CHECK(flags == vrb::cuda::ACCESS_READ || flags == vrb::cuda::ACCESS_READWRITE);
    return flags == vrb::cuda::ACCESS_READWRITE;
  }

 private:
  struct Location {
    int type;
    int id;
  };
  struct Property {
    int type;
    int handle_types;
    int location_type;
    int location_id;
    void *win32_meta_data;
    unsigned char allocation_flags[8];
  };

  void *library_ = ::dlopen("libcuda.so.1", RTLD_NOW);
  vrb::cuda::Call<vrb::cuda::Handle *, std::size_t, const Property *, unsigned long long> create_{library_,
                                                                                                   "cuMemCreate"};
  vrb::cuda::Call<void *, vrb::cuda::Handle, int, unsigned long long> export_{library_,
                                                                              "cuMemExportToShareableHandle"};
  vrb::cuda::Call<unsigned long long *, const Location *, vrb::cuda::DevicePointer> get_access_{library_,
                                                                                                "cuMemGetAccess"};
};

}  // namespace test
