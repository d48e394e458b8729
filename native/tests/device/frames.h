// Who makes frames in these tests, in place of the daemon: memfds for `host`, the driver's own memory for CUDA.
#pragma once

#include <dlfcn.h>
#include <sys/mman.h>

#include <memory>

#include "check.h"
#include "cuda_driver.h"

namespace test {

class FrameSource {
 public:
  virtual ~FrameSource() = default;
  // A new frame that reads as zero, known by its fd alone.
  virtual vrb::Fd make(uint64_t size_bytes) = 0;
};

class MemfdSource final : public FrameSource {
 public:
  vrb::Fd make(uint64_t size_bytes) override {
    vrb::Fd fd(::memfd_create("test-frame", MFD_CLOEXEC));
    CHECK(fd && ::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) == 0);
    return fd;
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

 private:
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
};

}  // namespace test
