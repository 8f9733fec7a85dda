// The daemon as a program: exit codes, sockets it finds and leaves, configuration, signals, idling.
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <array>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;

namespace {

constexpr std::uint64_t kMib = 1 << 20;

struct Ended {
  int code = -1;
  std::string text;  ///< Both output streams.
};

/// Runs a daemon that is expected to end by itself.
Ended run_daemon(const std::vector<std::string>& arguments,
                 const std::function<void()>& before_exec = {}) {
  const TempDir folder;
  const std::string log = folder.file("output");
  std::vector<std::string> command = {find_program("SHMSTORED", "shmstored")};
  command.insert(command.end(), arguments.begin(), arguments.end());
  Child daemon = Child::run(command, {}, [&] {
    const int fd = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    ::dup2(fd, STDOUT_FILENO);
    ::dup2(fd, STDERR_FILENO);
    if (before_exec) before_exec();
  });
  Ended ended;
  ended.code = daemon.wait();
  std::ifstream file(log);
  ended.text.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  return ended;
}

void write_file(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::trunc) << text;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// Binds a socket and closes it: what a killed daemon leaves.
void leave_stale_socket(const std::string& path) {
  const UniqueFd stale(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  REQUIRE(::bind(stale.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(::listen(stale.get(), 1) == 0);
}

}  // namespace

TEST_CASE("daemon: exit codes and what it says") {
  const TempDir folder;
  const std::string socket = folder.file("socket");
  CHECK(run_daemon({"--help"}).code == 0);
  const Ended version = run_daemon({"--version"});
  CHECK(version.code == 0);
  CHECK(contains(version.text, SHMSTORE_VERSION_STRING));
  CHECK(run_daemon({"--no-such-option"}).code == 2);
  for (const char* size : {"x", "-1", "10Q", "", "101%", "99999999999999999999"}) {
    const Ended bad = run_daemon({"--socket", socket, "--capacity", size});
    CHECK_MESSAGE(bad.code == 2, size);
    CHECK_MESSAGE(contains(bad.text, "capacity"), bad.text);
  }
  const Ended level = run_daemon({"--socket", socket, "--log-level", "loud"});
  CHECK(level.code == 2);
  const Ended supervise = run_daemon({"--supervise", "--socket", socket});
  CHECK(supervise.code == 2);
  CHECK(contains(supervise.text, "supervise"));
  const Ended nowhere = run_daemon({"--socket", folder.file("no/such/folder/socket")});
  CHECK(nowhere.code == 1);
  CHECK(contains(nowhere.text, "no/such/folder"));
  const Ended too_long = run_daemon({"--socket", folder.file(std::string(200, 'x'))});
  CHECK((too_long.code == 1 || too_long.code == 2));
}

TEST_CASE("daemon: without memory files it says so at the start") {
  const TempDir folder;
  const Ended ended = run_daemon({"--socket", folder.file("socket")}, [] {
    // A sandbox that does not know the call.
    std::array<sock_filter, 4> program = {{
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_memfd_create, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    }};
    const sock_fprog filter{program.size(), program.data()};
    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0);
  });
  CHECK(ended.code == 1);
  CHECK_MESSAGE(contains(ended.text, "memory files do not work here"), ended.text);
  CHECK_MESSAGE(contains(ended.text, "memfd_create"), ended.text);
  CHECK_FALSE(std::filesystem::exists(folder.file("socket")));
}

TEST_CASE("daemon: with too few open files it says so at the start") {
  const TempDir folder;
  const Ended ended = run_daemon({"--socket", folder.file("socket")}, [] {
    const rlimit few{40, 40};
    ::setrlimit(RLIMIT_NOFILE, &few);
  });
  CHECK(ended.code == 1);
  CHECK_MESSAGE(contains(ended.text, "open files: the limit is 40"), ended.text);
}

TEST_CASE("daemon: without /proc it says so at the start") {
  if (skip_unless(is_root(), "hiding /proc needs root")) return;
  if (skip_unless(!kSanitized, "the sanitizers need /proc themselves")) return;
  const TempDir folder;
  const std::string flag = folder.file("hidden");
  const Ended ended = run_daemon({"--socket", folder.file("socket")}, [&] {
    if (::unshare(CLONE_NEWNS) != 0) ::_exit(77);
    ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
    if (::mount("none", "/proc", "tmpfs", 0, nullptr) == 0) ::creat(flag.c_str(), 0600);
    if (!std::filesystem::exists(flag)) ::_exit(77);
  });
  if (skip_unless(std::filesystem::exists(flag), "no mount namespace to be had")) return;
  CHECK(ended.code == 1);
  CHECK_MESSAGE(contains(ended.text, "/proc has to be mounted"), ended.text);
}

TEST_CASE("daemon: a second one on the same socket is refused, the first goes on") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  const Ended second = run_daemon({"--socket", daemon.socket()});
  CHECK(second.code == 1);
  CHECK_MESSAGE(contains(second.text, daemon.socket()), second.text);
  EXPECT_OK(client.ping());
  EXPECT_OK(daemon.connect().ping());
}

TEST_CASE("daemon: a stale socket is replaced; any other file is left alone") {
  DaemonOptions options;
  DaemonFixture daemon(options);
  daemon.kill();
  CHECK(std::filesystem::exists(daemon.socket()));
  daemon.start();
  EXPECT_OK(daemon.connect().ping());

  const TempDir folder;
  leave_stale_socket(folder.file("stale"));
  CHECK(run_daemon({"--socket", folder.file("stale"), "--idle-exit", "1"}).code == 0);
  write_file(folder.file("precious"), "data");
  CHECK(run_daemon({"--socket", folder.file("precious")}).code == 1);
  CHECK(std::filesystem::file_size(folder.file("precious")) == 4);
}

TEST_CASE("daemon: SIGTERM and SIGINT are a clean stop that removes the socket") {
  for (const int signal : {SIGTERM, SIGINT}) {
    DaemonFixture daemon;
    Client client = daemon.connect();
    auto array = put_bytes(client, "x", 1000, 1);
    daemon.process().kill(signal);
    CHECK(daemon.process().wait() == 0);
    CHECK(!std::filesystem::exists(daemon.socket()));
    CHECK(only_byte(*array) == 1);
    CHECK(daemon.stop() == 0);
  }
}

TEST_CASE("daemon: a socket of its own mode is made for its own user only") {
  DaemonFixture daemon;
  struct stat info {};
  REQUIRE(::stat(daemon.socket().c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0600);
}

TEST_CASE("daemon: the configuration file, and SIGHUP") {
  const TempDir folder;
  const std::string config = folder.file("config.json");
  write_file(config, R"({"capacity": "16MiB", "user-quota": "8MiB"})");
  DaemonOptions options;
  options.capacity = "";
  options.arguments = {"--config", config};
  DaemonFixture daemon(options);
  Client client = daemon.connect();
  CHECK(client.status().value().capacity == 16 * kMib);
  EXPECT_ERROR(put_bytes(client, "x", 9 * kMib, 1), quota_exceeded);
  write_file(config, R"({"capacity": "32MiB", "user-quota": "20MiB"})");
  daemon.process().kill(SIGHUP);
  CHECK(wait_until([&] { return client.status().value().capacity == 32 * kMib; }));
  EXPECT_OK(put_bytes(client, "x", 9 * kMib, 1));
  write_file(config, R"({"capacity": )");  // broken: the old one stays in force
  daemon.process().kill(SIGHUP);
  CHECK(wait_until([&] { return contains(daemon.log(), config); }));
  CHECK(client.status().value().capacity == 32 * kMib);
  EXPECT_OK(client.ping());
}

TEST_CASE("daemon: flags win over the configuration file") {
  const TempDir folder;
  const std::string config = folder.file("config.json");
  write_file(config, R"({"capacity": "16MiB"})");
  DaemonOptions options;
  options.capacity = "24MiB";
  options.arguments = {"--config", config};
  DaemonFixture daemon(options);
  Client client = daemon.connect();
  CHECK(client.status().value().capacity == 24 * kMib);
}

TEST_CASE("daemon: a bad configuration file stops the start and names the field") {
  const TempDir folder;
  const std::string config = folder.file("config.json");
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"({"capacity": true})", "capacity"},
      {R"({"capacity": "much"})", "capacity"},
      {R"({"user-quota": []})", "user-quota"},
      {R"({"idle-exit": "soon"})", "idle-exit"},
      {R"({"log-level": 7})", "log-level"},
      {R"({"colour": "red"})", "colour"},
      {R"([1, 2])", "config.json"},
      {R"({"capacity": )", "config.json"},
      {std::string(100, '['), "config.json"},
  };
  for (const auto& [text, field] : cases) {
    CAPTURE(text);
    write_file(config, text);
    const Ended ended = run_daemon({"--socket", folder.file("socket"), "--config", config});
    CHECK((ended.code == 1 || ended.code == 2));
    CHECK_MESSAGE(contains(ended.text, field), ended.text);
  }
  const Ended missing =
      run_daemon({"--socket", folder.file("socket"), "--config", folder.file("none")});
  CHECK(missing.code != 0);
  CHECK_MESSAGE(contains(missing.text, folder.file("none")), missing.text);
}

