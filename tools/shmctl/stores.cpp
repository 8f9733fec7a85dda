// Places come from the client library, so that shmctl looks where clients do. Daemons elsewhere are
// found in /proc: by the name that each gives its process, and its user.
#include "stores.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "client/lookup.hpp"
#include "connect.hpp"
#include "system_checks.hpp"

namespace shmctl {

namespace places = shmstore::client_internal;

std::vector<std::string> candidate_sockets(const Globals& globals) {
  const places::Places found = places::find_places(globals.socket);
  if (!found.given.empty()) return {found.given};
  std::vector<std::string> sockets = {found.system, found.user_folder + "/socket"};
  for (const std::string& folder : found.other_folders) sockets.push_back(folder + "/socket");
  return sockets;
}

bool is_final(const Globals& globals) {
  return !places::find_places(globals.socket).given.empty();
}

Result<Store> store_at(const std::string& socket) {
  Globals globals;
  globals.socket = socket;
  Result<shmstore::Client> client = connect(globals);
  if (!client) return client.error();
  Result<shmstore::StoreStatus> status = client->status();
  if (!status) return status.error();
  return Store{socket, static_cast<pid_t>(status->pid), status->arrays, status->used,
               status->uptime_s};
}

std::vector<pid_t> own_daemons() {
  std::vector<pid_t> daemons;
  std::error_code gone;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", gone)) {
    const std::string name = entry.path().filename();
    pid_t pid = 0;
    const char* end = name.data() + name.size();
    if (std::from_chars(name.data(), end, pid).ptr != end) continue;
    struct stat status {};
    if (stat(entry.path().c_str(), &status) != 0 || status.st_uid != geteuid()) continue;
    if (first_line(entry.path() / "comm") == "shmstored") daemons.push_back(pid);
  }
  std::sort(daemons.begin(), daemons.end());
  return daemons;
}

std::string told_socket(pid_t daemon) {
  std::ifstream file("/proc/" + std::to_string(daemon) + "/cmdline");
  bool next = false;
  for (std::string word; std::getline(file, word, '\0');) {
    if (next) return word;
    next = word == "--socket";
    if (word.starts_with("--socket=")) return word.substr(9);
  }
  return {};
}

}  // namespace shmctl
