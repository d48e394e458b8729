#include "discovery.h"

#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "cuda_device.h"
#include "status.h"
#include "words.h"

namespace vrb {
namespace {

const std::string HOST = "host:";

bool is_gpu(const std::string &device) { return device.rfind("GPU-", 0) == 0 || device.rfind("MIG-", 0) == 0; }

bool is_socket(const std::string &path) {
  struct stat found {};
  return ::stat(path.c_str(), &found) == 0 && S_ISSOCK(found.st_mode);
}

std::vector<std::string> run_dirs() {
  const std::string named = variable("VRAMBROKER_RUN_DIR");
  if (!named.empty()) return {named};
  std::vector<std::string> all{"/run/vrambroker"};
  const std::string session = variable("XDG_RUNTIME_DIR");
  if (!session.empty()) all.push_back(session + "/vrambroker");
  return all;
}

std::vector<std::string> names_in(const std::string &folder) {
  std::vector<std::string> names;
  DIR *const open = ::opendir(folder.c_str());
  if (open == nullptr) return names;
  while (const dirent *entry = ::readdir(open)) names.emplace_back(entry->d_name);
  ::closedir(open);
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<Endpoint> endpoints() {
  std::vector<Endpoint> found;
  for (const std::string &folder : run_dirs()) {
    for (const std::string &name : names_in(folder)) {
      const std::string path = folder + "/" + name + "/handles.sock";
      const auto is_known = [&](const Endpoint &one) { return one.device == name; };
      if (is_socket(path) && std::none_of(found.begin(), found.end(), is_known)) found.push_back({name, path});
    }
  }
  return found;
}

// "host:9" comes before "host:10".
bool host_comes_first(const Endpoint &one, const Endpoint &other) {
  return one.device.size() != other.device.size() ? one.device.size() < other.device.size() : one.device < other.device;
}

std::optional<Endpoint> gpu_endpoint(const std::vector<Endpoint> &known, int ordinal) {
  const std::string digits = gpu_digits(ordinal);
  for (const Endpoint &one : known) {
    if (is_gpu(one.device) && digits_of_gpu(one.device) == digits) return one;
  }
  return std::nullopt;
}

std::optional<Endpoint> host_endpoint(std::vector<Endpoint> known, int ordinal) {
  const auto is_host = [](const Endpoint &one) { return one.device.rfind(HOST, 0) == 0; };
  known.erase(std::remove_if(known.begin(), known.end(), [&](const Endpoint &one) { return !is_host(one); }), known.end());
  std::sort(known.begin(), known.end(), host_comes_first);
  if (ordinal < 0 || static_cast<std::size_t>(ordinal) >= known.size()) return std::nullopt;
  return known[static_cast<std::size_t>(ordinal)];
}

// A UUID may be written without the word before it, "host" means "host:0", and what names no one device means all.
bool is_meant(const std::string &named, const Endpoint &one) {
  if (named.empty() || named == "cuda" || named.rfind("cuda:", 0) == 0) return true;  // see find_endpoint
  if (named == "host") return one.device == HOST + "0";
  if (named.rfind(HOST, 0) == 0 || !is_gpu(one.device)) return one.device == named;
  return digits_of_gpu(is_gpu(named) ? named : "GPU-" + named) == digits_of_gpu(one.device);
}

std::string program_name() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string program, script;
  std::getline(file, program, '\0');
  std::getline(file, script, '\0');
  const auto stem = [](const std::string &path) { return path.substr(path.find_last_of('/') + 1); };
  // A script's own name says more than its interpreter's; "-c" and "-m" name none.
  const bool runs_script = stem(program).rfind("python", 0) == 0 && !script.empty() && script[0] != '-';
  std::string name = stem(runs_script ? script : program);
  if (runs_script && name.size() > 3 && name.compare(name.size() - 3, 3, ".py") == 0) name.resize(name.size() - 3);
  return name.empty() ? "program" : name;
}

}  // namespace

std::optional<Endpoint> find_endpoint(int ordinal) {
  const std::string named = variable("VRAMBROKER_DEVICE");
  if (named.rfind("cuda:", 0) == 0 && named.substr(5) != std::to_string(ordinal)) return std::nullopt;
  std::vector<Endpoint> known = endpoints();
  known.erase(std::remove_if(known.begin(), known.end(), [&](const Endpoint &one) { return !is_meant(named, one); }),
              known.end());
  const bool has_gpus = std::any_of(known.begin(), known.end(), [](const Endpoint &one) { return is_gpu(one.device); });
  return has_gpus ? gpu_endpoint(known, ordinal) : host_endpoint(std::move(known), ordinal);
}

std::string session_name() {
  const std::string named = variable("VRAMBROKER_NAME");
  return as_word(named.empty() ? program_name() : named);
}

}  // namespace vrb
