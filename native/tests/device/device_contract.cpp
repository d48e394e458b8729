// What every device must do, whichever it is: `device_contract host`, `device_contract cuda`.
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "copier.h"
#include "frames.h"
#include "status.h"
#include "wake.h"

namespace {

using test::must;
using vrb::Fd;
using vrb::Frame;
using vrb::MIB;

constexpr uint64_t FRAME_BYTES = 4 * MIB;

struct Bench {
  vrb::Device &device;
  test::FrameSource &source;
};

Fd copy_of(const Fd &fd) { return Fd(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0)); }

// Addresses, given back at the end of a test; what is still mapped there is unmapped first, frame by frame.
class Room {
 public:
  Room(vrb::Device &device, uint64_t size_bytes) : device_(device), size_bytes_(size_bytes) {
    address = static_cast<char *>(device.reserve(size_bytes));
    CHECK(address != nullptr);
  }
  ~Room() {
    for (const auto &[at, bytes] : mapped_) device_.unmap(at, bytes);
    device_.release(address, size_bytes_);
  }
  Room(const Room &) = delete;
  Room &operator=(const Room &) = delete;

  void map(Fd frame, uint64_t offset_bytes) {
    must(device_.map(std::move(frame), address + offset_bytes, FRAME_BYTES));
    mapped_.emplace_back(address + offset_bytes, FRAME_BYTES);
  }
  void owns(uint64_t offset_bytes) { mapped_.emplace_back(address + offset_bytes, FRAME_BYTES); }
  void unmap_last() {
    must(device_.unmap(mapped_.back().first, mapped_.back().second));
    mapped_.pop_back();
  }

  char *address;

 private:
  vrb::Device &device_;
  uint64_t size_bytes_;
  std::vector<std::pair<char *, uint64_t>> mapped_;
};

// Host memory as the arena has it, registered in pieces of 2 MiB so that borders are met.
class Parking {
 public:
  static constexpr uint64_t PIECE_BYTES = 2 * MIB;

  Parking(vrb::Device &device, uint64_t size_bytes) : device_(device), size_bytes_(size_bytes) {
    Fd file(::memfd_create("test-arena", MFD_CLOEXEC));
    CHECK(file && ::ftruncate(file.get(), static_cast<off_t>(size_bytes)) == 0);
    address = static_cast<char *>(device.map_arena(std::move(file), size_bytes));
    CHECK(address != nullptr);
    CHECK(reinterpret_cast<uintptr_t>(address) % (2 * MIB) == 0);
    if (device.registration_bytes() == 0) return;
    for (uint64_t at = 0; at < size_bytes; at += PIECE_BYTES) must(device.register_host(address + at, PIECE_BYTES));
  }
  ~Parking() {
    for (uint64_t at = 0; device_.registration_bytes() > 0 && at < size_bytes_; at += PIECE_BYTES) {
      device_.unregister_host(address + at);
    }
    device_.unmap_arena(address, size_bytes_);
  }
  Parking(const Parking &) = delete;
  Parking &operator=(const Parking &) = delete;

  void fill(unsigned seed) {
    for (uint64_t i = 0; i < size_bytes_; ++i) address[i] = byte_at(i, seed);
  }
  bool holds(uint64_t from_bytes, uint64_t size_bytes, unsigned seed) const {
    for (uint64_t i = from_bytes; i < from_bytes + size_bytes; ++i) {
      if (address[i] != byte_at(i - from_bytes, seed)) return false;
    }
    return true;
  }
  bool is_zero() const {
    for (uint64_t i = 0; i < size_bytes_; ++i) {
      if (address[i] != 0) return false;
    }
    return true;
  }

  char *address;

 private:
  static char byte_at(uint64_t i, unsigned seed) { return static_cast<char>(i * 131 + (i >> 12) + seed); }

  vrb::Device &device_;
  uint64_t size_bytes_;
};

// Copies in pieces that keep to the borders of the parking, and waits.
void copy(vrb::Lane &lane, char *to, const char *from, uint64_t size_bytes) {
  for (uint64_t at = 0; at < size_bytes; at += Parking::PIECE_BYTES) {
    must(lane.start_copy(to + at, from + at, std::min(Parking::PIECE_BYTES, size_bytes - at)));
  }
  must(lane.finish());
}

void reserves_aligned_addresses(Bench &on) {
  Room one(on.device, FRAME_BYTES), other(on.device, vrb::GIB * 64);
  CHECK(reinterpret_cast<uintptr_t>(one.address) % (2 * MIB) == 0);
  CHECK(reinterpret_cast<uintptr_t>(other.address) % (2 * MIB) == 0);
  CHECK(one.address + FRAME_BYTES <= other.address || other.address + vrb::GIB * 64 <= one.address);
}

