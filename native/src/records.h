// The records of the handle plane, as proto/HANDLES.md lays them out: structs to bytes and back.
//
// A record lists its fields once, in the order of the page; encoder, decoder and the test's reader of handles.vectors all
// walk that list. Decoding is strict: whatever is short, long, unknown or left over is no record, and closes the connection.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace vrb {

constexpr uint16_t PROTOCOL = 1;
constexpr std::size_t PACKET_BYTES_MAX = 32768;
constexpr std::size_t FDS_PER_PACKET_MAX = 16;
constexpr std::size_t HEADER_BYTES = 8;

constexpr uint8_t ROLE_WORKER = 1;
constexpr uint8_t SLOT_DIRTY = 1;
constexpr uint8_t SLOT_RESTORE = 2;
constexpr uint8_t SLOT_PARK = 1;
constexpr uint8_t EXPORT_READ_ONLY = 1;
constexpr uint8_t EXPORT_AGAIN = 2;

using Token = std::array<uint8_t, 16>;
using Packet = std::vector<uint8_t>;

// Bytes that need not be text.
struct Blob {
  std::string data;
};

struct GrantSlot {
  uint64_t slot, size_bytes;
  uint8_t flags;
  uint64_t file, offset_bytes;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("slot", s.slot), v("size_bytes", s.size_bytes), v("flags", s.flags), v("file", s.file);
    v("offset_bytes", s.offset_bytes);
  }
};

struct RecallSlot {
  uint64_t slot;
  uint8_t flags;
  uint64_t file, offset_bytes;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("slot", s.slot), v("flags", s.flags), v("file", s.file), v("offset_bytes", s.offset_bytes);
  }
};

struct CopySlot {
  uint64_t slot, file, offset_bytes;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("slot", s.slot), v("file", s.file), v("offset_bytes", s.offset_bytes);
  }
};

struct ExportSlot {
  uint64_t slot, offset_bytes;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("slot", s.slot), v("offset_bytes", s.offset_bytes);
  }
};

struct SharedSlot {
  uint64_t slot, offset_bytes, size_bytes;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("slot", s.slot), v("offset_bytes", s.offset_bytes), v("size_bytes", s.size_bytes);
  }
};

struct DoneLease {
  uint64_t lease;
  uint8_t same_pages;
  std::string tag;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("lease", s.lease), v("same_pages", s.same_pages), v("tag", s.tag);
  }
};

namespace record {

struct Hello {
  static constexpr uint16_t TYPE = 1;
  static constexpr const char *NAME = "HELLO";
  uint16_t protocol;
  uint8_t role;
  Token token;
  std::string name, version;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("protocol", s.protocol), v("role", s.role), v("token", s.token), v("name", s.name), v("version", s.version);
  }
};

struct Lease {
  static constexpr uint16_t TYPE = 2;
  static constexpr const char *NAME = "LEASE";
  uint64_t request;
  uint8_t contents;
  uint64_t size_bytes;
  uint64_t spare_bytes;  // so much more, if it is free and nobody waits
  uint32_t timeout_ms;
  std::string tag;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("request", s.request), v("contents", s.contents), v("size_bytes", s.size_bytes), v("spare_bytes", s.spare_bytes);
    v("timeout_ms", s.timeout_ms), v("tag", s.tag);
  }
};

struct Return {
  static constexpr uint16_t TYPE = 3;
  static constexpr const char *NAME = "RETURN";
  uint64_t request, lease;
  std::vector<uint64_t> slots;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("request", s.request), v("lease", s.lease), v("slots", s.slots);
  }
};

struct Pause {
  static constexpr uint16_t TYPE = 4;
  static constexpr const char *NAME = "PAUSE";
  uint64_t request;
  uint8_t release;
  uint8_t discard;
  uint32_t timeout_ms;
  std::vector<std::string> tags;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("request", s.request), v("release", s.release), v("discard", s.discard), v("timeout_ms", s.timeout_ms), v("tags", s.tags);
  }
};

struct Resume {
  static constexpr uint16_t TYPE = 5;
  static constexpr const char *NAME = "RESUME";
  uint64_t request;
  uint32_t timeout_ms;
  std::vector<std::string> tags;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("request", s.request), v("timeout_ms", s.timeout_ms), v("tags", s.tags);
  }
};

struct Claim {
  static constexpr uint16_t TYPE = 6;
  static constexpr const char *NAME = "CLAIM";
  uint64_t request, claim;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("request", s.request), v("claim", s.claim);
  }
};

struct Bye {
  static constexpr uint16_t TYPE = 7;
  static constexpr const char *NAME = "BYE";
  uint64_t request;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("request", s.request);
  }
};

struct Export {
  static constexpr uint16_t TYPE = 10;
  static constexpr const char *NAME = "EXPORT";
  uint64_t request;
  Token key;
  uint64_t lease;
  uint8_t flags;
  std::vector<ExportSlot> slots;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("request", s.request), v("key", s.key), v("lease", s.lease), v("flags", s.flags), v("slots", s.slots);
  }
};

