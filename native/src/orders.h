// The daemon's orders to pause: gates are closed at once, and the answer is given when nobody is inside any more.
//
// The agent's, like the mover. A tag that no scope was ever opened on, and that no callback watches, can't be known to be
// quiet; its order is refused. So is every order once the client is closed: its tensors live on, in no scope, and nobody
// could resume them. Where callbacks watch, gates are closed only once these have said yes, in a thread of the application's:
// they may use the memory to bring it to rest.
#pragma once

#include <string>

#include "book.h"
#include "channel.h"
#include "records.h"

namespace vrb {

class Orders {
 public:
  Orders(Book &book, Channel &channel) : book_(book), channel_(channel) {}

  void take(const record::PauseOrder &order);
  void cancel(const record::PauseCancelled &order);
  // Answers what can be answered now. Called whenever a scope or a growth may have ended.
  void review();
  // Forgets all of them: the daemon that gave them is gone, and what they closed opens again.
  void forget();

 private:
  bool is_watched(const std::string &tag) const;
  bool refuse(const record::PauseOrder &order);
  void begin(const record::PauseOrder &order);
  void end(uint64_t number, const Order &order);
  void review_one(uint64_t number, Order &order);
  bool is_held(uint64_t number, const Order &order);
  void send(const FromClient &record) { channel_.send(encode(record)); }

  Book &book_;
  Channel &channel_;
};

}  // namespace vrb
