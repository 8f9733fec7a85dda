// cached(): exactly one loader at a time over all processes, take-over when it fails or dies, one
// copy of the result.
#include <atomic>
#include <set>

#include <cstring>
#include "tests/support/raw_session.hpp"

#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;

namespace {

constexpr std::size_t kBytes = 4 << 20;
constexpr std::uint8_t kValue = 0x77;

struct Counters {
  std::atomic<int> started{0}, completed{0}, loader_pid{0};
  std::atomic<bool> hold{true};  ///< The first loader stays half-way while set.
};

Result<void> load(const Client::MakeDraft& make, std::uint8_t value = kValue) {
  const std::uint64_t shape[] = {kBytes};
  Result<AnyArray*> draft = make("|u1", shape);
  if (!draft) return draft.error();
  fill(**draft, value);
  return {};
}

/// Writes half, reports itself and waits to be killed the first time; later loads complete.
Result<void> load_held(const Client::MakeDraft& make, Counters& counters) {
  const int order = counters.started.fetch_add(1);
  const std::uint64_t shape[] = {kBytes};
  Result<AnyArray*> draft = make("|u1", shape);
  if (!draft) return draft.error();
  std::memset((*draft)->writable_data(), 1, kBytes / 2);
  if (order == 0) {
    counters.loader_pid = ::getpid();
    wait_until([&] { return !counters.hold; });
  }
  fill(**draft, kValue);
  counters.completed.fetch_add(1);
  return {};
}

/// 32 processes ask at once; the first loader is killed half-way.
void storm(const DaemonFixture& daemon, const std::string& key) {
  constexpr int kProcesses = 32;
  Shared<Counters> counters;
  std::vector<Child> children;
  for (int i = 0; i < kProcesses; ++i) {
    children.push_back(Child::fork([&](Link& link) {
      Client client = daemon.connect();
      link.say("ready");
      static_cast<void>(link.hear());
      auto array = client.cached_any(
          key, [&](const Client::MakeDraft& make) { return load_held(make, *counters); });
      if (!array) {
        link.say(describe(array));
        return 1;
      }
      const auto map = find_map(::getpid(), array->data());
      link.say(std::to_string(only_byte(*array)) + " " + std::to_string(map ? map->inode : 0) +
               " " + std::to_string(map ? map->offset : 0));
      static_cast<void>(link.hear());
      return 0;
    }));
  }
  for (Child& child : children) REQUIRE(child.hear() == "ready");
  for (Child& child : children) child.say("go");
  REQUIRE(wait_until([&] { return counters->loader_pid != 0; }));
  CHECK(counters->completed == 0);
  ::kill(counters->loader_pid, SIGKILL);
  std::set<std::string> seen;
  for (Child& child : children) {
    if (child.pid() != counters->loader_pid) seen.insert(child.hear());
  }
  CHECK_MESSAGE(seen.size() == 1, "not all map the same: ", *seen.begin(), ", ", *seen.rbegin());
  CHECK(seen.begin()->starts_with(std::to_string(kValue) + " "));
  CHECK(counters->completed == 1);
  CHECK(counters->started == 2);
  Client client = daemon.connect();
  CHECK(wait_until([&] { return client.status().value().used < 2 * kBytes; }));
  EXPECT_OK(client.info(key));
}

}  // namespace

TEST_CASE("cached: 32 processes, the first loader killed half-way: loads once, one copy") {
  DaemonFixture daemon;
  const std::size_t rounds = scaled("SHMSTORE_TEST_CACHED_ROUNDS", 2);
  for (std::size_t round = 0; round < rounds; ++round) {
    storm(daemon, "key/" + std::to_string(round));
    Client client = daemon.connect();
    EXPECT_OK(client.remove("key/" + std::to_string(round)));
  }
  CHECK(daemon.settles_empty());
}

TEST_CASE("cached: loads once, then attaches; the result is kept") {
  DaemonFixture daemon;
  int loads = 0;
  const auto counted = [&](const Client::MakeDraft& make) {
    ++loads;
    return load(make);
  };
  {
    Client client = daemon.connect();
    CHECK(only_byte(client.cached_any("k", counted).value()) == kValue);
  }
  Client client = daemon.connect();
  CHECK(only_byte(client.cached_any("k", counted).value()) == kValue);
  CHECK(loads == 1);
  CHECK(client.info("k").value().kept);
}

