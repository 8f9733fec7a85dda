#pragma once
/// numpy's many spellings of a dtype, and back to the one that people read.

#include <string>
#include <string_view>

namespace shmctl {

/// "f8", "float64", "double", "d", ">i2", "datetime64[ns]", "bool" … in the syntax that
/// shmstore::Dtype::parse takes. What is unknown here comes back as it is, for Dtype to refuse.
[[nodiscard]] std::string dtype_from_numpy(std::string_view text);

/// "<f8" → "float64", "<M8[ns]" → "datetime64[ns]", a list of fields → "{x, y}"; other texts as
/// they are.
[[nodiscard]] std::string dtype_for_people(std::string_view canonical);

}  // namespace shmctl
