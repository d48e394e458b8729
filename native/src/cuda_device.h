// A GPU: a frame is an fd that the driver exported, and frames come and go under addresses of its virtual memory.
//
// Every call leaves the calling thread as it found it: the device's primary context is pushed for the call and popped
// again, and the thread is in relaxed capture mode meanwhile, so that no capture in another thread of the process is
// broken by it. The context is retained when the first call needs one: reserving, mapping and unmapping don't.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "cuda_driver.h"
#include "device.h"
#include "host_device.h"

namespace vrb {

// The 32 digits of a GPU's UUID, without the signs that are there for the eye: of the GPU that this process counts as
// `ordinal` (throws Error), and of a name that begins with GPU- or MIG-.
std::string gpu_digits(int ordinal);
std::string digits_of_gpu(const std::string &name);

class CudaDevice final : public Device {
 public:
  // kind: a UUID as the daemon names it, "cuda:N" as this process counts, or "cuda" for its first. Throws Error.
  explicit CudaDevice(const std::string &kind);
  ~CudaDevice() override;

  void *reserve(uint64_t size_bytes) override;
  void release(void *address, uint64_t size_bytes) override;
  Failure map(Fd frame, void *address, uint64_t size_bytes) override;
  Failure map_run(std::vector<Frame> frames, void *address) override;
  Failure unmap(void *address, uint64_t size_bytes) override;
  Failure protect(void *address, uint64_t size_bytes, bool writable) override;
  void *map_arena(Fd file, uint64_t size_bytes) override;
  void unmap_arena(void *address, uint64_t size_bytes) override;
  uint64_t registration_bytes() const override;
  Failure register_host(void *address, uint64_t size_bytes) override;
  void unregister_host(void *address) override;
  std::unique_ptr<Lane> open_lane() override;
  Failure quiesce() override;
  bool wait_stream(void *stream) override;
  DlpackDevice dlpack_device() const override { return {DLPACK_CUDA, ordinal_}; }

 private:
  friend class CudaLane;

  Failure map_one(const Frame &frame, char *address);
  Failure context_into(cuda::Context *context);
  template <class Work>
  Failure inside(Work work);

  const cuda::Driver &driver_;
  const cuda::Ordinal ordinal_;
  // Who may read and write what is mapped: this device, and those of the process that reach it; and who may only read it.
  const std::vector<cuda::Access> access_;
  const std::vector<cuda::Access> read_access_;
  std::atomic<cuda::Context> context_{nullptr};
  HostDevice host_;
};

}  // namespace vrb
