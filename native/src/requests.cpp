#include "requests.h"

#include <stdexcept>
#include <utility>

namespace vrb {

std::shared_ptr<Request> Requests::keep(const FromClient &record, bool awaited) {
  auto request = std::make_shared<Request>();
  request->number = next_number_;
  request->awaited = awaited;
  try {
    request->packet = encode(record);
  } catch (const std::length_error &error) {
    throw invalid_argument(error.what());
  }
  unanswered_.emplace(request->number, request);
  ++next_number_;
  return request;
}

std::shared_ptr<Request> Requests::take(uint64_t number) {
  const auto found = unanswered_.find(number);
  if (found == unanswered_.end()) return nullptr;
  auto request = found->second;
  unanswered_.erase(found);
  return request;
}

std::shared_ptr<Request> Requests::answer(const record::Done &done) {
  const auto request = take(done.request);
  if (request == nullptr) return request;
  request->done = done;
  request->answered.notify_all();
  return request;
}

std::shared_ptr<Request> Requests::answer(const record::Error &error) {
  const auto request = take(error.request);
  if (request == nullptr) return request;
  request->error = Error(VRB_REFUSED, error.error, error.message, {}, error.detail.data);
  request->answered.notify_all();
  return request;
}

void Requests::fail_awaited(const Error &error) {
  for (auto it = unanswered_.begin(); it != unanswered_.end();) {
    if (!it->second->awaited) {
      ++it;
      continue;
    }
    it->second->error = error;
    it->second->answered.notify_all();
    it = unanswered_.erase(it);
  }
}

}  // namespace vrb
