#pragma once
/// What /proc says about processes and the store's memory in them.

#include <sys/types.h>

#include <cstdint>
#include <set>
#include <string>
#include <vector>

namespace shmctl {

/// All living descendants of `root`, itself not included; zombies do not count.
[[nodiscard]] std::vector<pid_t> descendants_of(pid_t root);

/// True unless the process has ended; a zombie has.
[[nodiscard]] bool is_alive(pid_t pid);

/// The command line of a process, arguments separated by blanks, cut to 60 characters.
[[nodiscard]] std::string command_of(pid_t pid);

/// Inodes of the memory files that the daemon `pid` has open: its segments. Empty when the kernel
/// does not let us look.
[[nodiscard]] std::set<ino_t> segments_of(pid_t daemon);

/// Bytes of the store's memory that `pid` maps or has a descriptor of; each segment counts once.
/// Only segments in `segments` count, or any memory file of a shmstore when it is empty.
[[nodiscard]] std::uint64_t held_bytes(pid_t pid, const std::set<ino_t>& segments);

}  // namespace shmctl
