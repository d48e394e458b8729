#include "client.h"

#include <algorithm>
#include <utility>

#include "client_calls.h"
#include "registry.h"
#include "status.h"

namespace vrb {
namespace {

using std::chrono::milliseconds;

constexpr uint32_t CONNECT_MS = 5'000;
constexpr uint32_t CLOSE_MS = 5'000;
constexpr std::size_t SCOPE_LENGTH_MAX = 64;
const std::string FILLING = "new memory being filled";

std::vector<std::string> names_of(const std::vector<Tag *> &tags) {
  std::vector<std::string> names;
  for (const Tag *tag : tags) names.push_back(tag->name);
  return names;
}

bool is_known_to_daemon(const Tag &tag) {
  return std::any_of(tag.leases.begin(), tag.leases.end(), [](const Lease *lease) { return lease->number != 0; });
}

// What the ABI calls the kind of a device: a GPU goes by its UUID at the daemon.
std::string kind_of(const std::string &device) {
  return device.rfind("GPU-", 0) == 0 || device.rfind("MIG-", 0) == 0 ? "cuda" : device.substr(0, device.find(':'));
}

void require_device(const ConnectOptions &options, const record::Welcome &welcome) {
  if (welcome.device == options.device || kind_of(welcome.device) == options.device) return;
  throw invalid_argument("the daemon at " + options.path + " serves " + welcome.device + ", not " + options.device,
                         options.device);
}

}  // namespace

Client::Client(const ConnectOptions &options, Connection connection, std::unique_ptr<Device> device)
    : generation_(process_generation()),
      path_(options.path),
      device_(std::move(device)),
      channel_(wake_),
      book_(*this, *device_),
      copier_(*device_, wake_),
      agent_(options.path, book_, *device_, channel_, copier_, wake_) {
  book_.welcome = connection.welcome;
  book_.version = options.version;
  agent_.start(std::move(connection.fd));
}

Client &Client::connect(const ConnectOptions &options) { return connect(options, make_device(options.device)); }

Client &Client::connect(const ConnectOptions &options, std::unique_ptr<Device> device) {
  if (!is_word(options.name)) throw invalid_argument("a name has 1 to 64 of the characters A-Z a-z 0-9 _ . : @ + -", options.name);
  if (!is_text(options.version, 63)) throw invalid_argument("a version is text of 1 to 63 bytes");
  open_registry();
  const uint32_t timeout_ms = options.timeout_ms == 0 ? CONNECT_MS : options.timeout_ms;
  const record::Hello hello{PROTOCOL, ROLE_WORKER, {}, options.name, options.version};
  Connection connection = open_connection(options.path, hello, Clock::now() + milliseconds(timeout_ms));
  require_device(options, connection.welcome);
  // Whichever GPU it is that the daemon serves, under whatever number this process knows it.
  if (options.device == "cuda") device = make_device(connection.welcome.device);
  auto *client = new Client(options, std::move(connection), std::move(device));
  keep_client(*client);
  return *client;
}

void Client::require_open() const {
  if (book_.closed) throw wrong_state("the client is closed");
}

void Client::require_open(const Tag &tag) const {
  require_open();
  if (!tag.is_open()) throw wrong_state("tag " + tag.name + " is paused", tag.name);
  if (tag.sealed) throw wrong_state("tag " + tag.name + " is sealed: unseal it before more is allocated under it", tag.name);
}

// Returns the tags of these names, each once.
std::vector<Tag *> Client::find_tags(const std::vector<std::string> &names) {
  std::vector<Tag *> tags;
  for (const std::string &name : names) {
    Tag *tag = book_.find_tag(name);
    if (tag == nullptr) throw unknown_tag(name);
    if (std::find(tags.begin(), tags.end(), tag) == tags.end()) tags.push_back(tag);
  }
  return tags;
}

void Client::close() {
  free_put_off();
  end_reads_put_off();
  Lock lock(book_.mutex);
  book_.closed = true;
  book_.notices.arrived.notify_all();
  for (const auto &lease : book_.leases) book_.want_sweep(*lease);
  wake_.ring();
  // To be closed is a matter of this process; that the daemon has heard of it is only waited for.
  book_.changed.wait_for(lock, milliseconds(CLOSE_MS), [&] {
    if (book_.ended || book_.link == Link::lost) return true;
    if (book_.live_allocations() == 0 && book_.readers.uses.empty()) return false;
    return std::all_of(book_.leases.begin(), book_.leases.end(), [](const auto &lease) {
      return lease->number == 0 || lease->range.allocations() > 0;
    });
  });
}

Lease &Client::open_process_lease(const std::string &tag, vrb_contents contents, uint64_t range_bytes) {
  Lease &lease = open_lease(tag, contents, range_bytes);
  const Lock lock(book_.mutex);
  lease.tag.is_process_memory = true;
  return lease;
}

bool Client::has_given_up() {
  const Lock lock(book_.mutex);
  return book_.link == Link::lost;
}

bool Client::is_open() {
  const Lock lock(book_.mutex);
  return !book_.closed;
}

void Client::get_info(vrb_info &info) {
  const Lock lock(book_.mutex);
  const record::Welcome &welcome = book_.welcome;
  info = vrb_info{};
  info.session = welcome.session;
  std::copy(welcome.token.begin(), welcome.token.end(), info.token);
  info.capacity_bytes = welcome.capacity_bytes;
  info.frame_bytes_min = book_.slot_bytes_min();
  put_text(info.name, welcome.name);
  put_text(info.device, welcome.device);
  put_text(info.version, welcome.version);
}

void Client::get_stats(vrb_stats &stats) {
  const Lock lock(book_.mutex);
  stats = vrb_stats{};
  stats.leases = book_.leases.size();
  stats.reserved_bytes = book_.reserved_bytes;
  stats.mapped_bytes = book_.mapped_bytes;
  for (const auto &lease : book_.leases) {
    stats.allocated_bytes += lease->range.allocated_bytes();
    stats.allocations += lease->range.allocations();
  }
  stats.copied_out_bytes = book_.copied_out_bytes;
  stats.copied_in_bytes = book_.copied_in_bytes;
  stats.requests = book_.requests.sent();
  stats.reconnects = book_.reconnects;
}

Lease &Client::open_lease(const std::string &tag, vrb_contents contents, uint64_t range_bytes) {
  if (!is_word(tag)) throw invalid_argument("a tag has 1 to 64 of the characters A-Z a-z 0-9 _ . : @ + -", tag);
  if (contents < VRB_KEEP || contents > VRB_ZERO) throw invalid_argument("contents are keep, drop or zero", tag);
  const Lock lock(book_.mutex);
  require_open();
  Lease *lease = book_.find_lease(tag, contents);
  return lease != nullptr ? *lease : book_.make_lease(tag, contents, range_bytes);
}

// Closes the gates of all these tags, or, if a scope is inside one, of none.
void Client::close_gates(const std::vector<Tag *> &tags) {
  for (Tag *tag : tags) {
    ++tag->pausers;
    tag->set_gate();
  }
  for (const Tag *tag : tags) {
    if (tag->gate.is_quiet()) continue;
    const std::string scope = tag->gate.scope_inside();
    reopen_gates(tags);
    throw not_quiescent(tag->name, scope);
  }
}

void Client::reopen_gates(const std::vector<Tag *> &tags) {
  for (Tag *tag : tags) {
    --tag->pausers;
    tag->set_gate();
  }
  book_.changed.notify_all();
}

// Runs `body` while the gates of all these tags are closed and what this process gave the device to do is done.
template <class Body>
void Client::when_quiet(Lock &lock, const std::vector<Tag *> &tags, Body body) {
  close_gates(tags);
  try {
    lock.unlock();
    const Failure noisy = device_->quiesce();
    lock.lock();
    if (noisy) throw Error(VRB_NOT_QUIESCENT, "NotQuiescent", *noisy);
    body();
  } catch (const Error &) {
    reopen_gates(tags);
    throw;
  }
  reopen_gates(tags);
}

void Client::pause(const std::vector<std::string> &names, bool release, bool discard, uint32_t timeout_ms) {
  free_put_off();
  end_reads_put_off();
  Lock lock(book_.mutex);
  require_open();
  const std::vector<Tag *> tags = find_tags(names);
  when_quiet(lock, tags, [&] { pause_closed(lock, tags, release, discard, timeout_ms); });
}

// Waits until nothing is on its way to tags whose gates are closed, and gives back what they have to spare.
void Client::settle_growths(Lock &lock, const std::vector<Tag *> &tags, uint32_t timeout_ms) {
  const auto deadline = deadline_of(timeout_ms);
  const auto none_grows = [&] { return std::none_of(tags.begin(), tags.end(), [](Tag *tag) { return tag->is_growing(); }); };
  if (!book_.changed.wait_until(lock, deadline, none_grows)) throw no_answer(timeout_ms);
  give_back_all(lock, deadline);
}

void Client::pause_closed(Lock &lock, const std::vector<Tag *> &tags, bool release, bool discard, uint32_t timeout_ms) {
  const auto deadline = deadline_of(timeout_ms);
  settle_growths(lock, tags, timeout_ms);
  std::vector<Tag *> known;
  std::copy_if(tags.begin(), tags.end(), std::back_inserter(known), [](Tag *tag) { return is_known_to_daemon(*tag); });
  if (!known.empty()) {
    const uint8_t released = release ? 1 : 0;
    const uint8_t discarded = discard ? 1 : 0;
    const record::Pause asked{0, released, discarded, left_of(deadline, timeout_ms), names_of(known)};
    ask(lock, asked, left_of(deadline, timeout_ms));
  }
  for (Tag *tag : tags) {
    if (!is_known_to_daemon(*tag)) tag->paused_unheard = true;
  }
}

std::vector<bool> Client::resume(const std::vector<std::string> &names, uint32_t timeout_ms) {
  Lock lock(book_.mutex);
  require_open();
  const std::vector<Tag *> tags = find_tags(names);
  for (Tag *tag : tags) ++tag->resumers;
  const auto over = [&] {
    for (Tag *tag : tags) --tag->resumers;
  };
  try {
    const std::vector<bool> same = resume_asked(lock, tags, names, timeout_ms);
    over();
    return same;
  } catch (const Error &) {
    over();
    throw;
  }
}

std::vector<bool> Client::resume_asked(Lock &lock, const std::vector<Tag *> &tags, const std::vector<std::string> &names,
                                       uint32_t timeout_ms) {
  give_back_all(lock, deadline_of(timeout_ms));
  std::vector<Tag *> known;
  std::copy_if(tags.begin(), tags.end(), std::back_inserter(known), [](Tag *tag) { return is_known_to_daemon(*tag); });
  record::Done done{};
  if (!known.empty()) done = ask(lock, record::Resume{0, timeout_ms, names_of(known)}, timeout_ms);
  settle_resumed(lock, tags, deadline_of(timeout_ms));
  std::vector<bool> same(names.size(), true);
  for (std::size_t i = 0; i < names.size(); ++i) {
    for (const DoneLease &lease : done.leases) {
      if (lease.tag == names[i] && lease.same_pages == 0) same[i] = false;
    }
  }
  return same;
}

// The daemon has said yes; pages under `zero` that stayed may still have to be zeroed.
void Client::settle_resumed(Lock &lock, const std::vector<Tag *> &tags, Clock::time_point deadline) {
  const auto none_resumes = [&] {
    for (const Tag *tag : tags) {
      for (const Lease *lease : tag->leases) {
        if (lease->resuming) return false;
      }
    }
    return true;
  };
  if (!book_.changed.wait_until(lock, deadline, none_resumes)) throw no_answer(UNBOUNDED_MS);
  for (Tag *tag : tags) {
    tag->paused_unheard = false;
    tag->set_gate();
    for (Lease *lease : tag->leases) {
      const auto failure = std::exchange(lease->resume_failure, std::nullopt);
      if (failure) throw driver_failed(*failure);
    }
  }
}

bool Client::is_paused(const std::string &tag) {
  const Lock lock(book_.mutex);
  return find_tags({tag}).front()->is_paused();
}

uint64_t Client::allocated_bytes(const std::string &tag) {
  const Lock lock(book_.mutex);
  uint64_t bytes = 0;
  for (const Lease *lease : find_tags({tag}).front()->leases) bytes += lease->range.allocated_bytes();
  return bytes;
}

void Client::seal(const std::vector<std::string> &names, uint32_t timeout_ms) {
  free_put_off();
  end_reads_put_off();
  Lock lock(book_.mutex);
  require_open();
  const std::vector<Tag *> tags = find_tags(names);
  require_sealable(tags);
  when_quiet(lock, tags, [&] { seal_closed(lock, tags, timeout_ms); });
}

void Client::require_sealable(const std::vector<Tag *> &tags) const {
  for (const Tag *tag : tags) {
    if (!is_known_to_daemon(*tag)) throw unknown_tag(tag->name);
    for (const Lease *lease : tag->leases) {
      if (lease->number == 0 || lease->contents == VRB_KEEP) continue;
      throw invalid_argument("tag " + tag->name + " has contents that are not kept across a pause, so it can't be sealed", tag->name);
    }
  }
}

// The memory is read-only before the daemon hears of it. Where that says no, it is writable again; without an answer it
// stays read-only, since the daemon may count on it.
void Client::seal_closed(Lock &lock, const std::vector<Tag *> &tags, uint32_t timeout_ms) {
  const auto deadline = deadline_of(timeout_ms);
  settle_growths(lock, tags, timeout_ms);
  std::vector<Tag *> fresh;
  std::copy_if(tags.begin(), tags.end(), std::back_inserter(fresh), [](const Tag *tag) { return !tag->sealed; });
  try {
    protect(lock, fresh, true, deadline);
    ask(lock, record::Seal{0, names_of(tags)}, left_of(deadline, timeout_ms));
  } catch (const Error &error) {
    const bool is_answer = error.status == VRB_DEVICE || (error.status == VRB_REFUSED && error.name != "WaitExpired");
    if (is_answer) protect(lock, fresh, false, deadline);
    throw;
  }
}

void Client::unseal(const std::vector<std::string> &names, uint32_t timeout_ms) {
  const auto deadline = deadline_of(timeout_ms);
  Lock lock(book_.mutex);
  require_open();
  const std::vector<Tag *> tags = find_tags(names);
  std::vector<Tag *> sealed;
  std::copy_if(tags.begin(), tags.end(), std::back_inserter(sealed), [](const Tag *tag) { return tag->sealed; });
  if (sealed.empty()) return;
  ask(lock, record::Unseal{0, names_of(sealed)}, timeout_ms);
  protect(lock, sealed, false, deadline);
}

// Has the agent map what is there of these tags read-only, or writable again. What arrives meanwhile is mapped as the tag
// says, so that is said first, and last.
void Client::protect(Lock &lock, const std::vector<Tag *> &tags, bool sealed, Clock::time_point deadline) {
  for (Tag *tag : tags) {
    tag->sealed = sealed;
    ++tag->protects_wanted;
  }
  wake_.ring();
  const auto is_done = [](const Tag *tag) { return tag->protects_done == tag->protects_wanted; };
  const auto is_over = [&] { return book_.ended || std::all_of(tags.begin(), tags.end(), is_done); };
  if (!book_.changed.wait_until(lock, deadline, is_over)) throw no_answer(GRACE_MS);
  for (Tag *tag : tags) {
    const Failure failure = std::exchange(tag->protect_failure, std::nullopt);
    if (!failure) continue;
    // What could not be made writable is not handed out.
    tag->sealed = true;
    throw driver_failed(*failure);
  }
}

bool Client::is_sealed(const std::string &tag) {
  const Lock lock(book_.mutex);
  return find_tags({tag}).front()->sealed;
}

bool Client::is_lost(uint32_t timeout_ms) {
  Lock lock(book_.mutex);
  seek_daemon();
  book_.changed.wait_for(lock, milliseconds(timeout_ms), [&] { return book_.link != Link::down; });
  return book_.link != Link::up;
}

// Has the agent try once more, if it had given up.
void Client::seek_daemon() {
  if (book_.link != Link::lost) return;
  book_.link = Link::down;
  wake_.ring();
}

// Enters all of them or none; returns the tag whose gate is closed, or null.
Tag *Client::try_enter(const std::vector<Tag *> &tags, const std::string &scope) {
  std::vector<Tag *> entered;
  for (Tag *tag : tags) {
    if (!tag->gate.enter(scope)) {
      leave(entered, scope);
      return tag;
    }
    entered.push_back(tag);
  }
  return nullptr;
}

void Client::enter(const std::vector<std::string> &names, const std::string &scope) {
  if (!is_text(scope, SCOPE_LENGTH_MAX)) throw invalid_argument("a scope's name is text of 1 to 64 bytes");
  const Lock lock(book_.mutex);
  require_open();
  const Tag *const closed = try_enter(find_tags(names), scope);
  if (closed != nullptr) throw wrong_state("tag " + closed->name + " is paused or about to be", closed->name);
}

void Client::enter_resuming(const std::vector<std::string> &names, const std::string &scope, uint32_t timeout_ms) {
  if (!is_text(scope, SCOPE_LENGTH_MAX)) throw invalid_argument("a scope's name is text of 1 to 64 bytes");
  const auto deadline = Clock::now() + milliseconds(timeout_ms);
  Lock lock(book_.mutex);
  for (bool first = true;; first = false) {
    require_open();
    Tag *const closed = try_enter(find_tags(names), scope);
    if (closed == nullptr) return;
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now()).count();
    if (left <= 0 && !first) throw entered_too_late(closed->name, timeout_ms);
    if (closed->is_paused()) {
      lock.unlock();
      resume(names, static_cast<uint32_t>(std::max<int64_t>(left, timeout_ms == 0 ? 0 : 1)));
      lock.lock();
    } else {
      // It is about to be paused: then it is resumed; or that comes to nothing, and its gate opens.
      book_.changed.wait_until(lock, deadline, [&] { return closed->is_paused() || !closed->gate.is_closed(); });
    }
  }
}

