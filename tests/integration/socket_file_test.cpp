// The socket's file is removed or replaced by others: a tmp cleaner, the end of a login session, a
// service manager. A daemon stays reachable, or ends; it never removes another's socket.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;

namespace {

namespace fs = std::filesystem;

/// What a tmp cleaner does; again when a daemon that binds anew has filled the folder meanwhile.
void remove_whole(const std::string& path) {
  REQUIRE(wait_until([&] {
    std::error_code failed;
    fs::remove_all(path, failed);
    return !failed;
  }));
}

/// A runtime folder, and daemons at its well-known path.
struct Place {
  TempDir runtime;
  std::string folder = runtime.file("shmstore");
  std::string socket = folder + "/socket";

  Place() { ::chmod(runtime.path().c_str(), 0700); }

  Child start(const std::vector<std::string>& environment = {},
              const std::function<void()>& before_exec = {}) const {
    std::vector<std::string> all = environment;
    all.push_back("XDG_RUNTIME_DIR=" + runtime.path());
    return Child::run({find_program("SHMSTORED", "shmstored"), "--socket", socket}, all, [&] {
      const int log = ::open(runtime.file("log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
      ::dup2(log, STDERR_FILENO);
      if (before_exec) before_exec();
    });
  }
  [[nodiscard]] Result<Client> connect() const {
    ConnectOptions options;
    options.socket = socket;
    options.reconnect_for = 0ms;
    return Client::connect(options);
  }
  /// True once the daemon at the path is this one.
  [[nodiscard]] bool reaches(const Child& daemon) const {
    return wait_until([&] {
      Result<Client> client = connect();
      if (!client) return false;
      Result<StoreStatus> status = client->status();
      return status && status->pid == daemon.pid();
    });
  }
  /// Waits for the end of every session: a daemon that has one is not idle.
  void leave_alone(const Child& daemon) const {
    std::size_t descriptors = 0;
    {
      Client last = connect().value();
      REQUIRE(wait_until([&] { return last.status().value().sessions == 1; }));
      descriptors = fd_count(daemon.pid());
    }
    REQUIRE(wait_until([&] { return fd_count(daemon.pid()) < descriptors; }));
  }
  void keep(const std::string& name) const {
    Client client = connect().value();
    CreateOptions kept;
    kept.keep = true;
    EXPECT_OK(put_bytes(client, name, 1000, 7, kept));
  }
  [[nodiscard]] bool keeps(const std::string& name) const {
    Result<Client> client = connect();
    return client && client->exists(name).value();
  }
  [[nodiscard]] std::string log() const {
    std::ifstream file(runtime.file("log"));
    return {std::istreambuf_iterator<char>(file), {}};
  }
  /// A second daemon at the path of the first, which does not notice before it goes on.
  Child replace(const Child& first) const {
    REQUIRE(stop_process(first));
    remove_whole(folder);
    Child second = start();
    CHECK(reaches(second));
    return second;
  }
};

/// A socket of a service manager at `path`, whatever was there.
UniqueFd managers_socket(const std::string& path) {
  ::unlink(path.c_str());
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  REQUIRE(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(::listen(fd.get(), 16) == 0);
  return fd;
}

Child activate(const Place& place, const UniqueFd& listener) {
  return place.start({}, [&] {
    ::dup2(listener.get(), 3);
    if (listener.get() == 3) ::fcntl(3, F_SETFD, 0);
    ::setenv("LISTEN_PID", std::to_string(::getpid()).c_str(), 1);
    ::setenv("LISTEN_FDS", "1", 1);
  });
}

}  // namespace

TEST_CASE("socket file: a daemon that ends leaves its successor's alone") {
  const Place place;
  Child first = place.start();
  REQUIRE(place.reaches(first));
  Child second = place.replace(first);
  first.kill(SIGTERM);
  first.kill(SIGCONT);
  CHECK(first.wait() == 0);
  CHECK(fs::exists(place.socket));
  CHECK(fs::exists(place.socket + ".lock"));
  CHECK(place.reaches(second));
  second.kill(SIGTERM);
  CHECK(second.wait() == 0);
  CHECK(!fs::exists(place.socket));
  CHECK(!fs::exists(place.socket + ".lock"));
}

TEST_CASE("socket file: a daemon whose socket or folder was removed is reached again") {
  const Place place;
  Child daemon = place.start();
  REQUIRE(place.reaches(daemon));
  place.keep("x");
  for (const std::string& gone : {place.socket, place.folder, place.socket + ".lock"}) {
    CAPTURE(gone);
    remove_whole(gone);
    CHECK(place.reaches(daemon));
    CHECK(place.keeps("x"));
  }
  daemon.kill(SIGTERM);
  CHECK(daemon.wait() == 0);
}

TEST_CASE("socket file: a daemon that nobody can reach serves its sessions, then ends") {
  const Place place;
  Child first = place.start();
  REQUIRE(place.reaches(first));
  place.keep("x");
  std::optional<Client> client = place.connect().value();
  Child second = place.replace(first);
  first.kill(SIGCONT);
  CHECK(wait_until([&] { return place.log().find("socket lost") != std::string::npos; }));
  EXPECT_OK(client->ping());
  CHECK(client->exists("x").value());
  client.reset();
  CHECK(first.wait() == 0);  // although it keeps an array
  CHECK(place.reaches(second));
  second.kill(SIGTERM);
  CHECK(second.wait() == 0);
}

TEST_CASE("socket file: a fork of a forgotten daemon's client hears that its store is another") {
  const Place place;
  Child first = place.start();
  REQUIRE(place.reaches(first));
  place.keep("x");
  Child parent = Child::fork([&](Link& link) {
    Client client = place.connect().value();
    link.say("connected");
    static_cast<void>(link.hear());
    link.say(outcome(client.info("x")));
    Child child = Child::fork([&](Link& inner) {
      ::dup2(::open(place.runtime.file("words").c_str(), O_WRONLY | O_CREAT, 0600), 2);
      inner.say(describe(client.info("x")));
      return 0;
    });
    link.say(child.hear());
    return 0;
  });
  CHECK(parent.hear() == "connected");
  Child second = place.replace(first);
  first.kill(SIGCONT);
  parent.say("go");
  CHECK(parent.hear() == "ok");
  const std::string text = parent.hear();
  CHECK_MESSAGE(text.starts_with("not_found: "), text);
  CHECK_MESSAGE(text.find("another one than this program used") != std::string::npos, text);
  std::ifstream words(place.runtime.file("words"));
  const std::string said{std::istreambuf_iterator<char>(words), {}};
  CHECK_MESSAGE(said.find("shmstore: the store at " + place.socket) == 0, said);
  CHECK(parent.wait() == 0);
  CHECK(first.wait() == 0);
  second.kill(SIGTERM);
  CHECK(second.wait() == 0);
}

TEST_CASE("socket file: a service manager that takes the place of a daemon with arrays") {
  const Place place;
  Child first = place.start();
  REQUIRE(place.reaches(first));
  place.keep("x");
  REQUIRE(stop_process(first));
  const UniqueFd listener = managers_socket(place.socket);
  Child second = activate(place, listener);
  first.kill(SIGCONT);
  CHECK(second.wait() == 0);  // it gives way
  CHECK(place.log().find("(pid " + std::to_string(first.pid()) + ")") != std::string::npos);
  CHECK(place.reaches(first));
  CHECK(place.keeps("x"));
  first.kill(SIGTERM);
  CHECK(first.wait() == 0);
}

TEST_CASE("socket file: a started daemon that is idle gives way to a service manager") {
  const Place place;
  Child first = place.start({"SHMSTORE_AUTOSTARTED=1"});
  REQUIRE(place.reaches(first));
  place.leave_alone(first);
  const UniqueFd listener = managers_socket(place.socket);
  Child second = activate(place, listener);
  CHECK(first.wait() == 0);
  CHECK(place.reaches(second));
  second.kill(SIGTERM);
  CHECK(second.wait() == 0);
  CHECK(fs::exists(place.socket));  // the manager's
}

TEST_CASE("socket file: two daemons started for the same missing socket end in one") {
  const Place place;
  Child first = place.start();
  REQUIRE(place.reaches(first));
  place.keep("x");
  // The lock's holder comes back while the second one waits for it.
  REQUIRE(stop_process(first));
  fs::remove(place.socket);
  Child second = place.start();
  first.kill(SIGCONT);
  CHECK(second.wait() == 1);
  CHECK(place.reaches(first));
  CHECK(place.keeps("x"));
  first.kill(SIGTERM);
  CHECK(first.wait() == 0);
}
