// The C border: arguments are checked, everything that is thrown is caught, and statuses go out.

#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "c_api.h"
#include "client.h"
#include "registry.h"
#include "status.h"

namespace vrb {

Error current_error() {
  try {
    throw;
  } catch (const Error &error) {
    return error;
  } catch (const std::bad_alloc &) {
    return {VRB_DEVICE, "DriverFailed", "this process is out of memory"};
  } catch (const std::exception &error) {
    return {VRB_DEVICE, "DriverFailed", error.what()};
  } catch (...) {
    return {VRB_DEVICE, "DriverFailed", "an unknown exception"};
  }
}

Client &client_of(vrb_client *client) {
  if (client == nullptr) throw invalid_argument("the client is null");
  Client &it = *reinterpret_cast<Client *>(client);
  if (it.is_forked()) throw forked();
  return it;
}

Lease &lease_of(vrb_lease *lease) {
  if (lease == nullptr) throw invalid_argument("the lease is null");
  Lease &it = *reinterpret_cast<Lease *>(lease);
  if (it.client.is_forked()) throw forked();
  return it;
}

namespace {

std::string text_of(const char *text, const char *what) {
  if (text == nullptr) throw invalid_argument(std::string(what) + " is null");
  return text;
}

std::vector<std::string> tags_of(const char *const *tags, uint32_t count) {
  if (tags == nullptr && count > 0) throw invalid_argument("the tags are null");
  std::vector<std::string> names;
  for (uint32_t i = 0; i < count; ++i) names.push_back(text_of(tags[i], "a tag"));
  return names;
}

// As many tags as a call may name, each as long as it may be, just fit.
void put_notice(vrb_notice &into, const Notice &notice) {
  into.kind = notice.kind == Notice::Kind::pause_asked ? VRB_NOTICE_PAUSE_ASKED : VRB_NOTICE_RESUMED;
  into.same_pages = notice.same_pages ? 1 : 0;
  into.order = notice.order;
  std::string tags;
  for (const std::string &tag : notice.tags) tags += tags.empty() ? tag : " " + tag;
  if (tags.size() >= sizeof into.tags) throw driver_failed("a pause names more tags than a call may");
  std::memcpy(into.tags, tags.c_str(), tags.size() + 1);
}

template <class T>
T &given(T *pointer, const char *what) {
  if (pointer == nullptr) throw invalid_argument(std::string(what) + " is null");
  return *pointer;
}

}  // namespace
}  // namespace vrb

using namespace vrb;

int vrb_abi_version(void) { return VRB_ABI_VERSION; }

vrb_status vrb_connect(const char *socket_path, const char *name, const char *device, const char *version,
                       uint32_t timeout_ms, vrb_client **client, vrb_error *error) {
  return guarded(error, [&] {
    vrb_client *&into = given(client, "client");
    const ConnectOptions options{text_of(socket_path, "socket_path"), text_of(name, "name"), text_of(device, "device"),
                                 text_of(version, "version"), timeout_ms};
    into = reinterpret_cast<vrb_client *>(&Client::connect(options));
  });
}

vrb_status vrb_attached(const char *socket_path, vrb_client **client, vrb_error *error) {
  return guarded(error, [&] {
    vrb_client *&into = given(client, "client");
    Client *const found = client_of_path(text_of(socket_path, "socket_path"));
    into = found == nullptr || found->is_forked() || !found->is_open() ? nullptr : reinterpret_cast<vrb_client *>(found);
  });
}

vrb_status vrb_close(vrb_client *client, vrb_error *error) {
  return guarded(error, [&] { client_of(client).close(); });
}

vrb_status vrb_get_info(vrb_client *client, vrb_info *info, vrb_error *error) {
  return guarded(error, [&] { client_of(client).get_info(given(info, "info")); });
}

vrb_status vrb_get_stats(vrb_client *client, vrb_stats *stats, vrb_error *error) {
  return guarded(error, [&] { client_of(client).get_stats(given(stats, "stats")); });
}

vrb_status vrb_lease_open(vrb_client *client, const char *tag, vrb_contents contents, vrb_lease **lease,
                          vrb_error *error) {
  return guarded(error, [&] {
    vrb_lease *&into = given(lease, "lease");
    into = reinterpret_cast<vrb_lease *>(&client_of(client).open_lease(text_of(tag, "tag"), contents));
  });
}

vrb_status vrb_malloc(vrb_lease *lease, size_t size, uint32_t timeout_ms, void **pointer, vrb_error *error) {
  return guarded(error, [&] {
    void *&into = given(pointer, "pointer");
    Lease &from = lease_of(lease);
    into = from.client.allocate(from, size, timeout_ms);
  });
}

vrb_status vrb_free(vrb_client *client, void *pointer, vrb_error *error) {
  return guarded(error, [&] { client_of(client).free(pointer); });
}

vrb_status vrb_pause(vrb_client *client, const char *const *tags, uint32_t count, int release, int discard,
                     uint32_t timeout_ms, vrb_error *error) {
  return guarded(error, [&] { client_of(client).pause(tags_of(tags, count), release != 0, discard != 0, timeout_ms); });
}

