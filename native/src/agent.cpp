#include "agent.h"

#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "status.h"
#include "thread.h"

namespace vrb {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds RETRY_FIRST{10};
constexpr milliseconds RETRY_LAST{500};
constexpr milliseconds RETRY_LIMIT{5000};
constexpr milliseconds GREETING_LIMIT{1000};
// A connection that breaks sooner may well break again at once (a process without fds left can take no frame).
constexpr milliseconds LASTING{1000};
constexpr milliseconds BREATHER_MAX{50};
constexpr milliseconds REGISTRATION_GAP{2};  // registrations in a row stall the process's launches
// One takes some milliseconds, and frames that come meanwhile would wait for it: so it is for when nothing comes.
constexpr milliseconds REGISTRATION_QUIET{20};
constexpr int PACKETS_PER_TURN = 64;         // so that copies that end are not kept waiting by a busy socket

}  // namespace

Agent::Agent(std::string path, Book &book, Device &device, Channel &channel, Copier &copier, Wake &wake)
    : path_(std::move(path)),
      book_(book),
      channel_(channel),
      copier_(copier),
      wake_(wake),
      mover_(book, device, channel, copier),
      orders_(book, channel),
      reading_(book, device, channel),
      epoll_(ProcessFd::make([] { return ::epoll_create1(EPOLL_CLOEXEC); })) {
  if (!epoll_) throw driver_failed(std::string("epoll_create1: ") + std::strerror(errno));
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = wake_.fd();
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.fd(), &event) != 0) {
    throw driver_failed(std::string("epoll_ctl: ") + std::strerror(errno));
  }
}

void Agent::start(ProcessFd connection) {
  watch(std::move(connection));
  try {
    start_thread("vrb-agent", [this] { live(); });
  } catch (const std::system_error &error) {
    channel_.close();
    throw driver_failed(std::string("pthread_create: ") + error.what());
  }
}

void Agent::watch(ProcessFd connection) {
  channel_.attach(std::move(connection));
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = channel_.fd();
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, channel_.fd(), &event);
  writable_wanted_ = false;
  connected_ = true;
  connected_at_ = Clock::now();
}

void Agent::listen_for_writable(bool wanted) {
  if (!connected_ || wanted == writable_wanted_) return;
  epoll_event event{};
  event.events = EPOLLIN | (wanted ? static_cast<uint32_t>(EPOLLOUT) : 0U);
  event.data.fd = channel_.fd();
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, channel_.fd(), &event);
  writable_wanted_ = wanted;
}

int Agent::milliseconds_to_sleep() const {
  std::optional<Clock::time_point> next = register_at_;
  if (retrying_) next = next ? std::min(*next, retry_at_) : retry_at_;
  if (spares_at_) next = next ? std::min(*next, *spares_at_) : *spares_at_;
  if (!next) return -1;
  const auto left = std::chrono::duration_cast<milliseconds>(*next - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left + 1, 0, 60'000));
}

// What escapes here would end the process, which this library never does: it ends the client instead.
void Agent::live() {
  try {
    run();
    end();
  } catch (const std::exception &error) {
    give_up(std::string("the agent failed: ") + error.what());
  }
  channel_.close();
  wake_.close();
  epoll_.reset();
}

// The session is over: nothing is left that the daemon could ask for, so what served it goes.
void Agent::end() {
  channel_.close();
  copier_.stop();
  mover_.release_addresses();
  wake_.close();
  epoll_.reset();
  const std::lock_guard lock(book_.mutex);
  book_.ended = true;
  book_.requests.fail_awaited(wrong_state("the client is closed"));
  book_.changed.notify_all();
}

void Agent::run() {
  while (!done_) {
    handle_ready();
    mover_.take_copies();
    mover_.protect();
    mover_.show_parked();
    reading_.let_go();
    orders_.review();
    bool sweep = false;
    {
      const std::lock_guard lock(book_.mutex);
      book_.release_spares(Clock::now());
      spares_at_ = book_.spares_due();
      sweep = book_.sweeps_done < book_.sweeps_wanted;
      // Somebody asks for the daemon again after it was given up.
      if (book_.link == Link::down && !connected_ && !retrying_) {
        retrying_ = true;
        retry_at_ = Clock::now() + breather_;
        retry_until_ = retry_at_ + RETRY_LIMIT;
        backoff_ = RETRY_FIRST;
      }
    }
    if (sweep) mover_.sweep();
    if (retrying_ && Clock::now() >= retry_at_) try_to_reconnect();
    if (register_at_ && Clock::now() >= *register_at_) register_arena();
    say_goodbye_if_done();
    channel_.flush();
    listen_for_writable(channel_.has_backlog());
  }
}

void Agent::handle_ready() {
  std::array<epoll_event, 4> events;
  const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), milliseconds_to_sleep());
  for (int i = 0; i < count; ++i) {
    const epoll_event &event = events[static_cast<std::size_t>(i)];
    if (event.data.fd == wake_.fd()) {
      wake_.hear();
    } else if (connected_ && (event.events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) {
      if (read_packets() == Outcome::disconnect) disconnect();
    }
  }
}