void refuses_addresses_that_no_machine_has(Bench &on) {
  CHECK(on.device.reserve(uint64_t{1} << 62) == nullptr);
  CHECK(on.device.reserve(~uint64_t{0} - 2 * MIB + 1) == nullptr);
}

void shows_a_new_frame_as_zero(Bench &on) {
  Room room(on.device, FRAME_BYTES);
  room.map(on.source.make(FRAME_BYTES), 0);
  Parking parking(on.device, FRAME_BYTES);
  parking.fill(1);
  copy(*on.device.open_lane(), parking.address, room.address, FRAME_BYTES);
  CHECK(parking.is_zero());
}

void keeps_contents_with_the_frame(Bench &on) {
  const Fd frame = on.source.make(FRAME_BYTES);
  Room here(on.device, FRAME_BYTES), there(on.device, FRAME_BYTES);
  Parking parking(on.device, FRAME_BYTES);
  const auto lane = on.device.open_lane();
  parking.fill(2);
  here.map(copy_of(frame), 0);
  copy(*lane, here.address, parking.address, FRAME_BYTES);
  here.unmap_last();
  there.map(copy_of(frame), 0);
  std::memset(parking.address, 0, FRAME_BYTES);
  copy(*lane, parking.address, there.address, FRAME_BYTES);
  CHECK(parking.holds(0, FRAME_BYTES, 2));
}

void swaps_the_frame_under_an_address(Bench &on) {
  Room room(on.device, FRAME_BYTES);
  Parking parking(on.device, FRAME_BYTES);
  const auto lane = on.device.open_lane();
  for (int round = 0; round < 3; ++round) {
    room.map(on.source.make(FRAME_BYTES), 0);
    copy(*lane, parking.address, room.address, FRAME_BYTES);
    CHECK(parking.is_zero());
    parking.fill(3);
    copy(*lane, room.address, parking.address, FRAME_BYTES);
    room.unmap_last();
    std::memset(parking.address, 0, FRAME_BYTES);
  }
}

void maps_a_run_as_one_range(Bench &on) {
  Room room(on.device, 3 * FRAME_BYTES);
  std::vector<Frame> frames;
  for (int i = 0; i < 3; ++i) frames.push_back({on.source.make(FRAME_BYTES), FRAME_BYTES});
  must(on.device.map_run(std::move(frames), room.address));
  for (uint64_t i = 0; i < 3; ++i) room.owns(i * FRAME_BYTES);
  Parking parking(on.device, FRAME_BYTES);
  const auto lane = on.device.open_lane();
  parking.fill(4);
  // Across the border of two frames, which no copy must mind.
  copy(*lane, room.address + FRAME_BYTES / 2, parking.address, FRAME_BYTES);
  std::memset(parking.address, 0, FRAME_BYTES);
  copy(*lane, parking.address, room.address + FRAME_BYTES / 2, FRAME_BYTES);
  CHECK(parking.holds(0, FRAME_BYTES, 4));
}

void maps_all_of_a_run_or_nothing(Bench &on) {
  Room room(on.device, 3 * FRAME_BYTES);
  const int before = test::open_fds();
  for (int bad = 0; bad < 3; ++bad) {
    std::vector<Frame> frames;
    for (int i = 0; i < 3; ++i) {
      Fd fd = i == bad ? Fd(::open("/dev/null", O_RDWR | O_CLOEXEC)) : on.source.make(FRAME_BYTES);
      frames.push_back({std::move(fd), FRAME_BYTES});
    }
    CHECK(on.device.map_run(std::move(frames), room.address).has_value());
  }
  CHECK(test::open_fds() == before);
  // What nothing is mapped at can be mapped.
  for (uint64_t i = 0; i < 3; ++i) room.map(on.source.make(FRAME_BYTES), i * FRAME_BYTES);
}

void names_the_call_that_failed(Bench &on) {
  Room room(on.device, FRAME_BYTES);
  const vrb::Failure failure = on.device.map(Fd(::open("/dev/null", O_RDWR | O_CLOEXEC)), room.address, FRAME_BYTES);
  CHECK(failure && failure->find(": ") != std::string::npos);
  CHECK(on.device.map(Fd(), room.address, FRAME_BYTES).has_value());
  std::printf("     a file that is no frame: %s\n", failure->c_str());
}

void takes_the_fd(Bench &on) {
  Room room(on.device, FRAME_BYTES);
  Fd frame = on.source.make(FRAME_BYTES);
  const int number = frame.get();
  room.map(std::move(frame), 0);
  CHECK(::fcntl(number, F_GETFD) == -1);
}

void zeroes(Bench &on) {
  Room room(on.device, FRAME_BYTES);
  room.map(on.source.make(FRAME_BYTES), 0);
  Parking parking(on.device, FRAME_BYTES);
  const auto lane = on.device.open_lane();
  parking.fill(5);
  copy(*lane, room.address, parking.address, FRAME_BYTES);
  must(lane->start_zero(room.address, FRAME_BYTES));
  copy(*lane, parking.address, room.address, FRAME_BYTES);
  CHECK(parking.is_zero());
}

