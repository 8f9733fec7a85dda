#include <algorithm>

#include "tests/unit/registry_fixture.hpp"

using namespace shmstore;
using namespace shmstore::server;

TEST_CASE("create: a draft with a write lease and its descriptor, visible at once") {
  Store store;
  const SessionId alice = store.join(kAlice);
  const RequestId request = store.create(alice, Store::spec("grid"));
  const Grant& grant = store.as<Grant>(request);
  CHECK(grant.access == Access::write);
  CHECK(grant.send_descriptor);
  const ArrayView view = store.info(alice, named("grid")).value();
  CHECK(view.state == State::draft);
  CHECK(view.version == 0);
  CHECK(view.leases == 1);
  CHECK(view.segment != 0);
  CHECK(view.uid == kAlice);
  CHECK(view.ns_uid == kAlice);
  REQUIRE(store.events.size() == 1);
  CHECK(store.events[0].event == "created");
}

TEST_CASE("create: answered when the memory is there, not before") {
  Store store;
  store.hold_memory = true;
  const SessionId alice = store.join(kAlice), other = store.join(kAlice);
  const RequestId request = store.create(alice, Store::spec("grid"));
  const std::uint64_t charged = 4096 + record_bytes(Store::spec("grid"));
  CHECK(store.open(request));
  CHECK(store.registry.quota().bytes_used() == charged);
  SUBCASE("memory comes") {
    store.give_memory();
    CHECK(store.as<Grant>(request).send_descriptor);
  }
  SUBCASE("none to be had: typed error, nothing stays") {
    store.refuse_memory();
    CHECK(store.code(request) == ErrorCode::no_capacity);
    CHECK(store.registry.counts().arrays == 0);
    CHECK(store.registry.counts().segments == 0);
    CHECK(store.registry.quota().bytes_used() == 0);
    store.hold_memory = false;
    store.put(other, "grid");
  }
  SUBCASE("its session ends meanwhile: the memory goes back") {
    store.hold_freed = true;
    store.leave(alice);
    CHECK(store.code(store.attach(other, by_name("grid"))) == ErrorCode::not_found);
    CHECK(store.registry.quota().usage(kAlice).bytes == charged);
    store.give_memory();
    CHECK(store.freed.size() == 1);
    CHECK(store.registry.counts().pinned_segments == 1);
    store.reclaim();
    CHECK(store.registry.quota().bytes_used() == 0);
  }
  SUBCASE("its session ends, and then there is none") {
    store.leave(alice);
    store.refuse_memory();
    CHECK(store.registry.counts().arrays == 0);
    CHECK(store.registry.quota().bytes_used() == 0);
  }
  SUBCASE("cancelled: aborted, the memory goes back") {
    const RequestId cancel = store.cancel(alice, request);
    CHECK(store.code(request) == ErrorCode::aborted);
    CHECK(store.order == std::vector<RequestId>{request, cancel});
    store.give_memory();
    CHECK(store.registry.counts().segments == 0);
  }
  SUBCASE("deleted by somebody else: aborted") {
    CHECK(store.remove(other, named("grid")).has_value());
    CHECK(store.code(request) == ErrorCode::aborted);
    store.give_memory();
    CHECK(store.registry.counts().leases == 0);
    CHECK(store.registry.counts().segments == 0);
  }
  SUBCASE("co-writers wait for it too") {
    AttachSpec join = by_name("grid", -1);
    join.access = Access::write;
    const RequestId attach = store.attach(other, join);
    CHECK(store.open(attach));
    store.give_memory();
    CHECK(store.as<Grant>(attach).access == Access::write);
  }
}

TEST_CASE("create: an array of no bytes needs no memory and sends no descriptor") {
  Store store;
  store.hold_memory = true;
  const SessionId alice = store.join(kAlice);
  const RequestId request = store.create(alice, Store::spec("empty", 0));
  CHECK_FALSE(store.as<Grant>(request).send_descriptor);
  const ArrayId id = store.granted(request);
  CHECK(store.as<Sealed>(store.seal(alice, id, true)).seal == Seal::hard);
  CHECK_FALSE(store.as<Grant>(store.attach(alice, by_id(id))).send_descriptor);
  CHECK_FALSE(store.as<Grant>(store.segment(alice, id, Access::read)).send_descriptor);
  CHECK(store.registry.counts().segments == 0);
  store.release(alice, id, Access::read, 2);
  CHECK(store.registry.counts().arrays == 0);
}

