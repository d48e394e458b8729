// A peer that plays the daemon by itself, on a thread of its own, well enough for many threads to be served at once: it
// lends, pauses, takes frames away on release, and brings them back with their contents.
#pragma once

#include <atomic>
#include <functional>
#include <set>
#include <thread>

#include "peer.h"

namespace peer {

class AutoDaemon {
 public:
  AutoDaemon();
  ~AutoDaemon();

  // Serves the connection that comes, until it says goodbye or ends.
  void start();
  void join();

  const std::string &path() const { return peer_.path(); }

 private:
  struct Slot {
    uint64_t size_bytes;
    uint64_t offset_bytes;  // of its place in the arena
    bool here;
  };
  struct Lease {
    std::string tag;
    uint8_t contents;
    bool paused = false;
    std::map<uint64_t, Slot> slots;
  };
  // Something that waits for slots to arrive or to leave, and what to do then.
  struct Wait {
    std::set<uint64_t> slots;
    std::function<void()> then;
  };

  void serve();
  void handle(const vrb::FromClient &record);
  void lend(const vrb::record::Lease &asked);
  void pause(const vrb::record::Pause &asked);
  void resume(const vrb::record::Resume &asked);
  void take_back(const vrb::record::Return &returned);
  void settled(const std::vector<uint64_t> &slots);
  void send_frames(uint64_t lease, const std::vector<Frame> &frames);
  std::vector<uint64_t> leases_of(const std::vector<std::string> &tags) const;
  void wait(std::set<uint64_t> slots, std::function<void()> then);

  Peer peer_;
  std::thread thread_;
  std::exception_ptr failure_;
  std::map<uint64_t, Lease> leases_;
  std::vector<Wait> waits_;
  uint64_t last_number_ = 0;
  uint64_t arena_used_ = 0;
  bool over_ = false;
};

}  // namespace peer
