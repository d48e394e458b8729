#include "interposer.h"

#include <unistd.h>

#include <algorithm>

#include "client.h"
#include "discovery.h"
#include "fork.h"
#include "registry.h"
#include "status.h"
#include "words.h"

namespace vrb {
namespace {

constexpr uint32_t CONNECT_MS = 10'000;
// The tag's members have a number behind it.
constexpr std::size_t TAG_LENGTH_MAX = 56;

void write_line(const std::string &what) {
  const std::string line = "vrambroker: " + what + "\n";
  // Nobody is left to tell that this failed.
  if (::write(STDERR_FILENO, line.data(), line.size()) < 0) return;
}

// By the words that torch_memory_saver takes for yes and no.
bool is_set(const char *name) {
  const std::set<std::string> yes{"1", "true", "TRUE", "yes", "YES"};
  const std::set<std::string> no{"", "0", "false", "FALSE", "no", "NO"};
  const std::string text = variable(name);
  if (yes.count(text) == 0 && no.count(text) == 0) write_line(std::string(name) + "=" + text + " is taken for 0: expected 1 or 0");
  return yes.count(text) != 0;
}

// What client/saver/settings.py makes of the same variables.
std::optional<OwnMemory> own_memory() {
  const bool drop = variable("VRAMBROKER_CONTENTS") == "drop";
  const std::string tag = variable("VRAMBROKER_TAG");
  const bool backed_up = is_set("TMS_INIT_ENABLE_CPU_BACKUP") || is_set("TMS_INIT_ENABLE_DISK_BACKUP");
  if (!tag.empty()) return OwnMemory{as_word(tag, TAG_LENGTH_MAX), backed_up || !drop ? VRB_KEEP : VRB_DROP};
  if (!is_set("TMS_INIT_ENABLE")) return std::nullopt;
  return OwnMemory{"default", backed_up ? VRB_KEEP : drop ? VRB_DROP : VRB_ZERO};
}

}  // namespace

Interposer::Interposer() : generation_(process_generation()), own_(own_memory()) {}

Interposer *Interposer::get() {
  open_registry();
  // Never destroyed: memory is freed while the process exits.
  static Interposer *const one = new Interposer;
  if (one->generation_ == process_generation()) return one;
  // Its locks may be held by threads that there are none of here.
  static std::atomic<uint32_t> told{0};
  if (one->own_ && told.exchange(process_generation()) != process_generation()) {
    write_line("nothing is leased in a forked process: start it by spawn");
  }
  return nullptr;
}

Attachment &Interposer::attachment(int ordinal) {
  const auto index = static_cast<std::size_t>(std::clamp(ordinal, 0, DEVICES_MAX - 1));
  Attachment &found = attachments_[index];
  if (tried_[index].load(std::memory_order_acquire)) return found;
  const std::lock_guard lock(mutex_);
  if (!tried_[index].load(std::memory_order_relaxed)) {
    try {
      attach(ordinal, found);
    } catch (const Error &error) {
      // Where there is a socket, its path is what the error is about.
      const bool is_dead = error.status == VRB_UNAVAILABLE && !error.subject.empty();
      say(error.name + ": " + error.message + (is_dead ? ": start one with `broker serve`" : "") + "; nothing is leased here");
    }
    tried_[index].store(true, std::memory_order_release);
  }
  return found;
}

Attachment *Interposer::answering(int ordinal) {
  Attachment &found = attachment(ordinal);
  return found.client == nullptr || found.client->has_given_up() ? nullptr : &found;
}

void Interposer::attach(int ordinal, Attachment &into) {
  const std::optional<Endpoint> endpoint = find_endpoint(ordinal);
  if (!endpoint) {
    throw Error(VRB_UNAVAILABLE, "BrokerUnavailable",
                "no broker for CUDA device " + std::to_string(ordinal) +
                    ": start one with `broker serve`, or name its run directory in VRAMBROKER_RUN_DIR");
  }
  into.client = client_of_path(endpoint->path);
  if (into.client == nullptr) {
    const bool is_host = endpoint->device.rfind("host:", 0) == 0;
    into.client = &Client::connect({endpoint->path, session_name(), is_host ? "host" : "cuda", VRB_PACKAGE_VERSION, CONNECT_MS});
  }
  if (own_) into.memory = std::make_unique<ProcessMemory>(*into.client, own_->tag, own_->contents);
}

ProcessMemory *Interposer::memory_of(const Client &client) {
  for (std::size_t i = 0; i < attachments_.size(); ++i) {
    if (tried_[i].load(std::memory_order_acquire) && attachments_[i].client == &client) return attachments_[i].memory.get();
  }
  return nullptr;
}

ProcessMemory *Interposer::memory_with(const void *address) {
  for (std::size_t i = 0; i < attachments_.size(); ++i) {
    if (!tried_[i].load(std::memory_order_acquire) || attachments_[i].memory == nullptr) continue;
    if (attachments_[i].memory->is_reserved(address)) return attachments_[i].memory.get();
  }
  return nullptr;
}

void Interposer::say(const std::string &what) {
  const std::lock_guard lock(saying_);
  if (said_.insert(what).second) write_line(what);
}

}  // namespace vrb