TEST_CASE("create: names that are taken") {
  Store store;
  const SessionId alice = store.join(kAlice), again = store.join(kAlice);
  CreateSpec replacing = Store::spec("grid");
  replacing.options = protocol::kCreateReplace;
  SUBCASE("a draft reserves its name") {
    store.draft(alice, "grid");
    CHECK(store.code(store.create(again, Store::spec("grid"))) == ErrorCode::already_exists);
    CHECK(store.code(store.create(again, replacing)) == ErrorCode::not_sealed);
  }
  SUBCASE("a sealed array keeps it unless replaced") {
    store.put(alice, "grid");
    CHECK(store.code(store.create(again, Store::spec("grid"))) == ErrorCode::already_exists);
    store.granted(store.create(again, replacing));
  }
  SUBCASE("so does a draft that would replace") {
    store.draft(alice, "grid", protocol::kCreateReplace);
    CHECK(store.code(store.create(again, Store::spec("grid"))) == ErrorCode::already_exists);
    store.granted(store.create(again, replacing));
  }
  SUBCASE("a failed create takes nothing") {
    store.draft(alice, "grid");
    store.create(again, Store::spec("grid"));
    CHECK(store.registry.counts().arrays == 1);
    CHECK(store.registry.quota().usage(kAlice).arrays == 1);
  }
}

TEST_CASE("create: options that make no sense") {
  Store store;
  const SessionId alice = store.join(kAlice);
  CreateSpec spec = Store::spec("");
  for (const std::uint16_t options :
       {protocol::kCreateKeep, protocol::kCreateReplace, protocol::kCreateCached}) {
    spec.options = options;
    CHECK(store.code(store.create(alice, spec)) == ErrorCode::invalid_argument);
  }
  spec = Store::spec("x");
  spec.options = 0x8000;
  CHECK(store.code(store.create(alice, spec)) == ErrorCode::invalid_argument);
  spec.options = 0;
  spec.perms = 0777;
  CHECK(store.code(store.create(alice, spec)) == ErrorCode::invalid_argument);
}

TEST_CASE("create: no room") {
  Limits limits = test_limits();
  limits.capacity = 4 * (kPageBytes + record_bytes(Store::spec("")));
  Store store(limits);
  const SessionId alice = store.join(kAlice), bob = store.join(kBob);
  CreateSpec half = Store::spec("", 2 * kPageBytes);
  const ArrayId first = store.granted(store.create(alice, half));
  store.granted(store.create(alice, half));
  SUBCASE("typed error that says what is free and who holds most") {
    const Error error = store.error(store.create(bob, half));
    CHECK(error.code == ErrorCode::no_capacity);
    CHECK(error.text.find(" free of ") != std::string::npos);
    CHECK(error.text.find("uid 1000 holds most") != std::string::npos);
  }
  SUBCASE("a wait ends when something is freed") {
    half.timeout_ms = -1;
    const RequestId request = store.create(bob, half);
    CHECK(store.open(request));
    store.release(alice, first, Access::write);
    store.granted(request);
  }
  SUBCASE("memory that is pinned is no room yet") {
    store.hold_freed = true;
    half.timeout_ms = -1;
    const RequestId request = store.create(bob, half);
    store.release(alice, first, Access::write);
    CHECK(store.open(request));
    CHECK(store.registry.counts().pinned_bytes == 2 * kPageBytes);
    store.reclaim();
    store.granted(request);
  }
  SUBCASE("a wait ends by its deadline") {
    half.timeout_ms = 500;
    const RequestId request = store.create(bob, half);
    CHECK(store.registry.next_deadline_ms() == store.now.boot_ms + 500);
    store.tick(499);
    CHECK(store.open(request));
    store.tick(1);
    CHECK(store.code(request) == ErrorCode::timed_out);
    CHECK_FALSE(store.registry.next_deadline_ms().has_value());
  }
  SUBCASE("what can never fit does not wait") {
    CreateSpec huge = Store::spec("", 7 * kPageBytes);
    huge.timeout_ms = -1;
    CHECK(store.code(store.create(bob, huge)) == ErrorCode::no_capacity);
  }
  SUBCASE("a name that was taken meanwhile") {
    CreateSpec wanted = Store::spec("grid", 2 * kPageBytes);
    wanted.timeout_ms = -1;
    const RequestId waits = store.create(bob, wanted);
    store.granted(store.create(bob, Store::spec("grid", 0)));
    store.release(alice, first, Access::write);
    CHECK(store.code(waits) == ErrorCode::already_exists);
  }
}

