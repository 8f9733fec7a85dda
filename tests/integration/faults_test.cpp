// What the kernel refuses the daemon is the loss of the request or the newcomer that it was for:
// everybody else goes on.
#include <sys/resource.h>

#include <array>
#include <fstream>

#include "tests/support/raw_session.hpp"
#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;

namespace {

/// A daemon whose system calls fail while a fault is on.
class FaultyDaemon {
 public:
  FaultyDaemon() : daemon_(options(folder_)) {}
  DaemonFixture* operator->() { return &daemon_; }
  void fault(const std::string& name) const { std::ofstream(folder_.file(name)) << "on\n"; }
  void mend(const std::string& name) const { ::unlink(folder_.file(name).c_str()); }

 private:
  static DaemonOptions options(const TempDir& folder) {
    DaemonOptions made;
    made.environment = {"LD_PRELOAD=" + program_folder() + "/libtest_faults.so",
                        "SHMSTORE_FAULTS=" + folder.path()};
    return made;
  }
  TempDir folder_;
  DaemonFixture daemon_;
};

constexpr const char* kSanitizersFirst = "the sanitizers want to be loaded first";

}  // namespace

TEST_CASE("faults: a newcomer whom the kernel gives no place in the epoll is dropped alone") {
  if (skip_unless(!kSanitized, kSanitizersFirst)) return;
  FaultyDaemon daemon;
  Client client = daemon->connect();
  auto array = put_bytes(client, "x", 100, 7);
  REQUIRE(array);
  const std::size_t fds = daemon->settled_fds(1);
  daemon.fault("epoll_ctl");
  for (int i = 0; i < 20; ++i) {
    RawSession newcomer(daemon->socket());
    newcomer.send(frame(protocol::Op::hello, 1, bytes_of(protocol::HelloRequest{})));
    CHECK(newcomer.receive().closed);
    EXPECT_OK(client.ping());
  }
  daemon.mend("epoll_ctl");
  {
    Client other = daemon->connect();
    EXPECT_OK(other.attach_any("x"));
  }
  CHECK(daemon->selfcheck() == "");
  CHECK(daemon->settles_fds(fds));
}

TEST_CASE("faults: memory that the daemon does not get fails a request, not the daemon") {
  if (skip_unless(!kSanitized, kSanitizersFirst)) return;
  FaultyDaemon daemon;
  Client client = daemon->connect();
  auto array = put_bytes(client, "x", 100, 7);
  REQUIRE(array);
  daemon.fault("malloc");
  for (int i = 0; i < 100; ++i) {
    const auto made = put_bytes(client, "y" + std::to_string(i % 7), 100, 1);
    CHECK_MESSAGE((made || made.error().code == ErrorCode::no_capacity), describe(made));
    const auto found = client.attach_any("x");
    CHECK_MESSAGE((found || found.error().code == ErrorCode::no_capacity), describe(found));
    static_cast<void>(client.list());
  }
  daemon.mend("malloc");
  EXPECT_OK(client.ping());
  EXPECT_OK(client.attach_any("x"));
  CHECK(daemon->selfcheck() == "");
}

TEST_CASE("faults: without address space creates are refused, and go on when some is free") {
  if (skip_unless(!kSanitized, "sanitizers need address space of their own")) return;
  DaemonOptions options;
  options.invariants = false;
  DaemonFixture daemon(options);
  Client client = daemon.connect();
  EXPECT_OK(client.ping());
  std::ifstream statm("/proc/" + std::to_string(daemon.pid()) + "/statm");
  rlim_t pages = 0;
  statm >> pages;
  const rlimit limit{pages * 4096 + 24 * (1 << 20), RLIM_INFINITY};
  REQUIRE(::prlimit(daemon.pid(), RLIMIT_AS, &limit, nullptr) == 0);
  CreateOptions wordy;
  wordy.attrs = "{\"k\":\"" + std::string(4000, 'x') + "\"}";
  std::vector<AnyArray> held;
  std::string text;
  while (text.empty() && held.size() < 100'000) {
    const std::array<std::uint64_t, 1> none = {0};
    auto made =
        client.create_any(std::string(200, 'n') + std::to_string(held.size()), "|u1", none, wordy);
    if (!made) text = describe(made);
    if (made) held.push_back(std::move(*made));
  }
  CHECK_MESSAGE(text.starts_with("no_capacity: memory"), text);
  EXPECT_OK(client.ping());
  EXPECT_OK(client.info(held.front().name()));
  held.clear();
  CHECK(wait_until([&] { return outcome(put_bytes(client, "again", 100, 1)) == "ok"; }));
  CHECK(daemon.selfcheck() == "");
}
