#pragma once
/// Writing an array's bytes through the descriptor of its segment.

#include <cstddef>
#include <cstdint>
#include <span>

#include "shmstore/error.hpp"

namespace shmstore::client_internal {

/// Whether this process may write the bytes of a file below `end`: its limit for the size of files
/// (RLIMIT_FSIZE) counts for memory files too, and a write beyond it is a signal.
[[nodiscard]] bool may_write_file(std::uint64_t end) noexcept;

/// Writes all of `content` at `offset` of a file that is long enough; blocks for as long as a copy.
/// Errors: invalid_argument (`content` cannot be read), no_capacity (no memory), aborted (the file
/// was sealed meanwhile), internal.
[[nodiscard]] Result<void> write_file(int fd, std::uint64_t offset,
                                      std::span<const std::byte> content);

}  // namespace shmstore::client_internal
