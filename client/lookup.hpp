#pragma once
/// Which daemon a client talks to. The order: a path given by the caller or $SHMSTORE_SOCKET is
/// final; else the system's socket, then the user's, then a private daemon is started.

#include <chrono>
#include <optional>
#include <string>

#include "client/wire.hpp"
#include "shmstore/error.hpp"

namespace shmstore::client_internal {

struct Places {
  std::string given;  ///< Final when not empty.
  std::string system = "/run/shmstore/socket";
  std::string user_folder;  ///< $XDG_RUNTIME_DIR/shmstore or /tmp/shmstore-<uid>.
};

/// From the caller's option and the environment (not in setuid programs).
[[nodiscard]] Places find_places(const std::string& option);

/// Whether a daemon may be started: the caller's word, else $SHMSTORE_AUTOSTART.
[[nodiscard]] bool may_autostart(std::optional<bool> option);

struct Found {
  Candidate candidate;
  UninheritedFd socket;
  protocol::HelloReply hello;
};

/// Opens a session with the first daemon in order. The next place is tried only where the earlier
/// one is absent; no permission on the system's socket counts as absent, with one warning. Retries
/// for 2 s while nobody listens on the system's socket.
/// Errors: disconnected (text names what was tried), permission_denied, protocol_error.
[[nodiscard]] Result<Found> look_up(const Places& places, bool autostart,
                                    const Interrupted& interrupted);

/// Opens a session at exactly this place.
[[nodiscard]] Result<Found> open_at(const Candidate& candidate, const Interrupted& interrupted);

/// Sleeps in slices; false when interrupted.
[[nodiscard]] bool pause_for(std::chrono::milliseconds time, const Interrupted& interrupted);

}  // namespace shmstore::client_internal
