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

TEST_CASE("hand-over: keeps the array for its receiver, for a time") {
  Store store;
  const SessionId worker = store.join(kAlice), receiver = store.join(kAlice);
  const ArrayId id = store.put(worker, "");
  store.as<Done>(store.handover(worker, id, 10'000));
  CHECK(store.registry.quota().usage(kAlice).leases == 2);
  store.leave(worker);
  CHECK(store.state(id) == State::sealed);
  const auto holders = store.holders(receiver, with_id(id)).value();
  REQUIRE(holders.size() == 1);
  CHECK(holders[0].pid == 0);
  CHECK(holders[0].uid == kAlice);
  SUBCASE("nobody comes") {
    store.tick(9'999);
    CHECK(store.state(id).has_value());
    store.tick(1);
    CHECK_FALSE(store.state(id).has_value());
  }
  SUBCASE("an attach by the handle renews it") {
    store.tick(9'000);
    AttachSpec spec = by_id(id);
    spec.renew_handover = true;
    store.granted(store.attach(receiver, spec));
    store.release(receiver, id, Access::read);
    store.tick(9'999);
    CHECK(store.state(id).has_value());
    store.tick(1);
    CHECK_FALSE(store.state(id).has_value());
  }
  SUBCASE("a shorter grace does not shorten it") {
    store.granted(store.attach(receiver, by_id(id)));
    store.as<Done>(store.handover(receiver, id, 5));
    store.release(receiver, id, Access::read);
    store.tick(9'999);
    CHECK(store.state(id).has_value());
    store.tick(1);
    CHECK_FALSE(store.state(id).has_value());
  }
  SUBCASE("a delete ends it: nobody could attach any more") {
    CHECK(store.remove(receiver, with_id(id)).has_value());
    CHECK_FALSE(store.state(id).has_value());
  }
  CHECK(store.registry.quota().usage(kAlice).leases == 0);
}

TEST_CASE("hand-over: to one receiver, it ends when that one has the array") {
  Store store;
  const SessionId worker = store.join(kAlice), receiver = store.join(kAlice);
  const ArrayId id = store.put(worker, "");
  const auto receive = [&] {
    AttachSpec spec = by_id(id);
    spec.renew_handover = true;
    store.granted(store.attach(receiver, spec));
    store.release(receiver, id, Access::read);
  };
  store.as<Done>(store.handover(worker, id, 10'000, true));
  SUBCASE("one handle") {
    store.leave(worker);
    receive();
    CHECK_FALSE(store.state(id).has_value());
  }
  SUBCASE("two handles") {
    store.as<Done>(store.handover(worker, id, 10'000, true));
    store.leave(worker);
    receive();
    CHECK(store.state(id) == State::sealed);
    receive();
    CHECK_FALSE(store.state(id).has_value());
  }
  SUBCASE("an attach that is not by the handle leaves it") {
    store.leave(worker);
    store.granted(store.attach(receiver, by_id(id)));
    store.release(receiver, id, Access::read);
    CHECK(store.state(id) == State::sealed);
    receive();
    CHECK_FALSE(store.state(id).has_value());
  }
  SUBCASE("the receiver has it alone then") {
    store.leave(worker);
    AttachSpec spec = by_id(id);
    spec.renew_handover = true;
    store.granted(store.attach(receiver, spec));
    CHECK(store.holders(receiver, with_id(id)).value().size() == 1);
    store.tick(60'000);
    CHECK(store.state(id) == State::sealed);
  }
  SUBCASE("another handle is for many") {
    store.as<Done>(store.handover(worker, id, 10'000));
    store.leave(worker);
    receive();
    receive();
    receive();
    CHECK(store.state(id) == State::sealed);
    store.tick(10'000);
    CHECK_FALSE(store.state(id).has_value());
  }
  SUBCASE("another user's handle may be the one that was opened") {
    const SessionId root = store.join(kRoot);
    store.granted(store.attach(root, by_id(id)));
    store.as<Done>(store.handover(root, id, 10'000, true));
    store.leave(root);
    store.leave(worker);
    receive();
    receive();
    CHECK(store.state(id) == State::sealed);
    store.tick(10'000);
    CHECK_FALSE(store.state(id).has_value());
  }
  store.leave(receiver);
  CHECK(store.registry.quota().usage(kAlice).leases == 0);
}

TEST_CASE("hand-over: what is refused") {
  OnePerState one;
  Store& store = one.store;
  CHECK(store.code(store.handover(one.bob, one.sealed)) == ErrorCode::invalid_argument);
  CHECK(store.code(store.handover(one.alice, one.dying)) == ErrorCode::not_found);
  CHECK(store.code(store.handover(one.alice, one.sealed, protocol::kGraceMsMax + 1)) ==
        ErrorCode::invalid_argument);
  store.as<Done>(store.handover(one.alice, one.sealed));
  CHECK(store.registry.next_deadline_ms() ==
        store.now.boot_ms + static_cast<std::int64_t>(protocol::kGraceMsDefault));
  store.as<Done>(store.handover(one.alice, one.draft));
  store.release(one.alice, one.draft, Access::write);
  CHECK_FALSE(store.state(one.draft).has_value());
}

TEST_CASE("unknown sessions get an answer too") {
  Store store;
  CHECK(store.code(store.attach(99, by_name("x"))) == ErrorCode::internal);
  CHECK(store.info(99, named("x")).error().code == ErrorCode::internal);
}
