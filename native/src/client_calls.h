// How a client asks its daemon, and for how long it waits: for the files that the client is in.
#pragma once

#include <algorithm>
#include <chrono>
#include <utility>

#include "client.h"
#include "status.h"

namespace vrb {

// How much longer than a call's own timeout its answer may take: the daemon answers when that is over.
constexpr uint32_t GRACE_MS = 2'000;
// How long an answer may take to a call without a timeout: longer than any bound of the daemon's own.
constexpr uint32_t UNBOUNDED_MS = 60'000;

inline Clock::time_point deadline_of(uint32_t timeout_ms) {
  return Clock::now() + std::chrono::milliseconds(timeout_ms == 0 ? UNBOUNDED_MS : uint64_t{timeout_ms} + GRACE_MS);
}

inline uint32_t left_of(Clock::time_point deadline, uint32_t timeout_ms) {
  if (timeout_ms == 0) return 0;
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count() - int64_t{GRACE_MS};
  return static_cast<uint32_t>(std::max<int64_t>(left, 1));
}

// Sends a request and waits for its answer, without the lock. A request whose answer doesn't come in time goes on without us.
template <class Record>
record::Done Client::ask(Lock &lock, Record record, uint32_t timeout_ms, Lease *grows, uint64_t *number) {
  if (book_.ended) throw wrong_state("the client is closed");
  const auto deadline = deadline_of(timeout_ms);
  const std::shared_ptr<Request> request = book_.requests.add(std::move(record), true);
  if (number != nullptr) *number = request->number;
  seek_daemon();
  // Without a connection the agent sends it, as soon as there is one.
  if (book_.link == Link::up) channel_.send(request->packet);
  request->answered.wait_until(lock, deadline, [&] { return request->is_answered(); });
  if (request->done) return *request->done;
  const bool is_open = !request->error || request->error->status == VRB_LOST;
  if (is_open && grows != nullptr) {
    request->given_up_by = grows;
    ++grows->given_up;
  }
  if (request->error) throw *request->error;
  request->awaited = false;
  const uint32_t waited_ms = timeout_ms == 0 ? UNBOUNDED_MS : timeout_ms + GRACE_MS;
  // The agent tries on for longer than a short wait, but who asked has no daemon now.
  if (book_.link != Link::up) throw lost("it has not come back within " + std::to_string(waited_ms) + " ms");
  throw no_answer(waited_ms);
}

}  // namespace vrb
