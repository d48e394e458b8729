// What only the CUDA device does: which GPU it is, whose context, captures, registrations, and what fails how.
//
// Runs on the real driver, or on the stand-in (fake_libcuda.cpp), which can also be told to fail.
#include <chrono>
#include <cstring>
#include <thread>

#include "frames.h"
#include "status.h"

namespace {

namespace cuda = vrb::cuda;
using test::must;
using vrb::Fd;
using vrb::Frame;
using vrb::MIB;

constexpr uint64_t FRAME_BYTES = 4 * MIB;

// Calls that the device itself has no use for.
struct More {
  void *library = ::dlopen("libcuda.so.1", RTLD_NOW);
  cuda::Call<cuda::Context *> context_get_current{library, "cuCtxGetCurrent"};
  cuda::Call<cuda::Stream, int> begin_capture{library, "cuStreamBeginCapture_v2"};
  cuda::Call<cuda::Stream, void **> end_capture{library, "cuStreamEndCapture"};
  cuda::Call<void *> graph_destroy{library, "cuGraphDestroy"};
  cuda::Call<cuda::Stream> stream_query{library, "cuStreamQuery"};
};

const More &more() {
  static const More calls;
  return calls;
}

const cuda::Driver &driver() { return cuda::load_driver(); }

// The stand-in's own side; null on a real driver.
using Fail = void (*)(const char *, int, int);
using Live = int (*)(const char *);
Fail fake_fail() { return reinterpret_cast<Fail>(::dlsym(more().library, "fake_cuda_fail")); }
Live fake_live() { return reinterpret_cast<Live>(::dlsym(more().library, "fake_cuda_live")); }

bool is_context_active() {
  unsigned flags = 0;
  int active = 0;
  must(driver().attempt(driver().primary_get_state, 0, &flags, &active));
  return active != 0;
}

std::vector<Frame> make_frames(test::FrameSource &source, std::size_t count, uint64_t size_bytes) {
  std::vector<Frame> frames;
  for (std::size_t i = 0; i < count; ++i) frames.push_back({source.make(size_bytes), size_bytes});
  return frames;
}

std::string uuid_name() {
  cuda::Uuid uuid{};
  must(driver().attempt(driver().device_get_uuid, &uuid, 0));
  std::string name = "GPU-";
  for (int i = 0; i < 16; ++i) {
    char text[4];
    std::snprintf(text, sizeof text, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid.bytes[i]);
    name += text;
  }
  return name;
}

// A thread of the application's: the primary context current, as torch has it.
class Application {
 public:
  Application() {
    must(driver().attempt(driver().primary_retain, &context_, 0));
    must(driver().attempt(driver().context_push, context_));
  }
  ~Application() {
    cuda::Context popped = nullptr;
    driver().context_pop(&popped);
    driver().primary_release(0);
  }

  cuda::Stream open_stream(unsigned flags) {
    cuda::Stream stream = nullptr;
    must(driver().attempt(driver().stream_create, &stream, flags));
    return stream;
  }

