#pragma once
/// Reads files of /proc and /sys, which are small and have no length.

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <optional>
#include <string>

#include "server/unique_fd.hpp"

namespace shmstore::server {

/// The first `limit` bytes from a descriptor; nothing when it cannot be read.
[[nodiscard]] inline std::optional<std::string> read_all(int fd, std::size_t limit) {
  std::string text;
  std::array<char, 4096> buffer{};
  while (text.size() < limit) {
    const ssize_t got = ::read(fd, buffer.data(), buffer.size());
    if (got < 0) return std::nullopt;
    if (got == 0) break;
    text.append(buffer.data(), static_cast<std::size_t>(got));
  }
  return text;
}

/// The first `limit` bytes of a file; nothing when it cannot be read.
[[nodiscard]] inline std::optional<std::string> read_small_file(const std::string& path,
                                                                std::size_t limit = 65536) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  return fd.valid() ? read_all(fd.get(), limit) : std::nullopt;
}

}  // namespace shmstore::server
