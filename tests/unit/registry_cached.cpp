#include "tests/unit/registry_fixture.hpp"

using namespace shmstore;
using namespace shmstore::server;

namespace {

bool is_loader(Store& store, RequestId request) {
  return !store.open(request) &&
         std::holds_alternative<LoaderRole>(store.completion(request).result);
}

ArrayId load(Store& store, SessionId session, std::uint64_t ttl_ms = 0) {
  CreateSpec spec = Store::spec("key");
  spec.options = protocol::kCreateCached;
  spec.ttl_ms = ttl_ms;
  return store.granted(store.create(session, spec));
}

}  // namespace

TEST_CASE("cached: one loads, the others wait and get the same array") {
  Store store;
  std::vector<SessionId> sessions;
  std::vector<RequestId> requests;
  for (int i = 0; i < 5; ++i) {
    sessions.push_back(store.join(kAlice));
    requests.push_back(store.cached(sessions.back(), own("key")));
  }
  REQUIRE(is_loader(store, requests[0]));
  for (int i = 1; i < 5; ++i) CHECK(store.open(requests[static_cast<std::size_t>(i)]));
  const ArrayId id = load(store, sessions[0]);
  CHECK(store.open(requests[1]));
  store.seal(sessions[0], id);
  for (int i = 1; i < 5; ++i) {
    CHECK(store.granted(requests[static_cast<std::size_t>(i)]) == id);
  }
  CHECK(store.registry.find(id)->kept);
  for (const SessionId session : sessions) store.leave(session);
  CHECK(store.state(id) == State::sealed);
  const SessionId late = store.join(kAlice);
  CHECK(store.granted(store.cached(late, own("key"), 0)) == id);
}

TEST_CASE("cached: the role passes on, first come first served") {
  Store store;
  const SessionId first = store.join(kAlice), second = store.join(kAlice);
  const SessionId third = store.join(kAlice);
  REQUIRE(is_loader(store, store.cached(first, own("key"))));
  const RequestId next = store.cached(second, own("key"));
  const RequestId last = store.cached(third, own("key"));
  SUBCASE("the loader gives it up") {
    store.as<Done>(store.abort(first, named("key")));
  }
  SUBCASE("the loader gives it up with a draft") {
    const ArrayId id = load(store, first);
    store.as<Done>(store.abort(first, named("key")));
    CHECK_FALSE(store.state(id).has_value());
  }
  SUBCASE("the loader drops its draft") {
    store.as<Done>(store.abort(first, with_id(load(store, first))));
  }
  SUBCASE("the loader releases its draft") {
    store.release(first, load(store, first), Access::write);
  }
  SUBCASE("the loader is killed before it has a draft") {
    store.leave(first);
  }
  SUBCASE("the loader is killed in the middle of writing") {
    load(store, first);
    store.leave(first);
  }
  SUBCASE("the loader is killed while its memory is under way") {
    store.hold_memory = true;
    CreateSpec spec = Store::spec("key");
    spec.options = protocol::kCreateCached;
    store.create(first, spec);
    store.leave(first);
    store.hold_memory = false;
    store.give_memory();
  }
  SUBCASE("its draft is deleted") {
    const ArrayId id = load(store, first);
    CHECK(store.remove(third, named("key")).has_value());
    store.release(first, id, Access::write);
  }
  REQUIRE(is_loader(store, next));
  CHECK(store.open(last));
  store.leave(second);
  REQUIRE(is_loader(store, last));
  const ArrayId id = load(store, third);
  store.seal(third, id);
  CHECK(store.granted(store.cached(third, own("key"))) == id);
  CHECK(store.registry.counts().arrays == 1);
}

TEST_CASE("cached: a create of the key by anybody but its loader") {
  Store store;
  const SessionId loader = store.join(kAlice), other = store.join(kAlice);
  CreateSpec spec = Store::spec("key");
  spec.options = protocol::kCreateCached;
  CHECK(store.code(store.create(other, spec)) == ErrorCode::invalid_argument);
  store.cached(loader, own("key"));
  CHECK(store.code(store.create(other, spec)) == ErrorCode::invalid_argument);
  spec.options = protocol::kCreateCached | protocol::kCreateMutable;
  CHECK(store.code(store.create(loader, spec)) == ErrorCode::invalid_argument);
  const Error plain = store.error(store.create(other, Store::spec("key")));
  CHECK(plain.code == ErrorCode::already_exists);
  CHECK(plain.text.find("loaded by pid") != std::string::npos);
  load(store, loader);
  spec.options = protocol::kCreateCached;
  CHECK(store.code(store.create(loader, spec)) == ErrorCode::invalid_argument);
  CHECK(store.code(store.abort(other, named("key"))) == ErrorCode::invalid_argument);
}

