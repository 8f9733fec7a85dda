#pragma once
/// Who is charged for what. Pure accounting: every charge is taken before the work it pays for and
/// returned by whoever took it; nothing here knows arrays, sockets or the kernel.

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "shmstore/error.hpp"

namespace shmstore::server {

/// Limits of the store and of each user. Defaults live here and only here.
struct Limits {
  std::uint64_t capacity = 0;        ///< Bytes of all arrays together. Set by main.
  std::uint64_t user_bytes_max = 0;  ///< Bytes of one user; 0: the capacity.
  std::uint64_t user_arrays_max = 4'000'000;
  std::uint64_t user_leases_max = 4'000'000;
  std::uint64_t user_connections_max = 4'096;
  std::uint64_t user_waits_max = 16'384;  ///< Blocked requests; one event may answer all.
  std::uint64_t user_segments_max = 0;    ///< Descriptors of one user's arrays; 0: all there are.
  std::uint64_t segments_max = 16'384;  ///< Descriptors: RLIMIT_NOFILE less a reserve. Set by main.
};

enum class Resource {
  bytes,
  arrays,
  segments,
  leases,
  connections,
  waits
};

/// What an array of `bytes` is charged: the whole pages that the kernel holds for it.
inline constexpr std::uint64_t kPageBytes = 4096;
[[nodiscard]] constexpr std::uint64_t charge_of(std::uint64_t bytes) {
  return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

struct Usage {
  std::uint64_t bytes = 0, arrays = 0, segments = 0, leases = 0, connections = 0, waits = 0;
  std::uint64_t bytes_max = 0, arrays_max = 0;          ///< 0: the store's default.
  std::uint64_t segments_max = 0, connections_max = 0;  ///< Only in what usage() returns.
};

/// What somebody pays for an array, or for what is left of one.
struct Holding {
  std::uint64_t bytes = 0, arrays = 0, segments = 0;
};

/// One per store. Not thread-safe: belongs to the event loop's thread.
class Quota {
 public:
  explicit Quota(const Limits& limits) : limits_(limits) {}

  /// Takes `amount` or nothing. Errors: quota_exceeded (the text names the resource, the limit and
  /// the use), no_capacity for bytes over the capacity and segments over what there are
  /// descriptors for (names what is free and who holds most).
  Result<void> charge(std::uint32_t uid, Resource resource, std::uint64_t amount);
  /// REQUIRES: at least `amount` charged.
  void uncharge(std::uint32_t uid, Resource resource, std::uint64_t amount);
  /// All of it or nothing; errors as above.
  Result<void> charge(std::uint32_t uid, const Holding& holding);
  void uncharge(std::uint32_t uid, const Holding& holding);
  /// Moves a charge between users without asking limits: the new one may go over.
  void move(std::uint32_t from, std::uint32_t to, const Holding& holding);

  void set_limits(const Limits& limits) { limits_ = limits; }
  /// What is not given stays as it was, the store's default included; 0: the default again.
  void set_user_limits(std::uint32_t uid, std::optional<std::uint64_t> bytes_max,
                       std::optional<std::uint64_t> arrays_max);
  [[nodiscard]] const Limits& limits() const { return limits_; }
  [[nodiscard]] Usage usage(std::uint32_t uid) const;  ///< With effective maxima filled in.
  [[nodiscard]] const std::map<std::uint32_t, Usage>& users() const { return users_; }
  [[nodiscard]] std::uint64_t bytes_used() const { return bytes_used_; }
  [[nodiscard]] std::uint64_t segments_used() const { return segments_used_; }
  [[nodiscard]] std::uint64_t bytes_free() const;
  /// The effective limit of one user.
  [[nodiscard]] std::uint64_t limit(std::uint32_t uid, Resource resource) const;

 private:
  [[nodiscard]] std::optional<Error> over_total(Resource resource, std::uint64_t amount) const;
  [[nodiscard]] std::string holds_most(Resource resource) const;

  Limits limits_;
  std::map<std::uint32_t, Usage> users_;
  std::uint64_t bytes_used_ = 0;
  std::uint64_t segments_used_ = 0;
};

}  // namespace shmstore::server
