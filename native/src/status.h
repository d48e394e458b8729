// What can go wrong and is expected, on its way to the C border: a status, the error's class name and its fields.
//
// `Error` is thrown by calls of the application's threads and caught in c_api.cpp. The agent's thread throws none of its
// own: what fails there is told to the daemon as a `failure`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>

#include "vrambroker/vrambroker.h"

namespace vrb {

class Error : public std::exception {
 public:
  Error(vrb_status status, std::string name, std::string message, std::string subject = {}, std::string detail = {});

  const char *what() const noexcept override { return message.c_str(); }

  vrb_status status;
  std::string name;     // the error's class, as in broker/core/errors.py
  std::string message;  // one line for a person
  std::string subject;  // the tag or scope that it is about
  std::string detail;   // a serialized vrambroker.v1.ErrorDetail, if the daemon sent one
};

Error invalid_argument(const std::string &message, const std::string &subject = {});
Error wrong_state(const std::string &message, const std::string &subject = {});
Error not_quiescent(const std::string &tag, const std::string &scope);
Error unknown_tag(const std::string &tag);
Error unavailable(const std::string &path, const std::string &why);
Error lost(const std::string &why);
Error no_answer(uint32_t waited_ms);
Error entered_too_late(const std::string &tag, uint32_t waited_ms);
Error driver_failed(const std::string &failure);
Error version_mismatch(const std::string &message);
Error forked();

// Whether there was no memory to be had: the daemon had none, or the driver less than the ledger says.
bool is_out_of_memory(const Error &error);

// Writes a text into a field of the C border, cut to its length.
template <std::size_t N>
void put_text(char (&into)[N], const std::string &text) noexcept {
  const std::size_t length = text.size() < N ? text.size() : N - 1;
  text.copy(into, length);
  into[length] = '\0';
}

// Writes the error into what the caller of the C border gave, cut to its fields. `into` may be null.
void fill(vrb_error *into, const Error &error) noexcept;

}  // namespace vrb
