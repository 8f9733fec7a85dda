// Exclusive access: one process at a time; what it wrote is there for the next one; what it left
// half-written says so, wherever it was killed.
#include <atomic>
#include <cstring>
#include <set>
#include <thread>

#include "tests/integration/scripted_client.hpp"
#include "tests/support/testing.hpp"

#ifdef SHMSTORE_KILL_POINTS
#include "client/kill_points.hpp"
#endif

using namespace shmstore;
using namespace shmstore::testing;

namespace {

constexpr std::size_t kBytes = 200'000;

/// A mutable array of this name that nobody holds; its name keeps it.
void make_kept(Client& client, std::string_view name, std::uint8_t value) {
  CreateOptions options;
  options.is_mutable = options.keep = options.replace = true;
  auto array = create_bytes(client, name, kBytes, options);
  REQUIRE(array);
  fill(*array, value);
  EXPECT_OK(array->release());
}

Result<AnyArray> alone(Client& client, std::string_view name, Timeout timeout = kDoNotWait,
                       bool repair = false) {
  AttachOptions options = access(Access::exclusive, timeout);
  options.repair = repair;
  return client.attach_any(name, options);
}

bool waits(Client& client, int count) {
  const std::string wanted = "shmstore_waits " + std::to_string(count) + R"(\n)";
  return wait_until(
      [&] { return client.admin("metrics").value().find(wanted) != std::string::npos; });
}

std::string state_of(Client& client, std::string_view name) {
  return client.info(name).value().state;
}

}  // namespace

TEST_CASE("exclusive: processes take turns, each sees all that the one before wrote") {
  constexpr int kProcesses = 4, kTurns = 200;
  DaemonFixture daemon;
  Client client = daemon.connect();
  make_kept(client, "counters", 0);
  std::vector<Child> children;
  for (int i = 0; i < kProcesses; ++i) {
    children.push_back(Child::fork([&](Link&) {
      Client own = daemon.connect();
      for (int turn = 0; turn < kTurns; ++turn) {
        auto array = alone(own, "counters", kWaitForever);
        if (!array) return 1;
        // A lost or torn turn would show: every byte is one more than it was.
        const int before = only_byte(*array);
        if (before < 0) return 2;
        fill(*array, static_cast<std::uint8_t>(before + 1));
        // Each way to let go, in turn.
        if (turn % 3 == 0 && !array->release()) return 3;
        if (turn % 3 == 1 && !array->let_go()) return 4;
      }
      return 0;
    }));
  }
  for (Child& child : children) CHECK(child.wait() == 0);
  auto array = client.attach_any("counters");
  REQUIRE(array);
  CHECK(only_byte(*array) == kProcesses * kTurns % 256);
  CHECK(state_of(client, "counters") == "mutable");
  CHECK(daemon.selfcheck() == "");
}

TEST_CASE("exclusive: a release that was sent before the process ended hands over") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  make_kept(client, "alone", 0);
  CreateOptions keep;
  keep.keep = true;
  EXPECT_OK(put_bytes(client, "other", 100, 1, keep));
  for (int round = 0; round < 50; ++round) {
    // The release is the last of many that are pipelined; their replies are never read.
    Child child = Child::fork([&](Link&) {
      Client own = daemon.connect();
      std::vector<AnyArray> others;
      for (int i = 0; i < 20; ++i) others.push_back(own.attach_any("other").value());
      auto array = alone(own, "alone", kWaitForever);
      if (!array) return 1;
      others.clear();
      *array = AnyArray();
      ::kill(::getpid(), SIGKILL);
      return 0;
    });
    CHECK(child.wait() == 128 + SIGKILL);
    auto next = alone(client, "alone", kWaitForever);
    CHECK(describe(next) == "ok");
  }
}

TEST_CASE("exclusive: what is let go while pointers are left is private from then on") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  Client other = daemon.connect();
  make_kept(client, "a", 1);
  auto array = alone(client, "a");
  REQUIRE(array);
  std::byte* bytes = array->writable_data();
  std::memset(bytes, 2, kBytes);
  EXPECT_OK(array->let_go());
  EXPECT_OK(array->let_go());
  auto next = alone(other, "a");
  REQUIRE(next);
  CHECK(only_byte(*next) == 2);
  std::memset(bytes, 3, kBytes);
  CHECK(only_byte(*next) == 2);
  EXPECT_OK(next->release());
}

