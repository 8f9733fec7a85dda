// Watch events: what a watcher is told, and that a slow one loses events but not the daemon.
#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;

namespace {

/// The next event as "event name".
std::string next(Watch& watch) {
  const Result<Event> event = watch.next(std::chrono::seconds(watchdog_seconds()));
  return event ? event->event + " " + event->name : describe(event);
}

}  // namespace

TEST_CASE("watch: events of a prefix come in order") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto watch = client.watch("sim/");
  REQUIRE(watch);
  auto other = put_bytes(client, "other", 10, 1);
  auto draft = create_bytes(client, "sim/a", 10);
  REQUIRE(draft);
  EXPECT_OK(draft->seal());
  EXPECT_OK(client.keep("sim/a"));
  EXPECT_OK(client.unkeep("sim/a"));
  EXPECT_OK(client.remove("sim/a"));
  CHECK(next(*watch) == "created sim/a");
  CHECK(next(*watch) == "sealed sim/a");
  CHECK(next(*watch) == "kept sim/a");
  CHECK(next(*watch) == "unkept sim/a");
  CHECK(next(*watch) == "deleted sim/a");
  EXPECT_ERROR(watch->next(kDoNotWait), timed_out);
}

TEST_CASE("watch: an array that its dead maker leaves is told as deleted") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto watch = client.watch();
  REQUIRE(watch);
  Child maker = Child::fork([&](Link& link) {
    Client own = daemon.connect();
    auto array = put_bytes(own, "x", 10, 1);
    link.say(outcome(array));
    ::kill(::getpid(), SIGKILL);
    return 0;
  });
  CHECK(maker.hear() == "ok");
  CHECK(next(*watch) == "created x");
  CHECK(next(*watch) == "sealed x");
  CHECK(next(*watch) == "deleted x");
}

TEST_CASE("watch: a watcher that never reads loses events and is told so") {
  DaemonOptions options;
  options.invariants = false;
  DaemonFixture daemon(options);
  Client client = daemon.connect();
  auto watch = client.watch();
  REQUIRE(watch);
  const int rounds = 20'000;
  for (int i = 0; i < rounds; ++i) EXPECT_OK(put_bytes(client, "x", 16, 1));
  bool lost = false;
  int events = 0;
  for (auto event = watch->next(200ms); event; event = watch->next(200ms)) {
    lost = lost || event->event == "lost";
    ++events;
  }
  CHECK(lost);
  CHECK(events < 3 * rounds);
  EXPECT_OK(client.ping());
}
