// What the client needs of a device. `host` and CUDA are two implementations of it.
//
// Thread rules: reserve may be called by any thread; map, unmap, protect and the registrations only by the agent; a lane belongs to
// the copier's thread that opened it; quiesce runs on the application's thread that pauses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fd.h"

namespace vrb {

constexpr uint64_t MIB = uint64_t{1} << 20;
constexpr uint64_t GIB = uint64_t{1} << 30;

// Nothing, or what failed: the call and its result, for the daemon and for DriverFailed.
using Failure = std::optional<std::string>;

// A queue of copies that run in order, asynchronously where the device can.
class Lane {
 public:
  virtual ~Lane() = default;
  // Starts to copy; either side may be frames or registered host memory, and is valid until `finish` returns.
  virtual Failure start_copy(void *to, const void *from, std::size_t size_bytes) = 0;
  virtual Failure start_zero(void *at, std::size_t size_bytes) = 0;
  // Waits for all that was started.
  virtual Failure finish() = 0;
};

// A frame on its way to its addresses.
struct Frame {
  Fd fd;
  uint64_t size_bytes;
};

// Where a tensor over leased memory lives, as DLPack names it.
struct DlpackDevice {
  int32_t type;
  int32_t id;
};
constexpr int32_t DLPACK_CPU = 1;
constexpr int32_t DLPACK_CUDA = 2;

class Device {
 public:
  virtual ~Device() = default;

  // Reserves addresses, 2 MiB-aligned, with nothing behind them. Returns null if there are none.
  virtual void *reserve(uint64_t size_bytes) = 0;
  virtual void release(void *address, uint64_t size_bytes) = 0;

  // Puts a frame behind reserved addresses. Ownership: takes the fd, and closes it in any case.
  virtual Failure map(Fd frame, void *address, uint64_t size_bytes) = 0;
  // Puts frames there side by side from `address` on: all of them or none. One call for what lies together, where that
  // is cheaper: a GPU's page tables are opened once for each. Ownership: as for `map`.
  virtual Failure map_run(std::vector<Frame> frames, void *address);
  // Takes it away again; the addresses stay reserved, and touching them is a fault.
  virtual Failure unmap(void *address, uint64_t size_bytes) = 0;

  // Lets frames that are mapped side by side from `address` on be written to, or only read: whoever writes then faults.
  virtual Failure protect(void *address, uint64_t size_bytes, bool writable) = 0;

  // Maps a file of the arena, 2 MiB-aligned. Ownership: takes the fd, and closes it in any case. Null if it failed.
  virtual void *map_arena(Fd file, uint64_t size_bytes) = 0;
  virtual void unmap_arena(void *address, uint64_t size_bytes) = 0;

  // How much host memory one registration covers; 0 if copies need none.
  virtual uint64_t registration_bytes() const = 0;
  virtual Failure register_host(void *address, uint64_t size_bytes) = 0;
  virtual void unregister_host(void *address) = 0;

  virtual std::unique_ptr<Lane> open_lane() = 0;

  // Waits until this process's work on the device is done. A failure that says why it can't be waited for. Not to be
  // called while a CUDA graph is being captured anywhere in the process: not every such capture can be seen from here,
  // and one that can't is broken (and the call fails).
  virtual Failure quiesce() = 0;

  // Waits until what was given to one stream (a CUstream) is done. False if that can't be waited for now, since a graph is
  // being captured there. A device without streams has nothing to wait for.
  virtual bool wait_stream(void *) { return true; }

  virtual DlpackDevice dlpack_device() const { return {DLPACK_CPU, 0}; }
};

// Makes the device of this name: "host" or "host:N", a GPU's UUID as the daemon names it, "cuda:N" as this process counts,
// or "cuda" for its first GPU. Throws Error if there is none.
std::unique_ptr<Device> make_device(const std::string &name);

}  // namespace vrb
