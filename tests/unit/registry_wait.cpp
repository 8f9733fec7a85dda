#include "tests/unit/registry_fixture.hpp"

using namespace shmstore;
using namespace shmstore::server;

TEST_CASE("wait: for existence, for the seal, for a newer version") {
  Store store;
  const SessionId alice = store.join(kAlice), other = store.join(kAlice);
  const RequestId any = store.wait(other, own("grid"), 0, -1);
  const RequestId newer = store.wait(other, own("grid"), 1, -1);
  CHECK(store.code(store.wait(other, own("grid"), 0, 0)) == ErrorCode::timed_out);
  const ArrayId first = store.draft(alice, "grid");
  CHECK(store.open(any));
  store.seal(alice, first);
  CHECK(store.as<Waited>(any).id == first);
  CHECK(store.as<Waited>(any).version == 1);
  CHECK(store.open(newer));
  const ArrayId second =
      store.draft(alice, "grid", protocol::kCreateMutable | protocol::kCreateReplace);
  CHECK(store.as<Waited>(newer).id == second);
  CHECK(store.as<Waited>(newer).state == State::mutable_);
  CHECK(store.as<Waited>(store.wait(other, own("grid"), 1, 0)).version == 2);
  CHECK(store.registry.find(second)->leases == 1);  // Waiting takes no lease.
}

TEST_CASE("wait: an abort or a delete does not end it, its deadline does") {
  Store store;
  const SessionId alice = store.join(kAlice), other = store.join(kAlice);
  const RequestId waits = store.wait(other, own("grid"), 0, 1'000);
  store.release(alice, store.draft(alice, "grid"), Access::write);
  CHECK(store.open(waits));
  CHECK(store.registry.next_deadline_ms() == store.now.boot_ms + 1'000);
  store.tick(2'000);
  CHECK(store.code(waits) == ErrorCode::timed_out);
}

TEST_CASE("wait: in a foreign namespace, for what may be read") {
  Store store;
  const SessionId alice = store.join(kAlice), bob = store.join(kBob);
  CreateSpec spec = Store::spec("grid");
  spec.perms = 0644;
  const ArrayId id = store.granted(store.create(alice, spec));
  store.seal(alice, id);
  CHECK(store.as<Waited>(store.wait(bob, {kAlice, "grid"}, 0, 0)).id == id);
  const RequestId newer = store.wait(bob, {kAlice, "grid"}, 1, -1);
  CHECK(store.open(newer));
  CHECK(store.remove(alice, named("grid")).has_value());
  CHECK(store.code(newer) == ErrorCode::permission_denied);  // As if it had never been there.
}

TEST_CASE("cancel: the wait is answered first, then the cancel") {
  Store store;
  const SessionId alice = store.join(kAlice), other = store.join(kAlice);
  store.draft(alice, "grid");
  store.cached(alice, own("key"));
  const std::vector<RequestId> waits = {store.wait(other, own("grid"), 5, -1),
                                        store.attach(other, by_name("grid", -1)),
                                        store.cached(other, own("key"))};
  for (const RequestId request : waits) {
    const RequestId cancel = store.cancel(other, request);
    CHECK(store.code(request) == ErrorCode::aborted);
    store.as<Done>(cancel);
    CHECK(store.order.back() == cancel);
    CHECK(store.order[store.order.size() - 2] == request);
  }
  CHECK(store.registry.counts().waits == 0);
  store.as<Done>(store.cancel(other, waits[0]));  // Answered already.
  store.as<Done>(store.cancel(other, 4711));      // Never asked.
}

TEST_CASE("cancel: only one's own") {
  Store store;
  const SessionId alice = store.join(kAlice), other = store.join(kAlice);
  const RequestId waits = store.wait(alice, own("grid"), 0, -1);
  store.as<Done>(store.cancel(other, waits));
  CHECK(store.open(waits));
}
