#include "tests/unit/registry_fixture.hpp"

using namespace shmstore;
using namespace shmstore::server;

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

namespace {

/// An array that a worker has pickled for one receiver.
struct OneReceiver {
  std::uint64_t pickle() {
    return store.as<HandedOver>(store.handover(worker, id, 10'000, true)).number;
  }
  void attach(SessionId who, std::uint64_t handle) {
    AttachSpec spec = by_id(id);
    spec.handle = handle;
    store.granted(store.attach(who, spec));
  }
  void receive(std::uint64_t handle) {
    attach(receiver, handle);
    store.as<Done>(store.received(receiver, id, handle));
    store.release(receiver, id, Access::read);
  }
  /// Everybody leaves, and nothing is charged.
  void finish() {
    store.leave(worker);
    store.leave(receiver);
    CHECK(store.registry.quota().usage(kAlice).leases == 0);
  }
  Store store;
  SessionId worker = store.join(kAlice), receiver = store.join(kAlice);
  ArrayId id = store.put(worker, "");
  std::uint64_t first = pickle();
};

}  // namespace

TEST_CASE("hand-over: to one receiver, it ends when that one says that it has the array") {
  OneReceiver one;
  CHECK(one.first != 0);
  CHECK(one.store.registry.find(one.id)->in_flight == 1);
  SUBCASE("one handle") {
    one.store.leave(one.worker);
    one.receive(one.first);
    CHECK_FALSE(one.store.state(one.id).has_value());
  }
  SUBCASE("two handles, in any order") {
    const std::uint64_t second = one.pickle();
    CHECK(second != one.first);
    one.store.leave(one.worker);
    one.receive(second);
    CHECK(one.store.state(one.id) == State::sealed);
    one.receive(one.first);
    CHECK_FALSE(one.store.state(one.id).has_value());
  }
  SUBCASE("a receiver that cannot map it, or dies, finds it there at the next try") {
    one.store.leave(one.worker);
    one.attach(one.receiver, one.first);
    one.store.release(one.receiver, one.id, Access::read);
    const SessionId dies = one.store.join(kAlice);
    one.attach(dies, one.first);
    one.store.leave(dies);
    CHECK(one.store.state(one.id) == State::sealed);
    one.receive(one.first);
    CHECK_FALSE(one.store.state(one.id).has_value());
  }
  SUBCASE("each try begins the grace anew") {
    one.store.leave(one.worker);
    one.store.tick(9'000);
    one.attach(one.receiver, one.first);
    one.store.release(one.receiver, one.id, Access::read);
    one.store.tick(9'999);
    CHECK(one.store.state(one.id) == State::sealed);
    one.store.tick(1);
    CHECK_FALSE(one.store.state(one.id).has_value());
  }
  SUBCASE("saying it twice, or of another number, ends nobody else's") {
    const std::uint64_t second = one.pickle();
    one.store.leave(one.worker);
    one.attach(one.receiver, one.first);
    for (int n = 0; n < 3; ++n) {
      one.store.as<Done>(one.store.received(one.receiver, one.id, one.first));
    }
    one.store.as<Done>(one.store.received(one.receiver, one.id, 0));
    one.store.as<Done>(one.store.received(one.receiver, one.id, second + 1));
    one.store.release(one.receiver, one.id, Access::read);
    CHECK(one.store.state(one.id) == State::sealed);
    one.receive(second);
    CHECK_FALSE(one.store.state(one.id).has_value());
  }
  one.finish();
}

TEST_CASE("hand-over: to one receiver, what does not end it and what does") {
  OneReceiver one;
  CHECK(one.first != 0);
  CHECK(one.store.registry.find(one.id)->in_flight == 1);
  SUBCASE("who does not hold it has not received it") {
    one.store.leave(one.worker);
    CHECK(one.store.code(one.store.received(one.receiver, one.id, one.first)) ==
          ErrorCode::invalid_argument);
    CHECK(one.store.state(one.id) == State::sealed);
    one.receive(one.first);
  }
  SUBCASE("the receiver has it alone then") {
    one.store.leave(one.worker);
    one.attach(one.receiver, one.first);
    one.store.as<Done>(one.store.received(one.receiver, one.id, one.first));
    CHECK(one.store.holders(one.receiver, with_id(one.id)).value().size() == 1);
    one.store.tick(60'000);
    CHECK(one.store.state(one.id) == State::sealed);
  }
  SUBCASE("handles for many have a lease of their own") {
    one.store.as<Done>(one.store.handover(one.worker, one.id, 20'000));
    CHECK(one.store.registry.find(one.id)->in_flight == 2);
    one.store.leave(one.worker);
    const auto rows = one.store.holders(one.receiver, with_id(one.id)).value();
    REQUIRE(rows.size() == 1);
    CHECK(rows[0].in_flight == 2);
    one.receive(one.first);
    CHECK(one.store.state(one.id) == State::sealed);
    one.store.tick(20'000);
    CHECK_FALSE(one.store.state(one.id).has_value());
  }
  SUBCASE("a delete ends it") {
    CHECK(one.store.remove(one.worker, with_id(one.id)).has_value());
    one.store.leave(one.worker);
    CHECK_FALSE(one.store.state(one.id).has_value());
  }
  one.finish();
}

TEST_CASE("hand-over: an opening of an older, ordinary pickle is not that of a queue's handle") {
  Store store;
  const SessionId sender = store.join(kAlice), other = store.join(kAlice);
  const ArrayId id = store.put(sender, "");
  store.as<Done>(store.handover(sender, id, 10'000));
  store.tick(10'000);  // Nobody came; the pickle lies about.
  const auto handle = store.as<HandedOver>(store.handover(sender, id, 10'000, true)).number;
  AttachSpec old = by_id(id);
  old.renew_handover = true;
  store.granted(store.attach(other, old));
  store.release(other, id, Access::read);
  store.release(sender, id, Access::read);
  AttachSpec spec = by_id(id);
  spec.handle = handle;
  store.granted(store.attach(other, spec));
}

TEST_CASE("hand-over: a foreign reader does not use up what is meant for the owner") {
  Store store;
  const SessionId sender = store.join(kAlice), receiver = store.join(kAlice);
  const SessionId bob = store.join(kBob), root = store.join(kRoot);
  CreateSpec made = Store::spec("");
  made.perms = 0644;
  const ArrayId id = store.granted(store.create(sender, made));
  store.as<Sealed>(store.seal(sender, id));
  const auto handle = store.as<HandedOver>(store.handover(sender, id, 10'000, true)).number;
  store.leave(sender);
  AttachSpec spec = by_id(id);
  spec.handle = handle;
  store.tick(5'000);
  for (const SessionId foreign : {bob, root}) {
    store.granted(store.attach(foreign, spec));
    store.as<Done>(store.received(foreign, id, handle));
    store.leave(foreign);
    CHECK(store.state(id) == State::sealed);
  }
  CHECK(store.registry.next_deadline_ms() == store.now.boot_ms + 5'000);  // Nor does it prolong it.
  store.granted(store.attach(receiver, spec));
  store.as<Done>(store.received(receiver, id, handle));
  store.leave(receiver);
  CHECK_FALSE(store.state(id).has_value());
}

TEST_CASE("hand-over: handles for one receiver have a share per user, further ones are for many") {
  Limits limits = test_limits();
  std::uint64_t most = 1'024;
  SUBCASE("on one array") {}
  SUBCASE("of the user's leases") {
    most = 7;
    limits.user_leases_max = most + 2;  // The session's lease, and that for many.
  }
  Store store(limits);
  const SessionId alice = store.join(kAlice);
  CreateSpec made = Store::spec("");
  made.perms = 0644;
  const ArrayId id = store.granted(store.create(alice, made));
  store.as<Sealed>(store.seal(alice, id));
  store.as<Done>(store.handover(alice, id, 10'000));
  for (std::uint64_t n = 0; n < most; ++n) {
    CHECK(store.as<HandedOver>(store.handover(alice, id, 10'000, true)).number == n + 1);
  }
  CHECK(store.as<HandedOver>(store.handover(alice, id, 10'000, true)).number == 0);
  const SessionId root = store.join(kRoot);
  store.granted(store.attach(root, by_id(id)));
  CHECK(store.as<HandedOver>(store.handover(root, id, 10'000, true)).number != 0);
  CHECK(store.holders(root, with_id(id)).value().size() == 4);
  store.as<Done>(store.received(alice, id, 1));
  CHECK(store.as<HandedOver>(store.handover(alice, id, 10'000, true)).number != 0);
  CHECK(store.remove(alice, with_id(id)).has_value());
  store.leave(alice);
  store.leave(root);
  CHECK(store.registry.quota().usage(kAlice).leases == 0);
  CHECK(store.registry.counts().leases == 0);
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
