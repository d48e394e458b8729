// Where the broker of a GPU is, for calls that come before Python has said anything: the rules are client/discovery.py's.
#pragma once

#include <optional>
#include <string>

namespace vrb {

struct Endpoint {
  std::string device;  // as its folder is called
  std::string path;    // of the handle socket
};

// Returns the broker of the device that CUDA's runtime counts as `ordinal` in this process: the GPU of that number, or the
// stand-in in that place among those that there are. Nothing where there is none, or where VRAMBROKER_DEVICE names another.
std::optional<Endpoint> find_endpoint(int ordinal);

// What this process is called at a broker: VRAMBROKER_NAME, else the program's own name.
std::string session_name();

}  // namespace vrb
