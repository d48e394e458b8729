#include "peer.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "background.h"

namespace peer {

using namespace vrb;

Fd make_file(uint64_t size_bytes) {
  Fd file(::memfd_create("vrb-test", MFD_CLOEXEC));
  CHECK(::ftruncate(file.get(), static_cast<off_t>(size_bytes)) == 0);
  return file;
}

void write_file(const Fd &file, uint64_t offset_bytes, const std::string &data) {
  CHECK_EQ(::pwrite(file.get(), data.data(), data.size(), static_cast<off_t>(offset_bytes)), static_cast<ssize_t>(data.size()));
}

std::string read_file(const Fd &file, uint64_t offset_bytes, std::size_t size_bytes) {
  std::string data(size_bytes, '\0');
  CHECK_EQ(::pread(file.get(), data.data(), size_bytes, static_cast<off_t>(offset_bytes)), static_cast<ssize_t>(size_bytes));
  return data;
}

bool is_readable(const void *address) {
  std::array<int, 2> ends{};
  CHECK(::pipe2(ends.data(), O_CLOEXEC) == 0);
  const Fd reader(ends[0]), writer(ends[1]);
  const ssize_t written = ::write(writer.get(), address, 1);
  CHECK(written == 1 || errno == EFAULT);
  return written == 1;
}

std::size_t count_fds() {
  DIR *folder = ::opendir("/proc/self/fd");
  CHECK(folder != nullptr);
  std::size_t count = 0;
  while (::readdir(folder) != nullptr) ++count;
  ::closedir(folder);
  return count;
}

Peer::Peer() {
  std::string pattern = "/tmp/vrb-test-XXXXXX";
  CHECK(::mkdtemp(pattern.data()) != nullptr);
  folder_ = pattern;
  path_ = folder_ + "/handles.sock";
  listener_.reset(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path_.data(), path_.size());
  CHECK(::bind(listener_.get(), reinterpret_cast<sockaddr *>(&address), sizeof address) == 0);
  CHECK(::listen(listener_.get(), 16) == 0);
}

Peer::~Peer() {
  ::unlink(path_.c_str());
  ::rmdir(folder_.c_str());
}

void Peer::stop_listening() { listener_.reset(); }

namespace {

void wait_for(const Fd &fd) {
  pollfd ready{fd.get(), POLLIN, 0};
  const int count = ::poll(&ready, 1, PATIENCE_MS);
  if (count != 1) throw check::Failed("nothing came in time");
}

}  // namespace

record::Hello Peer::accept() {
  wait_for(listener_);
  connection_.reset(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  CHECK(static_cast<bool>(connection_));
  return expect<record::Hello>();
}

void Peer::welcome(uint64_t session, uint16_t protocol) {
  Token token{};
  token[0] = static_cast<uint8_t>(session);
  token[15] = 0x5a;
  send(record::Welcome{protocol, session, token, CAPACITY, {FRAME, LARGE_FRAME}, "test", "host:0", "0.1.0"});
}

void Peer::refuse(const std::string &error, const std::string &message) {
  send(record::Error{0, error, message, {"detail"}});
}

std::optional<FromClient> Peer::next_or_end() {
  wait_for(connection_);
  std::array<uint8_t, PACKET_BYTES_MAX> packet;
  const ssize_t size = ::recv(connection_.get(), packet.data(), packet.size(), 0);
  if (size <= 0) return std::nullopt;
  const auto record = decode_from_client(packet.data(), static_cast<std::size_t>(size), 0);
  if (!record) throw check::Failed("the client sent what is no record");
  return record;
}

FromClient Peer::next() {
  const auto record = next_or_end();
  if (!record) throw check::Failed("the client closed the connection");
  return *record;
}

void Peer::send(const FromDaemon &record, const std::vector<int> &fds) { send_raw(encode(record, fds.size()), fds); }

void Peer::send_raw(const Packet &packet, const std::vector<int> &fds) {
  Packet data = packet;
  iovec part{data.data(), data.size()};
  std::vector<char> control(CMSG_SPACE(fds.size() * sizeof(int)));
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size() * sizeof(int));
  }
  if (::sendmsg(connection_.get(), &message, MSG_NOSIGNAL) < 0) throw check::Failed(std::string("sendmsg: ") + std::strerror(errno));
}

uint64_t Peer::grant(uint64_t lease, const std::string &tag, uint8_t contents, const std::vector<Frame> &frames) {
  record::Grant record{++last_batch_, lease, contents, tag, {}};
  std::vector<int> fds;
  for (const Frame &frame : frames) {
    Fd &file = frames_[frame.slot];
    file = make_file(frame.size_bytes);
    fds.push_back(file.get());
    record.slots.push_back({frame.slot, frame.size_bytes, frame.flags, frame.file, frame.offset_bytes});
  }
  send(record, fds);
  return record.batch;
}

void Peer::lend(uint64_t lease, const std::string &tag, uint8_t contents, const std::vector<Frame> &frames) {
  const uint64_t batch = grant(lease, tag, contents, frames);
  CHECK_EQ(expect<record::Taken>().batch, batch);
  for (std::size_t arrived = 0; arrived < frames.size();) {
    const auto record = expect<record::Arrived>();
    CHECK_EQ(record.failure, "");
    CHECK_EQ(record.lease, lease);
    arrived += record.slots.size();
  }
}

