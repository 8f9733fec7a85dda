#pragma once
/// Which daemon a client talks to. The order: a path given by the caller or $SHMSTORE_SOCKET is
/// final; else the system's socket, then the user's, then a private daemon is started.

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "client/wire.hpp"
#include "shmstore/error.hpp"

namespace shmstore::client_internal {

struct Places {
  std::string given;  ///< Final when not empty.
  bool given_by_variable = false;
  std::string system = "/run/shmstore/socket";
  /// Where the user's daemon is started: in $XDG_RUNTIME_DIR, without it in /run/user/<uid>, each
  /// if it is the user's own and short enough for a socket; else /tmp/shmstore-<uid>.
  std::string user_folder;
  /// Where it may be as well: a job of cron has no login session, and its store is in /tmp.
  std::vector<std::string> other_folders;
  /// Where units of the system are, if one of systemd is running.
  std::vector<std::string> unit_folders;
};

/// From the caller's option and the environment (not in setuid programs).
[[nodiscard]] Places find_places(const std::string& option);

/// Whether a daemon may be started: the caller's word, else $SHMSTORE_AUTOSTART.
[[nodiscard]] bool may_autostart(std::optional<bool> option);

struct Found {
  Candidate candidate;
  UninheritedFd socket;
  protocol::HelloReply hello;
  bool started = false;  ///< Its daemon, by this process and just now.
};

/// Opens a session with the first daemon in order. The next place is tried only where the earlier
/// one is absent; no permission on the system's socket counts as absent, with one warning. Retries
/// for 2 s while nobody listens on the system's socket. Who starts a private daemon although the
/// machine's is installed, and down, says so once on stderr.
/// Errors: disconnected (text names what was tried), permission_denied, protocol_error.
[[nodiscard]] Result<Found> look_up(const Places& places, bool autostart,
                                    const Interrupted& interrupted);

/// Sockets at the user's places other than `path` that something lies at: stores beside this one.
[[nodiscard]] std::vector<std::string> stores_beside(const Places& places, const std::string& path);

/// Opens a session at exactly this place.
[[nodiscard]] Result<Found> open_at(const Candidate& candidate, const Interrupted& interrupted);

/// Sleeps in slices; false when interrupted.
[[nodiscard]] bool pause_for(std::chrono::milliseconds time, const Interrupted& interrupted);

}  // namespace shmstore::client_internal