TEST_CASE("cached: a loader that gets no memory may try again") {
  Store store;
  store.hold_memory = true;
  const SessionId loader = store.join(kAlice), other = store.join(kAlice);
  store.cached(loader, own("key"));
  const RequestId waits = store.cached(other, own("key"));
  CreateSpec spec = Store::spec("key");
  spec.options = protocol::kCreateCached;
  const RequestId refused = store.create(loader, spec);
  store.refuse_memory();
  CHECK(store.code(refused) == ErrorCode::no_capacity);
  CHECK(store.open(waits));
  store.hold_memory = false;
  const ArrayId id = load(store, loader);
  store.seal(loader, id);
  CHECK(store.granted(waits) == id);
}

TEST_CASE("cached: what is there already is taken, a plain draft is waited for") {
  Store store;
  const SessionId alice = store.join(kAlice), other = store.join(kAlice);
  const ArrayId there = store.put(alice, "ready");
  CHECK(store.granted(store.cached(other, own("ready"))) == there);
  const ArrayId draft = store.draft(alice, "key");
  const RequestId waits = store.cached(other, own("key"));
  CHECK(store.open(waits));
  SUBCASE("sealed") {
    store.seal(alice, draft);
    CHECK(store.granted(waits) == draft);
  }
  SUBCASE("dropped: the waiter loads") {
    store.leave(alice);
    CHECK(is_loader(store, waits));
  }
}

TEST_CASE("cached: somebody replaces the key while it is being loaded") {
  Store store;
  const SessionId loader = store.join(kAlice), other = store.join(kAlice);
  store.cached(loader, own("key"));
  const RequestId waits = store.cached(other, own("key"));
  const ArrayId put = store.put(other, "key", protocol::kCreateReplace);
  CHECK(store.granted(waits) == put);
  CreateSpec spec = Store::spec("key");
  spec.options = protocol::kCreateCached;
  CHECK(store.code(store.create(loader, spec)) == ErrorCode::already_exists);
  store.as<Done>(store.abort(loader, named("key")));
}

TEST_CASE("cached: time") {
  Store store;
  const SessionId loader = store.join(kAlice), other = store.join(kAlice);
  store.cached(loader, own("key"));
  CHECK(store.code(store.cached(other, own("key"), 0)) == ErrorCode::timed_out);
  const RequestId waits = store.cached(other, own("key"), 100);
  store.tick(100);
  CHECK(store.code(waits) == ErrorCode::timed_out);
  const ArrayId id = load(store, loader, 5'000);
  store.tick(60'000);
  store.seal(loader, id);  // Its life begins when it is complete.
  store.tick(4'999);
  CHECK(store.granted(store.cached(other, own("key"))) == id);
  store.tick(1);
  CHECK(is_loader(store, store.cached(other, own("key"))));
}

TEST_CASE("cached: a session is the loader of so many names and no more; the next one in line is") {
  Store store;
  const SessionId alice = store.join(kAlice), other = store.join(kAlice);
  const auto name = [](std::uint32_t i) { return own("n" + std::to_string(i)); };
  store.as<LoaderRole>(store.cached(other, own("last")));
  const RequestId waits = store.cached(alice, own("last"));
  const SessionId third = store.join(kAlice);
  const RequestId behind = store.cached(third, own("last"));
  Effects effects;
  for (std::uint32_t i = 0; i < protocol::kOpenRequestsMax; ++i) {
    store.registry.cached(alice, 1'000'000 + i, name(i), 0, store.now, effects);
  }
  const Error error = store.error(store.cached(alice, own("one-more")));
  CHECK(error.code == ErrorCode::quota_exceeded);
  CHECK(error.text.find("1024 names") != std::string::npos);
  store.as<Done>(store.abort(other, named("last")));
  CHECK(store.code(waits) == ErrorCode::quota_exceeded);
  store.as<LoaderRole>(behind);
  store.as<Done>(store.abort(alice, named("n0")));
  store.as<LoaderRole>(store.cached(alice, own("one-more")));
}
