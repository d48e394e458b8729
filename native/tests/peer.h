// The daemon's end of a handle socket, played by a test: real sockets, real memfds, and every step waits with a deadline.
//
// It stands in for the daemon at the level of the protocol only; the daemon itself is tested with the real client in
// tests/process.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "check.h"
#include "device.h"
#include "fd.h"
#include "records.h"
#include "vrambroker/vrambroker.h"

namespace peer {

using vrb::Fd;
using vrb::Packet;

using vrb::MIB;
constexpr uint64_t FRAME = 2 * MIB;
constexpr uint64_t LARGE_FRAME = 8 * MIB;
constexpr uint64_t CAPACITY = 256 * MIB;

// Ends in a failed check if nothing comes for so long.
constexpr int PATIENCE_MS = 10'000;

Fd make_file(uint64_t size_bytes);
void write_file(const Fd &file, uint64_t offset_bytes, const std::string &data);
std::string read_file(const Fd &file, uint64_t offset_bytes, std::size_t size_bytes);

// Whether this process could read the byte at this address; asks the kernel, so a fault is an answer.
bool is_readable(const void *address);
std::size_t count_fds();

// A grant under construction.
struct Frame {
  uint64_t slot;
  uint64_t size_bytes = FRAME;
  uint8_t flags = 0;
  uint64_t file = 0;
  uint64_t offset_bytes = 0;
};

class Peer {
 public:
  Peer();
  ~Peer();

  const std::string &path() const { return path_; }

  // Waits for a connection and its HELLO.
  vrb::record::Hello accept();
  void welcome(uint64_t session = 1, uint16_t protocol = vrb::PROTOCOL);
  void refuse(const std::string &error, const std::string &message);
  void drop() { connection_.reset(); }
  // Takes no more connections; new ones are refused by the kernel.
  void stop_listening();

  vrb::FromClient next();
  // Returns nothing if the client closed the connection.
  std::optional<vrb::FromClient> next_or_end();
  // The next record, which must be of this type.
  template <class Record>
  Record expect() {
    const vrb::FromClient record = next();
    if (const auto *wanted = std::get_if<Record>(&record)) return *wanted;
    const char *got = std::visit([](const auto &one) { return std::decay_t<decltype(one)>::NAME; }, record);
    throw check::Failed(std::string("expected ") + Record::NAME + ", got " + got);
  }

  void send(const vrb::FromDaemon &record, const std::vector<int> &fds = {});
  void send_raw(const Packet &packet, const std::vector<int> &fds = {});

  // Sends frames, made on the spot; returns the batch. The frames stay here to be looked into.
  uint64_t grant(uint64_t lease, const std::string &tag, uint8_t contents, const std::vector<Frame> &frames);
  // Sends them and sees TAKEN and ARRIVED come back for all of them.
  void lend(uint64_t lease, const std::string &tag, uint8_t contents, const std::vector<Frame> &frames);
  // Answers a LEASE that must come next by lending these frames, which are what it asks for, with or without what to spare.
  vrb::record::Lease serve_lease(uint64_t lease, const std::vector<Frame> &frames);
  void done(uint64_t request, uint64_t lease = 0, std::vector<vrb::DoneLease> leases = {});
  void error(uint64_t request, const std::string &name, const std::string &message, const std::string &detail = {});
  void recall(uint64_t lease, const std::vector<vrb::RecallSlot> &slots);
  void state(uint64_t lease, bool paused);
  uint64_t send_arena(uint64_t file, uint64_t size_bytes);
  // Sends a file of the arena and sees it taken.
  const Fd &arena(uint64_t file, uint64_t size_bytes);

  const Fd &file(uint64_t file) const { return files_.at(file); }
  const Fd &frame(uint64_t slot) const { return frames_.at(slot); }
  void write_frame(uint64_t slot, char fill);

 private:
  std::string folder_;
  std::string path_;
  Fd listener_;
  Fd connection_;
  uint64_t last_batch_ = 0;
  std::map<uint64_t, Fd> frames_;
  std::map<uint64_t, Fd> files_;
};

// What the C border returned, for a check that tells the error.
struct Outcome {
  vrb_status status;
  vrb_error error;
};

vrb_client *connect(const std::string &path, const char *name = "test");
// Connects to the peer, which welcomes.
vrb_client *attach(Peer &peer, uint64_t session = 1);
vrb_lease *open_lease(vrb_client *client, const char *tag, vrb_contents contents = VRB_KEEP);
void *allocate(vrb_lease *lease, std::size_t size, uint32_t timeout_ms = 5000);
Outcome try_allocate(vrb_lease *lease, std::size_t size, uint32_t timeout_ms = 5000);
void release(vrb_client *client, void *pointer);
vrb_stats stats(vrb_client *client);
bool is_paused(vrb_client *client, const char *tag);
Outcome pause(vrb_client *client, std::vector<const char *> tags, bool release = false);
Outcome resume(vrb_client *client, std::vector<const char *> tags, std::vector<uint8_t> *same = nullptr);
Outcome enter(vrb_client *client, std::vector<const char *> tags, const char *scope);
Outcome exit(vrb_client *client, std::vector<const char *> tags, const char *scope);

#define CHECK_OK(call)                                                                           \
  do {                                                                                           \
    const peer::Outcome outcome_ = (call);                                                       \
    if (outcome_.status != VRB_OK) check::fail(__FILE__, __LINE__, std::string(#call ": ") + outcome_.error.message); \
  } while (false)

#define CHECK_STATUS(call, wanted)                        \
  do {                                                    \
    const peer::Outcome outcome_ = (call);                \
    CHECK_EQ(static_cast<int>(outcome_.status), static_cast<int>(wanted)); \
  } while (false)

}  // namespace peer
