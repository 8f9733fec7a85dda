#pragma once
/// Making a daemon's process. What the program that needs it happens to have (limits, priority,
/// terminal, variables) was meant for that program; the daemon serves others after it.

#include <string>

#include "client/owned_fd.hpp"
#include "client/program.hpp"
#include "shmstore/error.hpp"

namespace shmstore::client_internal {

/// Starts `program` for `socket` as a process that is nobody's child, and sheds what was inherited
/// where the kernel allows it: soft limits, priority, CPU and memory binding, OOM score, ignored
/// signals, umask, working folder, variables. The control group and hard limits stay.
/// Returns the end of a pipe to read: what the daemon says until it listens, then its end.
[[nodiscard]] Result<OwnedFd> launch_here(Program program, const std::string& socket);

/// The same by the user's service manager, out of this process's control group, where one runs
/// whose runtime folder holds the socket. Success means no more than that it was asked.
/// Errors: not_found (no manager, or SHMSTORE_AUTOSTART=inside), no_capacity.
[[nodiscard]] Result<OwnedFd> launch_in_manager(const Program& program, const std::string& socket);

}  // namespace shmstore::client_internal
