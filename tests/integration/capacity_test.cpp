// Running out: of bytes, of a user's share, of descriptors, of address space. Typed errors that say
// how much is left, nothing half-made, and it works again when room comes back.
#include <sys/resource.h>

#include <fstream>

#include "tests/support/raw_session.hpp"
#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;

namespace {

constexpr std::uint64_t kMib = 1 << 20;

DaemonOptions small_daemon(const char* capacity) {
  DaemonOptions options;
  options.capacity = capacity;
  return options;
}

void limit_fds(rlim_t count) {
  const rlimit limit{count, count};
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

TEST_CASE("capacity: full is a typed error that says what is free and who holds most") {
  DaemonFixture daemon(small_daemon("16MiB"));
  Client client = daemon.connect();
  auto first = put_bytes(client, "first", 10 * kMib, 1);
  REQUIRE(first);
  const auto refused = create_bytes(client, "second", 10 * kMib);
  EXPECT_ERROR(refused, no_capacity);
  CHECK_MESSAGE(refused.error().text.find(std::to_string(::getuid())) != std::string::npos,
                refused.error().text);
  EXPECT_ERROR(client.info("second"), not_found);
  CHECK(client.status().value().arrays == 1);
  CHECK(client.status().value().capacity == 16 * kMib);
  EXPECT_OK(create_bytes(client, "small", kMib));
  EXPECT_OK(first->release());
  EXPECT_OK(create_bytes(client, "second", 10 * kMib));
  CHECK(daemon.settles_empty(1));
}

TEST_CASE("capacity: a create may wait for room") {
  DaemonFixture daemon(small_daemon("16MiB"));
  Child waiter = Child::fork([&](Link& link) {  // before the memory that it must not inherit
    Client own = daemon.connect();
    static_cast<void>(link.hear());
    CreateOptions patient;
    patient.timeout = kWaitForever;
    link.say("waiting");
    link.say(outcome(create_bytes(own, "second", 12 * kMib, patient)));
    return 0;
  });
  Client client = daemon.connect();
  auto first = put_bytes(client, "first", 12 * kMib, 1);
  REQUIRE(first);
  CreateOptions brief;
  brief.timeout = 20ms;
  EXPECT_ERROR(create_bytes(client, "third", 12 * kMib, brief), timed_out);
  waiter.say("go");
  CHECK(waiter.hear() == "waiting");
  EXPECT_OK(first->release());
  CHECK(waiter.hear() == "ok");
  waiter.wait();
  CHECK(daemon.settles_empty(1));
}

TEST_CASE("capacity: a user's quota is its own error") {
  DaemonOptions options = small_daemon("64MiB");
  options.arguments = {"--user-quota", "8MiB"};
  DaemonFixture daemon(options);
  Client client = daemon.connect();
  const auto refused = create_bytes(client, "big", 9 * kMib);
  EXPECT_ERROR(refused, quota_exceeded);
  EXPECT_OK(put_bytes(client, "small", 7 * kMib, 1));
  CHECK(daemon.settles_empty(1));
}

TEST_CASE("capacity: a size that no machine has is refused at once") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  EXPECT_ERROR(create_bytes(client, "x", 1ULL << 50), no_capacity);
  const auto over = create_bytes(client, "x", (1ULL << 56) + 1);
  EXPECT_ERROR(over, invalid_argument);
  EXPECT_ERROR(client.info("x"), not_found);
}

TEST_CASE("capacity: out of descriptors is no_capacity, and ends when some come back") {
  DaemonOptions options;
  options.invariants = false;
  options.before_exec = [] { limit_fds(128); };
  DaemonFixture daemon(options);
  Client client = daemon.connect();
  std::vector<AnyArray> held;
  std::string text;
  while (held.size() < 200) {
    auto array = put_bytes(client, "", 100, 1);
    if (!array) {
      text = describe(array);
      break;
    }
    held.push_back(std::move(*array));
  }
  CHECK_MESSAGE(text.starts_with("no_capacity: segments"), text);
  CHECK(held.size() >= 16);
  // Others still get in, look around and read: a reserve is left for that.
  Client other = daemon.connect();
  EXPECT_OK(other.status());
  auto shared = other.attach_id(held.front().id());
  EXPECT_OK(shared);
  held.resize(held.size() / 2);
  EXPECT_OK(put_bytes(client, "", 100, 1));
  CHECK(daemon.selfcheck() == "");
}

TEST_CASE("capacity: more connections than descriptors are refused or wait, nobody else suffers") {
  DaemonOptions options;
  options.before_exec = [] { limit_fds(96); };
  DaemonFixture daemon(options);
  Client client = daemon.connect();
  auto array = put_bytes(client, "x", 100, 1);
  {
    std::vector<RawSession> flood;
    for (int i = 0; i < 120; ++i) {
      try {
        flood.emplace_back(daemon.socket());
      } catch (const std::exception&) {
        break;  // the listen queue is full
      }
      flood.back().send(frame(protocol::Op::hello, 1, bytes_of(protocol::HelloRequest{})));
    }
    EXPECT_OK(client.info("x"));
    EXPECT_OK(client.attach_any("x"));
  }
  EXPECT_OK(daemon.connect().info("x"));
  CHECK(wait_until([&] { return client.status().value().sessions == 1; }));
  CHECK(daemon.selfcheck() == "");
}

TEST_CASE("capacity: the connection after the last is told why, also when others stay silent") {
  DaemonOptions options;
  options.before_exec = [] { limit_fds(128); };
  DaemonFixture daemon(options);
  std::vector<Client> clients;
  std::string text;
  while (clients.size() < 100) {
    auto client = daemon.try_connect();
    if (!client) {
      text = describe(client);
      break;
    }
    clients.push_back(std::move(*client));
  }
  CHECK_MESSAGE(text.starts_with("no_capacity: connections"), text);
  // Those that are refused and stay take up the place of nobody who is served.
  std::vector<RawSession> silent;
  for (int i = 0; i < 40; ++i) silent.emplace_back(daemon.socket());
  EXPECT_OK(clients.front().ping());
  clients.pop_back();
  silent.clear();
  CHECK(wait_until([&] { return daemon.try_connect().has_value(); }));
  // By one that is there: the place of the last may not be free again yet.
  const auto checked = clients.front().admin("selfcheck");
  REQUIRE(checked);
  CHECK_MESSAGE(checked->find("\"clean\":true") != std::string::npos, *checked);
}

TEST_CASE("capacity: a client without room for descriptors gets an error and goes on later") {
  DaemonFixture daemon;
  Client owner = daemon.connect();
  auto array = put_bytes(owner, "x", 100, 1);
  REQUIRE(array);
  Child child = Child::fork([&](Link& link) {
    Client client = daemon.connect();
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    const rlim_t soft = limit.rlim_cur;
    limit.rlim_cur = 3;  // every descriptor from here on is one too many
    ::setrlimit(RLIMIT_NOFILE, &limit);
    link.say(outcome(client.attach_any("x")));
    link.say(outcome(create_bytes(client, "y", 100)));
    link.say(outcome(client.ping()));
    limit.rlim_cur = soft;
    ::setrlimit(RLIMIT_NOFILE, &limit);
    link.say(outcome(client.attach_any("x")));
    link.say(outcome(create_bytes(client, "y", 100)));
    static_cast<void>(link.hear());
    return 0;
  });
  CHECK(child.hear() == "no_capacity");
  CHECK(child.hear() == "no_capacity");
  CHECK(child.hear() == "ok");
  CHECK(child.hear() == "ok");
  CHECK(child.hear() == "ok");
  // What failed holds nothing.
  CHECK(wait_until([&] { return owner.info("x").value().leases == 1; }));
  CHECK(wait_until([&] { return outcome(owner.info("y")) == "not_found"; }));
  child.say("end");
}

TEST_CASE("capacity: a client without address space gets an error, nothing half-made stays") {
  if (skip_unless(!kSanitized, "sanitizers need address space of their own")) return;
  DaemonFixture daemon;
  Client owner = daemon.connect();
  auto array = put_bytes(owner, "x", 64 * kMib, 1);
  REQUIRE(array);
  Child child = Child::fork([&](Link& link) {
    Client client = daemon.connect();
    std::ifstream statm("/proc/self/statm");
    rlim_t pages = 0;
    statm >> pages;
    const rlimit limit{pages * 4096 + 16 * kMib, RLIM_INFINITY};
    ::setrlimit(RLIMIT_AS, &limit);
    link.say(outcome(client.attach_any("x")));
    link.say(outcome(client.attach_any("x", access(Access::copy))));
    link.say(outcome(create_bytes(client, "y", 64 * kMib)));
    link.say(outcome(create_bytes(client, "z", kMib)));
    static_cast<void>(link.hear());
    return 0;
  });
  CHECK(child.hear() == "no_capacity");
  CHECK(child.hear() == "no_capacity");
  CHECK(child.hear() == "no_capacity");
  CHECK(child.hear() == "ok");
  CHECK(wait_until([&] { return owner.info("x").value().leases == 1; }));
  EXPECT_ERROR(owner.info("y"), not_found);
  child.say("end");
}

TEST_CASE("capacity: a mutable array that cannot be mapped replaces nothing and is not kept") {
  if (skip_unless(!kSanitized, "sanitizers need address space of their own")) return;
  DaemonFixture daemon;
  Client owner = daemon.connect();
  CreateOptions keep;
  keep.keep = true;
  EXPECT_OK(put_bytes(owner, "x", kMib, 1, keep));
  Child child = Child::fork([&](Link& link) {
    Client client = daemon.connect();
    const std::vector<std::byte> content(64 * kMib, std::byte{2});
    std::ifstream statm("/proc/self/statm");
    rlim_t pages = 0;
    statm >> pages;
    const rlimit limit{pages * 4096 + 16 * kMib, RLIM_INFINITY};
    ::setrlimit(RLIMIT_AS, &limit);
    CreateOptions options;
    options.is_mutable = options.keep = true;
    const std::uint64_t shape[] = {64 * kMib};
    link.say(outcome(create_bytes(client, "y", 64 * kMib, options)));
    link.say(outcome(client.put_any("y", "|u1", shape, content, options)));
    options.replace = true;
    link.say(outcome(create_bytes(client, "x", 64 * kMib, options)));
    link.say(outcome(client.put_any("x", "|u1", shape, content, options)));
    link.say(outcome(create_bytes(client, "z", kMib, options)));
    static_cast<void>(link.hear());
    return 0;
  });
  for (int n = 0; n < 4; ++n) CHECK(child.hear() == "no_capacity");
  CHECK(child.hear() == "ok");
  EXPECT_ERROR(owner.info("y"), not_found);
  auto old = owner.attach_any("x");
  REQUIRE(old);
  CHECK(old->state() == State::sealed);
  CHECK(only_byte(*old) == 1);
  child.say("end");
}

TEST_CASE("capacity: a client killed in the midst of filling leaves its bytes to others") {
  DaemonFixture daemon(small_daemon("64MiB"));
  for (int round = 0; round < 10; ++round) {
    Child filler = Child::fork([&](Link& link) {
      Client client = daemon.connect();
      auto draft = create_bytes(client, "x", 48 * kMib);
      link.say(describe(draft));
      if (draft) fill(*draft, 1);
      ::pause();
      return 0;
    });
    CHECK(filler.hear() == "ok");
    filler.kill(SIGKILL);
    filler.wait();
    CHECK(daemon.settles_empty());
  }
}
