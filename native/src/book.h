// What this process knows: its tags, leases, requests and orders, under one mutex.
//
// Threads of the application and the agent meet here and nowhere else. The mutex is held for book-keeping and for sends
// that don't block; never across a wait for the daemon, a copy or a mapping.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "channel.h"
#include "device.h"
#include "lease.h"
#include "notices.h"
#include "parked.h"
#include "readers.h"
#include "requests.h"

namespace vrb {

// up: connected. down: the agent tries to connect again. lost: it has given up until somebody asks.
enum class Link { up, down, lost };

// Numbers of things given back, the latest of them: a record that crossed on the wire may still name one.
class Gone {
 public:
  void add(uint64_t number);
  bool has(uint64_t number) const { return numbers_.count(number) != 0; }

 private:
  static constexpr std::size_t MOST = 65536;
  std::set<uint64_t> numbers_;
  std::deque<uint64_t> order_;
};

// How far the application's callbacks have come with an order: there are none, they have yet to say yes, or they have. Until
// then the gates of its tags stay open.
enum class Consent { not_needed, awaited, given };

struct Order {
  std::vector<std::string> tags;
  std::vector<std::string> watched = {};  // those with callbacks
  Consent consent = Consent::not_needed;
  std::string calling_tag = {}, calling = {};  // the callback that is running
  bool told_busy = false;
  bool answered = false;  // by QUIET, or by BUSY for good
};

class Book {
 public:
  Book(Client &client, Device &device) : client_(client), device_(device) {}

  // Returns the tag or null.
  Tag *find_tag(const std::string &name);
  Tag &tag(const std::string &name);
  Lease *find_lease(uint64_t number);
  Lease *find_lease(const std::string &tag, vrb_contents contents);
  Lease *find_lease_at(const void *address);
  // Makes the range for a tag and policy, at least so large; throws Error (DriverFailed) if there are no addresses.
  Lease &make_lease(const std::string &tag, vrb_contents contents, uint64_t range_bytes = 0);
  // Gives up the addresses of leases that have nothing there. Once the client has ended: no lease is used afterwards.
  void release_ranges();
  // Reserves as much for one range as there is, down to the least; null if there is less.
  void *reserve_range(uint64_t least_bytes, uint64_t &size_bytes);
  Client &client() { return client_; }
  void set_number(Lease &lease, uint64_t number);
  void forget_number(Lease &lease);

  // Has the order keep the gates of its tags closed.
  void close_gates(uint64_t number, const Order &order);
  // Tells the application that these tags are its to use after all, where it has brought them to rest for an order.
  void tell_kept(const std::vector<std::string> &watched);
  bool is_paused(const std::vector<std::string> &names);

  // Marks that the lease may have slots to give back.
  void want_sweep(Lease &lease);

  // Has slots that were lent to spare given back, where their time was over by then. Returns whether there were any.
  bool release_spares(Clock::time_point by);
  // Whether slots are on their way back, or about to be.
  bool is_giving_back() const;
  // When the next are due.
  std::optional<Clock::time_point> spares_due() const;

  uint64_t live_allocations() const;

  std::mutex mutex;
  // A lease or the link changed: a growth ended, a state was told, the client has ended.
  std::condition_variable changed;

  std::map<std::string, std::unique_ptr<Tag>> tags;
  std::vector<std::unique_ptr<Lease>> leases;
  std::map<uint64_t, Order> orders;
  Requests requests;
  Notices notices;
  Readers readers;
  Gone gone_slots;
  Gone gone_leases;

  record::Welcome welcome;
  std::string version;  // of the client, as it said in HELLO
  Link link = Link::up;
  std::string lost_why;
  bool closed = false;
  bool ended = false;
  // Who asks to read what is parked, and the files of those who have done so.
  std::vector<std::shared_ptr<ParkedView>> views_wanted;
  std::vector<uint64_t> views_ended;
  // Sweeps that were asked for, and how many of those are over: then what had been free is on its way to the daemon.
  uint64_t sweeps_wanted = 0;
  uint64_t sweeps_done = 0;
  // Slots that have gone back, or are about to be told of.
  uint64_t returns = 0;
  uint64_t reserved_bytes = 0;
  uint64_t mapped_bytes = 0;
  uint64_t copied_out_bytes = 0;
  uint64_t copied_in_bytes = 0;
  uint64_t reconnects = 0;

  // The smallest frame, of which all others are multiples.
  uint64_t slot_bytes_min() const { return welcome.frame_sizes_bytes.front(); }

 private:
  Client &client_;
  Device &device_;
  std::map<uint64_t, Lease *> by_number_;
  std::map<uintptr_t, Lease *> by_address_;
};

}  // namespace vrb
