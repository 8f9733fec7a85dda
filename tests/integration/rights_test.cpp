// Rights between users: the mode bits, foreign namespaces, groups, refused users, and what an
// unfriendly user can do with the descriptors it was given.
#include <fcntl.h>
#include <grp.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>

#include "tests/support/raw_session.hpp"
#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;

namespace {

constexpr uid_t kAlice = 65001;
constexpr uid_t kBob = 65002;
constexpr uid_t kNobody = 65534;
constexpr std::size_t kBytes = 50'000;

DaemonOptions shared_daemon() {
  DaemonOptions options;
  options.open_to_all = true;
  return options;
}

std::string foreign(uid_t uid, const std::string& name) {
  return "~" + std::to_string(uid) + "/" + name;
}

/// Alice, who makes one array per mode and holds them until told to go.
Child alice_with_arrays(const DaemonFixture& daemon) {
  return Child::fork_as(kAlice, [&](Link& link) {
    Client client = daemon.connect();
    std::vector<AnyArray> held;
    for (const int perms : {0600, 0604, 0640, 0644}) {
      CreateOptions options;
      options.perms = static_cast<std::uint16_t>(perms);
      options.keep = true;
      char name[16];
      std::snprintf(name, sizeof name, "%04o", static_cast<unsigned>(perms));
      held.push_back(put_bytes(client, name, kBytes, 1, options).value());
    }
    CreateOptions open;
    open.perms = 0666;
    open.is_mutable = true;
    held.push_back(create_bytes(client, "mutable-0666", kBytes, open).value());
    open.is_mutable = false;
    held.push_back(create_bytes(client, "draft-0666", kBytes, open).value());
    link.say("ready");
    static_cast<void>(link.hear());
    return 0;
  });
}

/// Runs `body` as `uid` with a client and returns what it says.
std::string as_user(const DaemonFixture& daemon, uid_t uid,
                    const std::function<std::string(Client&)>& body) {
  Child child = Child::fork_as(uid, [&](Link& link) {
    Client client = daemon.connect();
    link.say(body(client));
    return 0;
  });
  return child.hear();
}

}  // namespace

TEST_CASE("rights: read, write and ownership between users") {
  if (skip_unless(is_root(), "needs root to act as other users")) return;
  DaemonFixture daemon(shared_daemon());
  Child alice = alice_with_arrays(daemon);
  REQUIRE(alice.hear() == "ready");
  const auto bob = [&](const std::function<std::string(Client&)>& body) {
    return as_user(daemon, kBob, body);
  };
  const auto attach_as_bob = [&](const std::string& name, Access wanted) {
    return bob([&](Client& client) {
      return outcome(client.attach_any(foreign(kAlice, name), access(wanted)));
    });
  };
  CHECK(attach_as_bob("0600", Access::read) == "permission_denied");
  CHECK(attach_as_bob("0640", Access::read) == "permission_denied");
  CHECK(attach_as_bob("0604", Access::read) == "ok");
  CHECK(attach_as_bob("0644", Access::read) == "ok");
  CHECK(attach_as_bob("0644", Access::copy) == "ok");
  // Rights come before state: the same answer whether or not the array could be written.
  CHECK(attach_as_bob("0644", Access::write) == "permission_denied");
  CHECK(attach_as_bob("mutable-0666", Access::write) == "ok");
  CHECK(attach_as_bob("draft-0666", Access::write) == "ok");
  CHECK(attach_as_bob("draft-0666", Access::read) == "timed_out");
  // Neither existence nor absence shows.
  CHECK(attach_as_bob("missing", Access::read) == "permission_denied");
  CHECK(bob([](Client& c) { return outcome(c.attach_any("0644", no_wait())); }) == "not_found");
  for (const char* name : {"0600", "0644", "mutable-0666", "missing"}) {
    CAPTURE(name);
    const std::string full = foreign(kAlice, name);
    CHECK(bob([&](Client& c) { return outcome(c.remove(full)); }) == "permission_denied");
    CHECK(bob([&](Client& c) { return outcome(c.keep(full)); }) == "permission_denied");
    CHECK(bob([&](Client& c) { return outcome(c.chmod(full, 0666)); }) == "permission_denied");
    CHECK(bob([&](Client& c) { return outcome(put_bytes(c, full, 10, 1)); }) ==
          "permission_denied");
  }
  const std::string seen = bob([&](Client& client) {
    std::string names;
    for (const ArrayInfo& info : client.list().value()) names += info.name + " ";
    return names;
  });
  CHECK(seen.find("0600") == std::string::npos);
  CHECK(seen.find("0640") == std::string::npos);
  CHECK(seen.find(foreign(kAlice, "0644")) != std::string::npos);
  // Root may do all of it.
  Client root = daemon.connect();
  EXPECT_OK(root.attach_any(foreign(kAlice, "0600"), no_wait()));
  EXPECT_OK(root.remove(foreign(kAlice, "0600")));
  EXPECT_OK(root.remove(foreign(kAlice, "0604")));
}

