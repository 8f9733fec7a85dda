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
    case Resource::leases: return "leases";
    case Resource::connections: return "connections";
    case Resource::waits: return "waits";
  }
  return "?";
}

bool unused(const Usage& usage) {
  return usage.bytes == 0 && usage.arrays == 0 && usage.leases == 0 && usage.connections == 0 &&
         usage.waits == 0 && usage.bytes_max == 0 && usage.arrays_max == 0;
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
  // would not help. With the default limit of bytes, the capacity, the store's text says more.
  const bool own_limit = resource != Resource::bytes || max < limits_.capacity;
  if (amount > left && own_limit) {
    return make_error(ErrorCode::quota_exceeded,
                      std::string(name_of(resource)) + ": uid " + std::to_string(uid) + " uses " +
                          std::to_string(used) + " of " + std::to_string(max) + ", " +
                          std::to_string(left) + " left, asked for " + std::to_string(amount));
  }
  if (resource == Resource::bytes) {
    const std::uint64_t free = bytes_free();
    if (amount > free) return make_error(ErrorCode::no_capacity, full_text(amount, free));
    bytes_used_ += amount;
  }
  field(users_[uid], resource) += amount;
  return {};
}

void Quota::uncharge(std::uint32_t uid, Resource resource, std::uint64_t amount) {
  if (amount == 0) return;
  const auto user = users_.find(uid);
  assert(user != users_.end() && field(user->second, resource) >= amount);
  field(user->second, resource) -= amount;
  if (resource == Resource::bytes) bytes_used_ -= amount;
  if (unused(user->second)) users_.erase(user);
}

void Quota::move_bytes(std::uint32_t from, std::uint32_t to, std::uint64_t amount) {
  if (amount == 0 || from == to) return;
  uncharge(from, Resource::bytes, amount);
  users_[to].bytes += amount;
  bytes_used_ += amount;
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
  return usage;
}

std::uint64_t Quota::bytes_free() const {
  return limits_.capacity > bytes_used_ ? limits_.capacity - bytes_used_ : 0;
}

std::string Quota::full_text(std::uint64_t amount, std::uint64_t free) const {
  std::string text = "bytes: asked for " + std::to_string(amount) + ", " + std::to_string(free) +
                     " free of " + std::to_string(limits_.capacity);
  const auto most = std::max_element(
      users_.begin(), users_.end(),
      [](const auto& a, const auto& b) { return a.second.bytes < b.second.bytes; });
  if (most != users_.end() && most->second.bytes > 0) {
    text += "; uid " + std::to_string(most->first) + " holds most, " +
            std::to_string(most->second.bytes);
  }
  return text;
}

}  // namespace shmstore::server