struct Unexport {
  static constexpr uint16_t TYPE = 11;
  static constexpr const char *NAME = "UNEXPORT";
  uint64_t request;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("request", s.request);
  }
};

struct Read {
  static constexpr uint16_t TYPE = 14;
  static constexpr const char *NAME = "READ";
  uint64_t request;
  Token key;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("request", s.request), v("key", s.key);
  }
};

struct EndRead {
  static constexpr uint16_t TYPE = 15;
  static constexpr const char *NAME = "END_READ";
  uint64_t request, read;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("request", s.request), v("read", s.read);
  }
};

struct Seal {
  static constexpr uint16_t TYPE = 12;
  static constexpr const char *NAME = "SEAL";
  uint64_t request;
  std::vector<std::string> tags;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("request", s.request), v("tags", s.tags);
  }
};

struct AskFree {
  static constexpr uint16_t TYPE = 8;
  static constexpr const char *NAME = "ASK_FREE";
  uint64_t request;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("request", s.request);
  }
};

struct MakeRoom {
  static constexpr uint16_t TYPE = 9;
  static constexpr const char *NAME = "MAKE_ROOM";
  uint64_t request, size_bytes;
  uint32_t lasts_ms, timeout_ms;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("request", s.request), v("size_bytes", s.size_bytes), v("lasts_ms", s.lasts_ms), v("timeout_ms", s.timeout_ms);
  }
};

struct Unseal {
  static constexpr uint16_t TYPE = 13;
  static constexpr const char *NAME = "UNSEAL";
  uint64_t request;
  std::vector<std::string> tags;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("request", s.request), v("tags", s.tags);
  }
};

struct Taken {
  static constexpr uint16_t TYPE = 16;
  static constexpr const char *NAME = "TAKEN";
  uint64_t batch;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("batch", s.batch);
  }
};

struct Arrived {
  static constexpr uint16_t TYPE = 17;
  static constexpr const char *NAME = "ARRIVED";
  uint64_t lease;
  std::vector<uint64_t> slots;
  std::string failure;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("lease", s.lease), v("slots", s.slots), v("failure", s.failure);
  }
};

struct Left {
  static constexpr uint16_t TYPE = 18;
  static constexpr const char *NAME = "LEFT";
  uint64_t lease;
  std::vector<uint64_t> slots;
  std::string failure;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("lease", s.lease), v("slots", s.slots), v("failure", s.failure);
  }
};

struct Quiet {
  static constexpr uint16_t TYPE = 19;
  static constexpr const char *NAME = "QUIET";
  uint64_t order;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("order", s.order);
  }
};

struct Busy {
  static constexpr uint16_t TYPE = 20;
  static constexpr const char *NAME = "BUSY";
  uint64_t order;
  uint8_t final;
  std::string tag, scope;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("order", s.order), v("final", s.final), v("tag", s.tag), v("scope", s.scope);
  }
};

struct Copied {
  static constexpr uint16_t TYPE = 21;
  static constexpr const char *NAME = "COPIED";
  uint64_t order;
  std::vector<uint64_t> slots;
  std::string failure;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("order", s.order), v("slots", s.slots), v("failure", s.failure);
  }
};

struct ReaderClosed {
  static constexpr uint16_t TYPE = 22;
  static constexpr const char *NAME = "READER_CLOSED";
  uint64_t reader;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("reader", s.reader);
  }
};

struct Callback {
  static constexpr uint16_t TYPE = 29;
  static constexpr const char *NAME = "CALLBACK";
  uint64_t order;
  uint8_t declined;
  std::string tag, callback, why;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("order", s.order), v("declined", s.declined), v("tag", s.tag), v("callback", s.callback), v("why", s.why);
  }
};

struct Welcome {
  static constexpr uint16_t TYPE = 64;
  static constexpr const char *NAME = "WELCOME";
  uint16_t protocol;
  uint64_t session;
  Token token;
  uint64_t capacity_bytes;
  std::vector<uint64_t> frame_sizes_bytes;
  std::string name, device, version;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("protocol", s.protocol), v("session", s.session), v("token", s.token), v("capacity_bytes", s.capacity_bytes);
    v("frame_sizes_bytes", s.frame_sizes_bytes), v("name", s.name), v("device", s.device), v("version", s.version);
  }
};

struct Grant {
  static constexpr uint16_t TYPE = 65;
  static constexpr const char *NAME = "GRANT";
  uint64_t batch, lease;
  uint8_t contents;
  std::string tag;
  std::vector<GrantSlot> slots;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("batch", s.batch), v("lease", s.lease), v("contents", s.contents), v("tag", s.tag), v("slots", s.slots);
  }
};

