#pragma once
/// What `doctor` says of the stores that it finds, and of what a daemon's process is held to.

#include <sys/types.h>

#include <string>
#include <vector>

#include "commands.hpp"
#include "system_checks.hpp"

namespace shmctl {

/// A line for each store of this user and each daemon elsewhere; a warning when programs may take
/// one or the other. `used`: the socket of the store that this command would use, or empty.
[[nodiscard]] std::vector<Check> store_checks(const Globals& globals, const std::string& used);

/// Limits, priority, binding and OOM score that the daemon has from whoever started it and could
/// not shed.
[[nodiscard]] Check surroundings_check(pid_t daemon);

}  // namespace shmctl
