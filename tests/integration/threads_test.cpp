// One Client used by many threads: mixed operations, and races of release against attach on the
// same arrays. Meant for ThreadSanitizer as much as for its own checks.
#include <atomic>
#include <random>
#include <thread>

#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;

namespace {

constexpr int kThreads = 8;
constexpr std::size_t kBytes = 9000;

void run_threads(const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) threads.emplace_back(body, t);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

TEST_CASE("threads: attach and release of the same arrays race, and every reader reads right") {
  DaemonFixture daemon;
  Client owner = daemon.connect();
  Client client = daemon.connect();
  std::vector<AnyArray> arrays;
  for (int i = 0; i < 3; ++i) {
    arrays.push_back(
        put_bytes(owner, "shared" + std::to_string(i), kBytes, static_cast<std::uint8_t>(i + 1))
            .value());
  }
  std::atomic<int> wrong = 0;
  const int rounds = kSanitized ? 150 : 500;
  run_threads([&](int t) {
    std::mt19937 random(static_cast<unsigned>(t));
    for (int i = 0; i < rounds; ++i) {
      const int which = static_cast<int>(random() % 3);
      const Access wanted = random() % 4 == 0 ? Access::copy : Access::read;
      auto array = client.attach_any("shared" + std::to_string(which), access(wanted));
      if (!array || only_byte(*array) != which + 1) ++wrong;
      if (array && random() % 2 == 0 && !array->release()) ++wrong;
    }
  });
  CHECK(wrong == 0);
  client.ping().value();
  for (int i = 0; i < 3; ++i) {
    CHECK(owner.info("shared" + std::to_string(i)).value().leases == 1);
  }
  CHECK(segment_fd_count() <= 8);
  CHECK(daemon.selfcheck() == "");
}

TEST_CASE("threads: mixed operations through one client") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  std::atomic<int> wrong = 0;
  const int rounds = kSanitized ? 60 : 200;
  const auto check = [&](bool right) {
    if (!right) ++wrong;
  };
  run_threads([&](int t) {
    const std::string own = "own" + std::to_string(t);
    const auto value = static_cast<std::uint8_t>(t + 1);
    CreateOptions replace;
    replace.replace = true;
    for (int i = 0; i < rounds; ++i) {
      auto array = put_bytes(client, own, kBytes, value, replace);
      check(array && only_byte(client.attach_any(own).value()) == value);
      check(client.wait(own, 0, kDoNotWait).has_value());
      if (i % 5 == 0) check(client.list().has_value());
      if (i % 7 == 0) check(client.remove(own).has_value());
      auto contested = put_bytes(client, "contested", kBytes, value, replace);
      check(contested.has_value());
      auto seen = client.attach_any("contested", no_wait());
      // Others drop and replace it all the time: gone, or only a draft of somebody is there.
      const std::string code = outcome(seen);
      check(seen ? only_byte(*seen) > 0 : code == "not_found" || code == "timed_out");
      check(client.ping().has_value());
    }
  });
  CHECK(wrong == 0);
  CHECK(daemon.settles_empty(1));
}

TEST_CASE("threads: one waits while others publish, again and again") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  const std::uint64_t rounds = kSanitized ? 30 : 100;
  std::atomic<int> wrong = 0;
  std::vector<std::thread> waiters;
  for (int t = 0; t < 4; ++t) {
    waiters.emplace_back([&] {
      std::uint64_t seen = 0;
      int value = 0;
      if (!client.wait("step")) ++wrong;
      while (value != static_cast<int>(rounds)) {
        AttachOptions options;
        options.newer_than = seen;
        auto array = client.attach_any("step", options);
        if (!array || array->version() <= seen) {
          ++wrong;
          return;
        }
        seen = array->version();
        value = only_byte(*array);
      }
    });
  }
  CreateOptions options;
  options.replace = true;
  options.keep = true;
  for (std::uint64_t i = 1; i <= rounds; ++i) {
    EXPECT_OK(put_bytes(client, "step", kBytes, static_cast<std::uint8_t>(i), options));
  }
  for (std::thread& waiter : waiters) waiter.join();
  CHECK(wrong == 0);
}

TEST_CASE("threads: a release that the waiting thread has to repeat is sent while it waits") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  Client other = daemon.connect();
  std::atomic<pid_t> waiter_id = 0;
  std::thread waiter([&] {
    waiter_id = ::gettid();
    static_cast<void>(client.wait("later"));
  });
  CHECK(wait_until([&] { return waiter_id != 0 && process_state(waiter_id) == 'S'; }));
  {
    // Of an empty array it is the daemon who says that the write lease is a read lease now.
    auto one = create_bytes(client, "x", 0);
    auto two = client.attach_any("x", access(Access::write));
    EXPECT_OK(two);
    EXPECT_OK(one->seal());
  }
  CHECK(wait_until([&] { return outcome(other.info("x")) == "not_found"; }));
  EXPECT_OK(put_bytes(other, "later", kBytes, 1));
  waiter.join();
}

TEST_CASE("threads: copies of a client, dropped anywhere, share one session") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto array = put_bytes(client, "x", kBytes, 1);
  std::atomic<int> wrong = 0;
  run_threads([&wrong, client](int) mutable {
    for (int i = 0; i < 20; ++i) {
      Client copy = client;
      client = copy;
      if (!copy.attach_any("x")) ++wrong;
    }
  });
  CHECK(wrong == 0);
  CHECK(client.status().value().sessions == 1);
}

TEST_CASE("threads: a handle outlives every client object") {
  DaemonFixture daemon;
  std::optional<AnyArray> array;
  {
    Client client = daemon.connect();
    array.emplace(put_bytes(client, "x", kBytes, 1).value());
  }
  CHECK(only_byte(*array) == 1);
  Client other = daemon.connect();
  EXPECT_OK(other.info("x"));
  EXPECT_OK(array->release());
  array.reset();
  CHECK(daemon.settles_empty(1));
}
