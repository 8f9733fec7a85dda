#include "private_daemon.hpp"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <thread>

#include "unique_fd.hpp"

namespace shmctl {

using shmstore::ErrorCode;
using shmstore::make_error;
using shmstore::client_internal::find_daemon_program;
using shmstore::client_internal::Program;

namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kStartTimeMax = std::chrono::seconds(60);
constexpr auto kStopTimeMax = std::chrono::seconds(20);
constexpr auto kPollInterval = std::chrono::milliseconds(2);
constexpr std::size_t kLogLinesMax = 5;

/// True when `daemon` listens on the socket: another one may have been there before.
bool listens(pid_t daemon, const std::string& socket_path) {
  sockaddr_un address{};
  if (socket_path.size() >= sizeof(address.sun_path)) return false;
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, socket_path.c_str(), socket_path.size() + 1);
  const UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  // connect(2) takes the general address type; there is no other way to pass it.
  const auto* general = reinterpret_cast<const sockaddr*>(&address);
  if (::connect(fd.get(), general, sizeof(address)) != 0) return false;
  ucred peer{};
  socklen_t length = sizeof(peer);
  return getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.pid == daemon;
}

/// In the child: a daemon that hears no terminal and does not outlive shmctl.
[[noreturn]] void exec_daemon(const Program& program, std::string socket, int log, pid_t parent) {
  setsid();
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(1);  // shmctl ended before it took effect.
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  // A service manager's words to shmctl are not meant for this daemon.
  for (const char* name : {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS",
                           "LISTEN_PID", "LISTEN_FDNAMES", "SHMSTORE_AUTOSTARTED"}) {
    unsetenv(name);
  }
  const int null = open("/dev/null", O_RDWR);
  dup2(null, STDIN_FILENO);
  dup2(log, STDOUT_FILENO);
  dup2(log, STDERR_FILENO);
  std::string name = "shmstored";
  std::string option = "--socket";
  const std::array<char*, 4> arguments = {name.data(), option.data(), socket.data(), nullptr};
  execute_program(program, arguments.data(), environ);
  dprintf(STDERR_FILENO, "%s: %s\n", program.path.c_str(), std::strerror(errno));
  _exit(127);
}

}  // namespace

Result<PrivateDaemon> PrivateDaemon::start(const std::string& socket) {
  Result<Program> program = find_daemon_program();
  if (!program) return program.error();
  PrivateDaemon daemon;
  if (Result<void> made = daemon.make_folder(); !made) return made.error();
  daemon.socket_ = socket.empty() ? daemon.folder_ + "/socket" : socket;
  if (Result<void> spawned = daemon.spawn(*program); !spawned) return spawned.error();
  if (Result<void> ready = daemon.wait_until_ready(); !ready) return ready.error();
  return daemon;
}

PrivateDaemon::PrivateDaemon(PrivateDaemon&& other) noexcept
    : folder_(std::exchange(other.folder_, {})),
      socket_(std::move(other.socket_)),
      pid_(other.pid_),
      alive_(std::exchange(other.alive_, false)) {}

PrivateDaemon::~PrivateDaemon() {
  stop();
  if (folder_.empty()) return;
  for (const char* name : {"/log", "/socket", "/socket.lock"}) {
    unlink((folder_ + name).c_str());
  }
  rmdir(folder_.c_str());
}

Result<void> PrivateDaemon::make_folder() {
  const char* temporary = std::getenv("TMPDIR");
  std::string folder = temporary == nullptr || *temporary == '\0' ? "/tmp" : temporary;
  // A socket's path has at most 107 bytes; what is added here has 25, and a lock's suffix 5.
  if (folder.size() > 107 - 25 - 5) folder = "/tmp";
  folder += "/shmctl-run-XXXXXX";
  if (mkdtemp(folder.data()) == nullptr) return file_error(folder, errno);
  folder_ = folder;
  return {};
}

Result<void> PrivateDaemon::spawn(const Program& program) {
  const std::string log_path = folder_ + "/log";
  const UniqueFd log(open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (!log.valid()) return file_error(log_path, errno);
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child < 0) return file_error("fork", errno);
  if (child == 0) exec_daemon(program, socket_, log.get(), parent);
  pid_ = child;
  alive_ = true;
  return {};
}

Result<void> PrivateDaemon::wait_until_ready() {
  const auto end = Clock::now() + kStartTimeMax;
  while (Clock::now() < end) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      alive_ = false;
      return make_error(ErrorCode::disconnected, "the private daemon did not start: " + log_tail());
    }
    if (listens(pid_, socket_)) return {};
    std::this_thread::sleep_for(kPollInterval);
  }
  return make_error(ErrorCode::disconnected, "the private daemon did not listen: " + log_tail());
}

void PrivateDaemon::stop() noexcept {
  if (!alive_) return;
  alive_ = false;
  kill(pid_, SIGTERM);
  const auto end = Clock::now() + kStopTimeMax;
  while (waitpid(pid_, nullptr, WNOHANG) == 0) {
    if (Clock::now() >= end) kill(pid_, SIGKILL);
    std::this_thread::sleep_for(kPollInterval);
  }
}

std::string PrivateDaemon::log_tail() const {
  std::ifstream file(folder_ + "/log");
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  std::string text;
  const std::size_t first = lines.size() > kLogLinesMax ? lines.size() - kLogLinesMax : 0;
  for (std::size_t i = first; i < lines.size(); ++i) text += (i == first ? "" : "; ") + lines[i];
  return text.empty() ? "it said nothing" : text;
}

}  // namespace shmctl