TEST_CASE("create: who waits for room is served in order, users do not hold up each other") {
  Limits limits = test_limits();
  limits.capacity = 4 * (kPageBytes + record_bytes(Store::spec("")));
  Store store(limits);
  const SessionId alice = store.join(kAlice), bob = store.join(kBob);
  std::vector<ArrayId> held;
  for (int i = 0; i < 4; ++i) held.push_back(store.granted(store.create(alice, Store::spec(""))));
  const auto queue = [&](SessionId session, std::uint64_t pages) {
    CreateSpec spec = Store::spec("", pages * kPageBytes);
    spec.timeout_ms = -1;
    return store.create(session, spec);
  };
  const RequestId big = queue(alice, 2), small = queue(alice, 1), other = queue(bob, 1);
  store.release(alice, held[0], Access::write);
  CHECK(store.open(big));
  CHECK(store.open(small));  // Behind its user's own.
  store.granted(other);
  store.release(alice, held[1], Access::write);
  CHECK(store.open(big));
  SUBCASE("in order") {
    store.release(alice, held[2], Access::write);
    store.granted(big);
    CHECK(store.open(small));
  }
  SUBCASE("the head is cancelled: the next is tried") {
    store.cancel(alice, big);
    store.granted(small);
  }
  SUBCASE("the head's session ends: the next is tried") {
    const SessionId second = store.join(kAlice);
    const RequestId last = queue(second, 1);
    store.leave(alice);
    store.granted(last);
    CHECK(store.open(small));  // Never answered: its session is gone.
  }
}

TEST_CASE("create: running out of segments, arrays and leases") {
  Limits limits = test_limits();
  limits.segments_max = 2;
  Store store(limits);
  const SessionId alice = store.join(kAlice);
  store.put(alice, "a");
  store.put(alice, "b");
  const Error error = store.error(store.create(alice, Store::spec("c")));
  CHECK(error.code == ErrorCode::no_capacity);
  CHECK(error.text.starts_with("segments: 2 of 2 in use; uid 1000 holds most, 2"));
  store.granted(store.create(alice, Store::spec("empty", 0)));  // Needs none.

  store.registry.quota().set_user_limits(kAlice, 0, 3);
  const Error arrays = store.error(store.create(alice, Store::spec("d", 0)));
  CHECK(arrays.code == ErrorCode::quota_exceeded);
  CHECK(arrays.text.find("arrays: uid 1000 uses 3 of 3") != std::string::npos);
}

TEST_CASE("create: so many of a session are worked on at a time and no more") {
  Limits limits = test_limits();
  limits.segments_max = 2'000;
  Store store(limits);
  store.hold_memory = true;
  const SessionId alice = store.join(kAlice);
  Effects effects;
  for (std::uint32_t i = 0; i < protocol::kOpenRequestsMax; ++i) {
    store.registry.create(alice, 1'000'000 + i, Store::spec(""), store.now, effects);
  }
  const Error error = store.error(store.create(alice, Store::spec("")));
  CHECK(error.code == ErrorCode::quota_exceeded);
  CHECK(error.text.find("worked on, 1024") != std::string::npos);
  store.cancel(alice, 1'000'000);
  CHECK(store.open(store.create(alice, Store::spec(""))));
  const SessionId other = store.join(kAlice);
  CHECK(store.open(store.create(other, Store::spec(""))));
}