TEST_CASE("daemon: the config file that is installed can be read, and repeats the defaults") {
  std::ifstream file(std::string(SHMSTORE_TESTS_DIR) + "/../systemd/shmstored.json");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  REQUIRE(!text.empty());
  std::istringstream lines(text);
  std::string all_named;
  std::size_t values = 0;
  for (std::string line; std::getline(lines, line); all_named += line + "\n") {
    if (!line.starts_with("  // \"")) continue;
    line.erase(2, 3);
    ++values;
  }
  CHECK(values == 7);
  const TempDir folder;
  std::string defaults;
  for (const std::string& config : {text, all_named}) {
    write_file(folder.file("config.json"), config);
    DaemonOptions options;
    options.capacity = "";
    options.arguments = {"--config=-" + folder.file("config.json")};
    DaemonFixture daemon(options);
    Client client = daemon.connect();
    const StoreStatus status = client.status().value();
    REQUIRE(!status.uids.empty());
    const std::string said = std::to_string(status.capacity) + " " +
                             std::to_string(status.uids.front().bytes_max) + " " +
                             std::to_string(status.uids.front().arrays_max);
    if (defaults.empty()) defaults = said;
    CHECK(said == defaults);
    daemon.process().kill(SIGHUP);
    CHECK(wait_until([&] { return contains(daemon.log(), "config read again"); }));
  }
}

