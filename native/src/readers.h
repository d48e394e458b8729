// What this process has mapped of others' leases: one range of addresses for each reader, with slots where their owner has
// them. Part of the book, and guarded by its mutex; the agent alone adds, maps and removes.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "device.h"
#include "records.h"

namespace vrb {

// `uses`: what was received and is in use. `closing`: it goes as soon as there is none. `stuck`: it could not be unmapped.
struct Reader {
  uint64_t number;
  uint64_t lease;
  bool writable;
  char *base = nullptr;
  uint64_t size_bytes = 0;
  std::map<uint64_t, SharedSlot> mapped = {};  // by offset
  uint64_t uses = 0;
  bool closing = false;
  bool stuck = false;
  Failure failure = {};

  bool is_free(uint64_t offset, uint64_t bytes) const;
  bool has(const SharedSlot &slot) const;
  // Whether all of these bytes are mapped.
  bool covers(uint64_t offset, uint64_t bytes) const;
};

struct Readers {
  std::map<uint64_t, std::unique_ptr<Reader>> by_number;
  // By the number of the READ: whose reader it is; 0 for what is this process's own.
  std::map<uint64_t, uint64_t> uses;
  // READs that are not answered: until they are, nothing is let go of.
  uint32_t asking = 0;
  // Exports that are over, of which nobody here has heard yet.
  std::vector<Token> settled;

  Reader *find(uint64_t number) const;
  Reader *find_at(const void *address) const;
  void end_use(uint64_t read);
};

}  // namespace vrb
