#include "tests/unit/registry_fixture.hpp"

using namespace shmstore;
using namespace shmstore::server;

TEST_CASE("seal: the write lease goes on as a read lease, its descriptor is still to come") {
  Store store;
  const SessionId alice = store.join(kAlice);
  const ArrayId id = store.draft(alice, "grid");
  const Sealed sealed = store.as<Sealed>(store.seal(alice, id));
  CHECK(sealed.version == 1);
  CHECK(sealed.seal == Seal::soft);
  CHECK(sealed.state == State::sealed);
  CHECK(store.events.back().event == "sealed");
  CHECK(store.code(store.release(alice, id, Access::write)) == ErrorCode::invalid_argument);
  CHECK(store.as<Grant>(store.attach(alice, by_id(id))).send_descriptor);
  store.as<Done>(store.release(alice, id, Access::read, 2));
  CHECK_FALSE(store.state(id).has_value());
}

TEST_CASE("seal: grants of writing and reading add up") {
  Store store;
  const SessionId alice = store.join(kAlice);
  const ArrayId id = store.draft(alice, "m", protocol::kCreateMutable);
  store.attach(alice, by_id(id, Access::write));
  store.attach(alice, by_id(id, Access::read));
  store.as<Sealed>(store.seal(alice, id));
  CHECK(store.registry.quota().usage(kAlice).leases == 1);
  CHECK_FALSE(store.as<Grant>(store.attach(alice, by_id(id))).send_descriptor);
  store.as<Done>(store.release(alice, id, Access::read, 4));
  CHECK(store.registry.counts().leases == 0);
}

