// The host device with a hand on it: copies can be held in mid-motion, and calls can be made to fail.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "background.h"
#include "client.h"
#include "host_device.h"
#include "peer.h"

namespace peer {

class TestDevice final : public vrb::Device {
 public:
  void *reserve(uint64_t size_bytes) override { return host_.reserve(size_bytes); }
  void release(void *address, uint64_t size_bytes) override { host_.release(address, size_bytes); }
  vrb::Failure map(Fd frame, void *address, uint64_t size_bytes) override {
    if (maps_until_failure.fetch_sub(1) == 0) return "mmap: it was told to fail";
    return host_.map(std::move(frame), address, size_bytes);
  }
  vrb::Failure unmap(void *address, uint64_t size_bytes) override {
    if (unmap_fails) return "munmap: it was told to fail";
    return host_.unmap(address, size_bytes);
  }
  vrb::Failure protect(void *address, uint64_t size_bytes, bool writable) override {
    if (protects_until_failure.fetch_sub(1) == 0) return "mprotect: it was told to fail";
    return host_.protect(address, size_bytes, writable);
  }
  void *map_arena(Fd file, uint64_t size_bytes) override { return host_.map_arena(std::move(file), size_bytes); }
  void unmap_arena(void *address, uint64_t size_bytes) override { host_.unmap_arena(address, size_bytes); }
  // Smaller than a frame, so that every copy is cut.
  uint64_t registration_bytes() const override { return MIB; }
  vrb::Failure register_host(void *, uint64_t) override { return std::nullopt; }
  void unregister_host(void *) override {}
  std::unique_ptr<vrb::Lane> open_lane() override { return std::make_unique<HeldLane>(*this); }
  vrb::Failure quiesce() override { return quiesce_fails ? vrb::Failure("a capture is under way") : std::nullopt; }

  bool wait_stream(void *) override {
    ++stream_waits;
    return !capturing;
  }

  void hold_copies() {
    const std::lock_guard lock(mutex_);
    held_ = true;
  }
  void let_copies_go() {
    const std::lock_guard lock(mutex_);
    held_ = false;
    changed_.notify_all();
  }
  // Lets the copy in mid-motion go on, and holds the next.
  void let_one_copy_go() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ > 0; });
    ++passes_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return passes_ == 0; });
  }
  // Waits until a copy is in mid-motion.
  void wait_for_copy() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ > 0; });
  }

  std::atomic<int> maps_until_failure{-1};
  std::atomic<int> protects_until_failure{-1};
  std::atomic<bool> unmap_fails{false};
  std::atomic<bool> copy_fails{false};
  std::atomic<bool> quiesce_fails{false};
  std::atomic<bool> capturing{false};
  std::atomic<int> stream_waits{0};

 private:
  class HeldLane final : public vrb::Lane {
   public:
    explicit HeldLane(TestDevice &device) : device_(device), host_(device.host_.open_lane()) {}
    vrb::Failure start_copy(void *to, const void *from, std::size_t size_bytes) override {
      return device_.copy_fails ? vrb::Failure("memcpy: it was told to fail") : host_->start_copy(to, from, size_bytes);
    }
    vrb::Failure start_zero(void *at, std::size_t size_bytes) override { return host_->start_zero(at, size_bytes); }
    vrb::Failure finish() override {
      std::unique_lock lock(device_.mutex_);
      ++device_.waiting_;
      device_.changed_.notify_all();
      device_.changed_.wait(lock, [&] { return !device_.held_ || device_.passes_ > 0; });
      --device_.waiting_;
      if (device_.passes_ > 0) --device_.passes_;
      device_.changed_.notify_all();
      return host_->finish();
    }

   private:
    TestDevice &device_;
    std::unique_ptr<vrb::Lane> host_;
  };

  vrb::HostDevice host_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;
  int waiting_ = 0;
  int passes_ = 0;
};

// A client on such a device, which it owns, like all that belongs to a client, until the process ends.
struct Rig {
  explicit Rig(Peer &peer) {
    auto owned = std::make_unique<TestDevice>();
    device = owned.get();
    Background connecting([&] {
      const vrb::ConnectOptions options{peer.path(), "test", "host", "0.1.0", 5000};
      client = reinterpret_cast<vrb_client *>(&vrb::Client::connect(options, std::move(owned)));
    });
    peer.accept();
    peer.welcome();
    connecting.join();
  }

  TestDevice *device = nullptr;
  vrb_client *client = nullptr;
};

}  // namespace peer
