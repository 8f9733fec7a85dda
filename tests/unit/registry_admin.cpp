#include "tests/unit/registry_fixture.hpp"

using namespace shmstore;
using namespace shmstore::server;

TEST_CASE("keep: the name holds the array until unkeep") {
  Store store;
  const SessionId alice = store.join(kAlice);
  const ArrayId id = store.put(alice, "grid");
  CHECK(store.keep(alice, named("grid"))->kept);
  CHECK(store.events.back().event == "kept");
  store.release(alice, id, Access::read);
  CHECK(store.state(id) == State::sealed);
  CHECK(store.registry.find(id)->leases == 0);
  CHECK(store.unkeep(alice, named("grid")).has_value());
  CHECK_FALSE(store.state(id).has_value());
  CHECK(store.events.back().event == "deleted");
}

TEST_CASE("keep: a second keep sets a new ttl, or takes it away") {
  Store store;
  const SessionId alice = store.join(kAlice), reader = store.join(kAlice);
  CreateSpec spec = Store::spec("grid");
  spec.options = protocol::kCreateKeep;
  spec.ttl_ms = 1'000;
  const ArrayId id = store.granted(store.create(alice, spec));
  CHECK_FALSE(store.registry.find(id)->ttl_left_ms.has_value());
  store.seal(alice, id);
  CHECK(store.registry.find(id)->ttl_left_ms == 1'000);
  SUBCASE("longer") {
    CHECK(store.keep(alice, named("grid"), 5'000)->ttl_left_ms == 5'000);
    store.tick(4'999);
    CHECK(store.state(id) == State::sealed);
    store.granted(store.attach(reader, by_name("grid")));
    store.tick(1);
    CHECK(store.state(id) == State::dying);  // Its holders keep the memory.
    store.leave(reader);
  }
  SUBCASE("for ever") {
    CHECK_FALSE(store.keep(alice, named("grid"))->ttl_left_ms.has_value());
    store.tick(1'000'000);
    CHECK(store.state(id) == State::sealed);
    CHECK(store.remove(alice, named("grid")).has_value());
  }
  SUBCASE("over by itself") {
    store.tick(1'000);
  }
  store.leave(alice);
  CHECK_FALSE(store.state(id).has_value());
  CHECK_FALSE(store.registry.next_deadline_ms().has_value());
}

TEST_CASE("admin: operation × state") {
  OnePerState one;
  Store& store = one.store;
  const SessionId alice = one.alice;
  CHECK(store.keep(alice, named("draft")).error().code == ErrorCode::not_sealed);
  CHECK(store.unkeep(alice, named("draft")).error().code == ErrorCode::not_sealed);
  CHECK(store.keep(alice, named("sealed")).has_value());
  CHECK(store.keep(alice, named("mutable")).has_value());
  CHECK(store.keep(alice, with_id(one.dying)).error().code == ErrorCode::not_found);
  CHECK(store.keep(alice, named("dying")).error().code == ErrorCode::not_found);
  CHECK(store.remove(alice, with_id(one.dying)).error().code == ErrorCode::not_found);
  const ArrayId anonymous = store.put(alice, "");
  CHECK(store.keep(alice, with_id(anonymous)).error().code == ErrorCode::invalid_argument);
  CHECK(store.unkeep(alice, with_id(anonymous)).has_value());
  for (const ArrayId id : {one.draft, one.sealed, one.mutable_, one.dying}) {
    CHECK(store.info(one.bob, with_id(id)).has_value());
  }
}

TEST_CASE("chmod: narrows freely, widens only what nobody can change unseen") {
  Store store;
  const SessionId alice = store.join(kAlice), bob = store.join(kBob);
  const ArrayId soft = store.put(alice, "soft");
  CHECK(store.chmod(alice, named("soft"), 0644).error().code == ErrorCode::invalid_argument);
  CHECK(store.chmod(alice, named("soft"), 0400)->perms == 0400);
  CHECK(store.chmod(alice, named("soft"), 0600)->perms == 0600);  // Opens it to nobody else.
  store.seal(alice, soft, true);
  CHECK(store.chmod(alice, named("soft"), 0644)->perms == 0644);
  store.granted(store.attach(bob, by_name("soft", 0, 0, kAlice)));
  store.draft(alice, "draft");
  CHECK(store.chmod(alice, named("draft"), 0604).error().code == ErrorCode::invalid_argument);
  store.draft(alice, "mutable", protocol::kCreateMutable);
  CHECK(store.chmod(alice, named("mutable"), 0666).has_value());
  CHECK(store.chmod(alice, named("mutable"), 01666).error().code == ErrorCode::invalid_argument);
  CHECK(store.chmod(alice, named("nothing"), 0600).error().code == ErrorCode::not_found);
}

TEST_CASE("holders: who, how and since when, writers first") {
  OnePerState one;
  Store& store = one.store;
  store.tick(5'000);
  store.attach(one.bob, by_id(one.mutable_));
  store.attach(one.bob, by_id(one.mutable_, Access::write));
  store.handover(one.bob, one.mutable_);
  const auto holders = store.holders(one.alice, named("mutable")).value();
  REQUIRE(holders.size() == 4);
  CHECK(holders[0].access == Access::write);
  CHECK(holders[0].pid == static_cast<std::int64_t>(10'000 + one.bob));
  CHECK(holders[0].command == "test");
  CHECK(holders[0].uid == kBob);
  CHECK(holders[0].since_s == store.now.wall_s);
  CHECK(holders[1].access == Access::write);
  CHECK(holders[1].since_s == store.now.wall_s - 5.0);
  CHECK(holders[3].pid == 0);
  CHECK(store.holders(one.alice, named("mutable"), 2)->size() == 2);
}

TEST_CASE("sessions: too many connections") {
  Limits limits = test_limits();
  limits.user_connections_max = 1;
  Store store(limits);
  const SessionId alice = store.join(kAlice);
  store.join(kBob);
  const Result<void> refused = store.registry.open_session(99, {1, kAlice, kAlice, {}, "x"});
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().code == ErrorCode::quota_exceeded);
  store.leave(alice);
  store.join(kAlice);
}

TEST_CASE("keep: arrays that end at the same moment end a bounded number at a time") {
  Store store;
  const SessionId alice = store.join(kAlice), reader = store.join(kAlice);
  for (int i = 0; i < 600; ++i) {
    CreateSpec spec = Store::spec("n" + std::to_string(i), 0);
    spec.options = protocol::kCreateKeep;
    spec.ttl_ms = 1'000;
    const ArrayId id = store.granted(store.create(alice, std::move(spec)));
    store.as<Sealed>(store.seal(alice, id));
    store.as<Done>(store.release(alice, id, Access::read));
  }
  store.tick(1'000);
  CHECK(store.registry.counts().arrays == 344);
  CHECK(*store.registry.next_deadline_ms() <= store.now.boot_ms);
  store.put(reader, "served");
  store.tick(0);
  CHECK(store.registry.counts().arrays == 89);
  store.tick(0);
  CHECK(store.registry.counts().arrays == 1);
  CHECK_FALSE(store.registry.next_deadline_ms().has_value());
}
