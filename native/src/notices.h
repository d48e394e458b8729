// What the application is to hear of, by a thread of its own that waits for it: a pause that is asked for from outside, for
// its callbacks to bring the tags to rest; and a resume that somebody else has asked for. The agent never runs its code.
//
// Guarded by the book's mutex. Only tags that are watched make notices.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace vrb {

struct Notice {
  enum class Kind { pause_asked, resumed };
  Kind kind;
  uint64_t order;  // 0 for a resume
  std::vector<std::string> tags;
  bool same_pages;
};

class Notices {
 public:
  // An empty tag stands for all.
  void watch(Notice::Kind kind, const std::string &tag) { watched_.insert({kind, tag}); }
  bool is_watched(Notice::Kind kind, const std::string &tag) const {
    return watched_.count({kind, tag}) != 0 || watched_.count({kind, ""}) != 0;
  }

  void add(Notice notice) {
    waiting_.push_back(std::move(notice));
    arrived.notify_all();
  }
  bool has_any() const { return !waiting_.empty(); }
  Notice take() {
    Notice first = std::move(waiting_.front());
    waiting_.pop_front();
    return first;
  }

  // Something was added, or the client is closed.
  std::condition_variable arrived;

 private:
  std::set<std::pair<Notice::Kind, std::string>> watched_;
  std::deque<Notice> waiting_;
};

}  // namespace vrb
