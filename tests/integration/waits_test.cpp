// Waiting: for a draft, for a name, for a newer version; deadlines, cancel, many waiters, death.
#include <atomic>
#include <thread>

#include "tests/support/raw_session.hpp"
#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;
using protocol::Op;

namespace {
constexpr std::size_t kBytes = 10'000;
}

TEST_CASE("waits: 64 waiters in 8 processes are all woken by one seal") {
  DaemonFixture daemon;
  Client writer = daemon.connect();
  auto draft = create_bytes(writer, "x", kBytes);
  REQUIRE(draft);
  std::vector<Child> children;
  for (int i = 0; i < 8; ++i) {
    children.push_back(Child::fork([&](Link& link) {
      Client client = daemon.connect();
      std::atomic<int> right = 0;
      std::vector<std::thread> threads;
      for (int t = 0; t < 8; ++t) {
        threads.emplace_back([&, t] {
          if (t % 2 == 0) {
            const auto array = client.attach_any("x");
            if (array && only_byte(*array) == 7) ++right;
          } else if (client.wait("x")) {
            ++right;
          }
        });
      }
      link.say("started");
      for (std::thread& thread : threads) thread.join();
      link.say(std::to_string(right));
      return 0;
    }));
  }
  for (Child& child : children) CHECK(child.hear() == "started");
  fill(*draft, 7);
  EXPECT_OK(draft->seal());
  for (Child& child : children) CHECK(child.hear() == "8");
}

TEST_CASE("waits: a deadline ends the wait, and the waiter can go on") {
  DaemonFixture daemon;
  Client writer = daemon.connect();
  Client client = daemon.connect();
  auto draft = create_bytes(writer, "x", kBytes);
  REQUIRE(draft);
  EXPECT_ERROR(client.attach_any("x", access(Access::read, 20ms)), timed_out);
  EXPECT_ERROR(client.wait("x", 0, 20ms), timed_out);
  EXPECT_ERROR(client.wait("missing", 0, 20ms), timed_out);
  EXPECT_ERROR(client.attach_any("missing", access(Access::read, 1h)), not_found);
  EXPECT_OK(draft->seal());
  EXPECT_OK(client.attach_any("x", access(Access::read, 20ms)));
  CHECK(client.info("x").value().leases >= 1);
}

TEST_CASE("waits: wait sees a name that is made later") {
  DaemonFixture daemon;
  Child waiter = Child::fork([&](Link& link) {
    Client client = daemon.connect();
    link.say("waiting");
    link.say(outcome(client.wait("later")));
    return 0;
  });
  CHECK(waiter.hear() == "waiting");
  Client client = daemon.connect();
  auto array = put_bytes(client, "later", kBytes, 1);
  CHECK(waiter.hear() == "ok");
}

TEST_CASE("waits: waiters are told when the draft is dropped or its creator dies") {
  DaemonFixture daemon;
  for (const bool killed : {false, true}) {
    CAPTURE(killed);
    Child creator = Child::fork([&](Link& link) {
      Client client = daemon.connect();
      auto draft = create_bytes(client, "x", kBytes);
      link.say(outcome(draft));
      static_cast<void>(link.hear());
      if (draft) static_cast<void>(draft->release());
      link.say("released");
      return 0;
    });
    REQUIRE(creator.hear() == "ok");
    Child waiter = Child::fork([&](Link& link) {
      Client client = daemon.connect();
      link.say("waiting");
      link.say(outcome(client.attach_any("x")));
      return 0;
    });
    REQUIRE(waiter.hear() == "waiting");
    // Not before the daemon has the waiter; nothing else shows it than that the reply is missing.
    if (killed) {
      creator.kill(SIGKILL);
    } else {
      creator.say("go");
    }
    const std::string told = waiter.hear();
    // "not_found" when the attach came after the draft was gone.
    CHECK_MESSAGE((told == "aborted" || told == "not_found"), told);
    creator.wait();
  }
  CHECK(daemon.settles_empty());
}