TEST_CASE("rights: supplementary groups open group-readable arrays") {
  if (skip_unless(is_root(), "needs root to act as other users")) return;
  DaemonFixture daemon(shared_daemon());
  Child alice = alice_with_arrays(daemon);
  REQUIRE(alice.hear() == "ready");
  Child friend_of_alice = Child::fork([&](Link& link) {
    const gid_t groups[] = {65077, kAlice};  // alice's arrays carry her primary group
    if (::setgroups(2, groups) != 0 || ::setresgid(kBob, kBob, kBob) != 0 ||
        ::setresuid(kBob, kBob, kBob) != 0) {
      return 1;
    }
    Client client = daemon.connect();
    link.say(outcome(client.attach_any(foreign(kAlice, "0640"), no_wait())));
    link.say(outcome(client.attach_any(foreign(kAlice, "0604"), no_wait())));
    link.say(outcome(client.attach_any(foreign(kAlice, "0600"), no_wait())));
    return 0;
  });
  CHECK(friend_of_alice.hear() == "ok");
  CHECK(friend_of_alice.hear() == "permission_denied");  // the group's bits count, not others'
  CHECK(friend_of_alice.hear() == "permission_denied");
}

TEST_CASE("rights: uid 65534 is refused, and told so") {
  if (skip_unless(is_root(), "needs root to act as other users")) return;
  DaemonFixture daemon(shared_daemon());
  Child nobody = Child::fork_as(kNobody, [&](Link& link) {
    ConnectOptions options;
    options.socket = daemon.socket();
    link.say(outcome(Client::connect(options)));
    return 0;
  });
  CHECK(nobody.hear() == "permission_denied");
}

TEST_CASE("rights: the socket's mode decides who connects") {
  if (skip_unless(is_root(), "needs root to act as other users")) return;
  DaemonFixture daemon;
  Child bob = Child::fork_as(kBob, [&](Link& link) {
    ConnectOptions options;
    options.socket = daemon.socket();
    link.say(outcome(Client::connect(options)));
    return 0;
  });
  CHECK(bob.hear() == "permission_denied");
}

TEST_CASE("rights: an array that others may open is sealed hard, others' drafts never are seen") {
  if (skip_unless(is_root(), "needs root to act as other users")) return;
  DaemonFixture daemon(shared_daemon());
  Child alice = alice_with_arrays(daemon);
  REQUIRE(alice.hear() == "ready");
  Client root = daemon.connect();
  CHECK(root.info(foreign(kAlice, "0644")).value().sealed == "hard");
  CHECK(root.info(foreign(kAlice, "0600")).value().sealed == "soft");
  // Widening a private, soft-sealed array would show others what its maker can still change.
  EXPECT_ERROR(root.chmod(foreign(kAlice, "0600"), 0644), invalid_argument);
  EXPECT_OK(root.chmod(foreign(kAlice, "0644"), 0600));
  EXPECT_OK(root.chmod(foreign(kAlice, "0644"), 0644));
}

