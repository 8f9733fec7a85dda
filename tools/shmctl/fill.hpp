#pragma once
/// The value of `create --fill`, as one item of an array.

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include "shmstore/dtype.hpp"
#include "shmstore/error.hpp"

namespace shmctl {

/// The bytes of one item of `dtype` with the value that `text` says:
///   bool true, false, 1, 0 · integers -7 · floats 0.5, inf, nan · complex 1+2j
///   datetime64 2024, 2024-05-01T12:00, NaT or a count of its unit · timedelta64 a count, NaT
///   S and U: the text itself · V and structured: 0 only
/// Errors: invalid_argument, text begins with "fill:".
[[nodiscard]] shmstore::Result<std::vector<std::byte>> parse_fill(const shmstore::Dtype& dtype,
                                                                  std::string_view text);

/// Writes `item` over the whole of `out`. REQUIRES: out.size() is a multiple of item.size().
void fill_with(std::span<std::byte> out, std::span<const std::byte> item);

}  // namespace shmctl
