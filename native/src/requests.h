// Requests to the daemon that wait for their answer: by number, as bytes, so that they can be sent again as they were.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "records.h"
#include "status.h"

namespace vrb {

struct Lease;

// `awaited`: a thread waits for the answer. Requests that nobody waits for are kept only to be sent again.
struct Request {
  uint64_t number = 0;
  Packet packet;
  bool awaited = false;
  Lease *given_up_by = nullptr;  // asked for more, and waits for it no longer
  std::optional<record::Done> done;
  std::optional<Error> error;
  std::condition_variable answered;

  bool is_answered() const { return done || error; }
};

// Guarded by the book's mutex.
class Requests {
 public:
  // Gives the record its number and keeps it. Throws Error (InvalidArgument) if it is too long for a packet.
  template <class Record>
  std::shared_ptr<Request> add(Record record, bool awaited) {
    record.request = next_number_;
    return keep(FromClient(std::move(record)), awaited);
  }

  // Takes in an answer and returns its request; one to an unknown request was given before, and is dropped.
  std::shared_ptr<Request> answer(const record::Done &done);
  std::shared_ptr<Request> answer(const record::Error &error);

  // Answers all that are waited for with this error, and forgets them.
  void fail_awaited(const Error &error);

  const std::map<uint64_t, std::shared_ptr<Request>> &unanswered() const { return unanswered_; }
  uint64_t sent() const { return next_number_ - 1; }

 private:
  std::shared_ptr<Request> keep(const FromClient &record, bool awaited);
  std::shared_ptr<Request> take(uint64_t number);

  uint64_t next_number_ = 1;
  std::map<uint64_t, std::shared_ptr<Request>> unanswered_;
};

}  // namespace vrb
