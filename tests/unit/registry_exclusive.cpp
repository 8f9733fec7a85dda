#include "tests/unit/registry_fixture.hpp"

using namespace shmstore;
using namespace shmstore::server;

namespace {

/// A kept mutable array of Alice's that nobody holds, and people who want it.
struct Exclusive {
  Exclusive() {
    CreateSpec made = Store::spec("grid");
    made.perms = 0666;
    made.options = protocol::kCreateMutable | protocol::kCreateKeep;
    id = store.granted(store.create(alice, std::move(made)));
    store.as<Done>(store.release(alice, id, Access::write));
  }
  RequestId ask(SessionId who, Access access, std::int64_t timeout_ms = -1, bool repair = false) {
    AttachSpec spec = by_id(id, access, timeout_ms);
    spec.repair = repair;
    return store.attach(who, spec);
  }
  RequestId ask_by_name(SessionId who, Access access, std::int64_t timeout_ms = -1) {
    AttachSpec spec = by_name("grid", timeout_ms, 0, kAlice);
    spec.access = access;
    return store.attach(who, spec);
  }
  bool has(RequestId request) {
    return !store.open(request) && std::holds_alternative<Grant>(store.completion(request).result);
  }
  void give_back(SessionId who, Access access) { store.as<Done>(store.release(who, id, access)); }
  std::vector<std::string> events() {
    std::vector<std::string> names;
    for (const EventRecord& event : store.events) names.emplace_back(event.event);
    return names;
  }

  Store store;
  SessionId alice = store.join(kAlice), bob = store.join(kBob), carol = store.join(kCarol);
  ArrayId id;
};

bool says(const Error& error, std::string_view text) {
  return error.text.find(text) != std::string::npos;
}

}  // namespace

TEST_CASE("exclusive: one holder; the others are busy, named, or wait") {
  Exclusive one;
  CHECK(one.has(one.ask(one.bob, Access::exclusive)));
  for (const Access access : {Access::read, Access::write, Access::copy, Access::exclusive}) {
    const Error error = one.store.error(one.ask(one.alice, access, 0));
    CHECK(error.code == ErrorCode::busy);
    CHECK(says(error, "'~1000/grid' is held by pid 10002 (test) with x"));
  }
  CHECK(one.has(one.ask(one.alice, Access::hold, 0)));
  const RequestId waits = one.ask(one.alice, Access::read, 50);
  one.store.tick(60);
  CHECK(one.store.code(waits) == ErrorCode::timed_out);
  CHECK(says(one.store.error(waits), "pid 10002 (test) with x"));
  const RequestId next = one.ask(one.alice, Access::write);
  CHECK(one.store.open(next));
  one.give_back(one.bob, Access::exclusive);
  CHECK(one.has(next));
}

TEST_CASE("exclusive: in line by order of arrival, whether by name or by id") {
  Exclusive one;
  CHECK(one.has(one.ask(one.alice, Access::read)));
  const RequestId writer = one.ask_by_name(one.bob, Access::exclusive);
  const RequestId reader = one.ask(one.carol, Access::read);
  const SessionId late = one.store.join(kAlice);
  const RequestId second = one.ask(late, Access::exclusive);
  // Who maps it already is waited for, and does not wait.
  CHECK(one.has(one.ask_by_name(one.alice, Access::copy, 0)));
  CHECK(one.store.open(writer));
  CHECK(one.store.open(reader));
  const Error error = one.store.error(one.ask(one.store.join(kAlice), Access::read, 0));
  CHECK(error.code == ErrorCode::busy);
  one.give_back(one.alice, Access::read);
  CHECK(one.store.open(writer));
  one.give_back(one.alice, Access::copy);
  CHECK(one.has(writer));
  CHECK(one.store.open(reader));
  one.give_back(one.bob, Access::exclusive);
  CHECK(one.has(reader));
  CHECK(one.store.open(second));
  one.store.leave(one.carol);
  CHECK(one.has(second));
}

TEST_CASE("exclusive: the line goes by arrival, too, when the name has news") {
  Exclusive one;
  Store& store = one.store;
  store.granted(one.ask(one.alice, Access::write));
  store.hold_seals = true;
  store.seal(one.alice, one.id, true);
  const RequestId by_its_id = one.ask(one.bob, Access::write);
  const RequestId by_its_name = one.ask_by_name(one.bob, Access::write);
  store.answer_seal(make_error(ErrorCode::busy, "mapped writable"));
  CHECK(store.as<Grant>(by_its_id).send_descriptor);
  CHECK_FALSE(store.as<Grant>(by_its_name).send_descriptor);
}