void copies_in_order(Bench &on) {
  Room room(on.device, FRAME_BYTES);
  room.map(on.source.make(FRAME_BYTES), 0);
  Parking first(on.device, FRAME_BYTES), second(on.device, FRAME_BYTES), result(on.device, FRAME_BYTES);
  first.fill(6);
  second.fill(7);
  const auto lane = on.device.open_lane();
  for (int round = 0; round < 8; ++round) {
    for (const Parking *from : {&first, &second}) {
      for (uint64_t at = 0; at < FRAME_BYTES; at += Parking::PIECE_BYTES) {
        must(lane->start_copy(room.address + at, from->address + at, Parking::PIECE_BYTES));
      }
    }
  }
  copy(*lane, result.address, room.address, FRAME_BYTES);
  CHECK(result.holds(0, FRAME_BYTES, 7));
}

void copies_both_ways_at_once(Bench &on) {
  Room room(on.device, 2 * FRAME_BYTES);
  Parking in(on.device, FRAME_BYTES), out(on.device, FRAME_BYTES);
  room.map(on.source.make(FRAME_BYTES), 0);
  room.map(on.source.make(FRAME_BYTES), FRAME_BYTES);
  in.fill(8);
  copy(*on.device.open_lane(), room.address, in.address, FRAME_BYTES);
  std::string wrong[2];
  const auto work = [&](std::string &why, char *to, const char *from) {
    try {
      const auto lane = on.device.open_lane();
      for (int round = 0; round < 16; ++round) copy(*lane, to, from, FRAME_BYTES);
    } catch (const std::exception &error) {
      why = error.what();
    }
  };
  std::thread outwards(work, std::ref(wrong[0]), out.address, room.address);
  std::thread inwards(work, std::ref(wrong[1]), room.address + FRAME_BYTES, in.address);
  outwards.join();
  inwards.join();
  CHECK(wrong[0].empty() && wrong[1].empty());
  CHECK(out.holds(0, FRAME_BYTES, 8));
  std::memset(out.address, 0, FRAME_BYTES);
  copy(*on.device.open_lane(), out.address, room.address + FRAME_BYTES, FRAME_BYTES);
  CHECK(out.holds(0, FRAME_BYTES, 8));
}

