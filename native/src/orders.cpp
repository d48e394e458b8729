#include "orders.h"

namespace vrb {

bool Orders::is_watched(const std::string &tag) const {
  return !book_.closed && book_.notices.is_watched(Notice::Kind::pause_asked, tag);
}

bool Orders::refuse(const record::PauseOrder &order) {
  for (const std::string &name : order.tags) {
    const Tag *tag = book_.find_tag(name);
    if (tag != nullptr && !book_.closed && !tag->is_process_memory && (tag->gate.was_used() || is_watched(name))) continue;
    send(record::Busy{order.order, 1, name, ""});
    return true;
  }
  return false;
}

void Orders::take(const record::PauseOrder &order) {
  const std::lock_guard lock(book_.mutex);
  const auto known = book_.orders.find(order.order);
  if (known != book_.orders.end()) {
    // Sent again after a reconnect: the answer may be lost, so it is given again. The states told before it may have opened
    // the gates.
    known->second.told_busy = known->second.answered = false;
  } else {
    if (refuse(order)) return;
    begin(order);
  }
  // The states told before a reconnect may have opened the gates.
  if (Order &taken = book_.orders.at(order.order); taken.consent != Consent::awaited) {
    book_.close_gates(order.order, taken);
  }
  review_one(order.order, book_.orders.at(order.order));
}

void Orders::begin(const record::PauseOrder &order) {
  Order &begun = book_.orders.emplace(order.order, Order{order.tags}).first->second;
  for (const std::string &name : order.tags) {
    if (is_watched(name) && !book_.tag(name).is_paused()) begun.watched.push_back(name);
  }
  if (begun.watched.empty()) return;
  begun.consent = Consent::awaited;
  book_.notices.add({Notice::Kind::pause_asked, order.order, begun.watched, false});
}

void Orders::cancel(const record::PauseCancelled &order) {
  const std::lock_guard lock(book_.mutex);
  const auto known = book_.orders.find(order.order);
  if (known == book_.orders.end()) return;
  end(order.order, known->second);
  book_.orders.erase(known);
}

// Opens what the order closed, and tells so whom it was brought to rest for.
void Orders::end(uint64_t number, const Order &order) {
  for (const std::string &name : order.tags) {
    Tag &tag = book_.tag(name);
    tag.orders.erase(number);
    tag.quiet.erase(number);
    tag.set_gate();
  }
  if (order.consent == Consent::given) book_.tell_kept(order.watched);
  book_.changed.notify_all();
}

void Orders::forget() {
  const std::lock_guard lock(book_.mutex);
  for (const auto &[number, order] : book_.orders) end(number, order);
  book_.orders.clear();
}

void Orders::review_one(uint64_t number, Order &order) {
  if (order.answered) return;
  if (book_.closed && order.consent != Consent::awaited) {
    order.answered = true;
    send(record::Busy{number, 1, order.tags.empty() ? "" : order.tags.front(), ""});
    end(number, order);
    return;
  }
  if (order.consent == Consent::awaited) {
    if (!order.told_busy && !order.calling.empty()) {
      send(record::Callback{number, 0, order.calling_tag, order.calling, ""});
      order.told_busy = true;
    }
    return;
  }
  for (const std::string &name : order.tags) {
    const Tag &tag = book_.tag(name);
    if (!tag.gate.is_quiet()) {
      const std::string scope = tag.gate.scope_inside();
      if (!order.told_busy && !scope.empty()) {
        send(record::Busy{number, 0, name, scope});
        order.told_busy = true;
      }
      return;
    }
    // Memory on its way to a vrb_malloc is handed out before the tag is called quiet.
    if (tag.is_growing()) return;
  }
  order.answered = true;
  for (const std::string &name : order.tags) book_.tag(name).quiet.insert(number);
  send(record::Quiet{number});
}

// Whether the order still keeps a gate closed; once a lease's state was told, that decides.
bool Orders::is_held(uint64_t number, const Order &order) {
  if (order.consent == Consent::awaited) {
    if (!book_.closed) return true;
    send(record::Callback{number, 1, order.watched.front(), order.calling, "its process has closed its client"});
    return false;
  }
  for (const std::string &name : order.tags) {
    if (book_.tag(name).orders.count(number) != 0) return true;
  }
  return false;
}

void Orders::review() {
  const std::lock_guard lock(book_.mutex);
  for (auto it = book_.orders.begin(); it != book_.orders.end();) {
    review_one(it->first, it->second);
    it = is_held(it->first, it->second) ? std::next(it) : book_.orders.erase(it);
  }
}

}  // namespace vrb
