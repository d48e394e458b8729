// The C border of what is sent and received.

#include <algorithm>

#include "c_api.h"
#include "client.h"
#include "status.h"

namespace vrb {
namespace {

Token key_of(const uint8_t *key) {
  if (key == nullptr) throw invalid_argument("the key is null");
  Token token{};
  std::copy_n(key, token.size(), token.begin());
  return token;
}

void require(const void *pointer, std::size_t size) {
  if (pointer == nullptr || size == 0) throw invalid_argument("what is sent has at least one byte");
}

}  // namespace
}  // namespace vrb

using namespace vrb;

vrb_status vrb_send(vrb_client *client, const void *pointer, size_t size, int read_only, uint32_t timeout_ms,
                    vrb_export *sent, vrb_error *error) {
  return guarded(error, [&] {
    require(pointer, size);
    if (sent == nullptr) throw invalid_argument("sent is null");
    const Client::Sent made = client_of(client).send(pointer, size, read_only != 0, timeout_ms);
    *sent = vrb_export{};
    std::copy(made.key.begin(), made.key.end(), sent->key);
    sent->offset_bytes = made.offset_bytes;
    sent->read_only = made.read_only ? 1 : 0;
  });
}

vrb_status vrb_send_again(vrb_client *client, const uint8_t key[16], uint32_t timeout_ms, vrb_error *error) {
  return guarded(error, [&] { client_of(client).send_again(key_of(key), timeout_ms); });
}

vrb_status vrb_unexport(vrb_client *client, uint32_t timeout_ms, vrb_error *error) {
  return guarded(error, [&] { client_of(client).unexport(timeout_ms); });
}

vrb_status vrb_take_settled(vrb_client *client, uint8_t (*keys)[16], uint32_t room, uint32_t *count, vrb_error *error) {
  return guarded(error, [&] {
    if (keys == nullptr || count == nullptr) throw invalid_argument("there is no room for keys");
    std::vector<Token> taken(room);
    *count = static_cast<uint32_t>(client_of(client).take_settled(taken.data(), room));
    for (uint32_t i = 0; i < *count; ++i) std::copy(taken[i].begin(), taken[i].end(), keys[i]);
  });
}

vrb_status vrb_receive(vrb_client *client, const uint8_t key[16], uint64_t offset_bytes, size_t size,
                       uint32_t timeout_ms, vrb_received *received, vrb_error *error) {
  return guarded(error, [&] {
    if (received == nullptr) throw invalid_argument("received is null");
    const Client::Received made = client_of(client).read(key_of(key), offset_bytes, size, timeout_ms);
    *received = vrb_received{made.number, made.address, made.own ? 1U : 0U, made.writable ? 1U : 0U};
  });
}

vrb_status vrb_end_read(vrb_client *client, uint64_t number, vrb_error *error) {
  if (client != nullptr && reinterpret_cast<Client *>(client)->is_forked()) return VRB_OK;
  return guarded(error, [&] { client_of(client).end_read(number); });
}
