// No daemon anywhere: the client starts a private one, exactly one, which is nobody's child and
// keeps nothing of the process that started it.
#include <fcntl.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;

namespace {

/// A runtime folder of its own; stops the daemon that was started there.
class Runtime {
 public:
  Runtime() {
    ::chmod(folder_.path().c_str(), 0700);
    ::setenv("XDG_RUNTIME_DIR", folder_.path().c_str(), 1);
    ::setenv("SHMSTORE_DAEMON", find_program("SHMSTORED", "shmstored").c_str(), 1);
    ::unsetenv("SHMSTORE_AUTOSTART");
  }
  ~Runtime() {
    stop();
    ::unsetenv("XDG_RUNTIME_DIR");
    ::unsetenv("SHMSTORE_DAEMON");
    ::unsetenv("SHMSTORE_AUTOSTART");
  }
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  [[nodiscard]] std::string socket() const { return folder_.file("shmstore/socket"); }
  [[nodiscard]] const TempDir& folder() const { return folder_; }

  void stop() const {
    ConnectOptions options;
    options.socket = socket();
    options.reconnect_for = 0ms;
    Result<Client> client = Client::connect(options);
    if (!client) return;
    const auto pid = static_cast<pid_t>(client->status().value().pid);
    ::kill(pid, SIGTERM);
    CHECK(wait_until([&] { return process_state(pid) == '?'; }));
  }

 private:
  TempDir folder_;
};

bool system_daemon() {
  return std::filesystem::exists("/run/shmstore/socket");
}

}  // namespace