vrb_status vrb_resume(vrb_client *client, const char *const *tags, uint32_t count, uint32_t timeout_ms,
                      uint8_t *same_pages, vrb_error *error) {
  return guarded(error, [&] {
    const std::vector<bool> same = client_of(client).resume(tags_of(tags, count), timeout_ms);
    if (same_pages == nullptr) return;
    for (std::size_t i = 0; i < same.size(); ++i) same_pages[i] = same[i] ? 1 : 0;
  });
}

vrb_status vrb_seal(vrb_client *client, const char *const *tags, uint32_t count, uint32_t timeout_ms, vrb_error *error) {
  return guarded(error, [&] { client_of(client).seal(tags_of(tags, count), timeout_ms); });
}

vrb_status vrb_unseal(vrb_client *client, const char *const *tags, uint32_t count, uint32_t timeout_ms, vrb_error *error) {
  return guarded(error, [&] { client_of(client).unseal(tags_of(tags, count), timeout_ms); });
}

vrb_status vrb_tag_sealed(vrb_client *client, const char *tag, int *sealed, vrb_error *error) {
  return guarded(error, [&] {
    int &into = given(sealed, "sealed");
    into = client_of(client).is_sealed(text_of(tag, "tag")) ? 1 : 0;
  });
}

vrb_status vrb_use_enter(vrb_client *client, const char *const *tags, uint32_t count, const char *scope,
                         vrb_error *error) {
  return guarded(error, [&] { client_of(client).enter(tags_of(tags, count), text_of(scope, "scope")); });
}

vrb_status vrb_use_enter_resuming(vrb_client *client, const char *const *tags, uint32_t count, const char *scope,
                                  uint32_t timeout_ms, vrb_error *error) {
  return guarded(error, [&] {
    client_of(client).enter_resuming(tags_of(tags, count), text_of(scope, "scope"), timeout_ms);
  });
}

vrb_status vrb_watch(vrb_client *client, vrb_notice_kind kind, const char *tag, vrb_error *error) {
  return guarded(error, [&] {
    if (kind != VRB_NOTICE_PAUSE_ASKED && kind != VRB_NOTICE_RESUMED) throw invalid_argument("there are no such notices");
    const auto which = kind == VRB_NOTICE_PAUSE_ASKED ? Notice::Kind::pause_asked : Notice::Kind::resumed;
    client_of(client).watch(which, tag == nullptr ? "" : text_of(tag, "tag"));
  });
}

vrb_status vrb_next_notice(vrb_client *client, vrb_notice *notice, vrb_error *error) {
  return guarded(error, [&] {
    vrb_notice &into = given(notice, "notice");
    into.kind = VRB_NOTICE_CLOSED;
    const std::optional<Notice> next = client_of(client).next_notice();
    if (next) put_notice(into, *next);
  });
}

vrb_status vrb_begin_callback(vrb_client *client, uint64_t order, const char *tag, const char *callback,
                              vrb_error *error) {
  return guarded(error, [&] { client_of(client).begin_callback(order, text_of(tag, "tag"), text_of(callback, "callback")); });
}

vrb_status vrb_consent(vrb_client *client, uint64_t order, vrb_error *error) {
  return guarded(error, [&] { client_of(client).consent(order); });
}

vrb_status vrb_decline(vrb_client *client, uint64_t order, const char *tag, const char *callback, const char *why,
                       vrb_error *error) {
  return guarded(error, [&] {
    client_of(client).decline(order, text_of(tag, "tag"), text_of(callback, "callback"), text_of(why, "why"));
  });
}

vrb_status vrb_use_exit(vrb_client *client, const char *const *tags, uint32_t count, const char *scope,
                        vrb_error *error) {
  // The scope is the parent's: a child that leaves the block has nothing to end, and nothing is wrong.
  if (client != nullptr && reinterpret_cast<Client *>(client)->is_forked()) return VRB_OK;
  return guarded(error, [&] { client_of(client).exit(tags_of(tags, count), text_of(scope, "scope")); });
}

vrb_status vrb_fill_begin(vrb_lease *lease, vrb_error *error) {
  return guarded(error, [&] {
    Lease &into = lease_of(lease);
    into.client.begin_filling(into);
  });
}

vrb_status vrb_fill_end(vrb_lease *lease, vrb_error *error) {
  if (lease != nullptr && reinterpret_cast<Lease *>(lease)->client.is_forked()) return VRB_OK;
  return guarded(error, [&] {
    Lease &into = lease_of(lease);
    into.client.end_filling(into);
  });
}

vrb_status vrb_is_lost(vrb_client *client, uint32_t timeout_ms, int *lost, vrb_error *error) {
  return guarded(error, [&] {
    int &into = given(lost, "lost");
    into = client_of(client).is_lost(timeout_ms) ? 1 : 0;
  });
}

vrb_status vrb_tag_paused(vrb_client *client, const char *tag, int *paused, vrb_error *error) {
  return guarded(error, [&] {
    int &into = given(paused, "paused");
    into = client_of(client).is_paused(text_of(tag, "tag")) ? 1 : 0;
  });
}

vrb_status vrb_find(vrb_client *client, const void *pointer, size_t size, vrb_place *place, vrb_error *error) {
  return guarded(error, [&] { client_of(client).find(pointer, size, given(place, "place")); });
}

vrb_status vrb_tag_allocated(vrb_client *client, const char *tag, uint64_t *bytes, vrb_error *error) {
  return guarded(error, [&] { given(bytes, "bytes") = client_of(client).allocated_bytes(text_of(tag, "tag")); });
}