TEST_CASE("seal: busy names who else writes") {
  Store store;
  const SessionId alice = store.join(kAlice);
  const ArrayId id = store.draft(alice, "grid");
  std::vector<SessionId> writers;
  for (int i = 0; i < 3; ++i) {
    writers.push_back(store.join(kAlice));
    store.granted(store.attach(writers.back(), by_id(id, Access::write)));
  }
  const Error error = store.error(store.seal(alice, id));
  CHECK(error.code == ErrorCode::busy);
  for (const SessionId writer : writers) {
    CHECK(error.text.find(std::to_string(10'000 + writer)) != std::string::npos);
  }
  CHECK(error.text.find(std::to_string(10'000 + alice)) == std::string::npos);
  const RequestId waits = store.seal(alice, id, false, 1'000);
  store.release(writers[0], id, Access::write);
  store.leave(writers[1]);
  CHECK(store.open(waits));
  SUBCASE("sealed when the last lets go") {
    store.release(writers[2], id, Access::write);
    CHECK(store.as<Sealed>(waits).version == 1);
  }
  SUBCASE("busy still when the wait is over") {
    store.tick(1'000);
    CHECK(store.code(waits) == ErrorCode::busy);
    CHECK(store.state(id) == State::draft);
  }
  SUBCASE("aborted when the creator goes") {
    const RequestId other = store.seal(writers[2], id, false, -1);
    store.leave(alice);
    CHECK(store.code(other) == ErrorCode::aborted);
  }
}

TEST_CASE("seal: needs a write lease, twice is fine") {
  OnePerState one;
  Store& store = one.store;
  const SessionId other = store.join(kAlice), root = store.join(kRoot);
  CHECK(store.code(store.seal(other, one.draft)) == ErrorCode::invalid_argument);
  CHECK(store.code(store.seal(root, one.mutable_)) == ErrorCode::invalid_argument);
  CHECK(store.code(store.seal(one.alice, one.dying)) == ErrorCode::not_found);
  CHECK(store.code(store.seal(one.alice, ArrayId{12345})) == ErrorCode::not_found);
  const std::uint64_t version = store.registry.find(one.sealed)->version;
  CHECK(store.as<Sealed>(store.seal(one.alice, one.sealed)).version == version);
  CHECK(store.as<Sealed>(store.seal(other, one.sealed)).version == version);
  store.release(one.alice, one.mutable_, Access::write);
  store.granted(store.attach(one.bob, by_id(one.sealed)));
}

TEST_CASE("seal: mutable arrays too, with their version") {
  OnePerState one;
  Store& store = one.store;
  const std::uint64_t version = store.registry.find(one.mutable_)->version;
  store.granted(store.attach(one.bob, by_id(one.mutable_, Access::write)));
  CHECK(store.code(store.seal(one.alice, one.mutable_)) == ErrorCode::busy);
  store.release(one.bob, one.mutable_, Access::write);
  CHECK(store.as<Sealed>(store.seal(one.alice, one.mutable_)).version == version);
  CHECK(store.state(one.mutable_) == State::sealed);
  CHECK(store.code(store.attach(one.bob, by_id(one.mutable_, Access::write))) ==
        ErrorCode::invalid_argument);
}

TEST_CASE("seal: hard where asked for, and where other users may read") {
  Store store;
  const SessionId alice = store.join(kAlice);
  CHECK(store.as<Sealed>(store.seal(alice, store.draft(alice, "a"), true)).seal == Seal::hard);
  const ArrayId hard = store.draft(alice, "b", protocol::kCreateHard);
  CHECK(store.as<Sealed>(store.seal(alice, hard)).seal == Seal::hard);
  CreateSpec spec = Store::spec("c");
  spec.perms = 0640;
  const ArrayId open = store.granted(store.create(alice, spec));
  CHECK(store.as<Sealed>(store.seal(alice, open)).seal == Seal::hard);
  const ArrayId soft = store.put(alice, "d");
  CHECK(store.registry.find(soft)->seal == Seal::soft);
  CHECK(store.as<Sealed>(store.seal(alice, soft, true)).seal == Seal::hard);
  CHECK(store.as<Sealed>(store.seal(alice, soft)).seal == Seal::hard);
}

TEST_CASE("seal: while the kernel is asked") {
  Store store;
  store.hold_seals = true;
  const SessionId alice = store.join(kAlice), other = store.join(kAlice);
  const ArrayId id = store.draft(alice, "grid");
  const RequestId request = store.seal(alice, id, true);
  CHECK(store.open(request));
  REQUIRE(store.hard_seals.size() == 1);
  const RequestId joins = store.attach(other, by_id(id, Access::write, -1));
  const RequestId reads = store.attach(other, by_name("grid", -1));
  CHECK(store.open(joins));
  SUBCASE("yes") {
    store.answer_seal({});
    CHECK(store.as<Sealed>(request).seal == Seal::hard);
    CHECK(store.code(joins) == ErrorCode::invalid_argument);
    store.granted(reads);
  }
  SUBCASE("busy: nothing has changed") {
    store.answer_seal(make_error(ErrorCode::busy, "mapped writable"));
    CHECK(store.code(request) == ErrorCode::busy);
    CHECK(store.state(id) == State::draft);
    store.granted(joins);
    CHECK(store.open(reads));
  }
  SUBCASE("the creator goes: the answer comes too late") {
    store.leave(alice);
    CHECK(store.code(joins) == ErrorCode::aborted);
    store.answer_seal({});
    CHECK_FALSE(store.state(id).has_value());
    CHECK(store.code(reads) == ErrorCode::aborted);
  }
  SUBCASE("cancelled: too late, it is told that it is sealed") {
    store.as<Done>(store.cancel(alice, request));
    CHECK(store.open(request));
    store.answer_seal({});
    CHECK(store.as<Sealed>(request).state == State::sealed);
    store.granted(reads);
    store.as<Done>(store.release(alice, id, Access::read));
  }
  SUBCASE("cancelled, and the kernel says busy: nothing has happened") {
    store.as<Done>(store.cancel(alice, request));
    store.answer_seal(make_error(ErrorCode::busy, "mapped writable"));
    CHECK(store.code(request) == ErrorCode::aborted);
    CHECK(store.state(id) == State::draft);
  }
  SUBCASE("a second seal waits for the first, and is told for whom") {
    const Error error = store.error(store.seal(alice, id));
    CHECK(error.code == ErrorCode::busy);
    CHECK(error.text == "seal: '~1000/grid' is being sealed by pid 10001 (test)");
    const RequestId second = store.seal(alice, id, false, -1);
    store.answer_seal({});
    CHECK(store.as<Sealed>(second).seal == Seal::hard);
  }
  SUBCASE("deleted meanwhile") {
    CHECK(store.remove(other, named("grid")).has_value());
    CHECK(store.code(request) == ErrorCode::aborted);
    store.answer_seal({});
    CHECK(store.state(id) == State::dying);
  }
}

TEST_CASE("seal: who else asks while the kernel is asked hears that it is being sealed") {
  Store store;
  store.hold_seals = true;
  const SessionId alice = store.join(kAlice), other = store.join(kAlice);
  const ArrayId draft = store.draft(alice, "draft");
  const ArrayId shared = store.draft(alice, "shared", protocol::kCreateMutable);
  store.seal(alice, draft, true);
  store.seal(alice, shared, true);
  AttachSpec join = by_name("draft");
  join.access = Access::write;
  const std::string by = " is being sealed by pid 10001 (test)";
  CHECK(store.error(store.attach(other, join)).text == "timeout: '~1000/draft'" + by);
  join.name.name = "shared";
  for (const SessionId session : {alice, other}) {
    const Error error = store.error(store.attach(session, join));
    CHECK(error.code == ErrorCode::busy);
    CHECK(error.text == "access: '~1000/shared'" + by);
  }
  join.timeout_ms = 5;
  const RequestId late = store.attach(other, join);
  store.tick(5);
  CHECK(store.error(late).text == "timeout: passed; '~1000/shared'" + by);
  join.timeout_ms = -1;
  const RequestId by_its_name = store.attach(other, join);
  const RequestId by_its_id = store.attach(other, by_id(shared, Access::write, -1));
  CHECK(store.remove(alice, named("shared")).has_value());
  CHECK(store.error(by_its_name).text.starts_with("name: there is no '~1000/shared'"));
  CHECK(store.error(by_its_id).text == "id: '~1000/shared' was deleted");
  CHECK(store.code(by_its_id) == ErrorCode::not_found);
}

TEST_CASE("seal: a name that is taken while the kernel is asked is not taken back") {
  Store store;
  store.hold_seals = true;
  const SessionId alice = store.join(kAlice), root = store.join(kRoot);
  const ArrayId id = store.draft(alice, "n", protocol::kCreateReplace);
  const RequestId request = store.seal(alice, id, true, -1);
  CreateSpec spec = Store::spec("n");
  spec.name.uid = kAlice;
  spec.options = protocol::kCreateReplace | protocol::kCreateMutable;
  const ArrayId taken = store.granted(store.create(root, spec));
  store.answer_seal({});
  CHECK(store.code(request) == ErrorCode::permission_denied);
  CHECK(store.state(taken) == State::mutable_);
  CHECK(store.state(id) == State::draft);
  // The kernel lets nobody write it any more: it can be sealed later, or dropped.
  const Error error = store.error(store.attach(alice, by_id(id, Access::write)));
  CHECK(error.code == ErrorCode::invalid_argument);
  CHECK(error.text == "access: '~1000/n' was being sealed, so nobody can write it");
  CHECK(store.remove(root, with_id(taken)).has_value());
  const RequestId again = store.seal(alice, id, true);
  store.answer_seal({});
  CHECK(store.as<Sealed>(again).seal == Seal::hard);
}

TEST_CASE("seal: what is given up while the kernel is asked is not sealed") {
  Store store;
  store.hold_seals = true;
  const SessionId alice = store.join(kAlice), other = store.join(kAlice);
  const ArrayId id = store.draft(alice, "m", protocol::kCreateMutable | protocol::kCreateKeep);
  store.release(alice, id, Access::write);
  store.granted(store.attach(alice, by_id(id, Access::exclusive)));
  const RequestId request = store.seal(alice, id, true);
  AttachSpec repair = by_id(id, Access::exclusive, -1);
  repair.repair = true;
  SUBCASE("by its holder") {
    store.as<Done>(store.abort(alice, with_id(id)));
    const RequestId waits = store.attach(other, repair);
    CHECK(store.open(waits));
    store.answer_seal({});
    CHECK(store.code(request) == ErrorCode::aborted);
    CHECK(store.state(id) == State::broken);
    CHECK(
        store.error(waits).text.ends_with("nobody can write it any more: replace it or delete it"));
  }
  SUBCASE("its holder ends: it had said that it is whole; nobody repairs what is being sealed") {
    store.leave(alice);
    const RequestId waits = store.attach(other, repair);
    CHECK(store.open(waits));
    store.answer_seal({});
    CHECK(store.state(id) == State::sealed);
    CHECK(store.code(waits) == ErrorCode::invalid_argument);
  }
  SUBCASE("its holder ends and the kernel says no: it is broken, and can be repaired") {
    store.leave(alice);
    const RequestId waits = store.attach(other, repair);
    store.answer_seal(make_error(ErrorCode::busy, "mapped writable"));
    CHECK(store.state(id) == State::broken);
    store.granted(waits);
  }
}

TEST_CASE("seal: a hard seal that may wait asks the kernel again") {
  Store store;
  store.hold_seals = true;
  const SessionId alice = store.join(kAlice), reader = store.join(kAlice);
  const ArrayId id = store.draft(alice, "m", protocol::kCreateMutable);
  store.granted(store.attach(reader, by_id(id)));
  const RequestId request = store.seal(alice, id, true, 1'000);
  const Error busy = make_error(ErrorCode::busy, "mapped writable");
  store.answer_seal(busy);
  CHECK(store.open(request));
  CHECK(store.hard_seals.empty());
  SUBCASE("when a lease ends") {
    store.release(reader, id, Access::read);
    store.answer_seal({});
    CHECK(store.as<Sealed>(request).seal == Seal::hard);
  }
  SUBCASE("after a while") {
    store.tick(*store.registry.next_deadline_ms() - store.now.boot_ms);
    store.answer_seal(busy);
    store.tick(*store.registry.next_deadline_ms() - store.now.boot_ms);
    store.answer_seal({});
    CHECK(store.as<Sealed>(request).seal == Seal::hard);
  }
  SUBCASE("until the wait is over") {
    store.tick(1'000);
    if (!store.hard_seals.empty()) store.answer_seal(busy);
    CHECK(store.code(request) == ErrorCode::busy);
    CHECK(store.state(id) == State::mutable_);
  }
  SUBCASE("another error ends it") {
    store.release(reader, id, Access::read);
    store.answer_seal(make_error(ErrorCode::internal, "no such segment"));
    CHECK(store.code(request) == ErrorCode::internal);
  }
}

TEST_CASE("abort: drops the draft and the caller's write lease") {
  OnePerState one;
  Store& store = one.store;
  store.granted(store.attach(one.bob, by_id(one.draft, Access::write)));
  store.as<Done>(store.abort(one.alice, with_id(one.draft)));
  CHECK(store.state(one.draft) == State::dying);
  store.as<Done>(store.abort(one.alice, with_id(one.draft)));
  store.release(one.bob, one.draft, Access::write);
  CHECK(store.code(store.abort(one.alice, with_id(one.draft))) == ErrorCode::not_found);
  CHECK(store.code(store.abort(one.alice, with_id(one.sealed))) == ErrorCode::invalid_argument);
  CHECK(store.code(store.abort(one.alice, with_id(one.mutable_))) == ErrorCode::invalid_argument);
  CHECK(store.code(store.abort(one.alice, with_id(one.dying))) == ErrorCode::not_found);
}

TEST_CASE("seal: rights that were open once, or a foreign writer, demand the hard seal for ever") {
  Store store;
  store.hold_seals = true;
  const SessionId alice = store.join(kAlice), bob = store.join(kBob), root = store.join(kRoot);
  ArrayId id;
  SUBCASE("made open, narrowed since") {
    CreateSpec spec = Store::spec("m");
    spec.perms = 0666;
    spec.options = protocol::kCreateMutable;
    id = store.granted(store.create(alice, spec));
    store.granted(store.attach(bob, by_id(id, Access::write)));
    store.release(bob, id, Access::write);
  }
  SUBCASE("a draft, made open for reading") {
    CreateSpec spec = Store::spec("d");
    spec.perms = 0604;
    id = store.granted(store.create(alice, spec));
  }
  SUBCASE("opened and narrowed again") {
    id = store.draft(alice, "m", protocol::kCreateMutable);
    REQUIRE(store.chmod(alice, with_id(id), 0660).has_value());
  }
  SUBCASE("a foreign writer of a private array") {
    id = store.draft(alice, "m");
    store.granted(store.attach(root, by_id(id, Access::write)));
    store.release(root, id, Access::write);
  }
  SUBCASE("a foreign writer that had it alone") {
    id = store.draft(alice, "m", protocol::kCreateMutable | protocol::kCreateKeep);
    store.release(alice, id, Access::write);
    store.granted(store.attach(root, by_id(id, Access::exclusive)));
    store.release(root, id, Access::exclusive);
    store.granted(store.attach(alice, by_id(id, Access::write)));
  }
  REQUIRE(store.chmod(alice, with_id(id), 0600).has_value());
  CHECK(store.registry.find(id)->hard);
  const State before = *store.state(id);
  const RequestId request = store.seal(alice, id, false, -1);
  REQUIRE(store.hard_seals.size() == 1);
  // Who did not know is told, and not left to wait for its own map.
  store.answer_seal(make_error(ErrorCode::busy, "mapped writable"));
  const Sealed told = store.as<Sealed>(request);
  CHECK(told.state == before);
  CHECK(told.seal == Seal::hard);
  CHECK(store.state(id) == before);
  const RequestId again = store.seal(alice, id, true, 0);
  store.answer_seal(make_error(ErrorCode::busy, "mapped writable"));
  CHECK(store.code(again) == ErrorCode::busy);
  const RequestId last = store.seal(alice, id);
  store.answer_seal({});
  CHECK(store.as<Sealed>(last).seal == Seal::hard);
}
