#include "status.h"

#include <cstring>
#include <utility>

namespace vrb {

Error::Error(vrb_status status_, std::string name_, std::string message_, std::string subject_, std::string detail_)
    : status(status_),
      name(std::move(name_)),
      message(std::move(message_)),
      subject(std::move(subject_)),
      detail(std::move(detail_)) {}

Error invalid_argument(const std::string &message, const std::string &subject) {
  return {VRB_INVALID, "InvalidArgument", message, subject};
}

Error wrong_state(const std::string &message, const std::string &subject) {
  return {VRB_WRONG_STATE, "WrongState", message, subject};
}

Error not_quiescent(const std::string &tag, const std::string &scope) {
  return {VRB_NOT_QUIESCENT, "NotQuiescent", "tag " + tag + " is in use by scope " + scope, scope};
}

Error unknown_tag(const std::string &tag) {
  return {VRB_UNKNOWN_TAG, "UnknownTag", "this client has nothing under the tag " + tag, tag};
}

Error unavailable(const std::string &path, const std::string &why) {
  return {VRB_UNAVAILABLE, "BrokerUnavailable", "no daemon answers at " + path + ": " + why, path};
}

Error lost(const std::string &why) {
  return {VRB_LOST, "BrokerLost", "the connection to the daemon is gone: " + why + "; when there is one again, connect anew"};
}

Error no_answer(uint32_t waited_ms) {
  return {VRB_REFUSED, "WaitExpired", "the daemon has not answered within " + std::to_string(waited_ms) + " ms"};
}

Error entered_too_late(const std::string &tag, uint32_t waited_ms) {
  return {VRB_REFUSED, "WaitExpired", "tag " + tag + " was paused, or about to be, for all of " + std::to_string(waited_ms) + " ms"};
}

Error driver_failed(const std::string &failure) {
  return {VRB_DEVICE, "DriverFailed", failure};
}

Error version_mismatch(const std::string &message) {
  return {VRB_VERSION, "VersionMismatch", message};
}

Error forked() {
  return {VRB_FORKED, "WrongState", "this process was forked from the one that connected; connect anew"};
}

bool is_out_of_memory(const Error &error) {
  return error.name == "OutOfDeviceMemory" ||
         (error.name == "DriverFailed" && error.message.find("CUDA_ERROR_OUT_OF_MEMORY") != std::string::npos);
}

void fill(vrb_error *into, const Error &error) noexcept {
  if (into == nullptr) return;
  put_text(into->name, error.name);
  put_text(into->message, error.message);
  put_text(into->subject, error.subject);
  // A detail that does not fit is left out whole: half a message can't be parsed.
  const bool fits = error.detail.size() <= sizeof into->detail;
  into->detail_size = fits ? static_cast<uint32_t>(error.detail.size()) : 0;
  if (fits) std::memcpy(into->detail, error.detail.data(), error.detail.size());
}

}  // namespace vrb
