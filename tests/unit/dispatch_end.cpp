// The end of sessions, in turns that others are served between.
#include "tests/unit/dispatch_bench.hpp"

using namespace shmstore;
using namespace shmstore::server;
using namespace shmstore::protocol;

TEST_CASE("dispatch: a session with many arrays ends in turns, others are served in between") {
  Bench bench;
  SessionState& gone = bench.join(kAlice);
  SessionState& other = bench.join(kBob);
  SessionState& watcher = bench.join(kAlice);
  for (int i = 0; i < 1'000; ++i) (void)bench.create(gone, "n" + std::to_string(i), 0);
  REQUIRE_FALSE(bench.ask(watcher, Op::watch, "{}").header.status);
  bench.mail.replies.clear();
  std::vector<std::size_t> deleted;
  const auto turn = [&](auto&& end) {
    end();
    deleted.push_back(bench.mail.replies[watcher.id].size());
    bench.mail.replies[watcher.id].clear();
  };
  turn([&] { bench.dispatcher.end_session(gone.id); });
  while (bench.dispatcher.has_ending()) {
    CHECK_FALSE(bench.ask(other, Op::ping).header.status);
    bench.put(other, "own" + std::to_string(deleted.size()));
    turn([&] { bench.dispatcher.end_some(256); });
  }
  // In each turn one more than 256 by twice the lease that came since the last.
  CHECK(deleted == std::vector<std::size_t>{64, 258, 258, 258, 162});
  bench.dispatcher.end_some(256);  // nothing to do
}

TEST_CASE("dispatch: leases go faster than others come") {
  Bench bench;
  SessionState& first = bench.join(kAlice);
  SessionState& second = bench.join(kAlice);
  SessionState& watcher = bench.join(kRoot);
  const auto leases = [&] {
    const std::string status = bench.ask(watcher, Op::status, "{}").body;
    const std::string key = "\"leases\":";  // the store's; those of the users follow
    return std::stoull(status.substr(status.find(key) + key.size()));
  };
  for (int i = 0; i < 2'000; ++i) (void)bench.create(first, "", 0);
  bench.dispatcher.end_session(first.id);
  CHECK(leases() == 2'000 - 64);
  for (int i = 0; i < 500; ++i) (void)bench.create(second, "", 0);
  bench.dispatcher.end_some(256);
  CHECK(leases() == 2'000 - 64 + 500 - (256 + 2 * 500));
  bench.dispatcher.end_some(256);
  CHECK(leases() == 2'000 - 64 + 500 - (256 + 2 * 500) - 256);
}

TEST_CASE("dispatch: a turn takes from one session after the other until it has its number") {
  Bench bench;
  std::vector<SessionState*> gone;
  for (int i = 0; i < 20; ++i) {
    gone.push_back(&bench.join(kAlice));
    for (int n = 0; n < 80; ++n) (void)bench.create(*gone.back(), "", 0);
  }
  for (const SessionState* session : gone) bench.dispatcher.end_session(session->id);
  SessionState& root = bench.join(kRoot);
  CHECK(has(bench.ask(root, Op::status, "{}").body, "\"arrays\":320,"));
  bench.dispatcher.end_some(256);
  CHECK(has(bench.ask(root, Op::status, "{}").body, "\"arrays\":64,"));
  bench.dispatcher.end_some(256);
  CHECK_FALSE(bench.dispatcher.has_ending());
}

TEST_CASE("dispatch: who ends with few arrays does not stand behind who ends with many") {
  Bench bench;
  SessionState& many = bench.join(kAlice);
  SessionState& few = bench.join(kBob);
  for (int i = 0; i < 1'000; ++i) (void)bench.create(many, "", 0);
  for (int i = 0; i < 64; ++i) (void)bench.create(few, "n" + std::to_string(i), 0);
  bench.dispatcher.end_session(many.id);
  bench.dispatcher.end_session(few.id);
  SessionState& root = bench.join(kRoot);
  const auto status = bench.ask(root, Op::status, "{}").body;
  CHECK(has(status, "\"arrays\":936"));
}

TEST_CASE("dispatch: a create that lacks room waits for what a session leaves behind") {
  Limits limits = Bench::default_limits();
  limits.capacity = 256 * (kPageBytes + 2'061);  // With their records.
  Bench bench(limits);
  SessionState& gone = bench.join(kAlice);
  for (int i = 0; i < 256; ++i) (void)bench.create(gone, "", 4096);
  SessionState& other = bench.join(kAlice);
  CHECK(bench.create(other, "refused", 100 * 4096).is(ErrorCode::no_capacity));
  bench.dispatcher.end_session(gone.id);
  bench.mail.replies[other.id].clear();
  CHECK(bench.send(other, Op::create, Bench::create_text("served", 100 * 4096)));
  CHECK(bench.mail.replies[other.id].empty());
  while (bench.dispatcher.has_ending()) bench.dispatcher.end_some(256);
  REQUIRE(bench.mail.replies[other.id].size() == 1);
  CHECK_FALSE(bench.mail.replies[other.id].front().header.status);
}

TEST_CASE("dispatch: of two creates that hope for the same room one is served, one hopes on") {
  Limits limits = Bench::default_limits();
  limits.capacity = 1'000 * (kPageBytes + 2'061);  // With their records.
  limits.segments_max = 2'000;
  Bench bench(limits);
  SessionState& gone = bench.join(kAlice);
  for (int i = 0; i < 1'000; ++i) (void)bench.create(gone, "", kPageBytes);
  SessionState& other = bench.join(kAlice);
  bench.dispatcher.end_session(gone.id);
  auto& answers = bench.mail.replies[other.id];
  answers.clear();
  for (const char* name : {"first", "second"}) {
    CHECK(bench.send(other, Op::create, Bench::create_text(name, 600 * kPageBytes)));
  }
  CHECK(answers.empty());
  bench.dispatcher.end_some(256);
  bench.dispatcher.end_some(256);
  REQUIRE(bench.dispatcher.has_ending());
  for (int i = 0; i < 20; ++i) bench.dispatcher.probe_released();
  REQUIRE(answers.size() == 1);
  CHECK(has(answers[0].body, "first"));
  bench.dispatcher.end_some(256);
  for (int i = 0; i < 20; ++i) bench.dispatcher.probe_released();
  REQUIRE(answers.size() == 2);
  CHECK(has(answers[1].body, "second"));
}

TEST_CASE("dispatch: a create that no session's end helps is refused at once") {
  Limits limits = Bench::default_limits();
  std::uint64_t bytes = limits.capacity + 1;
  ErrorCode code = ErrorCode::no_capacity;
  SUBCASE("beyond the store") {}
  SUBCASE("beyond the user's share") {
    limits.user_bytes_max = limits.capacity / 2;
    bytes = limits.user_bytes_max + 1;
    code = ErrorCode::quota_exceeded;
  }
  Bench bench(limits);
  SessionState& gone = bench.join(kBob);
  for (int i = 0; i < 100; ++i) (void)bench.create(gone, "", kPageBytes);
  SessionState& other = bench.join(kAlice);
  bench.dispatcher.end_session(gone.id);
  REQUIRE(bench.dispatcher.has_ending());
  const std::size_t probes = bench.store.probes;
  CHECK(bench.create(other, "n", bytes).is(code));
  CHECK(bench.store.probes == probes);
}

TEST_CASE("dispatch: a create over the number of arrays waits for sessions, not for memory") {
  Limits limits = Bench::default_limits();
  limits.user_arrays_max = 100;
  Bench bench(limits);
  SessionState& gone = bench.join(kAlice);
  SessionState& other = bench.join(kAlice);
  bench.store.mapped = true;
  const std::uint64_t pinned = bench.put(other, "pinned");
  CHECK_FALSE(bench.release(other, pinned, Access::read).header.status);
  bench.store.freeing = kPageBytes;
  for (int i = 0; i < 100; ++i) (void)bench.create(gone, "", 0);
  const std::size_t probes = bench.store.probes;
  CHECK(bench.create(other, "n", kPageBytes).is(ErrorCode::quota_exceeded));
  CHECK(bench.store.probes == probes);
  bench.dispatcher.end_session(gone.id);
  bench.dispatcher.end_some(256);
  CHECK_FALSE(bench.create(other, "n", kPageBytes).header.status);
}

TEST_CASE("dispatch: a create over the number of arrays is served when a session has ended") {
  Limits limits = Bench::default_limits();
  limits.user_arrays_max = 200;
  Bench bench(limits);
  SessionState& gone = bench.join(kAlice);
  SessionState& other = bench.join(kAlice);
  for (int i = 0; i < 200; ++i) (void)bench.create(gone, "", 0);
  bench.dispatcher.end_session(gone.id);
  for (int i = 0; i < 64; ++i) (void)bench.create(other, "", 0);
  bench.mail.replies[other.id].clear();
  CHECK(bench.send(other, Op::create, Bench::create_text("n", 0)));
  CHECK(bench.mail.replies[other.id].empty());
  while (bench.dispatcher.has_ending()) bench.dispatcher.end_some(256);
  REQUIRE(bench.mail.replies[other.id].size() == 1);
  CHECK_FALSE(bench.mail.replies[other.id].front().header.status);
}

TEST_CASE("dispatch: what a session leaves is given back half a MiB at a time") {
  Limits limits = Bench::default_limits();
  limits.capacity = 1 << 30;
  Bench bench(limits);
  SessionState& gone = bench.join(kAlice);
  for (int i = 0; i < 32; ++i) (void)bench.create(gone, "", 256 << 10);
  bench.dispatcher.end_session(gone.id);
  CHECK_FALSE(bench.dispatcher.has_ending());
  CHECK(bench.store.asked_now == 2);
}

TEST_CASE("dispatch: gc and a create that lacks room ask the kernel in turns") {
  Limits limits = Bench::default_limits();
  limits.capacity = 1'001 * kPageBytes;  // with what an array itself takes
  limits.segments_max = 2'000;
  Bench bench(limits);
  SessionState& alice = bench.join(kAlice);
  SessionState& bob = bench.join(kBob);
  bench.store.mapped = true;
  for (int i = 0; i < 1'000; ++i) {
    const auto body = bench.create(alice, "", kPageBytes).fixed<ArrayBody>();
    (void)bench.release(alice, body.id, Access::write);
  }
  bench.store.probes = 0;
  bench.mail.replies.clear();
  CHECK(bench.send(alice, Op::create, Bench::create_text("n", 2 * kPageBytes)));
  CHECK(bench.send(alice, Op::gc, "{}"));
  CHECK(bench.store.probes <= 2 * 64);
  CHECK(bench.mail.replies[alice.id].empty());
  CHECK_FALSE(bench.ask(bob, Op::ping).header.status);  // in between
  bench.store.mapped = false;
  std::size_t turns = 0;
  for (; bench.dispatcher.has_sweep(); ++turns) bench.dispatcher.sweep_some();
  CHECK(turns >= 8);  // 64 segments a turn, or half a MiB
  REQUIRE(bench.mail.replies[alice.id].size() == 2);
  CHECK_FALSE(bench.mail.replies[alice.id][0].header.status);
  // All but those that were asked about before.
  CHECK(has(bench.mail.replies[alice.id][1].body, R"("freed_bytes":3833856)"));
}