void Client::watch(Notice::Kind kind, const std::string &tag) {
  if (!tag.empty() && !is_word(tag)) throw invalid_argument("a tag has 1 to 64 of the characters A-Z a-z 0-9 _ . : @ + -", tag);
  const Lock lock(book_.mutex);
  require_open();
  book_.notices.watch(kind, tag);
}

std::optional<Notice> Client::next_notice() {
  Lock lock(book_.mutex);
  while (true) {
    book_.notices.arrived.wait(lock, [&] { return book_.closed || book_.notices.has_any(); });
    if (book_.closed) return std::nullopt;
    Notice notice = book_.notices.take();
    if (notice.kind == Notice::Kind::resumed) return notice;
    asked_ = notice;
    const auto order = book_.orders.find(notice.order);
    if (order == book_.orders.end()) continue;
    if (!book_.is_paused(notice.tags)) return notice;
    // Somebody was faster: there is nothing left to bring to rest.
    give_consent(notice.order, order->second);
  }
}

void Client::begin_callback(uint64_t order, const std::string &tag, const std::string &callback) {
  const Lock lock(book_.mutex);
  const auto known = book_.orders.find(order);
  if (known == book_.orders.end()) return;
  known->second.calling_tag = tag;
  known->second.calling = callback;
  known->second.told_busy = false;
  wake_.ring();
}

