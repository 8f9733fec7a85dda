// Hand-overs whose sender has ended.
#include "tests/unit/registry_fixture.hpp"

using namespace shmstore;
using namespace shmstore::server;

namespace {

/// Full by one array, which only a hand-over of a session that has ended holds.
struct BrokenOff {
  explicit BrokenOff(bool once) : store(limits()) {
    const SessionId run = store.join(kAlice);
    id = store.put(run, "");
    store.as_sent(store.handover(run, id, 0, once));
    store.leave(run);
  }
  static Limits limits() {
    Limits limits = test_limits();
    limits.capacity = kPageBytes + 2 * record_bytes(Store::spec(""));
    return limits;
  }
  std::uint64_t end(std::optional<std::uint32_t> uid, bool given_up_only) {
    return store.end_unread(uid, given_up_only);
  }
  Store store;
  ArrayId id;
};

}  // namespace

TEST_CASE("unread: a create that lacks room names the hand-overs of the run that was broken off") {
  for (const bool once : {false, true}) {
    BrokenOff after(once);
    const SessionId next = after.store.join(kAlice);
    after.store.tick(3'000);
    const Error error = after.store.error(after.store.create(next, Store::spec("")));
    CHECK(error.code == ErrorCode::no_capacity);
    CHECK_MESSAGE(
        error.text.find("held by hand-overs of ended pid 10001, free in 57 s") != std::string::npos,
        error.text);
  }
}

TEST_CASE("unread: what nobody can open any more is given up, and no more than that") {
  for (const bool once : {false, true}) {
    BrokenOff after(once);
    const SessionId bob = after.store.join(kBob);
    CHECK(after.end(kBob, true) == 0);
    CHECK(after.end(kAlice, true) == 1);
    CHECK_FALSE(after.store.state(after.id).has_value());
    after.store.granted(after.store.create(bob, Store::spec("")));
  }
}

TEST_CASE("unread: what another sender may still have sent stays") {
  Store store;
  const SessionId first = store.join(kAlice);
  const SessionId second = store.join(kAlice);
  const ArrayId id = store.put(first, "x");
  store.granted(store.attach(second, by_id(id)));
  store.as_sent(store.handover(first, id));
  store.as_sent(store.handover(second, id));
  store.leave(second);
  CHECK(store.end_unread(kAlice, false) == 0);
  store.leave(first);
  CHECK(store.end_unread(kAlice, false) == 1);
}

TEST_CASE("unread: who was there when it was sent may have it in its hands") {
  Store store;
  const SessionId sender = store.join(kAlice);
  const SessionId receiver = store.join(kAlice);
  const ArrayId id = store.put(sender, "");
  store.as_sent(store.handover(sender, id));
  CHECK(store.end_unread(std::nullopt, false) == 0);  // The sender lives.
  store.leave(sender);
  CHECK(store.end_unread(std::nullopt, true) == 0);
  AttachSpec spec = by_id(id);
  spec.renew_handover = true;
  store.granted(store.attach(receiver, spec));
  SUBCASE("asked to, all go whose sender has ended") {
    CHECK(store.end_unread(kAlice, false) == 1);
    CHECK(store.state(id).has_value());  // The receiver holds it.
  }
  SUBCASE("when all have gone it is given up") {
    store.leave(receiver);
    CHECK(store.state(id).has_value());
    CHECK(store.end_unread(kAlice, true) == 1);
    CHECK_FALSE(store.state(id).has_value());
  }
}
