// The gate of a tag: how many use scopes are inside, and whether another may enter. One atomic word decides both, so that
// closing and entering can't miss each other; the scopes' names are kept beside it, only to be told.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

namespace vrb {

class Gate {
 public:
  // Returns false, and enters nothing, if the gate is closed. Only the application's own scopes say that the tag is used in
  // scopes.
  bool enter(const std::string &scope, bool is_use = true);

  enum class Exit { inside_still, last_out, last_out_of_closed, was_not_inside };
  Exit exit(const std::string &scope);

  void close() { word_.fetch_or(CLOSED); }
  void open() { word_.fetch_and(~CLOSED); }

  bool is_closed() const { return (word_.load() & CLOSED) != 0; }
  bool is_quiet() const { return (word_.load() & ~CLOSED) == 0; }
  bool is_inside(const std::string &scope) const;
  // Whether anybody ever entered: only such a tag can be paused from outside.
  bool was_used() const { return used_.load(); }
  // A scope that is inside, or empty.
  std::string scope_inside() const;

 private:
  static constexpr uint64_t CLOSED = uint64_t{1} << 63;

  std::atomic<uint64_t> word_{0};
  std::atomic<bool> used_{false};
  mutable std::mutex mutex_;
  std::map<std::string, uint64_t> scopes_;
};

}  // namespace vrb
