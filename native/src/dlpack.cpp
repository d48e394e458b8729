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

struct Shown {
  ManagedTensor managed;
  int64_t size_bytes;
  vrb::Client *client;
  std::shared_ptr<vrb::ParkedView> view;
};

void drop_view(ManagedTensor *managed) {
  const std::unique_ptr<Shown> shown(static_cast<Shown *>(managed->context));
  // A forked child has none of it mapped.
  if (!shown->client->is_forked()) shown->client->end_view(*shown->view);
}

struct Borrowed {
  ManagedTensor managed;
  int64_t size_bytes;
  vrb_client *client;
  uint64_t number;
};

void end_borrowing(ManagedTensor *managed) {
  const std::unique_ptr<Borrowed> borrowed(static_cast<Borrowed *>(managed->context));
  vrb_end_read(borrowed->client, borrowed->number, nullptr);
}

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

vrb_status vrb_received_tensor(vrb_client *client, const vrb_received *received, size_t size, void **dl_managed_tensor,
                               vrb_error *error) {
  return vrb::guarded(error, [&] {
    if (received == nullptr || dl_managed_tensor == nullptr) throw vrb::invalid_argument("an argument is null");
    auto borrowed = std::make_unique<Borrowed>();
    borrowed->size_bytes = static_cast<int64_t>(size);
    borrowed->client = client;
    borrowed->number = received->number;
    Tensor &tensor = borrowed->managed.tensor;
    tensor.data = received->address;
    tensor.device = vrb::client_of(client).dlpack_device();
    tensor.dimensions = 1;
    tensor.type = {UNSIGNED, 8, 1};
    tensor.shape = &borrowed->size_bytes;
    borrowed->managed.context = borrowed.get();
    borrowed->managed.deleter = end_borrowing;
    *dl_managed_tensor = &borrowed.release()->managed;
  });
}

vrb_status vrb_parked_tensor(vrb_client *client, const void *pointer, size_t size, uint32_t timeout_ms,
                             void **dl_managed_tensor, vrb_error *error) {
  return vrb::guarded(error, [&] {
    if (dl_managed_tensor == nullptr) throw vrb::invalid_argument("dl_managed_tensor is null");
    if (size == 0) throw vrb::invalid_argument("what is read has at least one byte");
    auto shown = std::make_unique<Shown>();
    shown->client = &vrb::client_of(client);
    shown->view = shown->client->view_parked(pointer, size, timeout_ms);
    shown->size_bytes = static_cast<int64_t>(size);
    Tensor &tensor = shown->managed.tensor;
    // DLPack 0.x knows no read-only tensor.
    tensor.data = const_cast<char *>(shown->view->bytes());
    tensor.device = {vrb::DLPACK_CPU, 0};
    tensor.dimensions = 1;
    tensor.type = {UNSIGNED, 8, 1};
    tensor.shape = &shown->size_bytes;
    shown->managed.context = shown.get();
    shown->managed.deleter = drop_view;
    *dl_managed_tensor = &shown.release()->managed;
  });
}
