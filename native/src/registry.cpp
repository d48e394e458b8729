#include "registry.h"

#include <iterator>
#include <map>
#include <mutex>
#include <vector>

#include "client.h"
#include "fork.h"

namespace vrb {
namespace {

struct Entry {
  uint64_t size_bytes;
  Client *client;
};

struct Ranges {
  std::mutex mutex;
  std::map<uintptr_t, Entry> by_address;
  uint64_t size_bytes = 0;
  std::vector<Client *> clients;
};

// Never destroyed: tensors are freed while the process exits.
Ranges &ranges() {
  static Ranges *const all = [] {
    auto *made = new Ranges;
    hold_across_forks(made->mutex);
    return made;
  }();
  return *all;
}

}  // namespace

void open_registry() { ranges(); }

void keep_client(Client &client) {
  Ranges &all = ranges();
  const std::lock_guard lock(all.mutex);
  all.clients.push_back(&client);
}

Client *client_of_path(const std::string &path) {
  Ranges &all = ranges();
  const std::lock_guard lock(all.mutex);
  for (auto it = all.clients.rbegin(); it != all.clients.rend(); ++it) {
    if ((*it)->path() == path) return *it;
  }
  return nullptr;
}

void register_range(const void *base, uint64_t size_bytes, Client &client) {
  Ranges &all = ranges();
  const std::lock_guard lock(all.mutex);
  all.by_address[reinterpret_cast<uintptr_t>(base)] = Entry{size_bytes, &client};
  all.size_bytes += size_bytes;
}

void forget_range(const void *base) {
  Ranges &all = ranges();
  const std::lock_guard lock(all.mutex);
  const auto found = all.by_address.find(reinterpret_cast<uintptr_t>(base));
  if (found == all.by_address.end()) return;
  all.size_bytes -= found->second.size_bytes;
  all.by_address.erase(found);
}

uint64_t registered_bytes() {
  Ranges &all = ranges();
  const std::lock_guard lock(all.mutex);
  return all.size_bytes;
}

Client *client_at(const void *address) {
  Ranges &all = ranges();
  const std::lock_guard lock(all.mutex);
  const auto at = reinterpret_cast<uintptr_t>(address);
  const auto behind = all.by_address.upper_bound(at);
  if (behind == all.by_address.begin()) return nullptr;
  const auto found = std::prev(behind);
  return at - found->first < found->second.size_bytes ? found->second.client : nullptr;
}

}  // namespace vrb
