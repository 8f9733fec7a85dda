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
  std::uint64_t segments_max = 16'384;  ///< Descriptors: RLIMIT_NOFILE less a reserve. Set by main.
};

enum class Resource {
  bytes,
  arrays,
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
  std::uint64_t bytes = 0, arrays = 0, leases = 0, connections = 0, waits = 0;
  std::uint64_t bytes_max = 0, arrays_max = 0;  ///< 0: the store's default.
};

/// One per store. Not thread-safe: belongs to the event loop's thread.
class Quota {
 public:
  explicit Quota(const Limits& limits) : limits_(limits) {}

  /// Takes `amount` or nothing. Errors: quota_exceeded (the text names the resource, the limit and
  /// the use), no_capacity for bytes over the capacity (names what is free and who holds most).
  Result<void> charge(std::uint32_t uid, Resource resource, std::uint64_t amount);
  /// REQUIRES: at least `amount` charged.
  void uncharge(std::uint32_t uid, Resource resource, std::uint64_t amount);
  /// Moves a charge of bytes between users without asking limits: the new one may go over.
  void move_bytes(std::uint32_t from, std::uint32_t to, std::uint64_t amount);

  void set_limits(const Limits& limits) { limits_ = limits; }
  /// What is not given stays as it was, the store's default included; 0: the default again.
  void set_user_limits(std::uint32_t uid, std::optional<std::uint64_t> bytes_max,
                       std::optional<std::uint64_t> arrays_max);
  [[nodiscard]] const Limits& limits() const { return limits_; }
  [[nodiscard]] Usage usage(std::uint32_t uid) const;  ///< With effective maxima filled in.
  [[nodiscard]] const std::map<std::uint32_t, Usage>& users() const { return users_; }
  [[nodiscard]] std::uint64_t bytes_used() const { return bytes_used_; }
  [[nodiscard]] std::uint64_t bytes_free() const;
  /// The effective limit of one user.
  [[nodiscard]] std::uint64_t limit(std::uint32_t uid, Resource resource) const;

 private:
  [[nodiscard]] std::string full_text(std::uint64_t amount, std::uint64_t free) const;

  Limits limits_;
  std::map<std::uint32_t, Usage> users_;
  std::uint64_t bytes_used_ = 0;
};

}  // namespace shmstore::server