TEST_CASE("daemon: a config file that may be missing, and one that everybody may write to") {
  const TempDir folder;
  const std::string config = folder.file("config.json");
  DaemonOptions options;
  options.capacity = "";
  options.arguments = {"--config=-" + config};
  DaemonFixture daemon(options);
  Client client = daemon.connect();
  write_file(config, R"({"capacity": "32MiB"})");
  daemon.process().kill(SIGHUP);
  CHECK(wait_until([&] { return client.status().value().capacity == 32 * kMib; }));
  ::chmod(config.c_str(), 0646);
  const Ended ended = run_daemon({"--socket", folder.file("socket"), "--config", config});
  CHECK(ended.code == 1);
  CHECK_MESSAGE(contains(ended.text, "by everybody"), ended.text);
  write_file(config, R"({"capacity": "16MiB"})");
  daemon.process().kill(SIGHUP);
  CHECK(wait_until([&] { return contains(daemon.log(), "by everybody"); }));
  CHECK(client.status().value().capacity == 32 * kMib);
}

TEST_CASE("daemon: --idle-exit ends it once nothing is held, and not before") {
  DaemonOptions options;
  options.arguments = {"--idle-exit", "1"};
  DaemonFixture daemon(options);
  {
    Client client = daemon.connect();
    CreateOptions keep;
    keep.keep = true;
    EXPECT_OK(put_bytes(client, "kept", 1000, 1, keep));
    CHECK(wait_until([&] { return client.status().value().uptime_s > 2; }));  // a session
  }
  const auto idle_since = std::chrono::steady_clock::now();
  CHECK(wait_until([&] {
    return daemon.process().ended() || std::chrono::steady_clock::now() > idle_since + 2s;
  }));
  CHECK(!daemon.process().ended());  // a kept array
  EXPECT_OK(daemon.connect().remove("kept"));
  CHECK(daemon.process().wait() == 0);
  CHECK(!std::filesystem::exists(daemon.socket()));
  CHECK(daemon.stop() == 0);
}

TEST_CASE("daemon: log lines are one line each, with journald's prefixes when run there") {
  DaemonOptions options;
  DaemonFixture plain(options);
  const TempDir folder;
  options.before_exec = [] {
    struct stat info {};
    ::fstat(STDERR_FILENO, &info);
    const std::string stream = std::to_string(info.st_dev) + ":" + std::to_string(info.st_ino);
    ::setenv("JOURNAL_STREAM", stream.c_str(), 1);
  };
  DaemonFixture journal(options);
  CHECK(plain.stop() == 0);
  CHECK(journal.stop() == 0);
  REQUIRE(!plain.log().empty());
  CHECK(plain.log().front() != '<');
  CHECK(plain.log().back() == '\n');
  std::istringstream lines(journal.log());
  for (std::string line; std::getline(lines, line);) {
    CHECK_MESSAGE((line.size() > 3 && line[0] == '<' && line[2] == '>'), line);
  }
}

TEST_CASE("daemon: metrics are OpenMetrics text") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto array = put_bytes(client, "x", 1000, 1);
  const std::string metrics = client.admin("metrics").value();
  CHECK(contains(metrics, "# TYPE"));
  CHECK(contains(metrics, "# EOF"));
  CHECK(contains(metrics, "shmstore_"));
}

TEST_CASE("daemon: its descriptors and sessions return to what they were") {
  DaemonFixture daemon;
  REQUIRE(daemon.settles_empty());
  const std::size_t fds = daemon.settled_fds();
  for (int round = 0; round < 5; ++round) {
    Client client = daemon.connect();
    for (int i = 0; i < 20; ++i) {
      auto array = put_bytes(client, "x" + std::to_string(i), 100'000, 1);
      REQUIRE(array);
    }
    auto watch = client.watch();
    REQUIRE(watch);
  }
  CHECK(daemon.settles_empty());
  CHECK(daemon.settles_fds(fds));
}
