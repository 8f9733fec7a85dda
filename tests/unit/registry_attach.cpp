#include "tests/unit/registry_fixture.hpp"

using namespace shmstore;
using namespace shmstore::server;

TEST_CASE("attach: operation × state") {
  OnePerState one;
  Store& store = one.store;
  const SessionId bob = one.bob;
  const auto outcome = [&](ArrayId id, Access access) -> std::optional<ErrorCode> {
    const RequestId request = store.attach(bob, by_id(id, access));
    if (std::holds_alternative<Grant>(store.completion(request).result)) return std::nullopt;
    return store.code(request);
  };
  CHECK(outcome(one.draft, Access::read) == ErrorCode::timed_out);
  CHECK(outcome(one.draft, Access::copy) == ErrorCode::timed_out);
  CHECK(outcome(one.draft, Access::write) == std::nullopt);
  CHECK(outcome(one.sealed, Access::read) == std::nullopt);
  CHECK(outcome(one.sealed, Access::copy) == std::nullopt);
  CHECK(outcome(one.sealed, Access::write) == ErrorCode::invalid_argument);
  CHECK(outcome(one.mutable_, Access::read) == std::nullopt);
  CHECK(outcome(one.mutable_, Access::copy) == std::nullopt);
  CHECK(outcome(one.mutable_, Access::write) == std::nullopt);
  for (const Access access : {Access::read, Access::copy, Access::write}) {
    CHECK(outcome(one.dying, access) == ErrorCode::not_found);
  }
  CHECK(outcome(one.mutable_, Access::exclusive) == ErrorCode::busy);
  CHECK(outcome(one.draft, Access::exclusive) == ErrorCode::invalid_argument);
  CHECK(outcome(one.sealed, Access::exclusive) == ErrorCode::invalid_argument);
  CHECK(store.error(store.attach(bob, by_id(one.sealed, Access::write))).text.find("mode c") !=
        std::string::npos);
}

