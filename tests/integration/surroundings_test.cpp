// What the first client's process is limited to, bound to and named does not live on in the daemon
// that it starts; what cannot be shed is named.
#include <fcntl.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;

namespace {

namespace fs = std::filesystem;

constexpr uid_t kAlice = 65001;

bool system_daemon() {
  return fs::exists("/run/shmstore/socket");
}

/// A runtime folder, in which a child's first call starts a daemon; ends that one.
class Runtime {
 public:
  Runtime() {
    ::chmod(folder_.path().c_str(), 0700);
    fs::create_directory(folder_.file("bin"));
    // Where other users can reach it.
    fs::copy_file(find_program("SHMSTORED", "shmstored"), program());
  }
  ~Runtime() {
    if (daemon_ == 0) return;
    ::kill(daemon_, SIGTERM);
    CHECK(wait_until([this] { return process_state(daemon_) == '?'; }));
  }
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;
  [[nodiscard]] const TempDir& folder() const { return folder_; }
  [[nodiscard]] std::string program() const { return folder_.file("bin/shmstored"); }

  /// In a child: makes the folder's store the one to use.
  void enter() const {
    ::setenv("XDG_RUNTIME_DIR", folder_.path().c_str(), 1);
    ::setenv("SHMSTORE_DAEMON", program().c_str(), 1);
    ::unsetenv("SHMSTORE_AUTOSTART");
    ::unsetenv("SHMSTORE_SOCKET");
  }
  /// Runs `strange`, then a client; returns the pid of the daemon that it has started.
  pid_t start(const std::function<void()>& strange) {
    Child child = Child::fork([&](Link& link) {
      enter();
      strange();
      Result<Client> client = Client::connect();
      link.say(client ? std::to_string(client->status().value().pid) : describe(client));
      static_cast<void>(link.hear());  // limits would end this process early
      return 0;
    });
    const std::string said = child.hear();
    daemon_ = std::atoi(said.c_str());
    REQUIRE_MESSAGE(daemon_ > 0, said);
    return daemon_;
  }

 private:
  TempDir folder_;
  pid_t daemon_ = 0;
};

std::string proc(pid_t pid, const std::string& name) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/" + name);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// The value of a line "Key:\tvalue" of /proc/PID/status.
std::string status_of(pid_t pid, const std::string& key) {
  const std::string text = proc(pid, "status");
  const std::size_t at = text.find("\n" + key + ":\t") + key.size() + 3;
  return text.substr(at, text.find('\n', at) - at);
}

rlimit limit_of(pid_t pid, int resource) {
  rlimit limit{};
  ::prlimit(pid, static_cast<__rlimit_resource>(resource), nullptr, &limit);
  return limit;
}

void lower(int resource, rlim_t soft) {
  rlimit limit{};
  ::getrlimit(static_cast<__rlimit_resource>(resource), &limit);
  limit.rlim_cur = std::min(soft, limit.rlim_max);
  ::setrlimit(static_cast<__rlimit_resource>(resource), &limit);
}

}  // namespace

