#pragma once
/// What the kernel says about a process: descriptors, memory, mappings. Readers of /proc.

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace shmstore::testing {

/// One line of /proc/PID/maps.
struct MapLine {
  std::uintptr_t begin = 0, end = 0;
  std::string perms;  ///< "r--s", "rw-p", …
  std::uint64_t offset = 0;
  std::uint64_t inode = 0;
  std::string path;
};

[[nodiscard]] std::vector<MapLine> read_maps(pid_t pid);
/// The mapping that holds `address`.
[[nodiscard]] std::optional<MapLine> find_map(pid_t pid, const void* address);
/// Mappings of the store's segments.
[[nodiscard]] std::vector<MapLine> segment_maps(pid_t pid);

/// Open descriptors; 0 when the process cannot be looked at.
[[nodiscard]] std::size_t fd_count(pid_t pid);
/// Open descriptors of the caller that refer to a segment of the store.
[[nodiscard]] std::size_t segment_fd_count();
[[nodiscard]] std::uint64_t rss_bytes(pid_t pid);
/// Shared memory of the whole machine.
[[nodiscard]] std::uint64_t shmem_bytes();
/// 'R', 'S', 'T' (stopped), 'Z' …; '?' when there is no such process.
[[nodiscard]] char process_state(pid_t pid);
[[nodiscard]] std::vector<pid_t> children_of(pid_t pid);

}  // namespace shmstore::testing
