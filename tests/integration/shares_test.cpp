// One user takes what he can get: the others still have their share, and pay for nothing of his.
#include <fcntl.h>
#include <sys/resource.h>

#include "tests/support/raw_session.hpp"
#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;

namespace {

constexpr uid_t kGreedy = 12'345, kModest = 12'346;
constexpr const char* kNeedsRoot = "becoming two users needs root";

DaemonOptions for_all(std::vector<std::string> arguments = {}) {
  DaemonOptions options;
  options.open_to_all = true;
  options.invariants = false;  // Thousands of arrays.
  options.arguments = std::move(arguments);
  options.before_exec = [] {
    const rlimit limit{600, 600};
    ::setrlimit(RLIMIT_NOFILE, &limit);
  };
  return options;
}

UserStatus status_of(Client& client, uid_t uid) {
  for (const UserStatus& user : client.status().value().uids) {
    if (user.uid == uid) return user;
  }
  return {};
}

/// Takes as much of everything as it gets; says what it was refused with.
int take_all(const DaemonFixture& daemon, Link& link) {
  Client client = daemon.connect();
  std::vector<AnyArray> held;
  std::string segments;
  while (segments.empty() && held.size() < 2'000) {
    auto made = put_bytes(client, "", 1, 1);
    if (!made) segments = describe(made);
    if (made) held.push_back(std::move(*made));
  }
  link.say(segments);
  std::string bytes;
  held.pop_back();
  auto large = create_bytes(client, "large", client.status().value().capacity * 3 / 4);
  link.say(describe(large));
  std::vector<Client> clients;
  std::string connections;
  while (connections.empty() && clients.size() < 2'000) {
    auto one = daemon.try_connect();
    if (!one) connections = describe(one);
    if (one) clients.push_back(std::move(*one));
  }
  link.say(connections);
  static_cast<void>(link.hear());
  return 0;
}

}  // namespace

TEST_CASE("shares: one user at every limit leaves room for others") {
  if (skip_unless(is_root(), kNeedsRoot)) return;
  DaemonFixture daemon(for_all());
  Child greedy = Child::fork_as(kGreedy, [&](Link& link) { return take_all(daemon, link); });
  const std::string segments = greedy.hear();
  CHECK_MESSAGE(segments.starts_with("quota_exceeded: segments"), segments);
  const std::string bytes = greedy.hear();
  CHECK_MESSAGE(bytes.starts_with("quota_exceeded: bytes"), bytes);
  const std::string connections = greedy.hear();
  CHECK_MESSAGE(connections.starts_with("quota_exceeded: connections"), connections);
  Child modest = Child::fork_as(kModest, [&](Link& link) {
    Client client = daemon.connect();
    std::vector<AnyArray> held;
    std::string said = "ok";
    for (int n = 0; n < 50 && said == "ok"; ++n) {
      auto made = put_bytes(client, "", 1 << 20, 1);
      said = describe(made);
      if (made) held.push_back(std::move(*made));
    }
    link.say(said);
    Client second = daemon.connect();
    link.say(describe(second.ping()));
    return 0;
  });
  CHECK(modest.hear() == "ok");
  CHECK(modest.hear() == "ok");
  modest.wait();
  greedy.say("end");
  greedy.wait();
  CHECK(daemon.settles_empty());
}

TEST_CASE("shares: a daemon for one user gives that user everything") {
  DaemonOptions options;
  options.invariants = false;
  options.before_exec = for_all().before_exec;
  DaemonFixture daemon(options);
  Client client = daemon.connect();
  const std::uint64_t capacity = client.status().value().capacity;
  EXPECT_OK(client.ping());
  CHECK(status_of(client, ::geteuid()).bytes_max == capacity);
}

TEST_CASE("shares: what is kept of freed arrays counts against the number of arrays") {
  DaemonOptions options;
  options.arguments = {"--user-arrays", "10"};
  DaemonFixture daemon(options);
  RawSession session(daemon.socket());
  REQUIRE(session.hello().ok());
  std::vector<UniqueFd> kept;
  std::string said = "ok";
  for (int n = 0; n < 50 && said == "ok"; ++n) {
    RawReply made = session.create("", 100);
    said = made.outcome();
    if (!made.ok()) break;
    REQUIRE(made.fds.size() == 1);
    kept.push_back(std::move(made.fds.front()));
    const auto body = struct_at<protocol::ArrayBody>(made.body);
    CHECK(session.release(body.id, Access::write).ok());
  }
  CHECK(said == "quota_exceeded");
  CHECK(kept.size() == 10);
  kept.clear();
  CHECK(wait_until([&] { return session.create("", 100).ok(); }));
}

TEST_CASE("shares: a foreign reader who keeps the map after its release pays, not the owner") {
  if (skip_unless(is_root(), kNeedsRoot)) return;
  DaemonFixture daemon(for_all());
  Client root = daemon.connect();
  Child owner = Child::fork_as(kGreedy, [&](Link& link) {
    Client client = daemon.connect();
    CreateOptions open;
    open.perms = 0644;
    auto array = put_bytes(client, "x", 1 << 20, 1, open);
    link.say(describe(array));
    static_cast<void>(link.hear());
    link.say(describe(client.remove("x")));
    array->release().value();
    link.say("released");
    static_cast<void>(link.hear());
    return 0;
  });
  CHECK(owner.hear() == "ok");
  Child reader = Child::fork_as(kModest, [&](Link& link) {
    RawSession session(daemon.socket());
    static_cast<void>(session.hello());
    protocol::AttachRequest wanted;
    wanted.ns_uid = kGreedy;
    wanted.name_bytes = 1;
    wanted.access = static_cast<std::uint8_t>(Access::read);
    RawReply reply = session.call(protocol::Op::attach, bytes_of(wanted) + "x");
    link.say(reply.outcome());
    const auto body = struct_at<protocol::ArrayBody>(reply.body);
    link.say(session.release(body.id, Access::read).outcome());
    static_cast<void>(link.hear());  // With the descriptor in hand.
    return 0;
  });
  CHECK(reader.hear() == "ok");
  CHECK(reader.hear() == "ok");
  owner.say("delete it");
  CHECK(owner.hear() == "ok");
  CHECK(owner.hear() == "released");
  CHECK(wait_until([&] { return status_of(root, kGreedy).bytes == 0; }));
  CHECK(status_of(root, kModest).bytes >= 1 << 20);
  CHECK(daemon.selfcheck() == "");
  reader.say("end");
  reader.wait();
  CHECK(wait_until([&] { return status_of(root, kModest).bytes == 0; }));
  owner.say("end");
}
