// The stand-in without a GPU: a frame is a memfd, and frames come and go under their addresses with MAP_FIXED.
//
// Everything leased is kept from forked children (MADV_DONTFORK), as device memory would be.
#pragma once

#include "device.h"

namespace vrb {

class HostDevice final : public Device {
 public:
  void *reserve(uint64_t size_bytes) override;
  void release(void *address, uint64_t size_bytes) override;
  Failure map(Fd frame, void *address, uint64_t size_bytes) override;
  Failure unmap(void *address, uint64_t size_bytes) override;
  Failure protect(void *address, uint64_t size_bytes, bool writable) override;
  void *map_arena(Fd file, uint64_t size_bytes) override;
  void unmap_arena(void *address, uint64_t size_bytes) override;
  uint64_t registration_bytes() const override { return 0; }
  Failure register_host(void *, uint64_t) override { return std::nullopt; }
  void unregister_host(void *) override {}
  std::unique_ptr<Lane> open_lane() override;
  Failure quiesce() override { return std::nullopt; }
};

}  // namespace vrb
