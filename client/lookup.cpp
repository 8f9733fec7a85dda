#include "client/lookup.hpp"

#include <poll.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "client/autostart.hpp"

namespace shmstore::client_internal {

namespace {

constexpr int kStoppingTriesMax = 5;
constexpr std::chrono::milliseconds kStoppingPause{10};
constexpr std::chrono::seconds kSystemRetry{2};
constexpr std::chrono::milliseconds kSystemPause{50};

std::string variable(const char* name) {
  const char* text = secure_getenv(name);
  return text == nullptr ? std::string() : std::string(text);
}

bool is_own_folder(const std::string& path) {
  struct stat status {};
  return !path.empty() && stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode) &&
         status.st_uid == geteuid();
}

/// In a folder that everybody writes to, somebody else may have made one of this name.
bool is_own_real_folder(const std::string& path) {
  struct stat status {};
  return lstat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode) && status.st_uid == geteuid();
}

/// A session, or why there is none.
Result<Found> conclude(const Candidate& candidate, Opened& opened) {
  if (opened.problem != OpenProblem::none) return std::move(opened.error);
  return Found{candidate, std::move(opened.socket), opened.hello};
}

void warn_denied(const std::string& path) {
  static std::atomic<bool> warned{false};
  if (warned.exchange(true)) return;
  const std::string text = "shmstore: no permission for " + path + ", looking further\n";
  static_cast<void>(!write(STDERR_FILENO, text.data(), text.size()));
}

/// The system's daemon may be restarting: its socket is there, but nobody listens yet.
Opened open_system(const Candidate& candidate, const Interrupted& interrupted) {
  const auto deadline = std::chrono::steady_clock::now() + kSystemRetry;
  for (;;) {
    Opened opened = open_session(candidate, interrupted);
    if (opened.problem != OpenProblem::refused) return opened;
    if (std::chrono::steady_clock::now() >= deadline) return opened;
    if (pause_for(kSystemPause, interrupted)) continue;
    opened.problem = OpenProblem::other;
    opened.error = interrupted_error();
    return opened;
  }
}

bool vacant(const Opened& opened) {
  return opened.problem == OpenProblem::absent || opened.problem == OpenProblem::refused;
}

/// Somebody who set up the machine's store does not expect programs to use another.
void note_private(const Places& places, const std::string& path) {
  constexpr std::string_view kUnit = "/shmstored.socket";
  const auto installed = [kUnit](const std::string& folder) {
    return access((folder + std::string(kUnit)).c_str(), F_OK) == 0;
  };
  if (std::none_of(places.unit_folders.begin(), places.unit_folders.end(), installed)) return;
  const std::string text =
      "shmstore: a private store was started (" + path +
      "), because the machine's is installed but does not run; systemctl enable --now "
      "shmstored.socket starts that one\n";
  static_cast<void>(!write(STDERR_FILENO, text.data(), text.size()));
}

/// The user's own places, after the system's turned out to be vacant.
Result<Found> look_at_user(const Places& places, bool autostart, const Interrupted& interrupted,
                           bool& stopping) {
  const Candidate user{places.user_folder + "/socket", Origin::user};
  Opened opened = open_session(user, interrupted);
  stopping = opened.problem == OpenProblem::closed;
  // A folder that a strange umask has closed to its owner is opened again by who starts a daemon.
  const bool closed_folder = opened.problem == OpenProblem::denied && autostart;
  if (!vacant(opened) && !closed_folder) return conclude(user, opened);
  for (const std::string& folder : places.other_folders) {
    if (!is_own_real_folder(folder)) continue;
    const Candidate other{folder + "/socket", Origin::user};
    Opened beside = open_session(other, interrupted);
    if (beside.problem == OpenProblem::none) return conclude(other, beside);
  }
  if (!autostart) {
    return make_error(ErrorCode::disconnected, "no daemon at " + places.system + " or " +
                                                   user.path + ", and starting one is turned off");
  }
  return start_daemon(places.user_folder, interrupted);
}

