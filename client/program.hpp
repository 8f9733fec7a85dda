#pragma once
/// Which program is started as the daemon. It runs with this user's rights, so nobody else may be
/// able to decide what it is.

#include <cstdint>
#include <string>
#include <vector>

#include "client/owned_fd.hpp"
#include "shmstore/error.hpp"

namespace shmstore::client_internal {

/// Where the program may be, best first: $SHMSTORE_DAEMON alone if set, else beside the running
/// program, in ../sbin from there, in ../bin as seen from this library, and along $PATH.
[[nodiscard]] std::vector<std::string> daemon_candidates();

struct Program {
  std::string path;  ///< For people and for argv[0].
  OwnedFd file;      ///< What was checked; the path may mean another file by now.
};

/// The first candidate that can be trusted, see open_program().
/// Errors: disconnected; the text says where was looked, and which program was refused why.
[[nodiscard]] Result<Program> find_daemon_program();

/// Whose files are believed besides root's and this user's.
enum class Owners : std::uint8_t {
  own,  ///< The owner of the running program's (who decides all that it does) and of `/`.
  any   ///< Everybody's: the user has named this file.
};

/// Opens the executable file at `path`, if neither the file nor any folder on the way, links
/// included, can be changed by others. A sticky folder such as /tmp may be passed through, but may
/// not hold the file. Writable by the group counts as writable by others, unless it is the user's
/// private group. The descriptor is O_PATH: for execveat().
/// Errors: not_found (no executable file there), permission_denied (the text says why).
[[nodiscard]] Result<OwnedFd> open_program(const std::string& path, Owners owners);

/// Replaces the process by the program, if it can. Makes no allocation, so that it can be called
/// between fork and exec.
void execute_program(const Program& program, char* const* arguments,
                     char* const* environment) noexcept;

}  // namespace shmstore::client_internal
