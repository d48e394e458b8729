// For tests in Python: memory is allocated and freed on a thread of C++ while Python holds the GIL, and the times tell that
// it was not waited for.
//
// probe_start(lease, client, rounds, size) starts the thread; probe_sleep_us(us) is called through ctypes.PyDLL, which keeps
// the GIL; probe_join(times) waits and tells CLOCK_MONOTONIC in nanoseconds before the first and after the last round.

#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <thread>

#include "vrambroker/vrambroker.h"

namespace {

constexpr uint32_t TIMEOUT_MS = 5000;

struct Probe {
  std::thread thread;
  int64_t start_ns = 0;
  int64_t end_ns = 0;
  uint32_t rounds_done = 0;
  vrb_status status = VRB_OK;
};

Probe probe;

int64_t now_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

void run(vrb_lease *lease, vrb_client *client, uint32_t rounds, size_t size) {
  probe.start_ns = now_ns();
  for (uint32_t i = 0; i < rounds && probe.status == VRB_OK; ++i) {
    void *pointer = nullptr;
    probe.status = vrb_malloc(lease, size, TIMEOUT_MS, &pointer, nullptr);
    if (probe.status == VRB_OK) probe.status = vrb_free(client, pointer, nullptr);
    if (probe.status == VRB_OK) ++probe.rounds_done;
  }
  probe.end_ns = now_ns();
}

}  // namespace

extern "C" {

VRB_API void probe_start(vrb_lease *lease, vrb_client *client, uint32_t rounds, size_t size) {
  probe.start_ns = probe.end_ns = 0;
  probe.rounds_done = 0;
  probe.status = VRB_OK;
  probe.thread = std::thread(run, lease, client, rounds, size);
}

VRB_API void probe_sleep_us(uint32_t us) { ::usleep(us); }

VRB_API int64_t probe_now_ns(void) { return now_ns(); }

// times: start and end. Returns the status of the first call that failed, or VRB_OK.
VRB_API int probe_join(int64_t *times, uint32_t *rounds_done) {
  probe.thread.join();
  times[0] = probe.start_ns;
  times[1] = probe.end_ns;
  *rounds_done = probe.rounds_done;
  return probe.status;
}

}  // extern "C"