/// One way through the places. `stopping` says that a daemon closed before it answered.
Result<Found> look_once(const Places& places, bool autostart, const Interrupted& interrupted,
                        bool& stopping) {
  stopping = false;
  if (!places.given.empty()) {
    const Candidate given{places.given, Origin::given};
    Opened opened = open_session(given, interrupted);
    stopping = opened.problem == OpenProblem::closed;
    if (opened.error.code == ErrorCode::invalid_argument && places.given_by_variable) {
      opened.error.text += " (it comes from $SHMSTORE_SOCKET)";
    }
    return conclude(given, opened);
  }
  const Candidate system{places.system, Origin::system};
  Opened opened = open_system(system, interrupted);
  const bool denied = opened.problem == OpenProblem::denied;
  if (denied) warn_denied(system.path);
  if (!denied && opened.problem != OpenProblem::absent) {
    stopping = opened.problem == OpenProblem::closed;
    return conclude(system, opened);
  }
  Result<Found> found = look_at_user(places, autostart, interrupted, stopping);
  if (found && found->started && !denied) note_private(places, found->candidate.path);
  return found;
}

/// Whether a store can be in this runtime folder. sudo keeps the caller's XDG_RUNTIME_DIR: a folder
/// of somebody else is not ours to use.
bool can_hold_store(const std::string& runtime) {
  return is_own_folder(runtime) &&
         runtime.size() + std::strlen("/shmstore/socket") <= kPathBytesMax;
}

std::string without_slashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

}  // namespace

Places find_places(const std::string& option) {
  Places places;
  places.given = option.empty() ? variable("SHMSTORE_SOCKET") : option;
  places.given_by_variable = option.empty();
  const std::string uid = std::to_string(geteuid());
  const std::string login = "/run/user/" + uid;
  const std::string temporary = "/tmp/shmstore-" + uid;
  const std::string runtime = without_slashes(variable("XDG_RUNTIME_DIR"));
  if (can_hold_store(runtime)) {
    places.user_folder = runtime + "/shmstore";
  } else if (can_hold_store(login)) {
    places.user_folder = login + "/shmstore";
  } else {
    places.user_folder = temporary;
  }
  // A runtime folder that somebody has chosen stands for itself.
  if (places.user_folder == login + "/shmstore") places.other_folders = {temporary};
  const bool wanted = variable("SHMSTORE_AUTOSTART") == "1";
  if (!wanted && access("/run/systemd/system", F_OK) == 0) {
    places.unit_folders = {"/etc/systemd/system", "/run/systemd/system",
                           "/usr/local/lib/systemd/system", "/usr/lib/systemd/system",
                           "/lib/systemd/system"};
  }
  return places;
}

std::vector<std::string> stores_beside(const Places& places, const std::string& path) {
  std::vector<std::string> stores;
  if (!places.given.empty()) return stores;
  std::vector<std::string> folders = places.other_folders;
  folders.push_back(places.user_folder);
  for (const std::string& folder : folders) {
    if (!is_own_real_folder(folder)) continue;
    struct stat status {};
    const std::string socket = folder + "/socket";
    if (socket != path && lstat(socket.c_str(), &status) == 0) stores.push_back(socket);
  }
  return stores;
}

bool may_autostart(std::optional<bool> option) {
  return option.value_or(variable("SHMSTORE_AUTOSTART") != "0");
}

bool pause_for(std::chrono::milliseconds time, const Interrupted& interrupted) {
  while (time.count() > 0) {
    const auto slice = std::min(time, kSlice);
    static_cast<void>(poll(nullptr, 0, static_cast<int>(slice.count())));
    if (is_interrupted(interrupted)) return false;
    time -= slice;
  }
  return true;
}

Result<Found> open_at(const Candidate& candidate, const Interrupted& interrupted) {
  Opened opened = open_session(candidate, interrupted);
  return conclude(candidate, opened);
}

Result<Found> look_up(const Places& places, bool autostart, const Interrupted& interrupted) {
  for (int tries = 1;; ++tries) {
    bool stopping = false;
    Result<Found> found = look_once(places, autostart, interrupted, stopping);
    if (found || !stopping || tries == kStoppingTriesMax) return found;
    if (!pause_for(kStoppingPause, interrupted)) return interrupted_error();
  }
}

}  // namespace shmstore::client_internal
