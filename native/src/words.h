// Words from outside: environment variables, and what can be made of them for the broker.
#pragma once

#include <cstdlib>
#include <string>

#include "records.h"

namespace vrb {

// Returns an environment variable; empty where it is not set.
inline std::string variable(const char *name) {
  const char *const value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

// Returns the text as a name or tag can be written: with a `_` for each character that none has, and no longer than one is.
inline std::string as_word(std::string text, std::size_t length_max = 64) {
  text.resize(text.size() < length_max ? text.size() : length_max);
  for (char &letter : text) {
    if (!is_word(std::string(1, letter))) letter = '_';
  }
  return text;
}

}  // namespace vrb
