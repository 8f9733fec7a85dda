// Sums per user and one total. A user appears in the table with the first charge or limit and
// leaves it when nothing is charged and no limit of its own is set.
#include "server/quota.hpp"

#include <algorithm>
#include <cassert>

namespace shmstore::server {
namespace {

std::uint64_t& field(Usage& usage, Resource resource) {
  switch (resource) {
    case Resource::bytes: return usage.bytes;
    case Resource::arrays: return usage.arrays;
    case Resource::segments: return usage.segments;
    case Resource::leases: return usage.leases;
    case Resource::connections: return usage.connections;
    case Resource::waits: return usage.waits;
  }
  return usage.bytes;
}

std::string_view name_of(Resource resource) {
  switch (resource) {
    case Resource::bytes: return "bytes";
    case Resource::arrays: return "arrays";
    case Resource::segments: return "segments";
    case Resource::leases: return "leases";
    case Resource::connections: return "connections";
    case Resource::waits: return "waits";
  }
  return "?";
}

bool unused(const Usage& usage) {
  return usage.bytes == 0 && usage.arrays == 0 && usage.segments == 0 && usage.leases == 0 &&
         usage.connections == 0 && usage.waits == 0 && usage.bytes_max == 0 &&
         usage.arrays_max == 0;
}

}  // namespace

std::uint64_t Quota::limit(std::uint32_t uid, Resource resource) const {
  const auto user = users_.find(uid);
  const Usage own = user == users_.end() ? Usage{} : user->second;
  switch (resource) {
    case Resource::bytes:
      if (own.bytes_max != 0) return own.bytes_max;
      return limits_.user_bytes_max != 0 ? limits_.user_bytes_max : limits_.capacity;
    case Resource::arrays: return own.arrays_max != 0 ? own.arrays_max : limits_.user_arrays_max;
    case Resource::segments: {
      // Who may have ten arrays may have ten memory files, also when a process keeps old ones.
      const std::uint64_t share = limits_.user_segments_max;
      return std::min(share != 0 ? share : limits_.segments_max, limit(uid, Resource::arrays));
    }
    case Resource::leases: return limits_.user_leases_max;
    case Resource::connections: return limits_.user_connections_max;
    case Resource::waits: return limits_.user_waits_max;
  }
  return 0;
}

Result<void> Quota::charge(std::uint32_t uid, Resource resource, std::uint64_t amount) {
  if (amount == 0) return {};
  const auto user = users_.find(uid);
  Usage now = user == users_.end() ? Usage{} : user->second;
  const std::uint64_t used = field(now, resource);
  const std::uint64_t max = limit(uid, resource);
  const std::uint64_t left = max > used ? max - used : 0;
  // A user's own limit is the better answer where it is the tighter one: asking others for room
  // would not help. Where it is all that there is, the store's text says more.
  const bool own_limit = !(resource == Resource::bytes && max >= limits_.capacity) &&
                         !(resource == Resource::segments && max >= limits_.segments_max);
  if (amount > left && own_limit) {
    return make_error(ErrorCode::quota_exceeded,
                      std::string(name_of(resource)) + ": uid " + std::to_string(uid) + " uses " +
                          std::to_string(used) + " of " + std::to_string(max) + ", " +
                          std::to_string(left) + " left, asked for " + std::to_string(amount));
  }
  if (std::optional<Error> over = over_total(resource, amount)) return *over;
  field(users_[uid], resource) += amount;
  if (resource == Resource::bytes) bytes_used_ += amount;
  if (resource == Resource::segments) segments_used_ += amount;
  return {};
}

void Quota::uncharge(std::uint32_t uid, Resource resource, std::uint64_t amount) {
  if (amount == 0) return;
  const auto user = users_.find(uid);
  assert(user != users_.end() && field(user->second, resource) >= amount);
  field(user->second, resource) -= amount;
  if (resource == Resource::bytes) bytes_used_ -= amount;
  if (resource == Resource::segments) segments_used_ -= amount;
  if (unused(user->second)) users_.erase(user);
}

Result<void> Quota::charge(std::uint32_t uid, const Holding& holding) {
  Result<void> charged = charge(uid, Resource::arrays, holding.arrays);
  if (!charged) return charged;
  charged = charge(uid, Resource::segments, holding.segments);
  if (charged) {
    charged = charge(uid, Resource::bytes, holding.bytes);
    if (!charged) uncharge(uid, Resource::segments, holding.segments);
  }
  if (!charged) uncharge(uid, Resource::arrays, holding.arrays);
  return charged;
}

void Quota::uncharge(std::uint32_t uid, const Holding& holding) {
  uncharge(uid, Resource::arrays, holding.arrays);
  uncharge(uid, Resource::segments, holding.segments);
  uncharge(uid, Resource::bytes, holding.bytes);
}

void Quota::move(std::uint32_t from, std::uint32_t to, const Holding& holding) {
  if (from == to) return;
  uncharge(from, holding);
  Usage& heir = users_[to];
  heir.bytes += holding.bytes;
  heir.arrays += holding.arrays;
  heir.segments += holding.segments;
  bytes_used_ += holding.bytes;
  segments_used_ += holding.segments;
  if (unused(heir)) users_.erase(to);
}

void Quota::set_user_limits(std::uint32_t uid, std::optional<std::uint64_t> bytes_max,
                            std::optional<std::uint64_t> arrays_max) {
  Usage& user = users_[uid];
  user.bytes_max = bytes_max.value_or(user.bytes_max);
  user.arrays_max = arrays_max.value_or(user.arrays_max);
  if (unused(user)) users_.erase(uid);
}

Usage Quota::usage(std::uint32_t uid) const {
  const auto user = users_.find(uid);
  Usage usage = user == users_.end() ? Usage{} : user->second;
  usage.bytes_max = limit(uid, Resource::bytes);
  usage.arrays_max = limit(uid, Resource::arrays);
  usage.segments_max = limit(uid, Resource::segments);
  usage.connections_max = limit(uid, Resource::connections);
  return usage;
}

std::uint64_t Quota::bytes_free() const {
  return limits_.capacity > bytes_used_ ? limits_.capacity - bytes_used_ : 0;
}

std::optional<Error> Quota::over_total(Resource resource, std::uint64_t amount) const {
  std::string text;
  if (resource == Resource::bytes && amount > bytes_free()) {
    text = "bytes: asked for " + std::to_string(amount) + ", " + std::to_string(bytes_free()) +
           " free of " + std::to_string(limits_.capacity);
  } else if (resource == Resource::segments && segments_used_ + amount > limits_.segments_max) {
    text = "segments: " + std::to_string(segments_used_) + " of " +
           std::to_string(limits_.segments_max) + " in use";
  } else {
    return std::nullopt;
  }
  return make_error(ErrorCode::no_capacity, text + holds_most(resource));
}

std::string Quota::holds_most(Resource resource) const {
  std::uint32_t uid = 0;
  std::uint64_t most = 0;
  for (const auto& [user, usage] : users_) {
    Usage copy = usage;
    if (field(copy, resource) <= most) continue;
    uid = user;
    most = field(copy, resource);
  }
  if (most == 0) return {};
  return "; uid " + std::to_string(uid) + " holds most, " + std::to_string(most);
}

}  // namespace shmstore::server
