#include "tests/unit/registry_fixture.hpp"

using namespace shmstore;
using namespace shmstore::server;

namespace {

std::uint64_t version(Store& store, SessionId session, const std::string& name) {
  return store.info(session, named(name)).value().version;
}

}  // namespace

TEST_CASE("versions grow, also across delete, and start above all deleted in the namespace") {
  Store store;
  const SessionId alice = store.join(kAlice), bob = store.join(kBob);
  store.put(alice, "a");
  CHECK(version(store, alice, "a") == 1);
  store.put(alice, "a", protocol::kCreateReplace);
  store.put(alice, "a", protocol::kCreateReplace);
  CHECK(version(store, alice, "a") == 3);
  CHECK(store.remove(alice, named("a")).has_value());
  store.put(alice, "a");
  CHECK(version(store, alice, "a") == 4);
  store.put(alice, "b");
  CHECK(version(store, alice, "b") == 4);
  store.put(bob, "a");
  CHECK(version(store, bob, "a") == 1);
}

TEST_CASE("versions: an array that is freed by its last release counts as deleted") {
  Store store;
  const SessionId alice = store.join(kAlice);
  const ArrayId id = store.put(alice, "a");
  store.release(alice, id, Access::read);
  CHECK(store.info(alice, named("a")).error().code == ErrorCode::not_found);
  store.put(alice, "a");
  CHECK(version(store, alice, "a") == 2);
}

TEST_CASE("versions: an aborted draft has none") {
  Store store;
  const SessionId alice = store.join(kAlice);
  store.release(alice, store.draft(alice, "a"), Access::write);
  store.put(alice, "a");
  CHECK(version(store, alice, "a") == 1);
}

TEST_CASE("replace: readers get the old version until the seal and keep it afterwards") {
  Store store;
  const SessionId alice = store.join(kAlice), reader = store.join(kAlice);
  const ArrayId old = store.put(alice, "grid");
  store.granted(store.attach(reader, by_name("grid")));
  const ArrayId fresh = store.draft(alice, "grid", protocol::kCreateReplace);
  CHECK(store.granted(store.attach(reader, by_name("grid"))) == old);
  CHECK(store.as<Sealed>(store.seal(alice, fresh)).version == 2);
  CHECK(store.granted(store.attach(reader, by_name("grid"))) == fresh);
  CHECK(store.state(old) == State::dying);
  CHECK(store.registry.find(old)->name.empty());
  CHECK(store.code(store.attach(reader, by_id(old))) == ErrorCode::not_found);
  store.release(alice, old, Access::read);
  CHECK(store.state(old) == State::dying);
  store.release(reader, old, Access::read, 2);
  CHECK_FALSE(store.state(old).has_value());
}

TEST_CASE("replace: of two drafts the last sealed stands, versions in the order of seals") {
  Store store;
  const SessionId alice = store.join(kAlice);
  const ArrayId first = store.draft(alice, "grid", protocol::kCreateReplace);
  const ArrayId second = store.draft(alice, "grid", protocol::kCreateReplace);
  CHECK(store.as<Sealed>(store.seal(alice, second)).version == 1);
  CHECK(store.as<Sealed>(store.seal(alice, first)).version == 2);
  CHECK(store.granted(store.attach(alice, by_name("grid"))) == first);
  CHECK(store.state(second) == State::dying);
}

TEST_CASE("replace: a mutable array is published at its creation") {
  Store store;
  const SessionId alice = store.join(kAlice);
  const ArrayId old = store.put(alice, "counter");
  const ArrayId fresh =
      store.draft(alice, "counter", protocol::kCreateMutable | protocol::kCreateReplace);
  CHECK(store.state(fresh) == State::mutable_);
  CHECK(store.registry.find(fresh)->version == 2);
  CHECK(store.state(old) == State::dying);
}

TEST_CASE("anonymous arrays: by id only, gone with the last lease") {
  Store store;
  const SessionId alice = store.join(kAlice), bob = store.join(kBob);
  const ArrayId id = store.put(alice, "");
  CHECK(store.registry.find(id)->version == 1);
  CHECK(store.code(store.attach(bob, by_id(id))) == ErrorCode::not_found);
  store.granted(store.attach(alice, by_id(id)));
  CHECK(store.events.empty());
  store.leave(alice);
  CHECK_FALSE(store.state(id).has_value());
  CHECK(store.registry.counts().arrays == 0);
}

