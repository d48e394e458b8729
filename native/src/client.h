// A client: this process, attached to one daemon. What the C border calls, on the application's threads.
//
// Every call that fails throws Error and has changed nothing. A client lives until its process ends, since memory that it
// handed out may be freed at any time; `close` ends its use.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "agent.h"
#include "book.h"
#include "channel.h"
#include "copier.h"
#include "device.h"
#include "vrambroker/vrambroker.h"
#include "wake.h"

namespace vrb {

struct ConnectOptions {
  std::string path;
  std::string name;
  std::string device;
  std::string version;
  uint32_t timeout_ms;
};

class Client {
 public:
  // Attaches this process. Ownership: nobody's; it lives until the process ends.
  static Client &connect(const ConnectOptions &options);
  static Client &connect(const ConnectOptions &options, std::unique_ptr<Device> device);

  // Whether this process was forked from the one that connected; then nothing else of the client may be touched.
  bool is_forked() const { return generation_ != process_generation(); }

  void close();
  bool is_open();
  // Whether the daemon is taken for gone until somebody asks to look for it.
  bool has_given_up();
  void get_info(vrb_info &info);
  void get_stats(vrb_stats &stats);

  // Finds the range for a tag and policy, or makes one, at least so large.
  Lease &open_lease(const std::string &tag, vrb_contents contents, uint64_t range_bytes = 0);
  // The same, for what only this process pauses.
  Lease &open_process_lease(const std::string &tag, vrb_contents contents, uint64_t range_bytes = 0);
  // Allocates these very bytes of the range: for who keeps its own books of them, and uses the lease for nothing else.
  void allocate_at(Lease &lease, uint64_t offset, uint64_t size_bytes, uint32_t timeout_ms);
  // Whether the daemon would lend so much at once.
  bool has_room_for(uint64_t size_bytes);
  void *allocate(Lease &lease, uint64_t size_bytes, uint32_t timeout_ms);
  void free(void *address);
  // Frees it once what was given to this stream of the device is done; at a later call if that can't be waited for now.
  void free_after(void *address, void *stream);
  // Frees it once all that this process gave the device is done, or at a later call.
  void free_when_quiet(void *address);

  // How much the daemon would lend this session at once.
  uint64_t free_bytes();
  // Has the daemon keep so much free for memory that is no lease, for as long as that is certain to be had.
  void make_room(uint64_t size_bytes);

  const std::string &path() const { return path_; }

  void pause(const std::vector<std::string> &tags, bool release, bool discard, uint32_t timeout_ms);
  // Returns, per tag, whether its pages are the same as before the pause.
  std::vector<bool> resume(const std::vector<std::string> &tags, uint32_t timeout_ms);
  bool is_paused(const std::string &tag);
  uint64_t allocated_bytes(const std::string &tag);
  // Maps the tags read-only, so that their contents are copied out once at most.
  void seal(const std::vector<std::string> &tags, uint32_t timeout_ms);
  void unseal(const std::vector<std::string> &tags, uint32_t timeout_ms);
  bool is_sealed(const std::string &tag);

  // Whose memory this is; throws Error (InvalidArgument) if it is in no allocation of this client.
  void find(const void *address, uint64_t size_bytes, vrb_place &place);
  // Maps what is parked of it, read-only and in one piece. Ownership: the caller's, who gives it to `end_view`.
  std::shared_ptr<ParkedView> view_parked(const void *address, uint64_t size_bytes, uint32_t timeout_ms);
  void end_view(const ParkedView &view) noexcept;

  DlpackDevice dlpack_device() const { return device_->dlpack_device(); }

  // Whether there is no daemon any more that knows this session; finds out first, where that is open.
  bool is_lost(uint32_t timeout_ms);

  void enter(const std::vector<std::string> &tags, const std::string &scope);
  // Resumes them first, where they are paused, and waits where they are about to be.
  void enter_resuming(const std::vector<std::string> &tags, const std::string &scope, uint32_t timeout_ms);
  void exit(const std::vector<std::string> &tags, const std::string &scope);

  // Has notices of this kind made of a tag (of every one, if it is empty).
  void watch(Notice::Kind kind, const std::string &tag);
  // Waits for a notice; nothing once the client is closed.
  std::optional<Notice> next_notice();
  // Tells which callback is running for an order, and what they all came to.
  void begin_callback(uint64_t order, const std::string &tag, const std::string &callback);
  void consent(uint64_t order);
  void decline(uint64_t order, const std::string &tag, const std::string &callback, const std::string &why);