TEST_CASE("attach: many wait for a draft and are woken together") {
  Store store;
  const SessionId alice = store.join(kAlice);
  const ArrayId id = store.draft(alice, "grid");
  std::vector<RequestId> waits;
  for (int i = 0; i < 10; ++i) {
    const SessionId reader = store.join(kAlice);
    AttachSpec spec = i % 2 == 0 ? by_name("grid", -1) : by_id(id, Access::read, 1'000);
    spec.access = i % 3 == 0 ? Access::copy : Access::read;
    waits.push_back(store.attach(reader, spec));
    CHECK(store.open(waits.back()));
  }
  CHECK(store.registry.counts().waits == 10);
  SUBCASE("sealed") {
    store.seal(alice, id);
    for (const RequestId request : waits) CHECK(store.as<Grant>(request).send_descriptor);
  }
  SUBCASE("released by its creator: aborted") {
    store.release(alice, id, Access::write);
    for (const RequestId request : waits) CHECK(store.code(request) == ErrorCode::aborted);
    CHECK(store.registry.counts().arrays == 0);
  }
  SUBCASE("the creator's session ends: aborted, name free") {
    const SessionId next = store.join(kAlice);
    store.leave(alice);
    for (const RequestId request : waits) CHECK(store.code(request) == ErrorCode::aborted);
    store.draft(next, "grid");
  }
  SUBCASE("the deadline ends those that have one") {
    store.tick(1'000);
    for (std::size_t i = 0; i < waits.size(); ++i) {
      if (i % 2 == 0) {
        CHECK(store.open(waits[i]));
      } else {
        CHECK(store.code(waits[i]) == ErrorCode::timed_out);
      }
    }
  }
  CHECK(store.registry.quota().usage(kAlice).waits == store.registry.counts().waits);
}

TEST_CASE("attach: missing names are not found at once, newer_than waits") {
  Store store;
  const SessionId alice = store.join(kAlice), reader = store.join(kAlice);
  CHECK(store.code(store.attach(reader, by_name("grid", -1))) == ErrorCode::not_found);
  const RequestId newer = store.attach(reader, by_name("grid", 5'000, 1));
  CHECK(store.open(newer));
  store.put(alice, "grid");
  CHECK(store.open(newer));
  store.put(alice, "grid", protocol::kCreateReplace);
  CHECK(store.registry.find(store.granted(newer))->version == 2);
  const RequestId late = store.attach(reader, by_name("grid", 100, 2));
  store.tick(100);
  CHECK(store.code(late) == ErrorCode::timed_out);
  CHECK(store.code(store.attach(reader, by_name("grid", 0, 2))) == ErrorCode::timed_out);
  CHECK(store.granted(store.attach(reader, by_name("grid", 0, 1))).valid());
  AttachSpec odd = by_id(store.put(alice, ""));
  odd.newer_than = 1;
  CHECK(store.code(store.attach(alice, odd)) == ErrorCode::invalid_argument);
}

TEST_CASE("attach: newer_than outlives an aborted draft and a delete") {
  Store store;
  const SessionId alice = store.join(kAlice), reader = store.join(kAlice);
  store.put(alice, "grid");
  const RequestId newer = store.attach(reader, by_name("grid", -1, 1));
  store.release(alice, store.draft(alice, "grid", protocol::kCreateReplace), Access::write);
  CHECK(store.remove(alice, named("grid")).has_value());
  CHECK(store.open(newer));
  store.put(alice, "grid");
  CHECK(store.registry.find(store.granted(newer))->version == 2);
}

TEST_CASE("attach: by name, a wait for one of two drafts lasts as long as there is one") {
  Store store;
  const SessionId alice = store.join(kAlice), reader = store.join(kAlice);
  const ArrayId first = store.draft(alice, "grid", protocol::kCreateReplace);
  const ArrayId second = store.draft(alice, "grid", protocol::kCreateReplace);
  const RequestId waits = store.attach(reader, by_name("grid", -1));
  store.release(alice, second, Access::write);
  CHECK(store.open(waits));
  SUBCASE("sealed") {
    store.seal(alice, first);
    CHECK(store.granted(waits) == first);
  }
  SUBCASE("none left") {
    store.release(alice, first, Access::write);
    CHECK(store.code(waits) == ErrorCode::aborted);
  }
}

TEST_CASE("attach: rights that are taken away end the wait") {
  Store store;
  const SessionId alice = store.join(kAlice), bob = store.join(kBob);
  CreateSpec spec = Store::spec("grid");
  spec.perms = 0644;
  const ArrayId id = store.granted(store.create(alice, spec));
  const RequestId named = store.attach(bob, by_name("grid", -1, 0, kAlice));
  const RequestId handle = store.attach(bob, by_id(id, Access::read, -1));
  CHECK(store.open(named));
  CHECK(store.open(handle));
  CHECK(store.chmod(alice, with_id(id), 0600).has_value());
  CHECK(store.code(named) == ErrorCode::permission_denied);
  CHECK(store.code(handle) == ErrorCode::not_found);
}

TEST_CASE("attach: a co-writer of a draft is told when its creator is gone") {
  Store store;
  const SessionId alice = store.join(kAlice), writer = store.join(kAlice);
  const ArrayId id = store.draft(alice, "grid");
  store.granted(store.attach(writer, by_id(id, Access::write)));
  store.leave(alice);
  CHECK(store.state(id) == State::dying);
  CHECK(store.code(store.seal(writer, id)) == ErrorCode::aborted);
  CHECK(store.code(store.segment(writer, id, Access::write)) == ErrorCode::aborted);
  CHECK(store.code(store.attach(writer, by_id(id, Access::write))) == ErrorCode::aborted);
  CHECK(store.code(store.handover(writer, id)) == ErrorCode::aborted);
  // It still maps them.
  CHECK(store.registry.quota().usage(kAlice).bytes == 4096 + record_bytes(Store::spec("grid")));
  store.as<Done>(store.release(writer, id, Access::write));
  CHECK(store.registry.quota().usage(kAlice).bytes == 0);
}

TEST_CASE("attach: too many waits") {
  Limits limits = test_limits();
  limits.user_waits_max = 2;
  Store store(limits);
  const SessionId alice = store.join(kAlice), reader = store.join(kAlice);
  store.draft(alice, "grid");
  store.attach(reader, by_name("grid", -1));
  store.attach(reader, by_name("grid", -1));
  CHECK(store.code(store.attach(reader, by_name("grid", -1))) == ErrorCode::quota_exceeded);
}

TEST_CASE("attach: one session may wait for so much only") {
  Store store;
  const SessionId alice = store.join(kAlice), reader = store.join(kAlice);
  store.draft(alice, "grid");
  for (std::uint32_t i = 0; i < protocol::kOpenRequestsMax; ++i) {
    store.attach(reader, by_name("grid", -1));
  }
  CHECK(store.code(store.attach(reader, by_name("grid", -1))) == ErrorCode::quota_exceeded);
  store.leave(reader);
  CHECK(store.registry.counts().waits == 0);
}

TEST_CASE("attach: a wait that was in vain names the array, its state and its creator") {
  Store store;
  const SessionId alice = store.join(kAlice), reader = store.join(kAlice);
  store.now.boot_ms += 3'600'000;
  store.draft(alice, "grid");
  store.now.wall_s += 7;
  const std::string draft =
      "'~1000/grid' is a draft that pid 10001 (test) made 7 s ago and has not sealed yet";
  CHECK(store.error(store.attach(reader, by_name("grid"))).text == "timeout: " + draft);
  const RequestId late = store.attach(reader, by_name("grid", 5));
  const RequestId later = store.wait(reader, {kAlice, "none"}, 0, 5);
  store.put(alice, "old");
  AttachSpec newer = by_name("old");
  newer.newer_than = 3;
  CHECK(store.error(store.attach(reader, newer)).text ==
        "timeout: '~1000/old' is at version 1, no later one was published");
  store.tick(5);
  CHECK(store.error(late).text == "timeout: passed; " + draft);
  CHECK(store.error(later).text == "timeout: passed; there is no '~1000/none' yet");
}

TEST_CASE("attach: what is not found says why it may have gone") {
  Store store;
  CHECK(store.error(store.attach(store.join(kAlice), by_name("none"))).text ==
        "name: there is no '~1000/none'; an array that is not kept goes with its last holder");
}

TEST_CASE("create: a name that is taken says how to take it all the same") {
  Store store;
  const SessionId alice = store.join(kAlice);
  store.put(alice, "grid");
  CHECK(store.error(store.create(alice, Store::spec("grid"))).text ==
        "name: '~1000/grid' exists already; replace=True publishes a new version of it");
}
