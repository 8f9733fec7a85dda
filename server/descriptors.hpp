#pragma once
/// Descriptors are the scarcest thing the daemon has: one per array, two per connection.

#include <cstdint>

namespace shmstore::server {

struct DescriptorBudget {
  std::uint64_t descriptors_max = 0;  ///< RLIMIT_NOFILE; the sum of what follows and a reserve.
  std::uint64_t connections_max = 0;
  std::uint64_t segments_max = 0;
};

/// How `descriptors_max` is divided: an eighth of the connections' worth, 64 for the daemon itself.
[[nodiscard]] DescriptorBudget divide_descriptors(std::uint64_t descriptors_max) noexcept;

/// Raises the soft limit to the hard one and divides it.
[[nodiscard]] DescriptorBudget raise_descriptor_limit() noexcept;

/// Open descriptors of this process.
[[nodiscard]] std::uint64_t open_descriptors() noexcept;

}  // namespace shmstore::server
