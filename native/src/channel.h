// One connection on the handle socket: whole packets in and out, with fds that come along.
//
// Any thread may send; the agent alone receives. Nothing here blocks: what the socket doesn't take goes to the outbox, and
// the agent flushes it when the socket is writable again.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

#include "fd.h"
#include "fork.h"
#include "records.h"
#include "wake.h"

namespace vrb {

using Clock = std::chrono::steady_clock;

enum class Received { packet, nothing, closed };

struct Inbound {
  std::array<uint8_t, PACKET_BYTES_MAX + 1> data;
  std::size_t size = 0;
  std::vector<Fd> fds;
};

// Reads one packet. `closed` also when it was cut short, or carried more than a packet may: the connection is useless then.
// The caller holds a ForkGuard until the fds are closed or used.
Received receive(int fd, Inbound &into);

// Connects and says HELLO. Returns the connection and the daemon's WELCOME; throws Error (BrokerUnavailable,
// VersionMismatch, the daemon's own refusal).
struct Connection {
  ProcessFd fd;
  record::Welcome welcome;
};
Connection open_connection(const std::string &path, const record::Hello &hello, Clock::time_point deadline);

class Channel {
 public:
  explicit Channel(Wake &agent) : agent_(agent) {}

  // Replaces the connection; what was still to be sent on the old one is dropped. Agent only (or before it runs).
  void attach(ProcessFd connection);
  void close();

  int fd() const { return fd_.get(); }
  Received receive(Inbound &into) { return vrb::receive(fd_.get(), into); }

  void send(Packet packet);
  void flush();
  bool has_backlog();

 private:
  bool push(const Packet &packet);

  Wake &agent_;
  std::mutex mutex_;  // innermost, with the wake's: neither is locked under the other
  ProcessFd fd_;
  std::deque<Packet> outbox_;
};

}  // namespace vrb
