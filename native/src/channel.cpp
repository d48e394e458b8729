#include "channel.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "status.h"

namespace vrb {
namespace {

int milliseconds_until(Clock::time_point deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
}

// Takes the fds out of a message's control data. Returns whether there was nothing but fds.
bool collect_fds(msghdr &message, std::vector<Fd> &fds) {
  bool only_fds = true;
  for (cmsghdr *c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
      only_fds = false;
      continue;
    }
    const std::size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int number = -1;
      std::memcpy(&number, CMSG_DATA(c) + i * sizeof(int), sizeof number);
      fds.emplace_back(number);
    }
  }
  return only_fds;
}

sockaddr_un address_of(const std::string &path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    throw invalid_argument("a socket's path has 1 to " + std::to_string(sizeof address.sun_path - 1) + " bytes", path);
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

ProcessFd connect_to(const std::string &path, Clock::time_point deadline) {
  const sockaddr_un address = address_of(path);
  ProcessFd fd = ProcessFd::make([] { return ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0); });
  if (!fd) throw driver_failed(std::string("socket: ") + std::strerror(errno));
  // A full backlog makes connect() wait; SO_SNDTIMEO bounds that (unix(7), af_unix.c: unix_stream_connect).
  const int wait_ms = std::max(1, milliseconds_until(deadline));
  timeval limit{};
  limit.tv_sec = wait_ms / 1000;
  limit.tv_usec = (wait_ms % 1000) * 1000;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr *>(&address), sizeof address) != 0) {
    throw unavailable(path, std::strerror(errno));
  }
  const int flags = ::fcntl(fd.get(), F_GETFL);
  ::fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK);
  return fd;
}

bool send_packet(int fd, const Packet &packet) {
  for (;;) {
    if (::send(fd, packet.data(), packet.size(), MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return true;
    if (errno != EINTR) return false;
  }
}

// Every size that is reckoned with later: nothing here may overflow or divide by zero.
bool is_sound(const record::Welcome &welcome) {
  constexpr uint64_t BYTES_MAX = uint64_t{1} << 46;
  constexpr uint64_t PAGE_BYTES = 4096;
  if (welcome.capacity_bytes == 0 || welcome.capacity_bytes > BYTES_MAX) return false;
  uint64_t before = 0;
  for (const uint64_t size : welcome.frame_sizes_bytes) {
    const bool divides = before == 0 || size % before == 0;
    if (size <= before || size > BYTES_MAX || size % PAGE_BYTES != 0 || !divides) return false;
    before = size;
  }
  return before > 0;
}

record::Welcome greeted(const std::string &path, const Inbound &inbound) {
  const auto what = decode_from_daemon(inbound.data.data(), inbound.size, inbound.fds.size());
  if (!what) throw unavailable(path, "its answer is not of this protocol");
  if (const auto *refusal = std::get_if<record::Error>(&*what); refusal != nullptr && refusal->request == 0) {
    const vrb_status status = refusal->error == "VersionMismatch" ? VRB_VERSION : VRB_REFUSED;
    throw Error(status, refusal->error, refusal->message, path, refusal->detail.data);
  }
  const auto *welcome = std::get_if<record::Welcome>(&*what);
  if (welcome == nullptr) throw unavailable(path, "it spoke before it answered");
  if (welcome->protocol != PROTOCOL) {
    throw version_mismatch("the daemon speaks version " + std::to_string(welcome->protocol) +
                           " of the handle plane, this library version " + std::to_string(PROTOCOL));
  }
  if (!is_sound(*welcome)) throw unavailable(path, "it tells sizes that can't be");
  return *welcome;
}

}  // namespace

Received receive(int fd, Inbound &into) {
  into.fds.clear();
  into.size = 0;
  iovec part{into.data.data(), into.data.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(FDS_PER_PACKET_MAX * sizeof(int))> control;
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t size = 0;
  do {
    size = ::recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (size < 0 && errno == EINTR);
  if (size < 0) return errno == EAGAIN || errno == EWOULDBLOCK ? Received::nothing : Received::closed;
  const bool only_fds = collect_fds(message, into.fds);
  const bool cut = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
  // Size 0 is the end of the connection; an empty packet can't be told from it, and is none of the protocol's anyway.
  if (size == 0 || cut || !only_fds || into.fds.size() > FDS_PER_PACKET_MAX) {
    into.fds.clear();
    return Received::closed;
  }
  into.size = static_cast<std::size_t>(size);
  return Received::packet;
}

Connection open_connection(const std::string &path, const record::Hello &hello, Clock::time_point deadline) {
  ProcessFd fd = connect_to(path, deadline);
  if (!send_packet(fd.get(), encode(FromClient(hello)))) throw unavailable(path, std::strerror(errno));
  Inbound inbound;
  for (;;) {
    pollfd ready{fd.get(), POLLIN, 0};
    const int count = ::poll(&ready, 1, milliseconds_until(deadline));
    if (count < 0 && errno == EINTR) continue;
    if (count == 0) throw unavailable(path, "it takes connections but does not answer");
    ForkGuard guard;
    const Received received = receive(fd.get(), inbound);
    if (received == Received::nothing) continue;
    if (received == Received::closed) throw unavailable(path, "it closed the connection");
    const record::Welcome welcome = greeted(path, inbound);
    inbound.fds.clear();
    return {std::move(fd), welcome};
  }
}

void Channel::attach(ProcessFd connection) {
  // The old one is closed behind the lock: closing takes a ForkGuard, and nothing is locked under mutex_.
  const std::lock_guard lock(mutex_);
  std::swap(fd_, connection);
  outbox_.clear();
}

void Channel::close() { attach(ProcessFd()); }

bool Channel::push(const Packet &packet) {
  if (send_packet(fd_.get(), packet)) return true;
  // Any other error means that the connection is gone, which the agent learns from its epoll; the packet is not missed:
  // requests are sent again after a reconnect, and reports are asked for again.
  return errno != EAGAIN && errno != EWOULDBLOCK && errno != ENOBUFS;
}

void Channel::send(Packet packet) {
  {
    const std::lock_guard lock(mutex_);
    if (!fd_) return;
    if (outbox_.empty() && push(packet)) return;
    outbox_.push_back(std::move(packet));
  }
  agent_.ring();
}

void Channel::flush() {
  const std::lock_guard lock(mutex_);
  while (fd_ && !outbox_.empty() && push(outbox_.front())) outbox_.pop_front();
}

bool Channel::has_backlog() {
  const std::lock_guard lock(mutex_);
  return !outbox_.empty();
}

}  // namespace vrb