 private:
  cuda::Context context_ = nullptr;
};

// All that an agent and its copiers do, in a thread of their own, with a frame as the daemon sends it.
void work_as_agent(vrb::Device &device, std::vector<Frame> frame) {
  char *address = static_cast<char *>(device.reserve(FRAME_BYTES));
  CHECK(address != nullptr);
  must(device.map_run(std::move(frame), address));
  Fd file(::memfd_create("test-arena", MFD_CLOEXEC));
  CHECK(::ftruncate(file.get(), static_cast<off_t>(FRAME_BYTES)) == 0);
  char *parking = static_cast<char *>(device.map_arena(std::move(file), FRAME_BYTES));
  CHECK(parking != nullptr);
  must(device.register_host(parking, FRAME_BYTES));
  {
    const auto lane = device.open_lane();
    must(lane->start_zero(address, FRAME_BYTES));
    must(lane->start_copy(parking, address, FRAME_BYTES));
    must(lane->finish());
  }
  device.unregister_host(parking);
  device.unmap_arena(parking, FRAME_BYTES);
  must(device.unmap(address, FRAME_BYTES));
  device.release(address, FRAME_BYTES);
}

std::string in_a_thread(const std::function<void()> &work) {
  std::string wrong;
  std::thread thread([&] {
    try {
      work();
    } catch (const std::exception &error) {
      wrong = error.what();
    }
  });
  thread.join();
  return wrong;
}

void makes_no_context_to_map() {
  test::CudaSource source;
  const auto device = vrb::make_device("cuda");
  void *address = device->reserve(3 * FRAME_BYTES);
  must(device->map_run(make_frames(source, 3, FRAME_BYTES), address));
  for (uint64_t i = 0; i < 3; ++i) must(device->unmap(static_cast<char *>(address) + i * FRAME_BYTES, FRAME_BYTES));
  device->release(address, 3 * FRAME_BYTES);
  must(device->quiesce());
  CHECK(!is_context_active());
}

void lets_go_of_its_context() {
  test::CudaSource source;
  {
    const auto device = vrb::make_device("cuda");
    std::vector<std::string> wrong(8);
    std::vector<std::thread> threads;
    for (std::string &why : wrong) {
      threads.emplace_back([&] {
        why = in_a_thread([&] { work_as_agent(*device, make_frames(source, 1, FRAME_BYTES)); });
      });
    }
    for (std::thread &thread : threads) thread.join();
    for (const std::string &why : wrong) {
      if (!why.empty()) throw test::Wrong(why);
    }
    CHECK(is_context_active());
  }
  CHECK(!is_context_active());
}

void is_found_by_its_uuid() {
  const std::string name = uuid_name();
  CHECK(vrb::make_device(name)->dlpack_device().id == 0);
  CHECK(vrb::make_device("cuda:0")->dlpack_device().type == vrb::DLPACK_CUDA);
  std::string loud = name;
  for (char &letter : loud) letter = static_cast<char>(std::toupper(static_cast<unsigned char>(letter)));
  CHECK(vrb::make_device(loud)->dlpack_device().id == 0);
  std::string other = name;
  other.back() = other.back() == '0' ? '1' : '0';
  try {
    vrb::make_device(other);
    CHECK(false);
  } catch (const vrb::Error &error) {
    CHECK(error.name == "InvalidArgument" && error.subject == other);
  }
}

void leaves_the_thread_as_it_was() {
  test::CudaSource source;
  const auto device = vrb::make_device("cuda");
  cuda::Context before = nullptr, after = nullptr;
  must(driver().attempt(more().context_get_current, &before));
  constexpr int thread_local_mode = 1;
  int own = thread_local_mode;
  must(driver().attempt(driver().thread_exchange_capture_mode, &own));
  work_as_agent(*device, make_frames(source, 1, FRAME_BYTES));
  must(device->quiesce());
  must(driver().attempt(driver().thread_exchange_capture_mode, &own));
  must(driver().attempt(more().context_get_current, &after));
  CHECK(before == after);
  CHECK(own == thread_local_mode);
}

void breaks_no_capture() {
  test::CudaSource source;
  Application application;
  const auto device = vrb::make_device("cuda");
  for (const unsigned flags : {cuda::STREAM_NON_BLOCKING, 0U}) {
    for (const int mode : {0, 1, 2}) {
      const cuda::Stream stream = application.open_stream(flags);
      std::vector<Frame> frame = make_frames(source, 1, FRAME_BYTES);
      must(driver().attempt(more().begin_capture, stream, mode));
      const std::string wrong = in_a_thread([&] { work_as_agent(*device, std::move(frame)); });
      void *graph = nullptr;
      const vrb::Failure capture = driver().attempt(more().end_capture, stream, &graph);
      if (graph != nullptr) more().graph_destroy(graph);
      driver().stream_destroy(stream);
      if (!wrong.empty()) throw test::Wrong("the agent, in mode " + std::to_string(mode) + ": " + wrong);
      if (capture) throw test::Wrong("the capture, in mode " + std::to_string(mode) + ": " + *capture);
    }
  }
}

void makes_its_context_beside_a_capture() {
  // The first registration of a process may come while torch captures, and retains the context then.
  test::CudaSource source;
  Application application;
  const cuda::Stream stream = application.open_stream(cuda::STREAM_NON_BLOCKING);
  std::vector<Frame> frame = make_frames(source, 1, FRAME_BYTES);
  must(driver().attempt(more().begin_capture, stream, 0));
  const auto device = vrb::make_device("cuda");
  const std::string wrong = in_a_thread([&] { work_as_agent(*device, std::move(frame)); });
  void *graph = nullptr;
  must(driver().attempt(more().end_capture, stream, &graph));
  if (graph != nullptr) more().graph_destroy(graph);
  driver().stream_destroy(stream);
  if (!wrong.empty()) throw test::Wrong(wrong);
}

void refuses_to_be_quiet_in_a_capture() {
  Application application;
  const auto device = vrb::make_device("cuda");
  const cuda::Stream stream = application.open_stream(0);
  must(driver().attempt(more().begin_capture, stream, 2));
  const vrb::Failure failure = device->quiesce();
  void *graph = nullptr;
  must(driver().attempt(more().end_capture, stream, &graph));  // seen, so it is not broken
  if (graph != nullptr) more().graph_destroy(graph);
  CHECK(failure && failure->find("captured") != std::string::npos);
  driver().stream_destroy(stream);
  must(device->quiesce());
}

void waits_for_one_stream_but_not_while_it_is_captured() {
  test::CudaSource source;
  Application application;
  const auto device = vrb::make_device("cuda");
  constexpr uint64_t size_bytes = 64 * MIB;
  void *address = device->reserve(size_bytes);
  must(device->map_run(make_frames(source, 1, size_bytes), address));
  const cuda::Stream busy = application.open_stream(cuda::STREAM_NON_BLOCKING);
  const int count = fake_fail() == nullptr ? 500 : 4;
  const auto give_work = [&] {
    for (int i = 0; i < count; ++i) {
      constexpr unsigned char byte = 1;
      must(driver().attempt(driver().set_bytes_async, reinterpret_cast<uintptr_t>(address), byte, size_bytes, busy));
    }
    CHECK(more().stream_query(busy) != cuda::SUCCESS);
  };
  give_work();
  CHECK(device->wait_stream(busy));
  CHECK(more().stream_query(busy) == cuda::SUCCESS);
  for (const int mode : {0, 1, 2}) {
    const cuda::Stream captured = application.open_stream(cuda::STREAM_NON_BLOCKING);
    give_work();
    must(driver().attempt(more().begin_capture, captured, mode));
    CHECK(!device->wait_stream(captured));
    // Other streams can be waited for meanwhile, in this thread and in others.
    CHECK(device->wait_stream(busy));
    CHECK(in_a_thread([&] { CHECK(device->wait_stream(nullptr)); }).empty());
    void *graph = nullptr;
    must(driver().attempt(more().end_capture, captured, &graph));
    if (graph != nullptr) more().graph_destroy(graph);
    CHECK(device->wait_stream(captured));
    driver().stream_destroy(captured);
  }
  CHECK(more().stream_query(busy) == cuda::SUCCESS);
  driver().stream_destroy(busy);
  must(device->unmap(address, size_bytes));
  device->release(address, size_bytes);
}

void fails_to_be_quiet_in_a_capture_it_cannot_see() {
  Application application;
  const auto device = vrb::make_device("cuda");
  const cuda::Stream stream = application.open_stream(cuda::STREAM_NON_BLOCKING);
  must(driver().attempt(more().begin_capture, stream, 2));
  const vrb::Failure failure = device->quiesce();
  void *graph = nullptr;
  const vrb::Failure capture = driver().attempt(more().end_capture, stream, &graph);
  if (graph != nullptr) more().graph_destroy(graph);
  driver().stream_destroy(stream);
  std::printf("     quiesce: %s; the capture: %s\n", failure.value_or("worked").c_str(),
              capture.value_or("intact").c_str());
  CHECK(failure.has_value());
  must(device->quiesce());
}

void waits_for_other_streams() {
  test::CudaSource source;
  Application application;
  const auto device = vrb::make_device("cuda");
  constexpr uint64_t size_bytes = 64 * MIB;
  void *address = device->reserve(size_bytes);
  must(device->map_run(make_frames(source, 1, size_bytes), address));
  const cuda::Stream stream = application.open_stream(cuda::STREAM_NON_BLOCKING);
  const cuda::DevicePointer at = reinterpret_cast<uintptr_t>(address);
  const int count = fake_fail() == nullptr ? 500 : 4;  // 12 ms of work on an H100
  for (int i = 0; i < count; ++i) {
    constexpr unsigned char byte = 1;
    must(driver().attempt(driver().set_bytes_async, at, byte, size_bytes, stream));
  }
  CHECK(more().stream_query(stream) != cuda::SUCCESS);
  must(device->quiesce());
  CHECK(more().stream_query(stream) == cuda::SUCCESS);
  driver().stream_destroy(stream);
  must(device->unmap(address, size_bytes));
  device->release(address, size_bytes);
}

void fails_a_copy_across_registrations() {
  test::CudaSource source;
  const auto device = vrb::make_device("cuda");
  void *address = device->reserve(FRAME_BYTES);
  must(device->map_run(make_frames(source, 1, FRAME_BYTES), address));
  Fd file(::memfd_create("test-arena", MFD_CLOEXEC));
  CHECK(::ftruncate(file.get(), static_cast<off_t>(FRAME_BYTES)) == 0);
  char *parking = static_cast<char *>(device->map_arena(std::move(file), FRAME_BYTES));
  must(device->register_host(parking, FRAME_BYTES / 2));
  must(device->register_host(parking + FRAME_BYTES / 2, FRAME_BYTES / 2));
  const auto lane = device->open_lane();
  const vrb::Failure started = lane->start_copy(parking, address, FRAME_BYTES);
  const vrb::Failure finished = lane->finish();
  std::printf("     across the border: %s\n", started ? started->c_str() : finished.value_or("worked").c_str());
  CHECK(started || finished);
  must(lane->start_copy(parking, address, FRAME_BYTES / 2));
  must(lane->finish());
  device->unregister_host(parking);
  device->unregister_host(parking + FRAME_BYTES / 2);
  device->unmap_arena(parking, FRAME_BYTES);
  must(device->unmap(address, FRAME_BYTES));
  device->release(address, FRAME_BYTES);
}

bool names(const vrb::Failure &failure, const std::string &call) {
  return failure && *failure == call + ": CUDA_ERROR_OUT_OF_MEMORY";
}

void undoes_what_failed_on_the_way() {
  constexpr int out_of_memory = 2;
  test::CudaSource source;
  const auto device = vrb::make_device("cuda");
  void *address = device->reserve(3 * FRAME_BYTES);
  for (const char *call : {"cuMemImportFromShareableHandle", "cuMemMap", "cuMemSetAccess", "cuMemRelease"}) {
    for (int after = 0; after < (std::strcmp(call, "cuMemSetAccess") == 0 ? 1 : 3); ++after) {
      std::vector<Frame> frames = make_frames(source, 3, FRAME_BYTES);
      const int handles = fake_live()("handles");
      const int fds = test::open_fds();
      fake_fail()(call, out_of_memory, after);
      CHECK(names(device->map_run(std::move(frames), address), call));
      CHECK(fake_live()("mapped") == 0 && fake_live()("handles") == handles);
      CHECK(test::open_fds() == fds - 3);
    }
  }
  must(device->map_run(make_frames(source, 3, FRAME_BYTES), address));
  fake_fail()("cuMemUnmap", out_of_memory, 0);
  CHECK(names(device->unmap(address, FRAME_BYTES), "cuMemUnmap"));
  for (uint64_t i = 0; i < 3; ++i) must(device->unmap(static_cast<char *>(address) + i * FRAME_BYTES, FRAME_BYTES));
  device->release(address, 3 * FRAME_BYTES);
  CHECK(fake_live()("reserved") == 0);
}

void works_again_after_a_failure() {
  constexpr int out_of_memory = 2;
  test::CudaSource source;
  const auto device = vrb::make_device("cuda");
  void *address = device->reserve(FRAME_BYTES);
  must(device->map_run(make_frames(source, 1, FRAME_BYTES), address));
  const auto lane = device->open_lane();
  for (const char *call : {"cuDevicePrimaryCtxRetain", "cuEventCreate", "cuStreamCreate", "cuMemsetD8Async"}) {
    fake_fail()(call, out_of_memory, 0);
    CHECK(names(lane->start_zero(address, FRAME_BYTES), call));
  }
  must(lane->start_zero(address, FRAME_BYTES));
  for (const char *call : {"cuEventRecord", "cuEventSynchronize"}) {
    fake_fail()(call, out_of_memory, 0);
    CHECK(names(lane->finish(), call));
  }
  must(lane->finish());
  fake_fail()("cuCtxSynchronize", out_of_memory, 0);
  CHECK(names(device->quiesce(), "cuCtxSynchronize"));
  fake_fail()("cuMemAddressReserve", out_of_memory, 0);
  CHECK(device->reserve(FRAME_BYTES) == nullptr);
  // As at the end of a process, when the driver has gone before us.
  fake_fail()("cuMemUnmap", 4, 0);
  CHECK(device->unmap(address, FRAME_BYTES) == "cuMemUnmap: CUDA_ERROR_DEINITIALIZED");
  must(device->unmap(address, FRAME_BYTES));
  device->release(address, FRAME_BYTES);
}

// Also that each is found under its own number and UUID.
void maps_for_every_gpu_that_reaches_it() {
  const auto accessors = reinterpret_cast<int (*)()>(::dlsym(more().library, "fake_cuda_accessors"));
  test::CudaSource source;
  const std::vector<std::pair<std::string, int>> reached_by = {
      {"cuda:0", 0b011}, {"cuda:1", 0b011}, {"cuda:2", 0b100}, {"GPU-A2a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf", 0b100}};
  for (const auto &[name, expected] : reached_by) {
    const auto device = vrb::make_device(name);
    void *address = device->reserve(2 * FRAME_BYTES);
    must(device->map_run(make_frames(source, 2, FRAME_BYTES), address));
    CHECK(accessors() == expected);
    for (uint64_t i = 0; i < 2; ++i) must(device->unmap(static_cast<char *>(address) + i * FRAME_BYTES, FRAME_BYTES));
    device->release(address, 2 * FRAME_BYTES);
  }
  CHECK(vrb::make_device("cuda:1")->dlpack_device().id == 1);
}

void leaves_nothing_behind() {
  for (const char *what : {"mapped", "reserved", "registered", "streams", "contexts", "handles"}) {
    if (fake_live()(what) != 0) throw test::Wrong(std::string(what) + " left");
  }
}

// Figures for the record (FACTS: the driver): one call to open access for a run, against one for each frame.
void takes_so_long() {
  using Clock = std::chrono::steady_clock;
  constexpr uint64_t size_bytes = 32 * MIB;
  constexpr std::size_t count = 256;
  test::CudaSource source;
  const auto device = vrb::make_device("cuda");
  char *address = static_cast<char *>(device->reserve(count * size_bytes));
  for (const std::size_t run : {std::size_t{1}, std::size_t{16}, count, std::size_t{1}, std::size_t{16}, count}) {
    std::vector<Frame> frames = make_frames(source, count, size_bytes);
    const auto begin = Clock::now();
    for (std::size_t i = 0; i < count; i += run) {
      std::vector<Frame> part;
      for (std::size_t k = 0; k < run; ++k) part.push_back(std::move(frames[i + k]));
      must(device->map_run(std::move(part), address + i * size_bytes));
    }
    const auto mapped = Clock::now();
    for (std::size_t i = 0; i < count; ++i) must(device->unmap(address + i * size_bytes, size_bytes));
    const auto unmapped = Clock::now();
    const auto ms = [](auto span) { return std::chrono::duration<double, std::milli>(span).count(); };
    std::printf("     8 GiB as %zu x 32 MiB, %zu a run: map %.2f ms, unmap %.2f ms\n", count, run, ms(mapped - begin),
                ms(unmapped - mapped));
  }
  device->release(address, count * size_bytes);
}

}  // namespace