Agent::Outcome Agent::read_packets() {
  for (int i = 0; i < PACKETS_PER_TURN; ++i) {
    // Until a packet's fds are used and closed, no child may inherit them.
    const ForkGuard guard;
    const Received received = channel_.receive(inbound_);
    if (received == Received::nothing) return Outcome::proceed;
    if (received == Received::closed) return Outcome::disconnect;
    auto record = decode_from_daemon(inbound_.data.data(), inbound_.size, inbound_.fds.size());
    std::vector<Fd> fds = std::exchange(inbound_.fds, {});
    if (!record || obey(*record, std::move(fds)) == Outcome::disconnect) return Outcome::disconnect;
  }
  return Outcome::proceed;
}

Agent::Outcome Agent::obey(FromDaemon &record, std::vector<Fd> fds) {
  bool sound = true;
  if (register_at_) register_at_ = std::max(*register_at_, Clock::now() + REGISTRATION_QUIET);
  if (const auto *grant = std::get_if<record::Grant>(&record)) {
    sound = mover_.grant(*grant, std::move(fds));
  } else if (const auto *arena = std::get_if<record::Arena>(&record)) {
    sound = mover_.add_arena(*arena, std::move(fds));
    register_at_ = Clock::now() + REGISTRATION_QUIET;
  } else if (const auto *read = std::get_if<record::ReadGrant>(&record)) {
    sound = reading_.grant(*read, std::move(fds));
  } else if (!fds.empty()) {
    sound = false;
  } else if (const auto *gone = std::get_if<record::ArenaGone>(&record)) {
    mover_.drop_arena(*gone);
  } else if (const auto *recall = std::get_if<record::Recall>(&record)) {
    mover_.recall(*recall);
  } else if (const auto *copy = std::get_if<record::Copy>(&record)) {
    mover_.copy(*copy);
  } else if (const auto *close = std::get_if<record::CloseReader>(&record)) {
    reading_.close(*close);
  } else if (const auto *settled = std::get_if<record::ExportSettled>(&record)) {
    reading_.settle(*settled);
  } else if (const auto *order = std::get_if<record::PauseOrder>(&record)) {
    orders_.take(*order);
  } else if (const auto *cancelled = std::get_if<record::PauseCancelled>(&record)) {
    orders_.cancel(*cancelled);
  } else if (const auto *state = std::get_if<record::LeaseState>(&record)) {
    mover_.set_state(*state);
  } else if (std::holds_alternative<record::Welcome>(record)) {
    sound = false;
  } else {
    answered(record);
  }
  return sound ? Outcome::proceed : Outcome::disconnect;
}

