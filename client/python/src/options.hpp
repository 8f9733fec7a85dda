#pragma once
/// Python's numbers as the C++ client takes them.

#include <chrono>
#include <cstdint>
#include <optional>

#include "shmstore/client.hpp"

namespace shmstore::python {

/// Milliseconds; nothing means for ever.
[[nodiscard]] inline Timeout timeout_of(std::optional<std::int64_t> ms) {
  if (!ms) return kWaitForever;
  return std::chrono::milliseconds(*ms);
}

}  // namespace shmstore::python
