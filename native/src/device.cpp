// Which device a name means.
#include "device.h"

#include <utility>

#include "cuda_device.h"
#include "host_device.h"
#include "status.h"

namespace vrb {

Failure Device::map(Fd frame, void *address, uint64_t size_bytes) {
  std::vector<Frame> frames;
  frames.push_back({std::move(frame), size_bytes});
  return map_run(std::move(frames), address);
}

std::unique_ptr<Device> make_device(const std::string &name) {
  const auto begins = [&](const char *with) { return name.rfind(with, 0) == 0; };
  if (name == "host" || begins("host:")) return std::make_unique<HostDevice>();
  if (name == "cuda" || begins("cuda:") || begins("GPU-") || begins("MIG-")) return std::make_unique<CudaDevice>(name);
  throw invalid_argument("a device is host, host:N, cuda, cuda:N or the UUID of a GPU, not " + name, name);
}

}  // namespace vrb