void Agent::answered(const FromDaemon &record) {
  uint64_t number = 0;
  const std::lock_guard lock(book_.mutex);
  if (const auto *done = std::get_if<record::Done>(&record)) {
    number = done->request;
    stop_expecting(book_.requests.answer(*done));
  } else if (const auto *error = std::get_if<record::Error>(&record)) {
    number = error->request;
    stop_expecting(book_.requests.answer(*error));
  }
  // DRAINING asks nothing of us: what is wanted from now on is refused, and says so.
  if (number != 0 && number == bye_request_) done_ = true;
}

// What a growth that was given up has brought is swept; from now on, slots that come unasked are somebody's own wish.
void Agent::stop_expecting(const std::shared_ptr<Request> &request) {
  if (request == nullptr || request->given_up_by == nullptr) return;
  --request->given_up_by->given_up;
  book_.want_sweep(*request->given_up_by);
}

void Agent::say_goodbye_if_done() {
  const std::lock_guard lock(book_.mutex);
  if (!book_.closed || book_.live_allocations() > 0 || !book_.readers.by_number.empty()) return;
  if (book_.link == Link::lost) {
    // There is nobody to say it to, and nothing to wait for but what is still in motion here.
    done_ = std::all_of(book_.leases.begin(), book_.leases.end(), [](const auto &lease) { return lease->slots.empty(); });
    return;
  }
  if (bye_request_ != 0) return;
  for (const auto &lease : book_.leases) {
    if (lease->number != 0 || lease->growth.active) return;
  }
  const auto request = book_.requests.add(record::Bye{0}, false);
  bye_request_ = request->number;
  channel_.send(request->packet);
}

void Agent::disconnect() {
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, channel_.fd(), nullptr);
  channel_.close();
  connected_ = false;
  const bool lasted = Clock::now() - connected_at_ >= LASTING;
  breather_ = lasted ? milliseconds(0) : std::clamp(2 * breather_, RETRY_FIRST, BREATHER_MAX);
  const std::lock_guard lock(book_.mutex);
  // A daemon that has heard BYE may close before its answer is read.
  if (bye_request_ != 0) {
    done_ = true;
    return;
  }
  book_.link = Link::down;
}

void Agent::try_to_reconnect() {
  record::Hello hello{PROTOCOL, ROLE_WORKER, {}, {}, {}};
  {
    const std::lock_guard lock(book_.mutex);
    hello.token = book_.welcome.token;
    hello.name = book_.welcome.name;
    hello.version = book_.version;
  }
  try {
    const auto deadline = std::min(retry_until_, Clock::now() + GREETING_LIMIT);
    reconnected(open_connection(path_, hello, deadline));
  } catch (const Error &error) {
    const auto now = Clock::now();
    if (error.status != VRB_UNAVAILABLE || now >= retry_until_) {
      give_up(error.message);
      return;
    }
    retry_at_ = std::min(now + backoff_, retry_until_);
    backoff_ = std::min(backoff_ * 2, RETRY_LAST);
  }
}

void Agent::reconnected(Connection connection) {
  uint64_t session = 0;
  {
    const std::lock_guard lock(book_.mutex);
    session = book_.welcome.session;
  }
  if (connection.welcome.session != session) {
    give_up("the daemon no longer knows this session");
    return;
  }
  retrying_ = false;
  watch(std::move(connection.fd));
  const std::lock_guard lock(book_.mutex);
  book_.link = Link::up;
  ++book_.reconnects;
  for (const auto &[number, request] : book_.requests.unanswered()) channel_.send(request->packet);
  book_.changed.notify_all();
}

void Agent::give_up(const std::string &why) {
  retrying_ = false;
  orders_.forget();
  const std::lock_guard lock(book_.mutex);
  book_.link = Link::lost;
  book_.lost_why = why;
  book_.requests.fail_awaited(lost(why));
  book_.changed.notify_all();
}

void Agent::register_arena() {
  register_at_ = std::nullopt;
  if (mover_.register_one()) register_at_ = Clock::now() + REGISTRATION_GAP;
}

}  // namespace vrb
