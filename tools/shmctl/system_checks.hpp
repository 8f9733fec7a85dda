#pragma once
/// What `doctor` looks at in the kernel and the machine; nothing here talks to a daemon.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace shmctl {

enum class Level {
  ok,
  warn,
  fail
};

/// One finding: what was looked at, what is there, and what to do about it.
struct Check {
  Level level = Level::ok;
  std::string what;
  std::string text;
  std::string advice;  ///< Empty when there is nothing to do.
};

[[nodiscard]] std::string_view to_string(Level level);

/// Memory files, huge pages, leases, descriptors, overcommit: all that a daemon would need here.
[[nodiscard]] std::vector<Check> system_checks();

/// "MemTotal", "MemAvailable" … of /proc/meminfo, in bytes.
[[nodiscard]] std::optional<std::uint64_t> memory_bytes(std::string_view key);
/// The path of a process's cgroup (version 2); empty when there is none to see.
[[nodiscard]] std::string cgroup_of(std::string_view pid);
/// The smallest memory.max of a cgroup and its ancestors.
[[nodiscard]] std::optional<std::uint64_t> cgroup_memory_limit(std::string cgroup);
/// The first line of a file; nothing when it cannot be read.
[[nodiscard]] std::optional<std::string> first_line(const std::string& path);

}  // namespace shmctl
