// The daemon goes away, or was never there: mapped arrays stay readable, calls say disconnected.
#include <atomic>

#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;

namespace {

constexpr std::size_t kBytes = 1 << 20;

ConnectOptions impatient() {
  ConnectOptions options;
  options.reconnect_for = 50ms;
  return options;
}

}  // namespace

TEST_CASE("disconnect: the daemon killed: arrays stay, calls are disconnected, nothing hangs") {
  DaemonFixture daemon;
  Client client = daemon.connect(impatient());
  auto array = put_bytes(client, "x", kBytes, 1);
  auto draft = create_bytes(client, "draft", kBytes);
  REQUIRE(draft);
  fill(*draft, 2);
  daemon.kill();
  CHECK(only_byte(*array) == 1);
  EXPECT_ERROR(client.ping(), disconnected);
  EXPECT_ERROR(client.attach_any("x"), disconnected);
  EXPECT_ERROR(create_bytes(client, "y", 10), disconnected);
  EXPECT_ERROR(client.list(), disconnected);
  EXPECT_ERROR(client.wait("x"), disconnected);
  EXPECT_ERROR(draft->seal(), disconnected);
  EXPECT_ERROR(array->handover(), disconnected);
  CHECK(only_byte(*array) == 1);
  CHECK(only_byte(*draft) == 2);
}

TEST_CASE("disconnect: a blocked wait ends when the daemon is killed") {
  DaemonFixture daemon;
  Child waiter = Child::fork([&](Link& link) {
    Client client = daemon.connect(impatient());
    link.say("waiting");
    link.say(outcome(client.wait("never")));
    return 0;
  });
  CHECK(waiter.hear() == "waiting");
  daemon.kill();
  CHECK(waiter.hear() == "disconnected");
}

TEST_CASE("disconnect: a new daemon on the same socket is used; old handles are not its arrays") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto array = put_bytes(client, "x", kBytes, 1);
  REQUIRE(array);
  const ArrayId id = array->id();
  const std::uint64_t store = array->store_id();
  daemon.kill();
  daemon.start();
  CHECK(wait_until([&] { return client.ping().has_value(); }));
  EXPECT_ERROR(client.attach_any("x"), not_found);
  auto next = put_bytes(client, "x", kBytes, 2);
  REQUIRE(next);
  CHECK(next->store_id() != store);
  EXPECT_ERROR(client.attach_id(id, store), not_found);
  CHECK(only_byte(*array) == 1);
  EXPECT_OK(array->release());  // must not release anything of the new store
  CHECK(client.info("x").value().leases == 1);
  CHECK(only_byte(client.attach_any("x").value()) == 2);
}

TEST_CASE("disconnect: an array that went with its daemon: not_found says that the store is new") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  const std::string before = describe(client.attach_any("x"));
  CHECK_MESSAGE(before.find("new since") == std::string::npos, before);
  daemon.kill();
  daemon.start();
  for (const std::string& text : {describe(client.attach_any("x")), describe(client.info("x")),
                                  describe(daemon.connect().attach_any("x"))}) {
    CHECK_MESSAGE(text.starts_with("not_found: "), text);
    CHECK_MESSAGE(text.find("new since 2") != std::string::npos, text);
  }
  CHECK(describe(client.info("x")).find("another one than this program") != std::string::npos);
  CHECK(daemon.stop() == 0);
  daemon.start();  // in order this time
  const std::string after = describe(daemon.connect().attach_any("x"));
  CHECK_MESSAGE(after.find("new since") == std::string::npos, after);
}

TEST_CASE("disconnect: no daemon at the path given: disconnected, the text names the path") {
  TempDir folder;
  ConnectOptions options = impatient();
  options.socket = folder.file("nobody");
  const auto client = Client::connect(options);
  EXPECT_ERROR(client, disconnected);
  CHECK(client.error().text.find(options.socket) != std::string::npos);
}

TEST_CASE("disconnect: $SHMSTORE_SOCKET is final, too") {
  TempDir folder;
  ::setenv("SHMSTORE_SOCKET", folder.file("nobody").c_str(), 1);
  const auto client = Client::connect(impatient());
  ::unsetenv("SHMSTORE_SOCKET");
  EXPECT_ERROR(client, disconnected);
}

TEST_CASE("disconnect: odd socket paths are typed errors") {
  TempDir folder;
  ConnectOptions options = impatient();
  options.socket = folder.file(std::string(200, 'x'));
  EXPECT_ERROR(Client::connect(options), invalid_argument);
  options.socket = folder.path();
  CHECK(outcome(Client::connect(options)) != "ok");
  options.socket = "/dev/null";
  CHECK(outcome(Client::connect(options)) != "ok");
}

TEST_CASE("disconnect: a wait without a limit ends when the daemon does not answer any more") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto draft = create_bytes(client, "draft", kBytes);
  REQUIRE(draft);
  REQUIRE(stop_process(daemon.process()));
  const auto attached = client.attach_any("draft", access(Access::read, kWaitForever));
  REQUIRE(!attached);
  CHECK(attached.error().code == ErrorCode::timed_out);
  CHECK(attached.error().text.find("the daemon does not answer") != std::string::npos);
  daemon.process().kill(SIGCONT);
  EXPECT_OK(draft->seal());
  CHECK(wait_until([&] { return client.info("draft").value().leases == 1; }));
}

TEST_CASE("disconnect: a wait can be interrupted although the daemon does not answer") {
  DaemonFixture daemon;
  std::atomic<int> asked = 0;
  ConnectOptions options;
  options.interrupted = [&] { return ++asked > 3; };
  Client client = daemon.connect(options);
  REQUIRE(stop_process(daemon.process()));
  asked = 0;
  const auto waited = client.wait("never");
  REQUIRE(!waited);
  CHECK(describe(waited) == "aborted: interrupted");
  daemon.process().kill(SIGCONT);
}