TEST_CASE("rights: a foreign user that could write once does not write a sealed array") {
  if (skip_unless(is_root(), "needs root to act as other users")) return;
  DaemonFixture daemon(shared_daemon());
  Child alice = Child::fork_as(kAlice, [&](Link& link) {
    Client client = daemon.connect();
    CreateOptions options;
    options.perms = 0666;
    options.is_mutable = true;
    AnyArray shared = create_bytes(client, "m", kBytes, options).value();
    fill(shared, 1);
    link.say("made");
    static_cast<void>(link.hear());
    link.say(outcome(client.chmod("m", 0600)));
    link.say(outcome(shared.seal()));
    shared.writable_data()[0] = std::byte{2};  // Nothing has changed for its owner.
    link.say(std::to_string(static_cast<int>(client.attach_any("m").value().data()[0])));
    static_cast<void>(link.hear());
    link.say(outcome(shared.seal()));
    link.say(client.info("m").value().sealed);
    return 0;
  });
  REQUIRE(alice.hear() == "made");
  Child bob = Child::fork_as(kBob, [&](Link& link) {
    RawSession raw(daemon.socket());
    static_cast<void>(raw.hello());
    protocol::AttachRequest request;
    request.ns_uid = kAlice;
    request.name_bytes = 1;
    request.access = static_cast<std::uint8_t>(Access::write);
    const RawReply reply = raw.call(protocol::Op::attach, bytes_of(request).append("m"));
    const auto id = struct_at<protocol::ArrayBody>(reply.body).id;
    void* map = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, reply.fds[0].get(), 0);
    link.say(map == MAP_FAILED ? "no map" : raw.release(id, Access::write).outcome());
    static_cast<void>(link.hear());
    link.say(::munmap(map, kBytes) == 0 ? "unmapped" : "still there");
    static_cast<void>(link.hear());
    return 0;
  });
  REQUIRE(bob.hear() == "ok");
  alice.say("narrow and seal");
  CHECK(alice.hear() == "ok");
  CHECK(alice.hear() == "busy");
  CHECK(alice.hear() == "2");
  bob.say("let go");
  REQUIRE(bob.hear() == "unmapped");
  alice.say("again");
  CHECK(alice.hear() == "ok");
  CHECK(alice.hear() == "hard");
}

TEST_CASE("rights: what a user holds is seen by itself, root and the daemon's user only") {
  if (skip_unless(is_root(), "needs root to act as other users")) return;
  DaemonFixture daemon(shared_daemon());
  Child alice = alice_with_arrays(daemon);
  REQUIRE(alice.hear() == "ready");
  const auto users = [](const std::vector<UserStatus>& uids) {
    std::string text;
    for (const UserStatus& user : uids) text += std::to_string(user.uid) + " ";
    return text;
  };
  const std::string of_bob = std::to_string(kBob) + " ", of_alice = std::to_string(kAlice);
  CHECK(as_user(daemon, kBob, [&](Client& c) { return users(c.status().value().uids); }) == of_bob);
  CHECK(as_user(daemon, kBob, [&](Client& c) {
          return c.admin("metrics").value();
        }).find("uid=\\\"" + of_alice) == std::string::npos);
  const std::string ask = R"({"uid": )" + of_alice + "}";
  CHECK(as_user(daemon, kBob, [&](Client& c) { return outcome(c.admin("quotas", ask)); }) ==
        "permission_denied");
  Client root = daemon.connect();
  CHECK(users(root.status().value().uids).find(of_alice) != std::string::npos);
  CHECK(root.admin("metrics").value().find("uid=\\\"" + of_alice) != std::string::npos);
  EXPECT_OK(root.admin("quotas", ask));
}

TEST_CASE("rights: a read-only descriptor cannot be made more by another user") {
  if (skip_unless(is_root(), "needs root to act as other users")) return;
  DaemonFixture daemon(shared_daemon());
  Child alice = alice_with_arrays(daemon);
  REQUIRE(alice.hear() == "ready");
  const auto attack = [&](const std::string& name) {
    Child bob = Child::fork_as(kBob, [&](Link& link) {
      RawSession raw(daemon.socket());
      static_cast<void>(raw.hello());
      protocol::AttachRequest request;
      request.ns_uid = kAlice;
      request.name_bytes = static_cast<std::uint16_t>(name.size());
      request.access = static_cast<std::uint8_t>(Access::read);
      const RawReply reply = raw.call(protocol::Op::attach, bytes_of(request).append(name));
      if (reply.fds.size() != 1) {
        link.say("no descriptor: " + reply.outcome());
        return 1;
      }
      const int fd = reply.fds[0].get();
      std::string failed;
      const auto refused = [&](const char* what, bool succeeded, int wanted) {
        if (succeeded || errno != wanted) {
          failed += std::string(what) + (succeeded ? " succeeded; " : " errno; ");
        }
      };
      const std::string path = "/proc/self/fd/" + std::to_string(fd);
      refused("open for writing", ::open(path.c_str(), O_RDWR) >= 0, EACCES);
      refused("open for reading", ::open(path.c_str(), O_RDONLY) >= 0, EACCES);
      refused("write", ::write(fd, "x", 1) == 1, EBADF);
      refused("map writable", ::mmap(nullptr, 4096, PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED,
              EACCES);
      refused("truncate", ::ftruncate(fd, 0) == 0, EINVAL);
      refused("punch", ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0,
              EBADF);
      refused("add a seal", ::fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0, EPERM);
      refused("chmod", ::fchmod(fd, 0666) == 0, EPERM);
      void* map = ::mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, fd, 0);
      refused("mprotect", map == MAP_FAILED || ::mprotect(map, 4096, PROT_READ | PROT_WRITE) == 0,
              EACCES);
      link.say(failed.empty() ? "all refused" : failed);
      return 0;
    });
    return bob.hear();
  };
  CHECK(attack("0644") == "all refused");
  CHECK(attack("mutable-0666") == "all refused");
}

