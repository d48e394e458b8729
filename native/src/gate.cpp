#include "gate.h"

namespace vrb {

bool Gate::enter(const std::string &scope, bool is_use) {
  const std::lock_guard lock(mutex_);
  uint64_t word = word_.load();
  do {
    if ((word & CLOSED) != 0) return false;
  } while (!word_.compare_exchange_weak(word, word + 1));
  ++scopes_[scope];
  if (is_use) used_.store(true);
  return true;
}

Gate::Exit Gate::exit(const std::string &scope) {
  const std::lock_guard lock(mutex_);
  const auto found = scopes_.find(scope);
  if (found == scopes_.end()) return Exit::was_not_inside;
  if (--found->second == 0) scopes_.erase(found);
  const uint64_t before = word_.fetch_sub(1);
  if ((before & ~CLOSED) > 1) return Exit::inside_still;
  return (before & CLOSED) != 0 ? Exit::last_out_of_closed : Exit::last_out;
}

bool Gate::is_inside(const std::string &scope) const {
  const std::lock_guard lock(mutex_);
  return scopes_.count(scope) != 0;
}

std::string Gate::scope_inside() const {
  const std::lock_guard lock(mutex_);
  return scopes_.empty() ? std::string() : scopes_.begin()->first;
}

}  // namespace vrb