TEST_CASE("exclusive: what a reader or a writer has let go of is in nobody's way") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  Client other = daemon.connect();
  make_kept(client, "a", 1);
  auto reader = other.attach_any("a");
  auto first = other.attach_any("a", access(Access::write, kWaitForever));
  auto second = other.attach_any("a", access(Access::write, kWaitForever));
  std::byte* bytes = second->writable_data();
  EXPECT_OK(reader->let_go());
  EXPECT_OK(first->let_go());
  std::memset(bytes, 2, kBytes);  // The map is shared with the handle that was let go of.
  EXPECT_OK(second->let_go());
  CHECK(client.holders("a").value().empty());
  auto array = alone(client, "a");
  REQUIRE(array);
  CHECK(only_byte(*array) == 2);
  CHECK(only_byte(*reader) == 2);
  EXPECT_OK(reader->let_go());
  auto draft = create_bytes(client, "draft", kBytes, {});
  EXPECT_ERROR(draft->let_go(), invalid_argument);
}

TEST_CASE("let go: what is left of a handle writes nothing once the last handle has gone") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  Client other = daemon.connect();
  make_kept(client, "a", 1);
  auto first = other.attach_any("a", access(Access::write, kWaitForever));
  auto second = other.attach_any("a", access(Access::write, kWaitForever));
  std::byte* left = first->writable_data();
  EXPECT_OK(first->let_go());
  EXPECT_OK(second->release());
  CHECK(client.holders("a").value().empty());
  auto array = alone(client, "a");
  REQUIRE(array);
  left[0] = std::byte{9};
  CHECK(only_byte(*array) == 1);
}

TEST_CASE("let go: a map that another thread is given meanwhile stays the array's") {
  constexpr int kRounds = 2'000;
  DaemonFixture daemon;
  Client client = daemon.connect();
  make_kept(client, "a", 0);
  std::atomic<bool> done = false;
  std::thread letting_go([&] {
    while (!done) {
      auto array = client.attach_any("a", access(Access::write, kWaitForever));
      if (!array || !array->let_go()) break;
    }
  });
  int lost = 0;
  for (int n = 1; n <= kRounds; ++n) {
    const auto byte = static_cast<std::byte>(n);
    {
      auto array = client.attach_any("a", access(Access::write, kWaitForever));
      std::this_thread::yield();
      if (array) array->writable_data()[1] = byte;
    }
    auto reader = client.attach_any("a");
    if (!reader || reader->data()[1] != byte) ++lost;
  }
  done = true;
  letting_go.join();
  CHECK(lost == 0);
}

TEST_CASE("exclusive: a child does not inherit the map, its address stays empty") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  make_kept(client, "a", 1);
  auto array = alone(client, "a");
  REQUIRE(array);
  const std::byte* data = array->data();
  Child child = Child::fork([&](Link& link) {
    const auto map = find_map(::getpid(), data);
    link.say(map ? map->perms : "unmapped");
    static_cast<void>(link.hear());
    *array = AnyArray();  // lets go of nothing
    return 0;
  });
  CHECK(child.hear() == "---p");
  EXPECT_ERROR(client.attach_any("a", no_wait()), busy);
  child.say("end");
  CHECK(child.wait() == 0);
  CHECK(client.holders("a").value().size() == 1);
  // Sealed, it is what children may read, as any other.
  EXPECT_OK(array->seal());
  Child reader = Child::fork([&](Link&) { return only_byte(*array); });
  CHECK(reader.wait() == 1);
}

TEST_CASE("exclusive: a killed holder's waiters are told at once, also those by id") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  make_kept(client, "a", 1);
  const ArrayId id{std::stoull(client.info("a").value().id)};
  Child holder = Child::fork([&](Link& link) {
    Client own = daemon.connect();
    auto array = alone(own, "a");
    link.say(outcome(array));
    static_cast<void>(link.hear());
    return 0;
  });
  REQUIRE(holder.hear() == "ok");
  const auto wait_for = [&](Access wanted, bool by_id) {
    return Child::fork([&daemon, id, wanted, by_id](Link& link) {
      Client own = daemon.connect();
      const AttachOptions options = access(wanted, kWaitForever);
      link.say(describe(by_id ? own.attach_id(id, 0, options) : own.attach_any("a", options)));
      return 0;
    });
  };
  std::vector<Child> waiters;
  for (const bool by_id : {false, true}) {
    for (const Access wanted : {Access::read, Access::write, Access::copy, Access::exclusive}) {
      waiters.push_back(wait_for(wanted, by_id));
    }
  }
  REQUIRE(waits(client, 8));
  holder.kill(SIGKILL);
  for (Child& waiter : waiters) {
    const std::string told = waiter.hear();
    CAPTURE(told);
    CHECK(told.starts_with("aborted: access: 'a' is broken: pid " + std::to_string(holder.pid())));
  }
  CHECK(client.info("a").value().broken->pid == holder.pid());
}

