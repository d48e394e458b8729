// Leased bytes as a DLPack tensor, which torch and NumPy take in without a copy; its deleter frees them without Python.
//
// The layout is DLManagedTensor of DLPack 0.x (dlpack.h, which is small enough to be said again here). A tensor of no bytes
// holds no allocation: it points at the lease's first address, which is never read through it.

#include <cstdint>
#include <memory>

#include "c_api.h"
#include "client.h"

namespace {

constexpr uint8_t UNSIGNED = 1;

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void *data;
  vrb::DlpackDevice device;
  int32_t dimensions;
  DataType type;
  int64_t *shape;
  int64_t *strides;  // null: compact
  uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void *context;
  void (*deleter)(ManagedTensor *);
};

static_assert(sizeof(ManagedTensor) == 64, "DLManagedTensor has another layout");

struct Owned {
  ManagedTensor managed;
  int64_t size_bytes;
  vrb_client *client;
};

void drop(ManagedTensor *managed) {
  const std::unique_ptr<Owned> owned(static_cast<Owned *>(managed->context));
  // In a forked child this does nothing, and nothing is what there is to do.
  if (owned->size_bytes > 0) vrb_free(owned->client, managed->tensor.data, nullptr);
}

}  // namespace

vrb_status vrb_tensor(vrb_lease *lease, size_t size, uint32_t timeout_ms, void **dl_managed_tensor, vrb_error *error) {
  return vrb::guarded(error, [&] {
    if (dl_managed_tensor == nullptr) throw vrb::invalid_argument("dl_managed_tensor is null");
    vrb::Lease &from = vrb::lease_of(lease);
    auto owned = std::make_unique<Owned>();
    owned->size_bytes = static_cast<int64_t>(size);
    owned->client = reinterpret_cast<vrb_client *>(&from.client);
    Tensor &tensor = owned->managed.tensor;
    tensor.data = size == 0 ? from.base : from.client.allocate(from, size, timeout_ms);
    tensor.device = from.client.dlpack_device();
    tensor.dimensions = 1;
    tensor.type = {UNSIGNED, 8, 1};
    tensor.shape = &owned->size_bytes;
    owned->managed.context = owned.get();
    owned->managed.deleter = drop;
    *dl_managed_tensor = &owned.release()->managed;
  });
}