record::Lease Peer::serve_lease(uint64_t lease, const std::vector<Frame> &frames) {
  const auto asked = expect<record::Lease>();
  uint64_t size_bytes = 0;
  for (const Frame &frame : frames) size_bytes += frame.size_bytes;
  CHECK(size_bytes >= asked.size_bytes && size_bytes <= asked.size_bytes + asked.spare_bytes);
  lend(lease, asked.tag, asked.contents, frames);
  done(asked.request, lease);
  return asked;
}

void Peer::done(uint64_t request, uint64_t lease, std::vector<DoneLease> leases) {
  send(record::Done{request, lease, 0, 0, std::move(leases)});
}

void Peer::error(uint64_t request, const std::string &name, const std::string &message, const std::string &detail) {
  send(record::Error{request, name, message, {detail}});
}

void Peer::recall(uint64_t lease, const std::vector<RecallSlot> &slots) { send(record::Recall{lease, slots}); }

void Peer::state(uint64_t lease, bool paused) {
  const uint8_t flag = paused ? 1 : 0;
  send(record::LeaseState{lease, flag});
}

uint64_t Peer::send_arena(uint64_t file, uint64_t size_bytes) {
  Fd &made = files_[file];
  made = make_file(size_bytes);
  send(record::Arena{++last_batch_, file, size_bytes}, {made.get()});
  return last_batch_;
}

const Fd &Peer::arena(uint64_t file, uint64_t size_bytes) {
  const uint64_t batch = send_arena(file, size_bytes);
  CHECK_EQ(expect<record::Taken>().batch, batch);
  return files_.at(file);
}

void Peer::write_frame(uint64_t slot, char fill) { write_file(frames_.at(slot), 0, std::string(FRAME, fill)); }

namespace {

std::string told(const vrb_error &error) { return std::string(error.name) + ": " + error.message; }

}  // namespace

vrb_client *connect(const std::string &path, const char *name) {
  vrb_client *client = nullptr;
  vrb_error error{};
  if (vrb_connect(path.c_str(), name, "host", "0.1.0", 5000, &client, &error) != VRB_OK) throw check::Failed(told(error));
  return client;
}

vrb_client *attach(Peer &peer, uint64_t session) {
  vrb_client *client = nullptr;
  Background connecting([&] { client = connect(peer.path()); });
  peer.accept();
  peer.welcome(session);
  connecting.join();
  return client;
}

vrb_lease *open_lease(vrb_client *client, const char *tag, vrb_contents contents) {
  vrb_lease *lease = nullptr;
  vrb_error error{};
  if (vrb_lease_open(client, tag, contents, &lease, &error) != VRB_OK) throw check::Failed(told(error));
  return lease;
}

void *allocate(vrb_lease *lease, std::size_t size, uint32_t timeout_ms) {
  void *pointer = nullptr;
  vrb_error error{};
  if (vrb_malloc(lease, size, timeout_ms, &pointer, &error) != VRB_OK) throw check::Failed(told(error));
  return pointer;
}

Outcome try_allocate(vrb_lease *lease, std::size_t size, uint32_t timeout_ms) {
  Outcome outcome{};
  void *pointer = nullptr;
  outcome.status = vrb_malloc(lease, size, timeout_ms, &pointer, &outcome.error);
  return outcome;
}

void release(vrb_client *client, void *pointer) {
  vrb_error error{};
  if (vrb_free(client, pointer, &error) != VRB_OK) throw check::Failed(told(error));
}

vrb_stats stats(vrb_client *client) {
  vrb_stats told_stats{};
  CHECK(vrb_get_stats(client, &told_stats, nullptr) == VRB_OK);
  return told_stats;
}

bool is_paused(vrb_client *client, const char *tag) {
  int paused = 0;
  CHECK(vrb_tag_paused(client, tag, &paused, nullptr) == VRB_OK);
  return paused == 1;
}

Outcome pause(vrb_client *client, std::vector<const char *> tags, bool release) {
  Outcome outcome{};
  const auto count = static_cast<uint32_t>(tags.size());
  outcome.status = vrb_pause(client, tags.data(), count, release ? 1 : 0, 0, 5000, &outcome.error);
  return outcome;
}

Outcome resume(vrb_client *client, std::vector<const char *> tags, std::vector<uint8_t> *same) {
  Outcome outcome{};
  std::vector<uint8_t> flags(tags.size());
  const auto count = static_cast<uint32_t>(tags.size());
  outcome.status = vrb_resume(client, tags.data(), count, 5000, flags.data(), &outcome.error);
  if (same != nullptr) *same = flags;
  return outcome;
}

Outcome enter(vrb_client *client, std::vector<const char *> tags, const char *scope) {
  Outcome outcome{};
  outcome.status = vrb_use_enter(client, tags.data(), static_cast<uint32_t>(tags.size()), scope, &outcome.error);
  return outcome;
}

Outcome exit(vrb_client *client, std::vector<const char *> tags, const char *scope) {
  Outcome outcome{};
  outcome.status = vrb_use_exit(client, tags.data(), static_cast<uint32_t>(tags.size()), scope, &outcome.error);
  return outcome;
}

}  // namespace peer
