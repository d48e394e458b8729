// What stands in front of CUDA's runtime in a process that native/preload is loaded into: one attachment for each device.
//
// It attaches when it is first asked for something, and asks for its settings where every program has them: in the
// environment. Where there is no daemon, or it has gone, the runtime's own calls are made, and one line says so.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "process_memory.h"
#include "status.h"
#include "vrambroker/vrambroker.h"

namespace vrb {

class Client;

// Under what a process leases its own memory.
struct OwnMemory {
  std::string tag;
  vrb_contents contents;
};

// Whether what this thread allocates is leased, where the process leases its own memory.
inline thread_local bool thread_leases = true;

struct Attachment {
  Client *client = nullptr;                // null where there is no daemon
  std::unique_ptr<ProcessMemory> memory;  // none where the process leases nothing but its regions
};

// Whether CUDA would call this out of memory: a budget that is used up is that, too.
inline bool is_no_memory_to_cuda(const Error &error) {
  return is_out_of_memory(error) || error.name == "QuotaExceeded" || error.name == "WaitExpired";
}

class Interposer {
 public:
  static constexpr int DEVICES_MAX = 64;

  // The one of this process; null in a child forked from the one that it is of.
  static Interposer *get();

  // Returns what there is for this device; attaches when asked for the first time.
  Attachment &attachment(int ordinal);
  // The same; null where there is no daemon, or none any more: CUDA's callers can't wait each time for one to come back.
  Attachment *answering(int ordinal);
  // Returns the process's own memory at this client; null if there is none.
  ProcessMemory *memory_of(const Client &client);
  // Returns the one that has reserved these addresses; null if none has.
  ProcessMemory *memory_with(const void *address);
  bool leases_process() const { return own_.has_value(); }
  // Writes a line to stderr, once for each `what`.
  void say(const std::string &what);

 private:
  Interposer();
  void attach(int ordinal, Attachment &into);

  const uint32_t generation_;
  std::optional<OwnMemory> own_;
  std::mutex mutex_;
  std::array<Attachment, DEVICES_MAX> attachments_;
  std::array<std::atomic<bool>, DEVICES_MAX> tried_{};
  std::mutex saying_;
  std::set<std::string> said_;
};

}  // namespace vrb
