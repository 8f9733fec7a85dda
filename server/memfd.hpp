#pragma once
/// The system calls behind a segment: one anonymous memory file, its pages, its seals. Stateless;
/// any thread.

#include <cstddef>
#include <cstdint>
#include <string>

#include "server/quota.hpp"
#include "server/unique_fd.hpp"
#include "shmstore/error.hpp"

namespace shmstore::server {

inline constexpr std::uint64_t kHugePageBytes = std::uint64_t{2} << 20U;

[[nodiscard]] constexpr std::uint64_t round_up(std::uint64_t bytes, std::uint64_t unit) noexcept {
  return (bytes + unit - 1) / unit * unit;
}

/// What the kernel does about huge pages in memory files (shmem_enabled).
enum class HugePages : std::uint8_t {
  never,   ///< None, whatever we ask.
  advise,  ///< Where asked for.
  always,  ///< Everywhere unless asked not to: even one small page may be charged as 2 MiB.
};
[[nodiscard]] HugePages huge_pages_in_force();

/// A memory file of `bytes` (a multiple of the page) that nobody can resize, mode 0600, without
/// pages yet. Error: no_capacity (descriptors, memory).
[[nodiscard]] Result<UniqueFd> make_memfd(std::uint64_t bytes);

/// A fresh description of the same file. REQUIRES: the process has not forked since the first call.
/// Never waits; a seal against writing does not refuse a writable one, which the lease probe needs.
/// Errors: no_capacity (descriptors), busy (somebody has a file lease), internal (/proc).
[[nodiscard]] Result<UniqueFd> reopen(int fd, bool writable);

/// Whether a new holder could map the file for writing. A process with a writable description may
/// add seals, and nobody can take them back. Error: permission_denied, naming the seal.
[[nodiscard]] Result<void> check_writable(int fd);

/// Puts pages, zero for whoever looks, behind [offset, offset + bytes): huge ones where whole ones
/// fit in and the kernel gives them. Error: no_capacity; pages got so far stay.
[[nodiscard]] Result<void> populate(int fd, std::uint64_t offset, std::uint64_t bytes,
                                    HugePages huge_pages);

/// Gives the pages of [offset, offset + bytes) back. False: the file is sealed against it.
bool punch(int fd, std::uint64_t offset, std::uint64_t bytes);

/// Whether punch() would be let.
[[nodiscard]] bool can_be_punched(int fd);

/// F_SEAL_WRITE and F_SEAL_SEAL. Errors: busy while a mapping could write, permission_denied when
/// somebody has added F_SEAL_SEAL alone: no waiting helps. May take 150 ms when somebody pins
/// pages.
[[nodiscard]] Result<void> seal_against_writing(int fd);

/// Bytes of pages behind the file, as the kernel counts them.
[[nodiscard]] std::uint64_t backed_bytes(int fd);

/// `what: strerror`, for texts of errors.
[[nodiscard]] std::string errno_text(const std::string& what, int error);

}  // namespace shmstore::server