TEST_CASE("exclusive: foreign users need the right to write, and break like everybody") {
  if (skip_unless(is_root(), "needs root to act as other users")) return;
  DaemonOptions options;
  options.open_to_all = true;
  DaemonFixture daemon(options);
  Client client = daemon.connect();
  CreateOptions shared;
  shared.is_mutable = shared.keep = true;
  shared.perms = 0664;
  EXPECT_OK(create_bytes(client, "read-only", kBytes, shared));
  shared.perms = 0666;
  EXPECT_OK(create_bytes(client, "writable", kBytes, shared));
  Child stranger = Child::fork_as(1234, [&](Link& link) {
    Client own = daemon.connect();
    link.say(outcome(alone(own, "~0/read-only")));
    auto array = alone(own, "~0/writable");
    link.say(outcome(array));
    static_cast<void>(link.hear());
    return 0;
  });
  CHECK(stranger.hear() == "permission_denied");
  CHECK(stranger.hear() == "ok");
  stranger.kill(SIGKILL);
  CHECK(wait_until([&] { return state_of(client, "writable") == "broken"; }));
}

#ifdef SHMSTORE_KILL_POINTS
namespace {

/// Kills an exclusive client at `point`; returns its exit code. It has not passed the point: 0.
int run_victim(const DaemonFixture& daemon, std::string_view point, const std::string& how) {
  Child victim = Child::run({"/proc/self/exe", "--exclusive-client", daemon.socket(), how},
                            {"SHMSTORE_KILL_AT=" + std::string(point) + ":1"});
  return victim.wait();
}

/// Whether a client that was killed there could have written, and had not let go.
std::string expected_state(std::string_view point, const std::string& how) {
  static const std::set<std::string_view> kBefore = {"hello.before_send", "hello.after_send",
                                                     "hello.after_reply", "attach.before_send"};
  static const std::set<std::string_view> kAfter = {"release.after_send", "release.after_reply"};
  if (kBefore.contains(point)) return "mutable";
  return how != "give_up" && kAfter.contains(point) ? "mutable" : "broken";
}

/// The daemon had read the request for the array, or only saw that the client is gone.
bool may_have_been_granted(std::string_view point) {
  return point == "attach.after_send";
}

}  // namespace

TEST_CASE("exclusive: killed at any point: handed over, or broken, or as if it had never been") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  for (const std::string how : {"release", "drop", "let_go", "give_up"}) {
    CAPTURE(how);
    std::size_t passed = 0;
    for (const std::string_view point : client_internal::kKillPoints) {
      CAPTURE(point);
      make_kept(client, "alone", 1);
      const int code = run_victim(daemon, point, how);
      REQUIRE(wait_until([&] { return client.status().value().sessions == 1; }));
      CHECK(client.holders("alone").value().empty());
      const std::string state = state_of(client, "alone");
      if (code == 0) {  // Not on the way of this client.
        CHECK(state == (how == "give_up" ? "broken" : "mutable"));
        continue;
      }
      CHECK(code == 128 + SIGKILL);
      ++passed;
      const bool never_granted = state == "mutable" && may_have_been_granted(point);
      CHECK((never_granted || state == expected_state(point, how)));
      auto next = alone(client, "alone", kDoNotWait, state == "broken");
      CHECK(describe(next) == "ok");
      if (!next) continue;
      const int value = only_byte(*next);
      CHECK((value == 1 || value == kScriptByte));
      EXPECT_OK(next->release());
      CHECK(state_of(client, "alone") == "mutable");
    }
    // hello 3, attach 5, and what the end takes.
    CHECK(passed >= 8 + 3);
  }
  EXPECT_OK(client.remove("alone"));
  CHECK(daemon.selfcheck() == "");
  CHECK(daemon.settles_empty(1));
}
#else
TEST_CASE("exclusive: killed at any point: handed over, or broken, or as if it had never been") {
  if (skip_unless(false, "built without SHMSTORE_KILL_POINTS")) return;
}
#endif