TEST_CASE("rights: after delete the bytes are charged to who still holds them") {
  if (skip_unless(is_root(), "needs root to act as other users")) return;
  DaemonFixture daemon(shared_daemon());
  Child alice = alice_with_arrays(daemon);
  REQUIRE(alice.hear() == "ready");
  Child bob = Child::fork_as(kBob, [&](Link& link) {
    Client client = daemon.connect();
    auto array = client.attach_any(foreign(kAlice, "0644"), no_wait());
    link.say(outcome(array));
    static_cast<void>(link.hear());
    link.say(std::to_string(only_byte(*array)));
    return 0;
  });
  REQUIRE(bob.hear() == "ok");
  Client root = daemon.connect();
  const auto bytes_of_user = [&](uid_t uid) {
    for (const UserStatus& user : root.status().value().uids) {
      if (user.uid == uid) return user.bytes;
    }
    return std::uint64_t{0};
  };
  EXPECT_OK(root.remove(foreign(kAlice, "0644")));
  alice.say("go");
  alice.wait();
  for (const char* name : {"0600", "0604", "0640"}) EXPECT_OK(root.remove(foreign(kAlice, name)));
  CHECK(wait_until([&] { return bytes_of_user(kAlice) == 0; }));
  CHECK(bytes_of_user(kBob) >= kBytes);
  bob.say("go");
  CHECK(bob.hear() == "1");
  bob.wait();
  CHECK(daemon.settles_empty(1));
}

TEST_CASE("rights: ids are no secret: an attach by id asks for the same rights") {
  if (skip_unless(is_root(), "needs root to act as other users")) return;
  DaemonFixture daemon(shared_daemon());
  Child alice = alice_with_arrays(daemon);
  REQUIRE(alice.hear() == "ready");
  Client root = daemon.connect();
  const auto attach_id_as_bob = [&](const std::string& name, Access wanted) {
    const ArrayId id{std::stoull(root.info(foreign(kAlice, name)).value().id)};
    return as_user(daemon, kBob, [&](Client& client) {
      return outcome(client.attach_id(id, 0, access(wanted)));
    });
  };
  CHECK(attach_id_as_bob("0600", Access::read) == "not_found");
  CHECK(attach_id_as_bob("0644", Access::read) == "ok");
  CHECK(attach_id_as_bob("0644", Access::write) == "permission_denied");
}

TEST_CASE("rights: quotas are set by root, for one user, and hold only for that user") {
  if (skip_unless(is_root(), "needs root to act as other users")) return;
  DaemonFixture daemon(shared_daemon());
  Client root = daemon.connect();
  const std::string limit = R"({"uid":65001,"bytes_max":65536,"arrays_max":2})";
  EXPECT_OK(root.admin("quotas", limit));
  CHECK(as_user(daemon, kAlice, [&](Client& client) {
          return outcome(client.admin("quotas", limit));
        }) == "permission_denied");
  const auto put_two = [](Client& client) {
    auto big = put_bytes(client, "", 100'000, 1);
    auto one = put_bytes(client, "", 100, 1);
    auto two = put_bytes(client, "", 100, 1);
    auto three = put_bytes(client, "", 100, 1);
    return outcome(big) + " " + outcome(two) + " " + outcome(three);
  };
  CHECK(as_user(daemon, kAlice, put_two) == "quota_exceeded ok quota_exceeded");
  CHECK(as_user(daemon, kBob, put_two) == "ok ok ok");
}
