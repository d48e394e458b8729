// A process's own memory: what it allocates outside of every region, leased under one tag.
//
// Who maps its memory for itself (torch's expandable segments) reserves addresses first: each reservation is a range, and a
// tag, of its own, `tag+e1` and so on. Frames come and go behind it as parts of it are mapped and unmapped.
//
// While the tag is paused, what is allocated comes from other frames: under the tag's next member, `tag+p2` and so on,
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

  // Returns addresses for the caller alone to map, 2 MiB-aligned. Throws Error.
  void *reserve(uint64_t size_bytes);
  // Gives them back: the next reservation that fits takes them. Returns whether they are such.
  bool unreserve(void *address);
  // Whether these addresses are reserved here.
  bool is_reserved(const void *address);
  // Whether so much could be mapped now, beside what is promised already, frame by frame.
  bool has_room_for(uint64_t size_bytes);
  // Puts memory behind reserved addresses. Throws Error as Client::allocate_at does.
  void map(void *address, uint64_t size_bytes);
  // Takes away what one call of `map` has put there. Throws Error (InvalidArgument) for anything else.
  void unmap(void *address);

  // Has new memory come from elsewhere than from what there is now, which is about to be paused; or from anywhere again.
  void divert(bool elsewhere);

  // The members so far, in the order in which they were made.
  std::vector<std::string> tags();

 private:
  // `old`: it was there when new memory was diverted, and may be about to be paused.
  struct Member {
    Lease *lease;
    bool old;
  };
  struct Reservation {
    Member member;
    bool taken;
  };

  bool revive(Member &member);

  Reservation *reservation_at(const void *address);
  Lease &open_member();
  Lease &next_member();

  Client &client_;
  const std::string tag_;
  const vrb_contents contents_;
  std::mutex mutex_;
  std::vector<Member> members_;
  std::vector<Reservation> reservations_;
};

}  // namespace vrb
