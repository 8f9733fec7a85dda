#include "client/lookup.hpp"

#include <poll.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
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

/// sudo keeps the caller's XDG_RUNTIME_DIR: a folder of somebody else is not ours to use.
bool is_own_folder(const std::string& path) {
  struct stat status {};
  return !path.empty() && stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode) &&
         status.st_uid == geteuid();
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

/// One way through the places. `stopping` says that a daemon closed before it answered.
Result<Found> look_once(const Places& places, bool autostart, const Interrupted& interrupted,
                        bool& stopping) {
  stopping = false;
  if (!places.given.empty()) {
    const Candidate given{places.given, Origin::given};
    Opened opened = open_session(given, interrupted);
    stopping = opened.problem == OpenProblem::closed;
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
  const Candidate user{places.user_folder + "/socket", Origin::user};
  opened = open_session(user, interrupted);
  stopping = opened.problem == OpenProblem::closed;
  if (opened.problem != OpenProblem::absent && opened.problem != OpenProblem::refused) {
    return conclude(user, opened);
  }
  if (!autostart) {
    return make_error(ErrorCode::disconnected, "no daemon at " + system.path + " or " + user.path +
                                                   ", and starting one is turned off");
  }
  return start_daemon(places.user_folder, interrupted);
}

}  // namespace

Places find_places(const std::string& option) {
  Places places;
  places.given = option.empty() ? variable("SHMSTORE_SOCKET") : option;
  const std::string runtime = variable("XDG_RUNTIME_DIR");
  places.user_folder =
      is_own_folder(runtime) ? runtime + "/shmstore" : "/tmp/shmstore-" + std::to_string(geteuid());
  return places;
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
