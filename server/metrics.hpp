#pragma once
/// The store's figures in the OpenMetrics text format.

#include <cstdint>
#include <map>
#include <string>

#include "server/quota.hpp"

namespace shmstore::server {

struct MetricsInput {
  std::uint64_t capacity = 0, used = 0, records = 0, pinned = 0, freeing = 0;
  std::uint64_t arrays = 0, sessions = 0, leases = 0, waits = 0;
  std::uint64_t segments = 0, segments_max = 0, pinned_segments = 0;
  std::uint64_t descriptors = 0, descriptors_max = 0;
  double uptime_s = 0;
  const std::map<std::uint32_t, Usage>* users = nullptr;
};

/// At most `bytes_max` bytes: users that do not fit are left out.
[[nodiscard]] std::string metrics_text(const MetricsInput& input, std::size_t bytes_max);

}  // namespace shmstore::server
