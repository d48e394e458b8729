// The daemon's arena files as this process sees them: each mapped once, and registered with the device in pieces.
//
// A registration stalls the process's launches for as long as the call takes, so it is done in pieces of at most
// `Device::registration_bytes`, with gaps that the agent keeps. A copy across the border of two registrations fails, so
// copies are cut at the borders. Used by the agent alone.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "device.h"

namespace vrb {

class ArenaMap {
 public:
  struct Piece {
    char *address;
    uint64_t size_bytes;
  };

  // A part of a file, in whole pages.
  struct Part {
    uint64_t file;
    uint64_t offset_bytes;
    uint64_t size_bytes;
  };

  explicit ArenaMap(Device &device) : device_(device) {}

  // Maps a file; a file that is mapped already stays as it is. Ownership: takes the fd.
  void add(uint64_t file, Fd fd, uint64_t size_bytes);

  // Returns the pieces of an extent, registered, or nothing if there is no such extent here.
  std::optional<std::vector<Piece>> cut(uint64_t file, uint64_t offset_bytes, uint64_t size_bytes);

  // Maps these parts once more, side by side and read-only; each of their files is used from then on. Returns the address,
  // to be unmapped by whoever has it, or null with what failed.
  char *show(const std::vector<Part> &parts, Failure &failure);

  // While a file is used, it stays mapped.
  void use(uint64_t file);
  void done_with(uint64_t file);

  // Unmaps the file as soon as nobody uses it. Returns whether it is gone.
  bool let_go(uint64_t file);

  // Unmaps all files that nobody uses.
  void let_go_of_all();

  // Registers one more piece, ahead of need. Returns whether there is more to register.
  bool register_one();

 private:
  struct File {
    char *address;
    uint64_t size_bytes;
    uint32_t users = 0;
    std::vector<bool> registered;
  };

  uint64_t piece_bytes(const File &file) const;
  void ensure_registered(File &file, std::size_t piece);

  Device &device_;
  std::map<uint64_t, File> files_;
};

}  // namespace vrb
