// Versions of a name: replace publishes atomically, readers keep what they hold, numbers only grow.
#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;

namespace {

constexpr std::size_t kBytes = 50'000;

CreateOptions replacing() {
  CreateOptions options;
  options.replace = true;
  return options;
}

}  // namespace

TEST_CASE("versions: replace publishes at seal; readers keep the old one until they let go") {
  DaemonFixture daemon;
  Client writer = daemon.connect();
  Client reader = daemon.connect();
  auto first = put_bytes(writer, "x", kBytes, 1, replacing());
  REQUIRE(first);
  auto old = reader.attach_any("x");
  REQUIRE(old);
  auto draft = create_bytes(writer, "x", kBytes, replacing());
  REQUIRE(draft);
  fill(*draft, 2);
  CHECK(only_byte(reader.attach_any("x", no_wait()).value()) == 1);  // a draft hides nothing
  EXPECT_OK(draft->seal());
  auto fresh = reader.attach_any("x", no_wait());
  REQUIRE(fresh);
  CHECK(only_byte(*fresh) == 2);
  CHECK(only_byte(*old) == 1);
  CHECK(fresh->version() > old->version());
  EXPECT_OK(first->release());
  EXPECT_OK(old->release());
  CHECK(wait_until([&] { return reader.status().value().arrays == 1; }));
}

TEST_CASE("versions: grow, also across delete and over all names of a namespace") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  std::uint64_t last = 0;
  for (int i = 0; i < 5; ++i) {
    auto array = put_bytes(client, "x", 64, 1, replacing());
    REQUIRE(array);
    CHECK(array->version() > last);
    last = array->version();
    if (i % 2 == 0) EXPECT_OK(client.remove("x"));
  }
  auto again = put_bytes(client, "x", 64, 1, replacing());
  REQUIRE(again);
  CHECK(again->version() > last);
  CHECK(client.wait("x", last, kDoNotWait).value() == again->version());
}

TEST_CASE("versions: of two replacing drafts the last seal wins") {
  DaemonFixture daemon;
  Client one = daemon.connect();
  Client two = daemon.connect();
  auto first = create_bytes(one, "x", kBytes, replacing());
  auto second = create_bytes(two, "x", kBytes, replacing());
  REQUIRE(first);
  REQUIRE(second);
  fill(*first, 1);
  fill(*second, 2);
  EXPECT_OK(second->seal());
  CHECK(only_byte(one.attach_any("x").value()) == 2);
  EXPECT_OK(first->seal());
  auto now = two.attach_any("x");
  REQUIRE(now);
  CHECK(only_byte(*now) == 1);
  CHECK(first->version() > second->version());
}

TEST_CASE("versions: an aborted replacement leaves the old version") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto first = put_bytes(client, "x", kBytes, 1, replacing());
  REQUIRE(first);
  { auto draft = create_bytes(client, "x", kBytes, replacing()); }
  client.ping().value();
  CHECK(only_byte(client.attach_any("x", no_wait()).value()) == 1);
  CHECK(wait_until([&] { return client.status().value().arrays == 1; }));
}

TEST_CASE("versions: waiters for a newer one are woken by its seal, with it") {
  DaemonFixture daemon;
  Client writer = daemon.connect();
  auto first = put_bytes(writer, "x", kBytes, 1, replacing());
  REQUIRE(first);
  const std::uint64_t seen = first->version();
  std::vector<Child> waiters;
  for (int i = 0; i < 8; ++i) {
    waiters.push_back(Child::fork([&](Link& link) {
      Client client = daemon.connect();
      link.say("waiting");
      AttachOptions options;
      options.newer_than = seen;
      Result<AnyArray> array = client.attach_any("x", options);
      link.say(array ? std::to_string(only_byte(*array)) : describe(array));
      return 0;
    }));
  }
  for (Child& waiter : waiters) CHECK(waiter.hear() == "waiting");
  auto next = put_bytes(writer, "x", kBytes, 9, replacing());
  REQUIRE(next);
  for (Child& waiter : waiters) CHECK(waiter.hear() == "9");
}

TEST_CASE("versions: a kept name's replacement is kept too when asked, and old bytes go") {
  DaemonFixture daemon;
  CreateOptions options = replacing();
  options.keep = true;
  Client client = daemon.connect();
  for (std::uint8_t i = 1; i <= 20; ++i) {
    EXPECT_OK(put_bytes(client, "x", kBytes, i, options));
  }
  CHECK(wait_until([&] { return client.status().value().arrays == 1; }));
  CHECK(wait_until([&] { return client.status().value().used < 2 * kBytes + 8192; }));
  CHECK(only_byte(client.attach_any("x").value()) == 20);
}