TEST_CASE("cached: a failing loader's error is its caller's; the next waiter loads") {
  DaemonFixture daemon;
  Child failing = Child::fork([&](Link& link) {
    Client client = daemon.connect();
    const auto result = client.cached_any("k", [&](const Client::MakeDraft&) -> Result<void> {
      link.say("loading");
      static_cast<void>(link.hear());
      return make_error(ErrorCode::not_found, "no such file");
    });
    link.say(describe(result));
    return 0;
  });
  REQUIRE(failing.hear() == "loading");
  Child waiting = Child::fork([&](Link& link) {
    Client client = daemon.connect();
    link.say("asking");
    const auto result = client.cached_any("k", [&](const auto& make) { return load(make); });
    link.say(result ? std::to_string(only_byte(*result)) : describe(result));
    return 0;
  });
  REQUIRE(waiting.hear() == "asking");
  failing.say("fail");
  CHECK(failing.hear() == "not_found: no such file");
  CHECK(waiting.hear() == std::to_string(kValue));
}

TEST_CASE("cached: a loader that fails after making its draft leaves nothing") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  const auto result = client.cached_any("k", [](const Client::MakeDraft& make) -> Result<void> {
    const std::uint64_t shape[] = {kBytes};
    static_cast<void>(make("|u1", shape));
    return make_error(ErrorCode::internal, "half-way");
  });
  EXPECT_ERROR(result, internal);
  EXPECT_ERROR(client.info("k"), not_found);
  CHECK(daemon.settles_empty(1));
}

TEST_CASE("cached: re-entry for the same key is refused, for another key works") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  std::string inner, other;
  const auto plain = [](const auto& make) { return load(make); };
  const auto result = client.cached_any("k", [&](const Client::MakeDraft& make) {
    inner = outcome(client.cached_any("k", plain));
    other = outcome(client.cached_any("k2", plain));
    return load(make);
  });
  EXPECT_OK(result);
  CHECK(inner == "invalid_argument");
  CHECK(other == "ok");
}

TEST_CASE("cached: a stopped loader is waited for, a deadline ends only the waiter") {
  DaemonFixture daemon;
  Child loader = Child::fork([&](Link& link) {
    Client client = daemon.connect();
    const auto result = client.cached_any("k", [&](const Client::MakeDraft& make) {
      link.say("loading");
      static_cast<void>(link.hear());
      return load(make);
    });
    link.say(outcome(result));
    return 0;
  });
  REQUIRE(loader.hear() == "loading");
  REQUIRE(stop_process(loader));
  Client client = daemon.connect();
  CachedOptions options;
  options.timeout = 20ms;
  EXPECT_ERROR(client.cached_any(
                   "k", [](const auto& make) { return load(make, 1); }, options),
               timed_out);
  loader.kill(SIGCONT);
  loader.say("go on");
  CHECK(loader.hear() == "ok");
  CHECK(only_byte(client.cached_any("k", [](const auto& make) { return load(make, 2); }).value()) ==
        kValue);
}

TEST_CASE("cached: a loader killed while its forked child still maps the draft is replaced") {
  DaemonFixture daemon;
  Child loader = Child::fork([&](Link& link) {
    Client client = daemon.connect();
    const auto result = client.cached_any("k", [&](const Client::MakeDraft& make) -> Result<void> {
      const std::uint64_t shape[] = {kBytes};
      Result<AnyArray*> draft = make("|u1", shape);
      if (!draft) return draft.error();
      const pid_t child = ::fork();
      if (child == 0) {  // maps the half-filled draft until the test is over
        static_cast<void>(link.hear());
        ::_exit(0);
      }
      link.say("loading");
      ::kill(::getpid(), SIGKILL);
      return {};
    });
    return outcome(result) == "ok" ? 0 : 1;
  });
  REQUIRE(loader.hear() == "loading");
  Client client = daemon.connect();
  auto array = client.cached_any("k", [](const auto& make) { return load(make); });
  REQUIRE(array);
  CHECK(only_byte(*array) == kValue);
  CHECK(client.status().value().pinned >= kBytes);  // the dead loader's draft, while it is mapped
  loader.say("end");
  CHECK(wait_until([&] { return client.status().value().pinned == 0; }));
}