TEST_CASE("autostart: 32 processes at once start one daemon, and each has its array") {
  if (skip_unless(!system_daemon(), "a system daemon runs here")) return;
  const Runtime runtime;
  std::vector<Child> children;
  for (int i = 0; i < 32; ++i) {
    children.push_back(Child::fork([i](Link& link) {
      link.say("ready");
      static_cast<void>(link.hear());
      Result<Client> client = Client::connect();
      if (!client) {
        link.say(describe(client));
        return 1;
      }
      auto array = put_bytes(*client, "own" + std::to_string(i), 1000, 1);
      link.say(array ? std::to_string(client->status().value().pid) : describe(array));
      static_cast<void>(link.hear());
      return 0;
    }));
  }
  for (Child& child : children) CHECK(child.hear() == "ready");
  for (Child& child : children) child.say("go");
  std::set<std::string> daemons;
  for (Child& child : children) daemons.insert(child.hear());
  CHECK_MESSAGE(daemons.size() == 1, *daemons.begin(), " … ", *daemons.rbegin());
  ConnectOptions options;
  options.socket = runtime.socket();
  Client client = Client::connect(options).value();
  CHECK(client.list().value().size() == 32);
  struct stat info {};
  REQUIRE(::stat(runtime.folder().file("shmstore").c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0700);
}

TEST_CASE("autostart: the daemon outlives its starter and holds none of its descriptors") {
  if (skip_unless(!system_daemon(), "a system daemon runs here")) return;
  const Runtime runtime;
  const std::string marker = runtime.folder().file("marker");
  Child starter = Child::fork([&](Link& link) {
    FILE* open_file = std::fopen(marker.c_str(), "w");  // inheritable, as careless programs do
    Result<Client> client = Client::connect();
    CreateOptions keep;
    keep.keep = true;
    const bool put = client && put_bytes(*client, "kept", 1000, 1, keep).has_value();
    link.say(put ? std::to_string(client->status().value().pid) : describe(client));
    return open_file == nullptr ? 1 : 0;
  });
  const std::string pid = starter.hear();
  CHECK(starter.wait() == 0);
  Client client = Client::connect().value();
  CHECK(std::to_string(client.status().value().pid) == pid);
  CHECK(only_byte(client.attach_any("kept").value()) == 1);
  for (const auto& entry : std::filesystem::directory_iterator("/proc/" + pid + "/fd")) {
    std::error_code gone;
    CHECK(std::filesystem::read_symlink(entry.path(), gone).string() != marker);
  }
  for (const char* stdio : {"0", "1", "2"}) {
    CHECK(std::filesystem::read_symlink("/proc/" + pid + "/fd/" + stdio) == "/dev/null");
  }
}

TEST_CASE("autostart: a stale socket in the user's folder is no obstacle") {
  if (skip_unless(!system_daemon(), "a system daemon runs here")) return;
  const Runtime runtime;
  const auto pid_of_daemon = [] { return Client::connect().value().status().value().pid; };
  const auto first = static_cast<pid_t>(pid_of_daemon());
  ::kill(first, SIGKILL);
  REQUIRE(wait_until([&] { return process_state(first) == '?'; }));
  CHECK(std::filesystem::exists(runtime.socket()));
  CHECK(pid_of_daemon() != first);
}

TEST_CASE("autostart: turned off, or with a path that is final, nothing is started") {
  if (skip_unless(!system_daemon(), "a system daemon runs here")) return;
  const Runtime runtime;
  ConnectOptions options;
  options.reconnect_for = 0ms;
  options.autostart = false;
  EXPECT_ERROR(Client::connect(options), disconnected);
  options.autostart.reset();
  ::setenv("SHMSTORE_AUTOSTART", "0", 1);
  EXPECT_ERROR(Client::connect(options), disconnected);
  ::unsetenv("SHMSTORE_AUTOSTART");
  options.socket = runtime.folder().file("elsewhere");
  EXPECT_ERROR(Client::connect(options), disconnected);
  CHECK(!std::filesystem::exists(runtime.socket()));
}

TEST_CASE("autostart: a daemon that cannot start says why, in the error") {
  if (skip_unless(!system_daemon(), "a system daemon runs here")) return;
  const Runtime runtime;
  ::setenv("SHMSTORE_DAEMON", "/no/such/program", 1);
  const auto missing = Client::connect();
  EXPECT_ERROR(missing, disconnected);
  CHECK_MESSAGE(missing.error().text.find("/no/such/program") != std::string::npos,
                missing.error().text);
  ::setenv("SHMSTORE_DAEMON", "/bin/false", 1);
  EXPECT_ERROR(Client::connect(), disconnected);
}

TEST_CASE("autostart: a folder that is a link is refused") {
  if (skip_unless(!system_daemon(), "a system daemon runs here")) return;
  const Runtime runtime;
  const TempDir elsewhere;
  REQUIRE(::symlink(elsewhere.path().c_str(), runtime.folder().file("shmstore").c_str()) == 0);
  CHECK(outcome(Client::connect()) != "ok");
  CHECK(std::filesystem::is_empty(elsewhere.path()));
}

TEST_CASE("autostart: a program where others may put files is not executed") {
  if (skip_unless(!system_daemon(), "a system daemon runs here")) return;
  const Runtime runtime;
  const TempDir home;
  const std::string shared = home.file("shared");
  const std::string marker = home.file("executed");
  std::filesystem::create_directory(shared);
  std::filesystem::copy_file(find_program("SHMCTL", "shmctl"), shared + "/shmctl");
  std::ofstream(shared + "/shmstored") << "#!/bin/sh\n: > " << marker << "\n";
  ::chmod((shared + "/shmstored").c_str(), 0755);
  const auto create = [&](const std::string& path) {
    Child child = Child::run(
        {shared + "/shmctl", "create", "x", "--shape", "3", "--dtype", "f8"}, {"PATH=" + path},
        [&] {
          ::unsetenv("SHMSTORE_DAEMON");
          ::dup2(::open(home.file("errors").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
        });
    return child.wait();
  };
  for (const mode_t mode : {01777U, 0777U}) {
    ::chmod(shared.c_str(), mode);
    for (const std::string& path : {std::string("/usr/bin"), shared}) {
      CHECK(create(path) == 3);
      CHECK(!std::filesystem::exists(marker));
      std::ifstream errors(home.file("errors"));
      const std::string text{std::istreambuf_iterator<char>(errors), {}};
      CHECK_MESSAGE(text.find(shared) != std::string::npos, text);
    }
  }
  ::chmod(shared.c_str(), 0755);
  CHECK(create("/usr/bin") == 3);  // nobody else's: it is executed, and says nothing
  CHECK(std::filesystem::exists(marker));
}
