#pragma once
/// Starting a private daemon where none is found, so that nothing has to be set up first.

#include <string>
#include <vector>

#include "client/lookup.hpp"
#include "shmstore/error.hpp"

namespace shmstore::client_internal {

/// Starts `shmstored` for the socket in `folder`, exactly once over all processes that call this
/// at the same time, and opens a session with it. It outlives this process and ends by itself when
/// it has been idle.
/// Errors: disconnected (no program found; or why it could not start, in its own words),
/// permission_denied (the folder is somebody else's).
[[nodiscard]] Result<Found> start_daemon(const std::string& folder, const Interrupted& interrupted);

/// Where the program may be, best first: $SHMSTORE_DAEMON alone if set, else beside the running
/// program, in ../bin as seen from this library, and along $PATH.
[[nodiscard]] std::vector<std::string> daemon_candidates();

}  // namespace shmstore::client_internal