TEST_CASE("waits: a waiter on a draft gets aborted when it is dropped") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto draft = create_bytes(client, "x", kBytes);
  REQUIRE(draft);
  RawSession raw(daemon.socket());
  REQUIRE(raw.hello().ok());
  const std::uint64_t waiting = raw.next_request();
  raw.send(frame(Op::attach, waiting, attach_body("x", Access::read, protocol::kForever)));
  REQUIRE(raw.call(Op::ping).header.op == static_cast<std::uint16_t>(Op::ping));
  EXPECT_OK(draft->release());
  const RawReply told = raw.receive();
  CHECK(told.header.request == waiting);
  CHECK(told.outcome() == "aborted");
}

TEST_CASE("waits: cancel ends a wait; cancelling twice or nothing is no error") {
  DaemonFixture daemon;
  RawSession raw(daemon.socket());
  REQUIRE(raw.hello().ok());
  constexpr std::string_view kName = "never";
  protocol::WaitRequest wait;
  wait.timeout_ms = protocol::kForever;
  wait.name_bytes = kName.size();
  const std::uint64_t waiting = raw.next_request();
  raw.send(frame(Op::wait, waiting, bytes_of(wait).append(kName)));
  protocol::CancelRequest cancel;
  cancel.request = waiting;
  const std::uint64_t cancelling = raw.next_request();
  raw.send(frame(Op::cancel, cancelling, bytes_of(cancel)));
  const RawReply first = raw.receive();
  const RawReply second = raw.receive();
  CHECK(first.header.request == waiting);
  CHECK(first.outcome() == "aborted");
  CHECK(second.header.request == cancelling);
  CHECK(second.ok());
  CHECK(raw.call(Op::cancel, bytes_of(cancel)).ok());
  cancel.request = 999'999;
  CHECK(raw.call(Op::cancel, bytes_of(cancel)).ok());
  CHECK(raw.call(Op::ping).ok());
}

TEST_CASE("waits: `interrupted` ends a blocking call and leaves nothing behind") {
  DaemonFixture daemon;
  Client writer = daemon.connect();
  auto draft = create_bytes(writer, "x", kBytes);
  REQUIRE(draft);
  std::atomic<bool> interrupt = false;
  ConnectOptions options;
  options.interrupted = [&] { return interrupt.load(); };
  Client client = daemon.connect(options);
  interrupt = true;
  const auto attached = client.attach_any("x");
  EXPECT_ERROR(attached, aborted);
  if (!attached) CHECK(attached.error().text.find("interrupted") != std::string::npos);
  EXPECT_ERROR(client.wait("missing"), aborted);
  interrupt = false;
  EXPECT_OK(draft->seal());
  CHECK(writer.info("x").value().leases == 1);
  EXPECT_OK(client.attach_any("x"));
}

TEST_CASE("waits: a call that waits does not hold up other threads of the client") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  std::atomic<bool> woken = false;
  std::thread waiter([&] {
    CHECK(client.wait("signal").has_value());
    woken = true;
  });
  for (int i = 0; i < 200; ++i) EXPECT_OK(put_bytes(client, "busy", 64, 1));
  CHECK(!woken);
  auto array = put_bytes(client, "signal", 64, 1);
  waiter.join();
}

TEST_CASE("waits: blocked requests of one session are bounded, with a typed error") {
  DaemonFixture daemon;
  RawSession raw(daemon.socket());
  REQUIRE(raw.hello().ok());
  constexpr std::string_view kName = "never";
  protocol::WaitRequest wait;
  wait.timeout_ms = protocol::kForever;
  wait.name_bytes = kName.size();
  for (std::uint32_t i = 0; i < protocol::kOpenRequestsMax; ++i) {
    REQUIRE(raw.send(frame(Op::wait, raw.next_request(), bytes_of(wait).append(kName))));
  }
  const RawReply refused = raw.call(Op::wait, bytes_of(wait).append(kName));
  CHECK(refused.header.request == raw.last_request());
  CHECK_MESSAGE(refused.outcome() == "quota_exceeded", refused.outcome());
  CHECK(raw.call(Op::ping).ok());
}
