#include "server/quota.hpp"

#include <doctest/doctest.h>

#include "shmstore/array.hpp"

using namespace shmstore;
using namespace shmstore::server;

namespace {

Limits small() {
  Limits limits;
  limits.capacity = 100;
  limits.user_arrays_max = 2;
  return limits;
}

}  // namespace

TEST_CASE("quota: takes all or nothing") {
  Quota quota(small());
  CHECK(quota.charge(1, Resource::bytes, 60).has_value());
  CHECK(quota.charge(2, Resource::bytes, 40).has_value());
  const Result<void> full = quota.charge(3, Resource::bytes, 1);
  REQUIRE_FALSE(full.has_value());
  CHECK(full.error().code == ErrorCode::no_capacity);
  CHECK(full.error().text == "bytes: asked for 1, 0 free of 100; uid 1 holds most, 60");
  CHECK(quota.bytes_used() == 100);
  CHECK(quota.usage(3).bytes == 0);
  CHECK_FALSE(quota.users().contains(3));
}

TEST_CASE("quota: a user's own limit") {
  Limits limits = small();
  limits.user_bytes_max = 50;
  Quota quota(limits);
  CHECK(quota.charge(1, Resource::bytes, 50).has_value());
  const Result<void> over = quota.charge(1, Resource::bytes, 1);
  REQUIRE_FALSE(over.has_value());
  CHECK(over.error().code == ErrorCode::quota_exceeded);
  CHECK(over.error().text == "bytes: uid 1 uses 50 of 50, 0 left, asked for 1");
  quota.set_user_limits(1, 70, 0);
  CHECK(quota.charge(1, Resource::bytes, 20).has_value());
  CHECK(quota.usage(1).bytes_max == 70);
  CHECK(quota.usage(2).bytes_max == 50);
  CHECK(quota.usage(2).arrays_max == 2);
}

TEST_CASE("quota: lowered limits leave what is there and refuse more") {
  Quota quota(small());
  CHECK(quota.charge(1, Resource::bytes, 80).has_value());
  Limits lower = small();
  lower.capacity = 50;
  quota.set_limits(lower);
  CHECK(quota.bytes_free() == 0);
  CHECK_FALSE(quota.charge(1, Resource::bytes, 1).has_value());
  CHECK(quota.charge(1, Resource::bytes, 0).has_value());
  quota.uncharge(1, Resource::bytes, 80);
  CHECK(quota.charge(1, Resource::bytes, 50).has_value());
}

TEST_CASE("quota: no sum wraps around") {
  Quota quota(small());
  CHECK_FALSE(quota.charge(1, Resource::bytes, UINT64_MAX).has_value());
  CHECK(quota.charge(1, Resource::bytes, 1).has_value());
  CHECK_FALSE(quota.charge(1, Resource::bytes, UINT64_MAX).has_value());
  CHECK(quota.bytes_used() == 1);
}

TEST_CASE("quota: other resources have limits of their own, and move only bytes") {
  Limits limits = small();
  limits.user_leases_max = limits.user_connections_max = limits.user_waits_max = 1;
  Quota quota(limits);
  CHECK(quota.charge(1, Resource::arrays, 2).has_value());
  CHECK_FALSE(quota.charge(1, Resource::arrays, 1).has_value());
  for (const Resource resource : {Resource::leases, Resource::connections, Resource::waits}) {
    CHECK(quota.charge(1, resource, 1).has_value());
    const Result<void> over = quota.charge(1, resource, 1);
    REQUIRE_FALSE(over.has_value());
    CHECK(over.error().code == ErrorCode::quota_exceeded);
  }
  CHECK(quota.charge(1, Resource::bytes, 100).has_value());
  CHECK(quota.charge(1, Resource::segments, 1).has_value());
  quota.set_user_limits(2, 10, 0);
  quota.move(1, 2, Holding{100, 2, 1});  // May go over.
  CHECK(quota.usage(1).bytes == 0);
  CHECK(quota.usage(1).arrays == 0);
  CHECK(quota.usage(2).bytes == 100);
  CHECK(quota.usage(2).arrays == 2);
  CHECK(quota.usage(2).segments == 1);
  CHECK(quota.bytes_used() == 100);
  CHECK(quota.segments_used() == 1);
}

TEST_CASE("quota: setting one limit of a user leaves the others at the store's default") {
  Quota quota(small());
  quota.set_user_limits(1, std::nullopt, 7);
  CHECK(quota.usage(1).arrays_max == 7);
  Limits lower = small();
  lower.user_bytes_max = 30;
  quota.set_limits(lower);  // SIGHUP.
  CHECK(quota.usage(1).bytes_max == 30);
  quota.set_user_limits(1, 20, std::nullopt);
  CHECK(quota.usage(1).bytes_max == 20);
  CHECK(quota.usage(1).arrays_max == 7);
  quota.set_user_limits(1, 0, std::nullopt);
  CHECK(quota.usage(1).bytes_max == 30);
  CHECK(quota.usage(1).arrays_max == 7);
}

TEST_CASE("quota: one user cannot take all segments") {
  Limits limits = small();
  limits.user_arrays_max = 100;
  limits.segments_max = 10;
  limits.user_segments_max = 6;
  Quota quota(limits);
  CHECK(quota.charge(1, Resource::segments, 6).has_value());
  const Result<void> own = quota.charge(1, Resource::segments, 1);
  REQUIRE_FALSE(own.has_value());
  CHECK(own.error().code == ErrorCode::quota_exceeded);
  CHECK(quota.charge(2, Resource::segments, 4).has_value());
  const Result<void> all = quota.charge(2, Resource::segments, 1);
  REQUIRE_FALSE(all.has_value());
  CHECK(all.error().code == ErrorCode::no_capacity);
  CHECK(all.error().text == "segments: 10 of 10 in use; uid 1 holds most, 6");
  quota.set_user_limits(3, std::nullopt, 2);  // Two arrays are two memory files, freed ones too.
  CHECK(quota.limit(3, Resource::segments) == 2);
}

TEST_CASE("quota: an array is charged as a whole or not at all") {
  Quota quota(small());
  CHECK_FALSE(quota.charge(1, Holding{101, 1, 1}).has_value());
  CHECK_FALSE(quota.charge(1, Holding{1, 3, 1}).has_value());
  CHECK(quota.users().empty());
  CHECK(quota.charge(1, Holding{100, 2, 1}).has_value());
  quota.uncharge(1, Holding{100, 2, 1});
  CHECK(quota.users().empty());
}

TEST_CASE("quota: users without charges and limits are forgotten") {
  Quota quota(small());
  CHECK(quota.charge(1, Resource::bytes, 5).has_value());
  quota.uncharge(1, Resource::bytes, 5);
  quota.set_user_limits(2, 5, 0);
  quota.set_user_limits(2, 0, 0);
  CHECK(quota.users().empty());
}

TEST_CASE("quota: arrays are charged in whole pages") {
  CHECK(charge_of(0) == 0);
  CHECK(charge_of(1) == kPageBytes);
  CHECK(charge_of(kPageBytes) == kPageBytes);
  CHECK(charge_of(kPageBytes + 1) == 2 * kPageBytes);
  CHECK(charge_of(kArrayBytesMax) == kArrayBytesMax);
}
