// A process's own memory: what it allocates outside of every region, leased under one tag.
//
// While that tag is paused, what is allocated comes from other frames: under the tag's next member, `tag+p2` and so on,
// since a tag is paused as a whole. Whoever pauses the process's memory pauses all of its members.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "vrambroker/vrambroker.h"

namespace vrb {

class Client;
struct Lease;

class ProcessMemory {
 public:
  ProcessMemory(Client &client, std::string tag, vrb_contents contents);

  // Allocates under a member that is not paused. Throws Error as Client::allocate does.
  void *allocate(uint64_t size_bytes);
  // The members so far, in the order in which they were made.
  std::vector<std::string> tags();

 private:
  Lease &open_member();
  Lease &next_member();

  Client &client_;
  const std::string tag_;
  const vrb_contents contents_;
  std::mutex mutex_;
  std::vector<Lease *> members_;
};

}  // namespace vrb
