#pragma once
/// What can be said to the daemon: by flags, or in a JSON file with the same names. Flags win.
/// The defaults are here and nowhere else; `--help`, the manual and the units repeat them.

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "server/log.hpp"
#include "server/quota.hpp"
#include "shmstore/error.hpp"

namespace shmstore::server {

/// An amount of bytes, absolute or as a share of something.
struct Size {
  std::uint64_t bytes = 0;
  unsigned percent = 0;  ///< 1 to 100; 0: `bytes` counts.
  [[nodiscard]] std::uint64_t of(std::uint64_t whole) const noexcept {
    return percent == 0 ? bytes : whole / 100 * percent + whole % 100 * percent / 100;
  }
  friend bool operator==(const Size&, const Size&) = default;
};

/// "1048576", "64K", "64KiB", "2 GiB", "1.5T", "50%"; KB, MB … are powers of 1000.
/// Error: invalid_argument.
[[nodiscard]] Result<Size> parse_size(std::string_view text);
[[nodiscard]] std::string to_string(const Size& size);

struct Options {
  /// Path of the socket. Empty: $SHMSTORE_SOCKET; without it /run/shmstore/socket for root, else
  /// $XDG_RUNTIME_DIR/shmstore/socket or /tmp/shmstore-<uid>/socket.
  std::string socket;
  /// Bytes of all arrays together; a share is one of RAM or of the control group's limit. More
  /// leaves less to everybody else on the machine: array memory cannot be swapped in.
  Size capacity{0, 50};
  /// Bytes of the arrays of one user; a share is one of the capacity. 0: half of it where other
  /// users can connect, so that each leaves room for others, else all.
  Size user_quota{};
  /// Arrays of one user, and those of them with bytes, each of which takes a descriptor. 0: as
  /// above, of the descriptors that there are for arrays.
  std::uint64_t user_arrays = Limits{}.user_arrays_max;
  std::uint64_t user_segments = Limits{}.user_segments_max;
  /// Leases, connections and blocked requests of one user. Leases are at most one a KiB of the
  /// capacity, and of that and of the connections there are for all at most half where other users
  /// can connect.
  std::uint64_t user_leases = Limits{}.user_leases_max;
  std::uint64_t user_connections = Limits{}.user_connections_max;
  std::uint64_t user_waits = Limits{}.user_waits_max;
  /// JSON file with any of these names, `//` comments allowed; read again at SIGHUP. It may be
  /// missing when a `-` stands before its path. Empty: none.
  std::string config;
  /// Seconds without a session, an array or a pinned segment after which the daemon ends. 0: never.
  std::uint64_t idle_exit = 0;
  /// error, warning, info or debug.
  LogLevel log_level = LogLevel::info;
  /// Keep a child and start it again when it dies. Not in this version.
  bool supervise = false;

  /// The names that were given by flags.
  std::set<std::string> given;
  /// Whether anybody said how much; else an autostarted daemon takes less.
  bool capacity_given = false;
};

/// The capacity of a daemon that a client has started, when nothing else is said.
inline constexpr Size kAutostartCapacity{0, 25};

/// What all users share: what it is known to be when the daemon runs.
struct SharedOut {
  std::uint64_t memory = 0;       ///< Bytes that there could ever be.
  std::uint64_t connections = 0;  ///< Descriptors allow so many in all,
  std::uint64_t segments = 0;     ///< and so many arrays with bytes.
  bool one_user = false;          ///< Nobody but one user (and root) can connect.
};

/// The limits that the options come to. Nobody's share is all of anything, unless there is one user
/// only.
[[nodiscard]] Limits limits_of(const Options& options, bool autostarted, const SharedOut& all);

/// What the flags say, or what the process should end with.
struct ParsedFlags {
  std::optional<Options> options;
  int exit_code = 0;  ///< Without options: 0 after --help or --version, 2 usage.
};

/// Prints help, version and errors.
[[nodiscard]] ParsedFlags parse_flags(int argc, const char* const* argv);

/// The flags and the config file that they name, read now.
/// Errors: not_found (no such file), permission_denied (not to be read, or everybody may write to
/// it), invalid_argument (the text names the key).
[[nodiscard]] Result<Options> with_config(const Options& flags);

/// Takes what `text` (JSON) says into `options`, but for the names in `options.given`.
/// Error: invalid_argument, the text names the key.
Result<void> apply_config(std::string_view text, Options& options);

}  // namespace shmstore::server
