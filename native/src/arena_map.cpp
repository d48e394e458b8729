#include "arena_map.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace vrb {

uint64_t ArenaMap::piece_bytes(const File &file) const {
  const uint64_t most = device_.registration_bytes();
  return most == 0 ? file.size_bytes : most;
}

void ArenaMap::add(uint64_t file, Fd fd, uint64_t size_bytes) {
  if (size_bytes == 0 || files_.count(file) != 0) return;
  void *address = device_.map_arena(std::move(fd), size_bytes);
  // A file that can't be mapped is one that no copy finds; each of them says so to the daemon.
  if (address == nullptr) return;
  File entry{static_cast<char *>(address), size_bytes, 0, {}};
  const uint64_t each = piece_bytes(entry);
  const bool unneeded = device_.registration_bytes() == 0;
  entry.registered.assign((size_bytes + each - 1) / each, unneeded);
  files_.emplace(file, std::move(entry));
}

void ArenaMap::ensure_registered(File &file, std::size_t piece) {
  if (file.registered[piece]) return;
  const uint64_t each = piece_bytes(file);
  const uint64_t begin = piece * each;
  const uint64_t size_bytes = std::min(each, file.size_bytes - begin);
  // Copies from and to memory that could not be registered are slow, and right all the same.
  file.registered[piece] = !device_.register_host(file.address + begin, size_bytes);
}

std::optional<std::vector<ArenaMap::Piece>> ArenaMap::cut(uint64_t file, uint64_t offset_bytes, uint64_t size_bytes) {
  const auto found = files_.find(file);
  if (found == files_.end()) return std::nullopt;
  File &entry = found->second;
  if (offset_bytes > entry.size_bytes || size_bytes > entry.size_bytes - offset_bytes) return std::nullopt;
  const uint64_t each = piece_bytes(entry);
  std::vector<Piece> pieces;
  while (size_bytes > 0) {
    const uint64_t piece = offset_bytes / each;
    const uint64_t now_bytes = std::min(size_bytes, (piece + 1) * each - offset_bytes);
    ensure_registered(entry, piece);
    pieces.push_back({entry.address + offset_bytes, now_bytes});
    offset_bytes += now_bytes;
    size_bytes -= now_bytes;
  }
  return pieces;
}

// An old size of 0 makes mremap(2) map the pages of a shared mapping a second time.
char *ArenaMap::show(const std::vector<Part> &parts, Failure &failure) {
  uint64_t size_bytes = 0;
  for (const Part &part : parts) {
    size_bytes += part.size_bytes;
    const auto found = files_.find(part.file);
    const bool fits = found != files_.end() && part.offset_bytes <= found->second.size_bytes &&
                      part.size_bytes <= found->second.size_bytes - part.offset_bytes;
    if (fits) continue;
    failure = "arena: file " + std::to_string(part.file) + " has no such extent here";
    return nullptr;
  }
  void *base = ::mmap(nullptr, size_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  bool made = base != MAP_FAILED;
  char *at = static_cast<char *>(base);
  for (auto part = parts.begin(); made && part != parts.end(); ++part) {
    char *from = files_.at(part->file).address + part->offset_bytes;
    made = ::mremap(from, 0, part->size_bytes, MREMAP_MAYMOVE | MREMAP_FIXED, at) != MAP_FAILED;
    at += part->size_bytes;
  }
  made = made && ::mprotect(base, size_bytes, PROT_READ) == 0 && ::madvise(base, size_bytes, MADV_DONTFORK) == 0;
  if (!made) {
    failure = std::string("a view of the arena: ") + std::strerror(errno);
    if (base != MAP_FAILED) ::munmap(base, size_bytes);
    return nullptr;
  }
  for (const Part &part : parts) use(part.file);
  return static_cast<char *>(base);
}

void ArenaMap::use(uint64_t file) { ++files_.at(file).users; }

void ArenaMap::done_with(uint64_t file) { --files_.at(file).users; }

bool ArenaMap::let_go(uint64_t file) {
  const auto found = files_.find(file);
  if (found == files_.end()) return true;
  File &entry = found->second;
  if (entry.users > 0) return false;
  const uint64_t each = piece_bytes(entry);
  for (std::size_t i = 0; i < entry.registered.size(); ++i) {
    if (entry.registered[i]) device_.unregister_host(entry.address + i * each);
  }
  device_.unmap_arena(entry.address, entry.size_bytes);
  files_.erase(found);
  return true;
}

void ArenaMap::let_go_of_all() {
  std::vector<uint64_t> numbers;
  for (const auto &[number, entry] : files_) numbers.push_back(number);
  for (const uint64_t number : numbers) let_go(number);
}

bool ArenaMap::register_one() {
  bool registered = false;
  for (auto &[number, entry] : files_) {
    for (std::size_t i = 0; i < entry.registered.size(); ++i) {
      if (entry.registered[i]) continue;
      if (registered) return true;
      ensure_registered(entry, i);
      // A piece that can't be registered now is left to the copy that needs it.
      if (!entry.registered[i]) return false;
      registered = true;
    }
  }
  return false;
}

}  // namespace vrb
