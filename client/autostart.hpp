#pragma once
/// Starting a private daemon where none is found, so that nothing has to be set up first.

#include <string>

#include "client/lookup.hpp"
#include "shmstore/error.hpp"

namespace shmstore::client_internal {

/// Starts `shmstored` for the socket in `folder`, exactly once over all processes that call this
/// at the same time, and opens a session with it. It outlives this process and ends by itself when
/// it has been idle.
/// Errors: disconnected (no program found; or why it could not start, in its own words),
/// permission_denied (the folder is somebody else's).
[[nodiscard]] Result<Found> start_daemon(const std::string& folder, const Interrupted& interrupted);

}  // namespace shmstore::client_internal
