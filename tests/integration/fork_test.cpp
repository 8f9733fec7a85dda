// Fork: what a child inherits stays valid whatever the parent, the store and others do; nobody
// ever sees foreign bytes; nothing stays charged once nobody maps it.
#include <sys/wait.h>

#include <atomic>
#include <thread>

#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;

namespace {

constexpr std::size_t kBytes = 2 << 20;

/// Deletes everything and fills the store with other bytes, so that reused memory would show.
void delete_and_refill(Client& client) {
  static_cast<void>(client.remove("x"));
  for (int i = 0; i < 8; ++i) {
    auto other = put_bytes(client, "refill", kBytes, 0xee);
    CHECK(outcome(other) == "ok");
  }
}

/// Runs `work` again and again on another thread.
class Busy {
 public:
  explicit Busy(std::function<void()> work)
      : thread_([this, work = std::move(work)] {
          while (!ends_) work();
        }) {}
  ~Busy() {
    ends_ = true;
    thread_.join();
  }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;

 private:
  std::atomic<bool> ends_ = false;
  std::thread thread_;
};

/// How many of `forks` children find `wrong()`.
template <class Wrong>
int count_children(int forks, Wrong&& wrong) {
  int found = 0;
  for (int i = 0; i < forks; ++i) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(wrong() ? 1 : 0);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    if (status != 0) ++found;
  }
  return found;
}

}  // namespace

TEST_CASE("fork: children that are forked beside busy threads inherit no descriptor") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  Client other = daemon.connect();
  const int forks = kSanitized ? 100 : 400;
  auto kept = put_bytes(other, "x", kBytes, 1);
  SUBCASE("of a segment") {
    const Busy puts([&] { static_cast<void>(put_bytes(client, "", 4096, 1)); });
    const Busy attaches([&] { static_cast<void>(client.attach_any("x")); });
    CHECK(count_children(forks, [] { return segment_fd_count() > 0; }) == 0);
  }
  SUBCASE("of a session") {
    std::size_t without = 0;
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    count_children(1, [&] {
      const std::size_t count = fd_count(::getpid());
      return ::write(ends[1], &count, sizeof count) != sizeof count;
    });
    REQUIRE(::read(ends[0], &without, sizeof without) == sizeof without);
    const Busy one([&] { static_cast<void>(daemon.try_connect()); });
    const Busy two([&] { static_cast<void>(daemon.try_connect()); });
    CHECK(count_children(forks, [&] { return fd_count(::getpid()) != without; }) == 0);
    ::close(ends[0]);
    ::close(ends[1]);
  }
}

TEST_CASE("fork: a child reads what it inherited while the parent releases and others refill") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  Client other = daemon.connect();
  auto array = put_bytes(client, "x", kBytes, 1);
  auto reader = client.attach_any("x");
  REQUIRE(reader);
  Child child = Child::fork([&](Link& link) {
    while (link.hear() == "look") {
      link.say(std::to_string(only_byte(*reader)) + "," + std::to_string(only_byte(*array)));
    }
    return 0;
  });
  const auto child_sees = [&] {
    child.say("look");
    return child.hear();
  };
  CHECK(child_sees() == "1,1");
  EXPECT_OK(reader->release());
  EXPECT_OK(array->release());
  delete_and_refill(other);
  CHECK(child_sees() == "1,1");
  CHECK(other.status().value().pinned >= kBytes);
  CHECK(wait_until([&] {
    static_cast<void>(other.admin("gc"));
    return child_sees() == "1,1";
  }));
  child.say("end");
  CHECK(child.wait() == 0);
  CHECK(daemon.settles_empty(2));
}

TEST_CASE("fork: a child that drops what it inherited takes nothing from the parent") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto array = put_bytes(client, "x", kBytes, 1);
  auto draft = create_bytes(client, "draft", kBytes);
  REQUIRE(array);
  REQUIRE(draft);
  fill(*draft, 2);
  Child child = Child::fork([&](Link& link) {
    link.say(array->inherited() ? "inherited" : "own");
    link.say(outcome(array->release()));
    link.say(outcome(draft->release()));
    link.say(array->data() == nullptr ? "unmapped" : "mapped");
    return 0;
  });
  CHECK(child.hear() == "inherited");
  CHECK(child.hear() == "ok");
  CHECK(child.hear() == "ok");
  CHECK(child.hear() == "unmapped");
  child.wait();
  CHECK(!array->inherited());
  CHECK(only_byte(*array) == 1);
  CHECK(client.info("x").value().leases == 1);
  CHECK(client.info("draft").value().state == "draft");
  EXPECT_OK(draft->seal());
  CHECK(only_byte(client.attach_any("draft").value()) == 2);
}

