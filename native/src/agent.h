// The client's own thread: alone it reads the socket, maps and unmaps. It takes no GIL and runs no code of the application.
//
// It sleeps in one epoll, on the socket and on the wake, and never waits for anything else but a reconnect's greeting.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "book.h"
#include "channel.h"
#include "copier.h"
#include "fork.h"
#include "mover.h"
#include "orders.h"
#include "reading.h"
#include "records.h"
#include "wake.h"

namespace vrb {

class Agent {
 public:
  Agent(std::string path, Book &book, Device &device, Channel &channel, Copier &copier, Wake &wake);

  // Starts the thread on a fresh connection; throws Error (DriverFailed) if there can't be one. It ends after BYE.
  void start(ProcessFd connection);

 private:
  enum class Outcome { proceed, disconnect };

  void live();
  void run();
  void end();
  int milliseconds_to_sleep() const;
  void watch(ProcessFd connection);
  void listen_for_writable(bool wanted);
  void handle_ready();
  Outcome read_packets();
  Outcome obey(FromDaemon &record, std::vector<Fd> fds);
  void answered(const FromDaemon &record);
  void stop_expecting(const std::shared_ptr<Request> &request);
  void say_goodbye_if_done();
  void disconnect();
  void try_to_reconnect();
  void reconnected(Connection connection);
  void give_up(const std::string &why);
  void register_arena();

  const std::string path_;
  Book &book_;
  Channel &channel_;
  Copier &copier_;
  Wake &wake_;
  Mover mover_;
  Orders orders_;
  Reading reading_;
  ProcessFd epoll_;
  Inbound inbound_;

  bool connected_ = false;
  bool retrying_ = false;
  bool writable_wanted_ = false;
  bool done_ = false;
  uint64_t bye_request_ = 0;
  Clock::time_point connected_at_;
  Clock::time_point retry_at_;
  Clock::time_point retry_until_;
  std::chrono::milliseconds backoff_{0};
  std::chrono::milliseconds breather_{0};  // before the first retry, longer each time that a connection broke at once
  std::optional<Clock::time_point> register_at_;
  std::optional<Clock::time_point> spares_at_;
};

}  // namespace vrb
