#include "tests/unit/registry_fixture.hpp"

using namespace shmstore;
using namespace shmstore::server;

TEST_CASE("lease: one per session, array and access; the descriptor goes out once") {
  Store store;
  const SessionId alice = store.join(kAlice), reader = store.join(kAlice);
  const ArrayId id = store.put(alice, "grid");
  CHECK(store.as<Grant>(store.attach(reader, by_id(id))).send_descriptor);
  CHECK_FALSE(store.as<Grant>(store.attach(reader, by_id(id))).send_descriptor);
  CHECK(store.as<Grant>(store.attach(reader, by_id(id, Access::copy))).send_descriptor);
  CHECK(store.registry.find(id)->leases == 3);
  CHECK(store.registry.quota().usage(kAlice).leases == 3);
  CHECK(store.as<Grant>(store.segment(reader, id, Access::read)).send_descriptor);
  CHECK(store.code(store.segment(reader, id, Access::write)) == ErrorCode::invalid_argument);
}

TEST_CASE("lease: ends when all grants have been given back") {
  Store store;
  const SessionId alice = store.join(kAlice), reader = store.join(kAlice);
  const ArrayId id = store.put(alice, "grid");
  for (int i = 0; i < 3; ++i) store.attach(reader, by_id(id));
  store.release(alice, id, Access::read);
  store.as<Done>(store.release(reader, id, Access::read, 2));
  CHECK(store.code(store.release(reader, id, Access::read, 2)) == ErrorCode::invalid_argument);
  CHECK(store.code(store.release(reader, id, Access::read, 0)) == ErrorCode::invalid_argument);
  CHECK(store.code(store.release(reader, id, Access::copy)) == ErrorCode::invalid_argument);
  CHECK(store.state(id) == State::sealed);
  store.as<Done>(store.release(reader, id, Access::read));
  CHECK_FALSE(store.state(id).has_value());
  CHECK(store.code(store.release(reader, id, Access::read)) == ErrorCode::invalid_argument);
}

TEST_CASE("lease: the quota is the session's uid's, and a typed error") {
  Limits limits = test_limits();
  limits.user_leases_max = 2;
  Store store(limits);
  const SessionId alice = store.join(kAlice), bob = store.join(kBob);
  CreateSpec spec = Store::spec("");
  spec.perms = 0666;
  spec.options = protocol::kCreateMutable;
  const ArrayId id = store.granted(store.create(alice, spec));
  store.granted(store.attach(bob, by_id(id)));
  store.granted(store.attach(bob, by_id(id, Access::write)));
  CHECK(store.code(store.attach(bob, by_id(id, Access::copy))) == ErrorCode::quota_exceeded);
  CHECK(store.registry.quota().usage(kAlice).leases == 1);
  CHECK(store.registry.quota().usage(kBob).leases == 2);
}

TEST_CASE("lease: a session that ends leaves nothing") {
  Store store;
  const SessionId alice = store.join(kAlice), bob = store.join(kBob);
  store.put(alice, "a");
  store.put(alice, "b", protocol::kCreateKeep);
  store.draft(alice, "c");
  store.draft(alice, "d", protocol::kCreateMutable);
  store.cached(alice, own("e"));
  store.wait(alice, own("f"), 0, 60'000);
  store.leave(alice);
  const RegistryCounts counts = store.registry.counts();
  CHECK(counts.arrays == 1);  // What is kept.
  CHECK(counts.leases == 0);
  CHECK(counts.waits == 0);
  CHECK(counts.segments == 1);
  CHECK(counts.sessions == 1);
  CHECK(store.registry.identity(alice) == nullptr);
  store.leave(alice);  // Twice is fine.
  CHECK(store.registry.identity(bob)->uid == kBob);
}

TEST_CASE("unknown sessions get an answer too") {
  Store store;
  CHECK(store.code(store.attach(99, by_name("x"))) == ErrorCode::internal);
  CHECK(store.info(99, named("x")).error().code == ErrorCode::internal);
}