TEST_CASE("fork: a child gets a session of its own for its first call") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto array = put_bytes(client, "x", kBytes, 1);
  const std::uint64_t before = client.status().value().sessions;
  Child child = Child::fork([&](Link& link) {
    auto again = client.attach_any("x");
    link.say(again ? std::to_string(only_byte(*again)) : describe(again));
    link.say(again && !again->inherited() ? "own" : "inherited");
    auto made = put_bytes(client, "childs", kBytes, 3);
    link.say(outcome(made));
    static_cast<void>(link.hear());
    return 0;
  });
  CHECK(child.hear() == "1");
  CHECK(child.hear() == "own");
  CHECK(child.hear() == "ok");
  CHECK(client.status().value().sessions == before + 1);
  const auto holders = client.holders("x").value();
  CHECK(holders.size() == 2);
  CHECK(std::any_of(holders.begin(), holders.end(),
                    [&](const Holder& holder) { return holder.pid == child.pid(); }));
  CHECK(client.holders("childs").value().front().pid == child.pid());
  child.say("end");
  child.wait();
  CHECK(wait_until([&] { return client.status().value().sessions == before; }));
  EXPECT_ERROR(client.info("childs"), not_found);
  CHECK(client.info("x").value().leases == 1);
}

TEST_CASE("fork: the parent killed, its childs bytes stay charged until the child ends") {
  DaemonFixture daemon;
  Client observer = daemon.connect();
  Child parent = Child::fork([&](Link& link) {
    Client client = daemon.connect();
    auto array = put_bytes(client, "x", kBytes, 1);
    auto draft = create_bytes(client, "draft", kBytes);
    if (!array || !draft) return 1;
    fill(*draft, 2);
    if (::fork() == 0) {
      link.say("forked");
      static_cast<void>(link.hear());
      link.say(std::to_string(only_byte(*array)) + "," + std::to_string(only_byte(*draft)));
      ::_exit(0);
    }
    ::pause();
    return 0;
  });
  REQUIRE(parent.hear() == "forked");
  parent.kill(SIGKILL);
  parent.wait();
  REQUIRE(wait_until([&] { return observer.status().value().sessions == 1; }));
  EXPECT_ERROR(observer.info("x"), not_found);
  EXPECT_ERROR(observer.info("draft"), not_found);
  const StoreStatus status = observer.status().value();
  CHECK(status.arrays == 0);
  CHECK(status.pinned >= 2 * kBytes);
  CHECK(status.used >= 2 * kBytes);
  delete_and_refill(observer);
  parent.say("look");
  CHECK(parent.hear() == "1,2");
  CHECK(daemon.settles_empty(1));
}

TEST_CASE("fork: returns at once while another thread waits, and the child can work") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  std::atomic<bool> done = false;
  std::thread waiter([&] {
    CHECK(client.wait("never-made-before").has_value());
    done = true;
  });
  for (int i = 0; i < 20; ++i) {
    Child child = Child::fork([&](Link& link) {
      link.say(outcome(put_bytes(client, "from-child", 1000, 1)));
      return 0;
    });
    CHECK(child.hear() == "ok");
    CHECK(child.wait() == 0);
    CHECK(!done);
  }
  auto array = put_bytes(client, "never-made-before", 10, 1);
  waiter.join();
  CHECK(done);
}

TEST_CASE("fork: a read attach in a child of the creator gets no writable map") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto array = put_bytes(client, "x", kBytes, 1);
  REQUIRE(array);
  Child child = Child::fork([&](Link& link) {
    auto reader = client.attach_any("x");
    if (!reader) return 1;
    const auto map = find_map(::getpid(), reader->data());
    link.say(map ? map->perms : "?");
    return 0;
  });
  CHECK(child.hear() == "r--s");
}

TEST_CASE("fork: children that fork on see the same bytes, in any order of death") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto array = put_bytes(client, "x", kBytes, 1);
  Child child = Child::fork([&](Link& link) {
    const pid_t grandchild = ::fork();
    if (grandchild == 0) {
      static_cast<void>(link.hear());
      link.say(std::to_string(only_byte(*array)));
      ::_exit(0);
    }
    return 0;  // before its own child
  });
  CHECK(child.wait() == 0);
  EXPECT_OK(array->release());
  Client other = daemon.connect();
  delete_and_refill(other);
  CHECK(other.status().value().pinned >= kBytes);
  child.say("look");
  CHECK(child.hear() == "1");
  CHECK(daemon.settles_empty(2));
}

TEST_CASE("fork: exec ends the inheritance") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto array = put_bytes(client, "x", kBytes, 1);
  Child sleeper = Child::run({"/bin/sleep", "1000"});
  REQUIRE(wait_until([&] { return segment_maps(sleeper.pid()).empty(); }));
  EXPECT_OK(array->release());
  CHECK(daemon.settles_empty(1));
  CHECK(!sleeper.ended());
}

TEST_CASE("fork: in many threads' midst, parent and children stay right") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      const std::string name = "thread" + std::to_string(t);
      while (!stop) {
        auto array = put_bytes(client, name, 5000, static_cast<std::uint8_t>(t + 1));
        CHECK(outcome(array) == "ok");
        CHECK(only_byte(client.attach_any(name).value()) == t + 1);
      }
    });
  }
  for (int i = 0; i < 30; ++i) {
    Child child = Child::fork([&](Link& link) {
      const std::string name = "child" + std::to_string(i);
      auto array = put_bytes(client, name, 5000, 9);
      if (!array) link.say(describe(array));
      auto again = client.attach_any(name);
      if (again) link.say(std::to_string(only_byte(*again)));
      return 0;
    });
    CHECK(child.hear() == "9");
    CHECK(child.wait() == 0);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  CHECK(daemon.settles_empty(1));
}
