// What is parked of a lease, to be read by its owner: the extents of its slots once more, side by side and read-only.
//
// The agent alone knows the arena's files, so it makes the mapping; whoever asked unmaps it, and then the agent is told
// which files nobody reads any more. Until then the daemon waits for such a file, as it does for a copy.
#pragma once

#include <cstdint>
#include <vector>

#include "device.h"

namespace vrb {

struct Lease;

struct ParkedView {
  Lease *lease;
  uint64_t begin;       // in the lease's range; whole pages, like the size
  uint64_t size_bytes;
  uint64_t misfit;      // from there to the first byte that was asked for
  bool done = false;
  bool given_up = false;  // nobody waits for it any more
  Failure failure = {};
  char *address = nullptr;
  std::vector<uint64_t> files = {};

  const char *bytes() const { return address + misfit; }
};

}  // namespace vrb