TEST_CASE(
    "create: a mutable array that its creator has not mapped yet replaces and keeps nothing") {
  Store store;
  const SessionId alice = store.join(kAlice), other = store.join(kAlice);
  const ArrayId old = store.put(other, "x", protocol::kCreateKeep);
  const std::size_t events = store.events.size();
  const std::uint64_t version = store.registry.find(old)->version;
  const ArrayId id = store.draft(alice, "x",
                                 protocol::kCreateMutable | protocol::kCreateKeep |
                                     protocol::kCreateReplace | protocol::kCreateUnseen);
  CHECK(store.state(id) == State::draft);
  CHECK(store.granted(store.attach(other, by_name("x"))) == old);
  CHECK(store.code(store.publish(other, id)) == ErrorCode::invalid_argument);
  CHECK(store.code(store.publish(other, old)) == ErrorCode::invalid_argument);
  const RequestId joins = store.attach(other, by_id(id, Access::write, -1));
  CHECK(store.open(joins));
  SUBCASE("it cannot be mapped: it is aborted") {
    store.as<Done>(store.abort(alice, with_id(id)));
    CHECK(store.code(joins) == ErrorCode::aborted);
    CHECK(store.granted(store.attach(other, by_name("x"))) == old);
    CHECK(store.registry.find(old)->kept);
    CHECK(store.events.size() == events);
  }
  SUBCASE("its creator dies") {
    store.leave(alice);
    CHECK(store.granted(store.attach(other, by_name("x"))) == old);
    CHECK(store.events.size() == events);
  }
  SUBCASE("it is published, and twice is fine") {
    for (int n = 0; n < 2; ++n) {
      const Sealed there = store.as<Sealed>(store.publish(alice, id));
      CHECK(there.state == State::mutable_);
      CHECK(there.version == version + 1);
    }
    CHECK(store.granted(joins) == id);
    CHECK(store.granted(store.attach(other, by_name("x"))) == id);
    CHECK(store.registry.find(id)->kept);
    CHECK(store.events.size() == events + 1);
    CHECK(store.events.back().event == "created");
  }
  SUBCASE("root has taken the name meanwhile: it is told, and may drop it") {
    const SessionId root = store.join(kRoot);
    CreateSpec spec = Store::spec("x");
    spec.name.uid = kAlice;
    spec.options = protocol::kCreateReplace | protocol::kCreateMutable;
    const ArrayId taken = store.granted(store.create(root, spec));
    CHECK(store.code(store.publish(alice, id)) == ErrorCode::permission_denied);
    store.as<Done>(store.abort(alice, with_id(id)));
    CHECK(store.state(taken) == State::mutable_);
  }
}

TEST_CASE("create: one event serves a bounded number of waiting creates, a tick the rest") {
  constexpr int kWaiting = 40;
  Limits limits = test_limits();
  limits.capacity = (kWaiting + 1) * (kPageBytes + record_bytes(Store::spec("")));
  Store store(limits);
  const SessionId alice = store.join(kAlice);
  const ArrayId all = store.granted(store.create(alice, Store::spec("", kWaiting * kPageBytes)));
  std::vector<RequestId> waiting;
  for (int i = 0; i < kWaiting + 1; ++i) {
    CreateSpec spec = Store::spec("", kPageBytes);
    spec.timeout_ms = -1;
    waiting.push_back(store.create(alice, spec));
  }
  const auto open = [&] {
    return std::count_if(waiting.begin(), waiting.end(),
                         [&](RequestId id) { return store.open(id); });
  };
  const auto before = open();
  store.release(alice, all, Access::write);
  const auto after = open();
  CHECK(after < before);
  CHECK(before - after <= 16);
  REQUIRE(store.registry.next_deadline_ms().has_value());
  for (int ticks = 0; ticks < kWaiting && open() > 0; ++ticks) store.tick(0);
  CHECK(open() == 0);
}

TEST_CASE("create: a maker that gives up a published array lets go of it") {
  Store store;
  const SessionId alice = store.join(kAlice);
  CreateSpec spec = Store::spec("x");
  spec.options = protocol::kCreateMutable | protocol::kCreateUnseen | protocol::kCreateKeep;
  const ArrayId made = store.granted(store.create(alice, spec));
  store.as<Sealed>(store.publish(alice, made));  // The answer did not arrive in time.
  store.as<Done>(store.abort(alice, with_id(made)));
  CHECK(store.registry.find(made)->leases == 0);
  CHECK(store.state(made) == State::mutable_);
}

TEST_CASE("create: only a mutable array waits to be published") {
  Store store;
  const SessionId alice = store.join(kAlice);
  CreateSpec spec = Store::spec("x");
  spec.options = protocol::kCreateUnseen;
  CHECK(store.code(store.create(alice, spec)) == ErrorCode::invalid_argument);
  const ArrayId made = store.draft(alice, "m", protocol::kCreateMutable);
  CHECK(store.code(store.publish(alice, made)) == ErrorCode::invalid_argument);
  CHECK(store.code(store.publish(alice, ArrayId{77})) == ErrorCode::invalid_argument);
}