// Larger than a piece of the copier's, and across the borders of registrations.
void copies_in_the_background_what_stays_mapped(Bench &on) {
  constexpr uint64_t SIZE_BYTES = 10 * FRAME_BYTES;
  Room room(on.device, SIZE_BYTES);
  for (uint64_t at = 0; at < SIZE_BYTES; at += FRAME_BYTES) room.map(on.source.make(FRAME_BYTES), at);
  Parking first(on.device, SIZE_BYTES), result(on.device, SIZE_BYTES);
  first.fill(3);
  copy(*on.device.open_lane(), room.address, first.address, SIZE_BYTES);
  vrb::Wake wake;
  vrb::Copier copier(on.device, wake);
  std::vector<vrb::Copier::Chunk> chunks;
  for (uint64_t at = 0; at < SIZE_BYTES; at += Parking::PIECE_BYTES) {
    chunks.push_back({result.address + at, room.address + at, Parking::PIECE_BYTES});
  }
  copier.submit_background({1, std::move(chunks)});
  pollfd rung{wake.fd(), POLLIN, 0};
  CHECK(::poll(&rung, 1, 10'000) == 1);
  const auto finished = copier.take_finished();
  CHECK(finished.size() == 1 && finished.front().ticket == 1);
  must(finished.front().failure);
  copier.stop();
  CHECK(result.holds(0, SIZE_BYTES, 3));
}

void finishes_a_lane_that_was_never_used(Bench &on) { must(on.device.open_lane()->finish()); }

void is_quiet_after_quiesce(Bench &on) {
  Room room(on.device, FRAME_BYTES);
  room.map(on.source.make(FRAME_BYTES), 0);
  Parking parking(on.device, FRAME_BYTES);
  parking.fill(9);
  const auto lane = on.device.open_lane();
  for (uint64_t at = 0; at < FRAME_BYTES; at += Parking::PIECE_BYTES) {
    must(lane->start_copy(room.address + at, parking.address + at, Parking::PIECE_BYTES));
  }
  must(on.device.quiesce());
  std::memset(parking.address, 0, FRAME_BYTES);
  copy(*on.device.open_lane(), parking.address, room.address, FRAME_BYTES);
  CHECK(parking.holds(0, FRAME_BYTES, 9));
}

void refuses_an_arena_file_that_is_too_short(Bench &on) {
  Fd file(::memfd_create("test-arena", MFD_CLOEXEC));
  CHECK(::ftruncate(file.get(), static_cast<off_t>(2 * MIB)) == 0);
  CHECK(on.device.map_arena(std::move(file), 4 * MIB) == nullptr);
}

void says_no_to_devices_that_are_none(Bench &) {
  for (const char *name : {"", "hosts", "gpu", "cuda:", "cuda:x", "cuda:99999999999", "cuda:999", "GPU-", "GPU-1234"}) {
    bool refused = false;
    try {
      vrb::make_device(name);
    } catch (const vrb::Error &) {
      refused = true;
    }
    CHECK(refused);
  }
}

void protects_what_lies_side_by_side_and_back(Bench &on) {
  Room room(on.device, 2 * FRAME_BYTES);
  for (uint64_t at = 0; at < 2 * FRAME_BYTES; at += FRAME_BYTES) room.map(on.source.make(FRAME_BYTES), at);
  Parking parking(on.device, FRAME_BYTES);
  const auto lane = on.device.open_lane();
  parking.fill(10);
  copy(*lane, room.address + FRAME_BYTES, parking.address, FRAME_BYTES);
  must(on.device.protect(room.address, 2 * FRAME_BYTES, false));
  std::memset(parking.address, 0, FRAME_BYTES);
  copy(*lane, parking.address, room.address + FRAME_BYTES, FRAME_BYTES);
  CHECK(parking.holds(0, FRAME_BYTES, 10));
  CHECK(!on.source.is_writable(room.address) && !on.source.is_writable(room.address + FRAME_BYTES));
  must(on.device.protect(room.address, 2 * FRAME_BYTES, true));
  CHECK(on.source.is_writable(room.address) && on.source.is_writable(room.address + FRAME_BYTES));
  parking.fill(11);
  copy(*lane, room.address, parking.address, FRAME_BYTES);
  std::memset(parking.address, 0, FRAME_BYTES);
  copy(*lane, parking.address, room.address, FRAME_BYTES);
  CHECK(parking.holds(0, FRAME_BYTES, 11));
}

void unmaps_what_is_protected(Bench &on) {
  Room room(on.device, FRAME_BYTES);
  room.map(on.source.make(FRAME_BYTES), 0);
  must(on.device.protect(room.address, FRAME_BYTES, false));
  room.unmap_last();
  room.map(on.source.make(FRAME_BYTES), 0);
  CHECK(on.source.is_writable(room.address));
}

void leaves_no_fd_behind(Bench &on) {
  const auto once = [&] {
    Room room(on.device, FRAME_BYTES);
    room.map(on.source.make(FRAME_BYTES), 0);
    Parking parking(on.device, FRAME_BYTES);
    copy(*on.device.open_lane(), parking.address, room.address, FRAME_BYTES);
  };
  once();  // the driver may open files of its own the first time
  const int before = test::open_fds();
  for (int round = 0; round < 5; ++round) once();
  CHECK(test::open_fds() == before);
}

}  // namespace

int main(int count, char **arguments) {
  const std::string name = count > 1 ? arguments[1] : "host";
  std::unique_ptr<vrb::Device> device;
  try {
    device = vrb::make_device(name);
  } catch (const vrb::Error &error) {
    std::printf("SKIPPED: there is no device %s here: %s\n", name.c_str(), error.what());
    return test::SKIPPED;
  }
  std::unique_ptr<test::FrameSource> source;
  if (device->dlpack_device().type == vrb::DLPACK_CUDA) {
    source = std::make_unique<test::CudaSource>();
  } else {
    source = std::make_unique<test::MemfdSource>();
  }
  Bench on{*device, *source};
  std::vector<test::Test> tests;
#define ADD(test) tests.push_back({#test, [&] { test(on); }})
  ADD(reserves_aligned_addresses);
  ADD(refuses_addresses_that_no_machine_has);
  ADD(shows_a_new_frame_as_zero);
  ADD(keeps_contents_with_the_frame);
  ADD(swaps_the_frame_under_an_address);
  ADD(maps_a_run_as_one_range);
  ADD(maps_all_of_a_run_or_nothing);
  ADD(names_the_call_that_failed);
  ADD(takes_the_fd);
  ADD(zeroes);
  ADD(copies_in_order);
  ADD(copies_both_ways_at_once);
  ADD(copies_in_the_background_what_stays_mapped);
  ADD(finishes_a_lane_that_was_never_used);
  ADD(is_quiet_after_quiesce);
  ADD(refuses_an_arena_file_that_is_too_short);
  ADD(says_no_to_devices_that_are_none);
  ADD(protects_what_lies_side_by_side_and_back);
  ADD(unmaps_what_is_protected);
  ADD(leaves_no_fd_behind);
#undef ADD
  return test::run_all(tests);
}
