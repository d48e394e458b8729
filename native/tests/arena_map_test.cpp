// The arena: copies are cut at the borders of registrations, and each piece is registered once, before it is used.

#include <sys/mman.h>

#include <map>

#include "arena_map.h"
#include "check.h"
#include "host_device.h"

using namespace vrb;

namespace {

// The host device, with books about registrations, as a device with limits on them would demand.
class Registering final : public Device {
 public:
  void *reserve(uint64_t size_bytes) override { return host_.reserve(size_bytes); }
  void release(void *address, uint64_t size_bytes) override { host_.release(address, size_bytes); }
  Failure map(Fd frame, void *address, uint64_t size_bytes) override { return host_.map(std::move(frame), address, size_bytes); }
  Failure unmap(void *address, uint64_t size_bytes) override { return host_.unmap(address, size_bytes); }
  Failure protect(void *, uint64_t, bool) override { return std::nullopt; }
  void *map_arena(Fd file, uint64_t size_bytes) override { return base = host_.map_arena(std::move(file), size_bytes); }
  void unmap_arena(void *address, uint64_t size_bytes) override { host_.unmap_arena(address, size_bytes); }
  uint64_t registration_bytes() const override { return 4 * MIB; }
  Failure register_host(void *address, uint64_t size_bytes) override {
    const uint64_t offset = static_cast<uint64_t>(static_cast<char *>(address) - static_cast<char *>(base));
    CHECK(registered.emplace(offset, size_bytes).second);
    return std::nullopt;
  }
  void unregister_host(void *address) override {
    CHECK_EQ(registered.erase(static_cast<uint64_t>(static_cast<char *>(address) - static_cast<char *>(base))), std::size_t{1});
  }
  std::unique_ptr<Lane> open_lane() override { return host_.open_lane(); }
  Failure quiesce() override { return std::nullopt; }

  void *base = nullptr;
  std::map<uint64_t, uint64_t> registered;

 private:
  HostDevice host_;
};

Fd make_file(uint64_t size_bytes) {
  Fd file(::memfd_create("arena", MFD_CLOEXEC));
  CHECK(::ftruncate(file.get(), static_cast<off_t>(size_bytes)) == 0);
  return file;
}

uint64_t offset_in(const Registering &device, const ArenaMap::Piece &piece) {
  return static_cast<uint64_t>(piece.address - static_cast<char *>(device.base));
}

}  // namespace

TEST(arena_map, cuts_at_the_borders_of_registrations) {
  Registering device;
  ArenaMap arena(device);
  arena.add(9, make_file(18 * MIB), 18 * MIB);
  CHECK_EQ(reinterpret_cast<uintptr_t>(device.base) % (2 * MIB), uintptr_t{0});
  const auto pieces = arena.cut(9, 2 * MIB, 8 * MIB);
  CHECK_EQ(pieces->size(), std::size_t{3});
  CHECK_EQ(offset_in(device, (*pieces)[0]), 2 * MIB);
  CHECK_EQ((*pieces)[0].size_bytes, 2 * MIB);
  CHECK_EQ((*pieces)[1].size_bytes, 4 * MIB);
  CHECK_EQ((*pieces)[2].size_bytes, 2 * MIB);
  CHECK_EQ(device.registered.size(), std::size_t{3});
  CHECK(arena.cut(9, 16 * MIB, 2 * MIB)->size() == 1);
  CHECK_EQ(device.registered.at(16 * MIB), 2 * MIB);
}

TEST(arena_map, registers_the_rest_one_piece_at_a_time) {
  Registering device;
  ArenaMap arena(device);
  arena.add(9, make_file(16 * MIB), 16 * MIB);
  CHECK(arena.cut(9, 4 * MIB, MIB).has_value());
  CHECK(arena.register_one());
  CHECK_EQ(device.registered.size(), std::size_t{2});
  CHECK(arena.register_one());
  CHECK(!arena.register_one());
  CHECK_EQ(device.registered.size(), std::size_t{4});
  CHECK(!arena.register_one());
}

TEST(arena_map, refuses_what_is_not_there) {
  Registering device;
  ArenaMap arena(device);
  arena.add(9, make_file(4 * MIB), 4 * MIB);
  CHECK(!arena.cut(8, 0, MIB));
  CHECK(!arena.cut(9, 4 * MIB, MIB));
  CHECK(!arena.cut(9, 3 * MIB, 2 * MIB));
  CHECK(!arena.cut(9, ~uint64_t{0}, 2));
  // A file shorter than it was said to be would answer a copy with SIGBUS.
  arena.add(10, make_file(MIB), 4 * MIB);
  CHECK(!arena.cut(10, 0, MIB));
}

TEST(arena_map, lets_go_when_nobody_uses_it) {
  Registering device;
  ArenaMap arena(device);
  arena.add(9, make_file(8 * MIB), 8 * MIB);
  CHECK(arena.cut(9, 0, 8 * MIB).has_value());
  arena.use(9);
  CHECK(!arena.let_go(9));
  arena.done_with(9);
  CHECK(arena.let_go(9));
  CHECK(device.registered.empty());
  CHECK(!arena.cut(9, 0, MIB));
  CHECK(arena.let_go(9));
}