  // What was sent: under which key, where in the lease's range, and whether it is only to be read.
  struct Sent {
    Token key;
    uint64_t offset_bytes;
    bool read_only;
  };
  // What was received: the number by which its use ends; whether it is this process's own.
  struct Received {
    uint64_t number;
    char *address;
    bool own;
    bool writable;
  };
  // Lets whoever is told of it map these bytes, once more with the same key, or no more if nobody has received them.
  Sent send(const void *address, uint64_t size_bytes, bool read_only, uint32_t timeout_ms);
  void send_again(const Token &key, uint32_t timeout_ms);
  void unexport(uint32_t timeout_ms);
  std::size_t take_settled(Token *keys, std::size_t most);
  // Maps what was sent. Ownership: the caller's, who gives the number to `end_read`.
  Received read(const Token &key, uint64_t offset, uint64_t size_bytes, uint32_t timeout_ms);
  void end_read(uint64_t number);
  // Tries once more what a capture has put off.
  void end_reads_put_off();

  // Between these, new memory of the lease is written to on its owner's behalf: no pause takes effect.
  void begin_filling(Lease &lease);
  void end_filling(Lease &lease);

 private:
  using Lock = std::unique_lock<std::mutex>;

  Client(const ConnectOptions &options, Connection connection, std::unique_ptr<Device> device);

  void require_open() const;
  void require_open(const Tag &tag) const;
  std::vector<Tag *> find_tags(const std::vector<std::string> &names);

  template <class Record>
  record::Done ask(Lock &lock, Record record, uint32_t timeout_ms, Lease *grows = nullptr, uint64_t *number = nullptr);

  record::Export plan_export(const void *address, uint64_t size_bytes, bool read_only, uint64_t &offset);
  Received find_received(const record::Done &done, uint64_t number, uint64_t offset, uint64_t size_bytes);
  void tell_read_ended(uint64_t number);

  void free_put_off();
  void seek_daemon();
  void give_back(Lock &lock, uint64_t sweeps, Clock::time_point deadline);
  void give_back_all(Lock &lock, Clock::time_point deadline);
  uint64_t spare_for(const Lease &lease, const Range::Window &window) const;
  void grow(Lock &lock, Lease &lease, const Range::Window &window, uint32_t timeout_ms);
  // Grows the lease, or has something given back, for another try; returns whether it grew. `refusals` counts the others.
  bool grow_or_give_back(Lock &lock, Lease &lease, const Range::Window &window, Clock::time_point deadline, uint32_t timeout_ms,
                         int &refusals);
  void settle_growth(Lock &lock, Lease &lease, Clock::time_point deadline, uint32_t timeout_ms);
  void end_growth(Lease &lease);
  void close_gates(const std::vector<Tag *> &tags);
  template <class Body>
  void when_quiet(Lock &lock, const std::vector<Tag *> &tags, Body body);
  void reopen_gates(const std::vector<Tag *> &tags);
  void pause_closed(Lock &lock, const std::vector<Tag *> &tags, bool release, bool discard, uint32_t timeout_ms);
  void seal_closed(Lock &lock, const std::vector<Tag *> &tags, uint32_t timeout_ms);
  void require_sealable(const std::vector<Tag *> &tags) const;
  void protect(Lock &lock, const std::vector<Tag *> &tags, bool sealed, Clock::time_point deadline);
  void settle_growths(Lock &lock, const std::vector<Tag *> &tags, uint32_t timeout_ms);
  void settle_resumed(Lock &lock, const std::vector<Tag *> &tags, Clock::time_point deadline);
  void leave(const std::vector<Tag *> &tags, const std::string &scope);
  std::vector<bool> resume_asked(Lock &lock, const std::vector<Tag *> &tags, const std::vector<std::string> &names,
                                 uint32_t timeout_ms);
  Tag *try_enter(const std::vector<Tag *> &tags, const std::string &scope);
  void send_declined(uint64_t order, const std::string &tag, const std::string &callback, const std::string &why);
  void give_consent(uint64_t number, Order &order);

  // Without a stream, all of them are waited for.
  struct PutOff {
    void *address;
    std::optional<void *> stream;
  };
  bool wait_for(const std::optional<void *> &stream);
  void free_after(const PutOff &one);

  const uint32_t generation_;
  const std::string path_;  // of the daemon's socket
  std::unique_ptr<Device> device_;
  Wake wake_;
  Channel channel_;
  Book book_;
  Copier copier_;
  Agent agent_;
  // Guarded by the book's mutex.
  std::vector<PutOff> put_off_;
  std::vector<uint64_t> reads_put_off_;
  // The pause that the application's callbacks are busy with.
  std::optional<Notice> asked_;
};

}  // namespace vrb
