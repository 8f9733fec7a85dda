// Started by a service manager: the listening socket comes as descriptor 3, readiness and life are
// told to a datagram socket.
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <filesystem>

#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;

namespace {

UniqueFd bound_socket(int type, const std::string& path) {
  UniqueFd fd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  REQUIRE(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  return fd;
}

/// What a service manager gives: a listening socket and a place for notifications.
struct Manager {
  TempDir folder;
  std::string socket = folder.file("activated");
  UniqueFd listener = bound_socket(SOCK_SEQPACKET, socket);
  UniqueFd notices = bound_socket(SOCK_DGRAM, folder.file("notify"));

  Manager() { REQUIRE(::listen(listener.get(), 16) == 0); }

  /// The next notification that begins with `key`; "" when the watchdog bites.
  std::string notice(const std::string& key) const {
    for (;;) {
      pollfd ready{notices.get(), POLLIN, 0};
      if (::poll(&ready, 1, watchdog_seconds() * 1000) <= 0) return "";
      char text[4096];
      const ssize_t size = ::recv(notices.get(), text, sizeof text, 0);
      const std::string all(text, size > 0 ? static_cast<std::size_t>(size) : 0);
      const std::size_t at = all.find(key);
      if (at != std::string::npos && (at == 0 || all[at - 1] == '\n')) return all.substr(at);
    }
  }

  Child start(bool own_pid = true, const std::vector<std::string>& arguments = {}) {
    std::vector<std::string> command = {find_program("SHMSTORED", "shmstored")};
    command.insert(command.end(), arguments.begin(), arguments.end());
    return Child::run(command, {}, [this, own_pid] {
      const int log = ::open(folder.file("log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
      ::dup2(log, STDERR_FILENO);
      if (listener.get() == 3) {
        ::fcntl(3, F_SETFD, 0);  // dup2 onto itself would leave it close-on-exec
      } else {
        ::dup2(listener.get(), 3);
      }
      const std::string pid = std::to_string(own_pid ? ::getpid() : 1);
      ::setenv("LISTEN_PID", pid.c_str(), 1);
      ::setenv("LISTEN_FDS", "1", 1);
      ::setenv("NOTIFY_SOCKET", folder.file("notify").c_str(), 1);
      ::setenv("WATCHDOG_PID", pid.c_str(), 1);
      ::setenv("WATCHDOG_USEC", "100000", 1);
    });
  }
};

}  // namespace

TEST_CASE("activation: serves on the inherited socket, says READY, pings the watchdog") {
  Manager manager;
  // A connect that queues before the daemon runs is served when it does.
  Child early = Child::fork([&](Link& link) {
    ConnectOptions options;
    options.socket = manager.socket;
    link.say("connecting");
    const auto client = Client::connect(options);
    link.say(outcome(client));
    return 0;
  });
  CHECK(early.hear() == "connecting");
  Child daemon = manager.start();
  CHECK(manager.notice("READY=1") != "");
  CHECK(early.hear() == "ok");
  ConnectOptions options;
  options.socket = manager.socket;
  auto client = Client::connect(options);
  REQUIRE(client);
  EXPECT_OK(put_bytes(*client, "x", 1000, 1));
  for (int i = 0; i < 3; ++i) CHECK(manager.notice("WATCHDOG=1") != "");
  daemon.kill(SIGTERM);
  CHECK(daemon.wait() == 0);
  CHECK(std::filesystem::exists(manager.socket));  // the manager's, not the daemon's
}

TEST_CASE("activation: the socket outlives the daemon: the next one serves the same clients") {
  Manager manager;
  ConnectOptions options;
  options.socket = manager.socket;
  Child first = manager.start();
  CHECK(manager.notice("READY=1") != "");
  auto client = Client::connect(options);
  REQUIRE(client);
  first.kill(SIGKILL);
  first.wait();
  Child second = manager.start();
  CHECK(manager.notice("READY=1") != "");
  CHECK(wait_until([&] { return client->ping().has_value(); }));
  second.kill(SIGTERM);
  CHECK(second.wait() == 0);
}

TEST_CASE("activation: descriptors meant for another process are not taken") {
  Manager manager;
  const TempDir other;
  Child daemon = Child::run(
      {find_program("SHMSTORED", "shmstored"), "--socket", other.file("socket")}, {}, [&] {
        const int log = ::open(other.file("log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
        ::dup2(log, STDERR_FILENO);
        ::setenv("LISTEN_PID", "1", 1);
        ::setenv("LISTEN_FDS", "1", 1);
        ::setenv("NOTIFY_SOCKET", manager.folder.file("notify").c_str(), 1);
      });
  CHECK(manager.notice("READY=1") != "");
  ConnectOptions options;
  options.socket = other.file("socket");
  EXPECT_OK(Client::connect(options));
  daemon.kill(SIGTERM);
  CHECK(daemon.wait() == 0);
}

TEST_CASE(
    "activation: a daemon that cannot start tells why to all who wait, so that none is left") {
  for (const auto& arguments : {std::vector<std::string>{"--config", "/no/such/file"},
                                std::vector<std::string>{"--no-such-option"}}) {
    Manager manager;
    std::vector<Child> waiting;
    for (int i = 0; i < 3; ++i) {
      waiting.push_back(Child::fork([&](Link& link) {
        ConnectOptions options;
        options.socket = manager.socket;
        link.say("connecting");
        link.say(describe(Client::connect(options)));
        return 0;
      }));
      CHECK(waiting.back().hear() == "connecting");
    }
    // Connections queue until somebody accepts them; a queued one makes the listener readable.
    pollfd queued{manager.listener.get(), POLLIN, 0};
    CHECK(::poll(&queued, 1, watchdog_seconds() * 1000) == 1);
    std::vector<Child> daemons;
    for (std::size_t told = 0; told < waiting.size();) {
      daemons.push_back(manager.start(true, arguments));
      CHECK(daemons.back().wait() != 0);
      for (; told < waiting.size(); ++told) {
        pollfd more{manager.listener.get(), POLLIN, 0};
        pollfd answer{waiting[told].link().fd(), POLLIN, 0};
        CHECK(wait_until([&] { return ::poll(&more, 1, 0) > 0 || ::poll(&answer, 1, 10) > 0; }));
        if (::poll(&answer, 1, 0) == 0) break;
        const std::string text = waiting[told].hear();
        CHECK_MESSAGE(text.find("the daemon cannot start: ") != std::string::npos, text);
      }
    }
    pollfd left{manager.listener.get(), POLLIN, 0};
    CHECK(::poll(&left, 1, 0) == 0);
  }
}

TEST_CASE("activation: a socket that is removed: its daemon serves its sessions, then ends") {
  Manager manager;
  Child daemon = manager.start();
  CHECK(manager.notice("READY=1") != "");
  ConnectOptions options;
  options.socket = manager.socket;
  {
    Client client = Client::connect(options).value();
    CreateOptions kept;
    kept.keep = true;
    EXPECT_OK(put_bytes(client, "x", 1000, 1, kept));
    std::filesystem::remove(manager.socket);
    EXPECT_OK(client.ping());
  }
  CHECK(daemon.wait() == 0);
}
