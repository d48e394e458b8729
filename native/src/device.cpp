// Which device a name means.
#include "device.h"

#include <utility>

#include "cuda_device.h"
#include "host_device.h"
#include "status.h"

namespace vrb {

Failure Device::map_run(std::vector<Frame> frames, void *address) {
  char *const begin = static_cast<char *>(address);
  uint64_t offset_bytes = 0;
  for (Frame &frame : frames) {
    if (Failure failure = map(std::move(frame.fd), begin + offset_bytes, frame.size_bytes)) {
      uint64_t undone_bytes = 0;
      for (auto before = frames.cbegin(); undone_bytes < offset_bytes; ++before) {
        unmap(begin + undone_bytes, before->size_bytes);
        undone_bytes += before->size_bytes;
      }
      return failure;
    }
    offset_bytes += frame.size_bytes;
  }
  return std::nullopt;
}

std::unique_ptr<Device> make_device(const std::string &name) {
  const auto begins = [&](const char *with) { return name.rfind(with, 0) == 0; };
  if (name == "host" || begins("host:")) return std::make_unique<HostDevice>();
  if (name == "cuda" || begins("cuda:") || begins("GPU-") || begins("MIG-")) return std::make_unique<CudaDevice>(name);
  throw invalid_argument("a device is host, host:N, cuda, cuda:N or the UUID of a GPU, not " + name, name);
}

}  // namespace vrb
