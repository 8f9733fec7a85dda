#pragma once
/// The head of a .npy file, versions 1.0 to 3.0 (numpy.lib.format): magic, version, and a Python
/// literal that says dtype, order and shape; the array's bytes follow.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "shmstore/dtype.hpp"
#include "shmstore/error.hpp"

namespace shmctl {

struct NpyHeader {
  shmstore::Dtype dtype;
  std::vector<std::uint64_t> shape;
  shmstore::Order order = shmstore::Order::c;
};

/// Reads the head and leaves the descriptor at the first byte of the data; seeks nowhere, so a
/// pipe will do. `file` is for the errors. Errors: invalid_argument (no .npy file, object dtype).
[[nodiscard]] shmstore::Result<NpyHeader> read_npy_header(int fd, std::string_view file);

/// The whole head of a file, padded so that the data begins on a multiple of 64.
[[nodiscard]] std::string npy_header_bytes(std::string_view dtype,
                                           std::span<const std::uint64_t> shape,
                                           shmstore::Order order);

/// Reads until `out` is full. Errors: invalid_argument when the file ends before.
[[nodiscard]] shmstore::Result<void> read_fully(int fd, std::span<std::byte> out,
                                                std::string_view file);
[[nodiscard]] shmstore::Result<void> write_fully(int fd, std::span<const std::byte> bytes,
                                                 std::string_view file);

}  // namespace shmctl
