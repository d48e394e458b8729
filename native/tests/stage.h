// A client with some memory in an arena's reach, and the daemon that a test plays to it.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "background.h"
#include "check.h"
#include "peer.h"
#include "test_device.h"

namespace peer {

constexpr uint64_t ARENA = 16 * vrb::MIB;

// A client with a lease of one allocation over three frames (slots 4, 5, 6 of lease 3) and an arena file, number 9.
struct Stage {
  explicit Stage(vrb_contents contents = VRB_KEEP) : rig(peer) {
    lease = open_lease(rig.client, "weights", contents);
    Background growing([&] { pointer = static_cast<char *>(allocate(lease, 3 * FRAME)); });
    peer.serve_lease(3, {{4}, {5}, {6}});
    growing.join();
    for (int i = 0; i < 3; ++i) std::memset(pointer + static_cast<std::size_t>(i) * FRAME, 'a' + i, FRAME);
    peer.arena(9, ARENA);
  }

  void pause() {
    Background pausing([&] { CHECK_OK(peer::pause(rig.client, {"weights"})); });
    const auto asked = peer.expect<vrb::record::Pause>();
    peer.state(3, true);
    peer.done(asked.request);
    pausing.join();
  }

  // Sees LEFT for these slots, in whatever parts.
  void expect_left(std::vector<uint64_t> slots) {
    while (!slots.empty()) {
      const auto left = peer.expect<vrb::record::Left>();
      CHECK_EQ(left.failure, "");
      for (const uint64_t slot : left.slots) {
        const auto found = std::find(slots.begin(), slots.end(), slot);
        CHECK(found != slots.end());
        slots.erase(found);
      }
    }
  }

  void resumed() {
    peer.state(3, false);
    peer.send(vrb::record::PauseOrder{99, {"none"}});
    peer.expect<vrb::record::Busy>();
    CHECK(!is_paused(rig.client, "weights"));
  }

  // Sees that the agent has read all that was sent, and has not answered but for this.
  void is_silent() {
    peer.send(vrb::record::PauseOrder{98, {"none"}});
    peer.expect<vrb::record::Busy>();
  }

  Peer peer;
  Rig rig;
  vrb_lease *lease = nullptr;
  char *pointer = nullptr;
};

inline std::string text(const char *at, std::size_t size) { return {at, size}; }

}  // namespace peer