struct Arena {
  static constexpr uint16_t TYPE = 66;
  static constexpr const char *NAME = "ARENA";
  uint64_t batch, file, size_bytes;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("batch", s.batch), v("file", s.file), v("size_bytes", s.size_bytes);
  }
};

struct ArenaGone {
  static constexpr uint16_t TYPE = 67;
  static constexpr const char *NAME = "ARENA_GONE";
  uint64_t batch, file;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("batch", s.batch), v("file", s.file);
  }
};

struct Recall {
  static constexpr uint16_t TYPE = 68;
  static constexpr const char *NAME = "RECALL";
  uint64_t lease;
  std::vector<RecallSlot> slots;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("lease", s.lease), v("slots", s.slots);
  }
};

struct PauseOrder {
  static constexpr uint16_t TYPE = 69;
  static constexpr const char *NAME = "PAUSE_ORDER";
  uint64_t order;
  std::vector<std::string> tags;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("order", s.order), v("tags", s.tags);
  }
};

struct PauseCancelled {
  static constexpr uint16_t TYPE = 70;
  static constexpr const char *NAME = "PAUSE_CANCELLED";
  uint64_t order;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("order", s.order);
  }
};

struct LeaseState {
  static constexpr uint16_t TYPE = 71;
  static constexpr const char *NAME = "LEASE_STATE";
  uint64_t lease;
  uint8_t paused;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("lease", s.lease), v("paused", s.paused);
  }
};

struct Draining {
  static constexpr uint16_t TYPE = 72;
  static constexpr const char *NAME = "DRAINING";
  template <class Self, class Visit>
  static void fields(Self &, Visit &) {}
};

struct Copy {
  static constexpr uint16_t TYPE = 73;
  static constexpr const char *NAME = "COPY";
  uint64_t order, lease;
  std::vector<CopySlot> slots;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("order", s.order), v("lease", s.lease), v("slots", s.slots);
  }
};

struct ReadGrant {
  static constexpr uint16_t TYPE = 74;
  static constexpr const char *NAME = "READ_GRANT";
  uint64_t batch, reader;
  uint8_t writable;
  uint64_t lease;
  std::vector<SharedSlot> slots;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("batch", s.batch), v("reader", s.reader), v("writable", s.writable), v("lease", s.lease), v("slots", s.slots);
  }
};

struct CloseReader {
  static constexpr uint16_t TYPE = 75;
  static constexpr const char *NAME = "CLOSE_READER";
  uint64_t reader;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("reader", s.reader);
  }
};

struct ExportSettled {
  static constexpr uint16_t TYPE = 76;
  static constexpr const char *NAME = "EXPORT_SETTLED";
  Token key;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("key", s.key);
  }
};

struct Done {
  static constexpr uint16_t TYPE = 80;
  static constexpr const char *NAME = "DONE";
  uint64_t request, lease, claim, free_bytes;
  std::vector<DoneLease> leases;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("request", s.request), v("lease", s.lease), v("claim", s.claim), v("free_bytes", s.free_bytes);
    v("leases", s.leases);
  }
};

struct Error {
  static constexpr uint16_t TYPE = 81;
  static constexpr const char *NAME = "ERROR";
  uint64_t request;
  std::string error, message;
  Blob detail;
  template <class Self, class Visit>
  static void fields(Self &s, Visit &v) {
    v("request", s.request), v("error", s.error), v("message", s.message), v("detail", s.detail);
  }
};

}  // namespace record

using FromClient =
    std::variant<record::Hello, record::Lease, record::Return, record::Pause, record::Resume, record::Claim, record::Bye,
                 record::AskFree, record::MakeRoom, record::Export, record::Unexport, record::Read, record::EndRead, record::Seal,
                 record::Unseal, record::Taken, record::Arrived, record::Left, record::Quiet, record::Busy, record::Copied,
                 record::ReaderClosed, record::Callback>;
using FromDaemon =
    std::variant<record::Welcome, record::Grant, record::Arena, record::ArenaGone, record::Recall, record::PauseOrder,
                 record::PauseCancelled, record::LeaseState, record::Draining, record::Copy, record::ReadGrant,
                 record::CloseReader, record::ExportSettled, record::Done, record::Error>;

// Returns the packet for a record that travels with this many fds. Throws std::length_error if it would be longer than a
// packet may be.
Packet encode(const FromClient &what, std::size_t fds = 0);
Packet encode(const FromDaemon &what, std::size_t fds = 0);

// Returns the record in a packet that came with this many fds, or nothing if it is none that this side may receive.
std::optional<FromClient> decode_from_client(const uint8_t *packet, std::size_t size, std::size_t fds);
std::optional<FromDaemon> decode_from_daemon(const uint8_t *packet, std::size_t size, std::size_t fds);

// Whether this is UTF-8 of 1 to `most` bytes, as a string on the wire must be.
bool is_text(const std::string &text, std::size_t most);

// Whether a name or tag is 1 to 64 of the characters that the page allows.
bool is_word(const std::string &text);

}  // namespace vrb