int main() {
  try {
    vrb::make_device("cuda");
  } catch (const vrb::Error &error) {
    std::printf("SKIPPED: there is no CUDA device here: %s\n", error.what());
    return test::SKIPPED;
  }
  const bool fake = fake_fail() != nullptr;
  std::printf("on %s, %s\n", fake ? "the stand-in for libcuda" : "the driver", uuid_name().c_str());
  std::vector<test::Test> tests;
#define ADD(test) tests.push_back({#test, test})
  ADD(makes_no_context_to_map);
  ADD(lets_go_of_its_context);
  ADD(is_found_by_its_uuid);
  ADD(leaves_the_thread_as_it_was);
  ADD(breaks_no_capture);
  ADD(makes_its_context_beside_a_capture);
  ADD(refuses_to_be_quiet_in_a_capture);
  ADD(waits_for_one_stream_but_not_while_it_is_captured);
  ADD(fails_to_be_quiet_in_a_capture_it_cannot_see);
  ADD(waits_for_other_streams);
  ADD(fails_a_copy_across_registrations);
  if (fake) {
    ADD(undoes_what_failed_on_the_way);
    ADD(works_again_after_a_failure);
    ADD(maps_for_every_gpu_that_reaches_it);
    ADD(leaves_nothing_behind);
  } else {
    ADD(takes_so_long);
  }
#undef ADD
  return test::run_all(tests);
}