TEST_CASE("surroundings: soft limits of the first client are not the daemon's") {
  if (skip_unless(!system_daemon(), "a system daemon runs here")) return;
  Runtime runtime;
  const pid_t daemon = runtime.start([] {
    lower(RLIMIT_CPU, 1000);
    lower(RLIMIT_FSIZE, 512'000);
    lower(RLIMIT_NOFILE, 64);
    lower(RLIMIT_MEMLOCK, 4096);
  });
  for (const int resource : {RLIMIT_CPU, RLIMIT_FSIZE, RLIMIT_NOFILE, RLIMIT_MEMLOCK}) {
    CAPTURE(resource);
    const rlimit limit = limit_of(daemon, resource);
    CHECK(limit.rlim_cur == limit.rlim_max);
  }
}

TEST_CASE(
    "surroundings: binding, priority and OOM score of the first client are not the daemon's") {
  if (skip_unless(!system_daemon(), "a system daemon runs here")) return;
  cpu_set_t all;
  REQUIRE(::sched_getaffinity(0, sizeof all, &all) == 0);
  Runtime runtime;
  const pid_t daemon = runtime.start([] {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(static_cast<std::size_t>(::sched_getcpu()), &one);
    ::sched_setaffinity(0, sizeof one, &one);
    ::setpriority(PRIO_PROCESS, 0, 7);
    std::ofstream("/proc/self/oom_score_adj") << "500";
  });
  cpu_set_t its;
  REQUIRE(::sched_getaffinity(daemon, sizeof its, &its) == 0);
  CHECK(CPU_COUNT(&its) >= CPU_COUNT(&all));
  CHECK(proc(daemon, "oom_score_adj") == "0\n");
  // Who may not raise a priority keeps it; root may.
  if (is_root()) CHECK(::getpriority(PRIO_PROCESS, static_cast<id_t>(daemon)) == 0);
}

TEST_CASE("surroundings: signals, folder, umask and variables of the first client stay with it") {
  if (skip_unless(!system_daemon(), "a system daemon runs here")) return;
  Runtime runtime;
  const pid_t daemon = runtime.start([&] {
    ::signal(SIGTERM, SIG_IGN);
    ::signal(SIGUSR1, SIG_IGN);
    sigset_t mask;
    ::sigfillset(&mask);
    ::sigprocmask(SIG_BLOCK, &mask, nullptr);
    ::umask(0);
    ::setenv("SECRET_OF_THE_JOB", "1", 1);
    ::setenv("MALLOC_ARENA_MAX", "1", 1);
    static_cast<void>(!::chdir(runtime.folder().path().c_str()));
  });
  const unsigned long ignored = std::stoul(status_of(daemon, "SigIgn"), nullptr, 16);
  CHECK((ignored & (1UL << (SIGUSR1 - 1))) == 0);
  CHECK(status_of(daemon, "Umask") == "0077");
  CHECK(fs::read_symlink("/proc/" + std::to_string(daemon) + "/cwd") == "/");
  CHECK(proc(daemon, "comm") == "shmstored\n");
  const std::string variables = proc(daemon, "environ");
  CHECK(variables.find("SECRET_OF_THE_JOB") == std::string::npos);
  CHECK(variables.find("MALLOC_ARENA_MAX") == std::string::npos);
}

TEST_CASE("surroundings: a umask that takes everything leaves a folder that works") {
  if (skip_unless(!system_daemon(), "a system daemon runs here")) return;
  Runtime runtime;
  const uid_t user = is_root() ? kAlice : ::geteuid();
  if (is_root()) REQUIRE(::chown(runtime.folder().path().c_str(), kAlice, kAlice) == 0);
  const auto as_user = [&](const Child::Body& body) {
    return is_root() ? Child::fork_as(user, body) : Child::fork(body);
  };
  Child first = as_user([&](Link& link) {
    runtime.enter();
    ::umask(0777);
    Result<Client> client = Client::connect();
    link.say(describe(client));
    if (client) ::kill(static_cast<pid_t>(client->status().value().pid), SIGKILL);
    return 0;
  });
  CHECK(first.hear() == "ok");
  first.wait();
  struct stat info {};
  for (const auto& [name, mode] : {std::pair{"shmstore", 0700}, {"shmstore/start.lock", 0600}}) {
    REQUIRE(::stat(runtime.folder().file(name).c_str(), &info) == 0);
    CHECK((info.st_mode & 0777) == static_cast<mode_t>(mode));
  }
  // What an earlier version has left.
  ::chmod(runtime.folder().file("shmstore/start.lock").c_str(), 0);
  ::chmod(runtime.folder().file("shmstore").c_str(), 0);
  Child second = as_user([&](Link& link) {
    runtime.enter();
    Result<Client> client = Client::connect();
    link.say(describe(client));
    if (client) ::kill(static_cast<pid_t>(client->status().value().pid), SIGTERM);
    return 0;
  });
  CHECK(second.hear() == "ok");
}

TEST_CASE("surroundings: a hard limit is an error that names it, and the daemon lives") {
  if (skip_unless(!system_daemon(), "a system daemon runs here")) return;
  DaemonOptions options;
  options.before_exec = [] {
    const rlimit limit{1 << 20, 1 << 20};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  };
  DaemonFixture daemon(options);
  Client client = daemon.connect();
  const auto refused = create_bytes(client, "x", 4 << 20);
  EXPECT_ERROR(refused, no_capacity);
  CHECK_MESSAGE(describe(refused).find("ulimit -f") != std::string::npos, describe(refused));
  EXPECT_OK(client.ping());
}