void Client::give_consent(uint64_t number, Order &order) {
  order.consent = Consent::given;
  order.told_busy = false;
  book_.close_gates(number, order);
  wake_.ring();
}

void Client::consent(uint64_t order) {
  // What the callbacks have ended may still run on the device.
  const Failure noisy = device_->quiesce();
  const Lock lock(book_.mutex);
  const auto known = book_.orders.find(order);
  if (known != book_.orders.end() && known->second.consent == Consent::awaited) {
    if (noisy) {
      send_declined(order, known->second.watched.front(), known->second.calling, *noisy);
    } else {
      give_consent(order, known->second);
    }
  } else if (asked_ && asked_->order == order) {
    // Too late: the order is void, and what was brought to rest for it goes on.
    book_.tell_kept(asked_->tags);
  }
  asked_.reset();
}

void Client::decline(uint64_t order, const std::string &tag, const std::string &callback, const std::string &why) {
  const Lock lock(book_.mutex);
  asked_.reset();
  if (book_.orders.count(order) != 0) send_declined(order, tag, callback, why);
}

void Client::send_declined(uint64_t order, const std::string &tag, const std::string &callback, const std::string &why) {
  channel_.send(encode(record::Callback{order, 1, tag, callback, why}));
  book_.orders.erase(order);
}

void Client::exit(const std::vector<std::string> &names, const std::string &scope) {
  const Lock lock(book_.mutex);
  const std::vector<Tag *> tags = find_tags(names);
  for (const Tag *tag : tags) {
    if (!tag->gate.is_inside(scope)) throw invalid_argument("scope " + scope + " is not inside tag " + tag->name, scope);
  }
  leave(tags, scope);
}

void Client::begin_filling(Lease &lease) {
  const Lock lock(book_.mutex);
  require_open(lease.tag);
  if (!lease.tag.gate.enter(FILLING, false)) throw wrong_state("tag " + lease.tag.name + " is about to be paused", lease.tag.name);
}

void Client::end_filling(Lease &lease) {
  const Lock lock(book_.mutex);
  if (lease.tag.gate.exit(FILLING) == Gate::Exit::last_out_of_closed) wake_.ring();
}

void Client::leave(const std::vector<Tag *> &tags, const std::string &scope) {
  for (Tag *tag : tags) {
    if (tag->gate.exit(scope) == Gate::Exit::last_out_of_closed) wake_.ring();
  }
}

}  // namespace vrb