TEST_CASE("ids are never used again") {
  Store store;
  const SessionId alice = store.join(kAlice);
  const ArrayId first = store.put(alice, "");
  store.release(alice, first, Access::read);
  const ArrayId second = store.put(alice, "");
  CHECK(first.slot() == second.slot());
  CHECK(first != second);
  CHECK(store.code(store.attach(alice, by_id(first))) == ErrorCode::not_found);
  CHECK(store.code(store.attach(alice, by_id(ArrayId{UINT64_MAX}))) == ErrorCode::not_found);
}

TEST_CASE("ids: a slot retires with its last generation") {
  SlotTable<int> table(ArrayId::kGenerationMax - 1, 2);
  const ArrayId first = table.insert(std::make_unique<int>(1));
  table.erase(first);
  const ArrayId last = table.insert(std::make_unique<int>(2));
  CHECK(last.slot() == first.slot());
  CHECK(last.generation() == ArrayId::kGenerationMax);
  table.erase(last);
  CHECK(table.find(last) == nullptr);
  const ArrayId other = table.insert(std::make_unique<int>(3));
  CHECK(other.slot() != first.slot());
  CHECK(table.full());
  CHECK(*table.find(other) == 3);
  CHECK(table.size() == 1);
}

TEST_CASE("delete: the name now, the memory with the last lease") {
  Store store;
  const SessionId alice = store.join(kAlice), reader = store.join(kAlice);
  const ArrayId id = store.put(alice, "grid", protocol::kCreateKeep);
  store.granted(store.attach(reader, by_name("grid")));
  CHECK(store.remove(alice, named("grid")).has_value());
  CHECK(store.events.back().event == "deleted");
  CHECK(store.code(store.attach(reader, by_name("grid"))) == ErrorCode::not_found);
  store.release(alice, id, Access::read);
  CHECK(store.state(id) == State::dying);
  CHECK(store.as<Grant>(store.segment(reader, id, Access::read)).send_descriptor);
  store.release(reader, id, Access::read);
  CHECK_FALSE(store.state(id).has_value());
}

TEST_CASE("delete: the bytes are charged to who still holds them") {
  Store store;
  const SessionId alice = store.join(kAlice), bob = store.join(kBob);
  CreateSpec spec = Store::spec("grid", 10'000);
  spec.perms = 0644;
  const ArrayId id = store.granted(store.create(alice, spec));
  store.seal(alice, id);
  store.granted(store.attach(bob, by_name("grid", 0, 0, kAlice)));
  const auto bytes = [&](std::uint32_t uid) { return store.registry.quota().usage(uid).bytes; };
  const std::uint64_t charged = 12'288 + record_bytes(spec);
  CHECK(bytes(kAlice) == charged);
  CHECK(store.remove(alice, named("grid")).has_value());
  CHECK(bytes(kAlice) == charged);  // Holds it herself.
  store.release(alice, id, Access::read);
  CHECK(bytes(kAlice) == 0);
  CHECK(bytes(kBob) == charged);
  SUBCASE("and to the last holder while it is pinned") {
    store.hold_freed = true;
    store.leave(bob);
    CHECK(bytes(kBob) == 12'288);
    store.reclaim();
  }
  SUBCASE("freed") {
    store.release(bob, id, Access::read);
  }
  CHECK(bytes(kBob) == 0);
}

TEST_CASE("delete: what foreign holders keep gives its owner room at once") {
  Limits limits = test_limits();
  limits.user_bytes_max = 2 * kPageBytes + record_bytes(Store::spec("grid"));
  Store store(limits);
  const SessionId alice = store.join(kAlice), bob = store.join(kBob);
  CreateSpec spec = Store::spec("grid", 2 * kPageBytes);
  spec.perms = 0644;
  spec.options = protocol::kCreateKeep;
  const ArrayId id = store.granted(store.create(alice, spec));
  store.seal(alice, id);
  store.granted(store.attach(bob, by_name("grid", 0, 0, kAlice)));
  store.release(alice, id, Access::read);
  spec = Store::spec("next", 4096);
  spec.timeout_ms = -1;
  const RequestId waits = store.create(alice, spec);
  CHECK(store.open(waits));
  CHECK(store.remove(alice, named("grid")).has_value());
  store.granted(waits);
}

TEST_CASE("delete: a draft is aborted") {
  Store store;
  const SessionId alice = store.join(kAlice), other = store.join(kAlice);
  const ArrayId id = store.draft(alice, "grid");
  const RequestId waits = store.attach(other, by_name("grid", -1));
  CHECK(store.remove(other, named("grid")).has_value());
  CHECK(store.code(waits) == ErrorCode::aborted);
  CHECK(store.code(store.seal(alice, id)) == ErrorCode::aborted);
  store.put(other, "grid");
}