TEST_CASE("exclusive: who leaves the line makes room for those behind") {
  Exclusive one;
  CHECK(one.has(one.ask(one.alice, Access::read)));
  const RequestId writer = one.ask(one.bob, Access::exclusive);
  const RequestId reader = one.ask_by_name(one.carol, Access::read);
  const SessionId late = one.store.join(kAlice);
  const RequestId another = one.ask(late, Access::write, 1'000);
  SUBCASE("cancelled") {
    one.store.cancel(one.bob, writer);
  }
  SUBCASE("its session ended") {
    one.store.leave(one.bob);
  }
  CHECK(one.has(reader));
  CHECK(one.has(another));
}

TEST_CASE("exclusive: a session is not made to wait for itself") {
  Exclusive one;
  CHECK(one.has(one.ask(one.bob, Access::write)));
  CHECK(says(one.store.error(one.ask(one.bob, Access::exclusive)), "this process, pid 10002"));
  one.give_back(one.bob, Access::write);
  CHECK(one.has(one.ask(one.bob, Access::exclusive)));
  CHECK(one.store.code(one.ask(one.bob, Access::read)) == ErrorCode::busy);
  // Its threads may take turns.
  const RequestId turn = one.ask(one.bob, Access::exclusive);
  CHECK(one.store.open(turn));
  one.give_back(one.bob, Access::exclusive);
  CHECK(one.has(turn));
}

TEST_CASE("exclusive: a session that ends breaks the array, a repair mends it") {
  Exclusive one;
  CHECK(one.has(one.ask(one.bob, Access::exclusive)));
  const RequestId by_number = one.ask(one.carol, Access::read);
  const RequestId by_its_name = one.ask_by_name(one.alice, Access::exclusive);
  const RequestId sealing = one.store.seal(one.alice, one.id, false, 1'000);
  one.store.leave(one.bob);
  CHECK(one.store.state(one.id) == State::broken);
  for (const RequestId told : {by_number, by_its_name}) {
    CHECK(one.store.code(told) == ErrorCode::aborted);
    CHECK(says(one.store.error(told), "is broken: pid 10002 (test) ended at 2023-11-14 22:13:20"));
  }
  CHECK(one.store.code(sealing) == ErrorCode::invalid_argument);
  const std::optional<ArrayView> view = one.store.registry.find(one.id);
  REQUIRE(view->broken);
  CHECK(view->broken->pid == 10'002);
  CHECK(view->broken->at_s == one.store.now.wall_s);

  for (const Access access : {Access::read, Access::write, Access::copy, Access::exclusive}) {
    CHECK(one.store.code(one.ask(one.alice, access, 0)) == ErrorCode::aborted);
  }
  CHECK(one.store.code(one.ask(one.alice, Access::write, 0, true)) == ErrorCode::invalid_argument);
  CHECK(one.has(one.ask(one.alice, Access::exclusive, 0, true)));
  CHECK(one.store.state(one.id) == State::broken);
  CHECK(says(one.store.error(one.ask(one.carol, Access::read)), "pid 10001 (test) is repairing"));
  const RequestId helper = one.ask(one.carol, Access::exclusive, -1, true);
  one.give_back(one.alice, Access::exclusive);
  CHECK(one.store.state(one.id) == State::mutable_);
  CHECK(one.has(helper));
  CHECK(!one.store.registry.find(one.id)->broken);
  CHECK(one.events() == std::vector<std::string>{"created", "broken", "repaired"});
}

TEST_CASE("exclusive: given up half-written, sealed, deleted") {
  Exclusive one;
  CHECK(one.has(one.ask(one.bob, Access::exclusive)));
  SUBCASE("given up") {
    one.store.as<Done>(one.store.abort(one.bob, with_id(one.id)));
    CHECK(one.store.state(one.id) == State::broken);
    CHECK(says(one.store.error(one.ask(one.alice, Access::read)), "pid 10002 (test) gave it up"));
    CHECK(one.store.remove(one.alice, with_id(one.id)).has_value());
    CHECK(!one.store.state(one.id));
  }
  SUBCASE("sealed by its holder") {
    one.give_back(one.bob, Access::exclusive);
    CHECK(one.has(one.ask(one.alice, Access::exclusive)));
    const RequestId reader = one.ask(one.bob, Access::read);
    const RequestId writer = one.ask_by_name(one.carol, Access::exclusive);
    CHECK(one.store.as<Sealed>(one.store.seal(one.alice, one.id, true)).seal == Seal::hard);
    CHECK(one.has(reader));
    CHECK(one.store.code(writer) == ErrorCode::invalid_argument);
    one.give_back(one.alice, Access::read);
  }
  SUBCASE("sealed by somebody else") {
    const Error error = one.store.error(one.store.seal(one.alice, one.id));
    CHECK(error.code == ErrorCode::busy);
    CHECK(says(error, "pid 10002"));
  }
  SUBCASE("deleted") {
    const RequestId by_number = one.ask(one.alice, Access::read);
    const RequestId by_its_name = one.ask_by_name(one.carol, Access::read);
    CHECK(one.store.remove(one.alice, with_id(one.id)).has_value());
    CHECK(one.store.code(by_number) == ErrorCode::not_found);
    CHECK(one.store.code(by_its_name) == ErrorCode::permission_denied);
    one.store.leave(one.bob);
    CHECK(!one.store.state(one.id));
  }
  SUBCASE("no right any more") {
    const RequestId reader = one.ask_by_name(one.carol, Access::read);
    CHECK(one.store.chmod(one.alice, with_id(one.id), 0600).has_value());
    CHECK(one.store.code(reader) == ErrorCode::permission_denied);
  }
}

TEST_CASE("exclusive: a handle keeps the array, in nobody's way, and is counted on its way") {
  Exclusive one;
  CHECK(one.has(one.ask(one.alice, Access::hold)));
  CHECK(!one.store.as<Grant>(one.ask(one.alice, Access::hold)).send_descriptor);
  CHECK(one.store.unkeep(one.alice, with_id(one.id)).has_value());
  one.store.as<Done>(one.store.handover(one.alice, one.id));
  one.store.as<Done>(one.store.handover(one.alice, one.id));
  CHECK(one.store.registry.find(one.id)->in_flight == 2);
  AttachSpec opened = by_id(one.id, Access::exclusive);
  opened.renew_handover = true;
  one.store.granted(one.store.attach(one.bob, opened));
  CHECK(one.store.registry.find(one.id)->in_flight == 1);
  opened.access = Access::hold;
  one.store.granted(one.store.attach(one.carol, opened));
  one.store.granted(one.store.attach(one.carol, opened));
  CHECK(one.store.registry.find(one.id)->in_flight == 0);
  const auto holders = one.store.holders(one.alice, with_id(one.id)).value();
  CHECK(holders.size() == 4);
  one.give_back(one.bob, Access::exclusive);
  one.store.leave(one.carol);
  one.store.tick(protocol::kGraceMsDefault + 1);
  CHECK(one.store.state(one.id) == State::mutable_);
  one.store.as<Done>(one.store.release(one.alice, one.id, Access::hold, 2));
  CHECK(!one.store.state(one.id));
}

TEST_CASE("exclusive: cached takes its turn, too") {
  Exclusive one;
  CHECK(one.has(one.ask(one.alice, Access::exclusive)));
  const SessionId other = one.store.join(kAlice);
  CHECK(one.store.code(one.store.cached(other, own("grid"), 0)) == ErrorCode::busy);
  const RequestId waits = one.store.cached(other, own("grid"));
  CHECK(one.store.open(waits));
  SUBCASE("handed over") {
    one.give_back(one.alice, Access::exclusive);
    CHECK(one.has(waits));
  }
  SUBCASE("broken") {
    one.store.leave(one.alice);
    CHECK(one.store.code(waits) == ErrorCode::aborted);
  }
}

TEST_CASE("exclusive: a user who may only read keeps nobody from it") {
  Store store;
  const SessionId alice = store.join(kAlice), bob = store.join(kBob), other = store.join(kAlice);
  CreateSpec spec = Store::spec("m");
  spec.options = protocol::kCreateMutable | protocol::kCreateKeep;
  spec.perms = 0644;
  const ArrayId id = store.granted(store.create(alice, spec));
  store.release(alice, id, Access::write);
  store.granted(store.attach(bob, by_id(id)));
  store.granted(store.attach(bob, by_id(id, Access::copy)));
  store.granted(store.attach(alice, by_id(id, Access::exclusive)));
  SUBCASE("but waits itself at its attach") {
    const SessionId second = store.join(kBob);
    const Error busy = store.error(store.attach(second, by_id(id)));
    CHECK(busy.code == ErrorCode::busy);
    CHECK(busy.text.find(" is held by pid 10001 (test) with x") != std::string::npos);
    CHECK(busy.text.find("10002") == std::string::npos);
    const RequestId waits = store.attach(second, by_id(id, Access::read, -1));
    CHECK(store.open(waits));
    store.release(alice, id, Access::exclusive);
    store.granted(waits);
  }
  SUBCASE("nor those who stand in line") {
    const RequestId next = store.attach(other, by_id(id, Access::exclusive, -1));
    CHECK(store.open(next));
    store.release(alice, id, Access::exclusive);
    store.granted(next);
  }
  SUBCASE("nor when the holder dies: the array is broken for it as well") {
    store.leave(alice);
    CHECK(store.code(store.attach(bob, by_id(id))) == ErrorCode::aborted);
  }
  SUBCASE("one who may write does; narrower rights take it out of the way") {
    store.release(alice, id, Access::exclusive);
    store.release(bob, id, Access::read);
    store.release(bob, id, Access::copy);
    REQUIRE(store.chmod(alice, with_id(id), 0666).has_value());
    store.granted(store.attach(bob, by_id(id)));
    const RequestId waits = store.attach(alice, by_id(id, Access::exclusive, -1));
    CHECK(store.open(waits));
    REQUIRE(store.chmod(alice, with_id(id), 0644).has_value());
    store.granted(waits);
    REQUIRE(store.chmod(alice, with_id(id), 0666).has_value());
    store.as<Done>(store.release(alice, id, Access::exclusive));
  }
}
