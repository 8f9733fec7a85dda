#pragma once
/// What the daemon cannot do without. Looked at before it listens, so that what is missing is named
/// once, at the start, and not by every create later on.

#include "server/descriptors.hpp"
#include "shmstore/error.hpp"

namespace shmstore::server {

/// Fewer open files than that leave nothing to serve anybody with.
inline constexpr std::uint64_t kDescriptorsMin = 80;

/// /proc, memory files, descriptors; `by_share`: also how much memory there is, of which the store
/// gets a share. Errors: not_found, no_capacity or internal; the text names
/// what is missing, what it is for, and what to do.
[[nodiscard]] Result<void> check_environment(const DescriptorBudget& budget, bool by_share);

}  // namespace shmstore::server
