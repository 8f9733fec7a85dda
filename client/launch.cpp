// Between fork and exec nothing may be allocated and no lock taken: another thread may have held it
// when the process was copied. Everything is therefore made before, and the child makes system
// calls only. None of them is checked: what cannot be shed stays, and `shmctl doctor` names it.
#include "client/launch.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

namespace shmstore::client_internal {

namespace {

constexpr const char* kIdleSeconds = "60";
constexpr rlim_t kStackUsual = rlim_t{8} << 20U;
constexpr unsigned long kTimerSlackUsual = 50'000;

/// Everything that the new process needs.
struct Plan {
  Program program;
  std::vector<std::string> texts;      ///< The arguments.
  std::vector<std::string> variables;  ///< The environment.
  std::vector<char*> arguments;
  std::vector<char*> environment;
  OwnedFd null;
  OwnedFd report;
};

Error no_process() {
  return make_error(ErrorCode::no_capacity,
                    "no new process: " + std::string(strerrordesc_np(errno)));
}

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

/// The variables that the daemon, its loader and its sanitizers read; not the rest of a program's
/// world, above all no LD_PRELOAD.
std::vector<std::string> daemon_variables() {
  constexpr std::array<std::string_view, 7> kExact = {
      "HOME=", "LANG=", "LD_LIBRARY_PATH=", "LOGNAME=", "PATH=", "USER=", "XDG_RUNTIME_DIR="};
  constexpr std::array<std::string_view, 7> kBegin = {
      "SHMSTORE_",      "LC_",           "ASAN_OPTIONS=",     "GCOV_",
      "UBSAN_OPTIONS=", "TSAN_OPTIONS=", "LLVM_PROFILE_FILE="};
  std::vector<std::string> kept;
  for (char** variable = environ; variable != nullptr && *variable != nullptr; ++variable) {
    const std::string_view text(*variable);
    const auto begins = [text](std::string_view name) { return text.starts_with(name); };
    const bool wanted = std::any_of(kExact.begin(), kExact.end(), begins) ||
                        std::any_of(kBegin.begin(), kBegin.end(), begins);
    if (wanted && !begins("SHMSTORE_AUTOSTARTED=")) kept.emplace_back(text);
  }
  return kept;
}

void shed_limits() noexcept {
  // Core dumps stay as they are; an unlimited stack would change how memory is laid out.
  for (const auto resource : {RLIMIT_CPU, RLIMIT_FSIZE, RLIMIT_DATA, RLIMIT_AS, RLIMIT_NOFILE,
                              RLIMIT_NPROC, RLIMIT_MEMLOCK, RLIMIT_LOCKS, RLIMIT_SIGPENDING,
                              RLIMIT_MSGQUEUE, RLIMIT_NICE, RLIMIT_RTTIME, RLIMIT_STACK}) {
    rlimit limit{};
    if (getrlimit(resource, &limit) != 0) continue;
    limit.rlim_cur =
        resource == RLIMIT_STACK ? std::min(limit.rlim_max, kStackUsual) : limit.rlim_max;
    setrlimit(resource, &limit);
  }
}

void shed_scheduling() noexcept {
  const sched_param none{};
  sched_setscheduler(0, SCHED_OTHER, &none);
  setpriority(PRIO_PROCESS, 0, 0);
  std::array<unsigned char, 1024> every_cpu;
  every_cpu.fill(0xff);
  syscall(SYS_sched_setaffinity, 0, every_cpu.size(), every_cpu.data());
  syscall(SYS_set_mempolicy, 0, nullptr, 0);
  syscall(SYS_ioprio_set, 1, 0, 0);  // of this process: by its priority
  prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
  prctl(PR_SET_TIMERSLACK, kTimerSlackUsual, 0, 0, 0);
  const int score = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  static_cast<void>(!write(score, "0", 1));
  close(score);
}

void shed_signals() noexcept {
  struct sigaction usual {};
  usual.sa_handler = SIG_DFL;
  for (int signal = 1; signal < NSIG; ++signal) sigaction(signal, &usual, nullptr);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
}

[[noreturn]] void become(const Plan& plan) noexcept {
  dup2(plan.null.get(), STDIN_FILENO);
  dup2(plan.null.get(), STDOUT_FILENO);
  dup2(plan.report.get(), STDERR_FILENO);
  shed_limits();
  shed_scheduling();
  umask(077);
  static_cast<void>(!chdir("/"));
  shed_signals();
  execute_program(plan.program, plan.arguments.data(), plan.environment.data());
  constexpr std::string_view kText = "cannot be executed";
  static_cast<void>(!write(STDERR_FILENO, kText.data(), kText.size()));
  _exit(127);
}

/// Runs the plan in a grandchild, which nobody has to wait for. _Fork: no fork handlers run, which
/// would be work for nothing in a program with many libraries.
bool spawn(const Plan& plan) {
  sigset_t all;
  sigset_t mask;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &mask);  // The program's handlers are not for the child.
  const pid_t child = _Fork();
  if (child == 0) {
    setsid();
    const pid_t grandchild = _Fork();
    if (grandchild == 0) become(plan);
    _exit(grandchild < 0 ? 1 : 0);
  }
  int status = 0;
  bool ok = child > 0;
  while (child > 0 && waitpid(child, &status, 0) < 0) {
    if (errno == EINTR) continue;
    status = 0;  // ECHILD: the program waits for all its children itself.
    break;
  }
  ok = ok && status == 0;
  pthread_sigmask(SIG_SETMASK, &mask, nullptr);
  return ok;
}

Result<OwnedFd> carry_out(Plan plan) {
  plan.arguments = pointers_to(plan.texts);
  plan.environment = pointers_to(plan.variables);
  int ends[2] = {-1, -1};
  if (pipe2(ends, O_CLOEXEC) != 0) return no_process();
  OwnedFd listen_end(ends[0]);
  // Above the standard ones, which the child overwrites.
  plan.report.reset(fcntl(ends[1], F_DUPFD_CLOEXEC, 3));
  close(ends[1]);
  const OwnedFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  plan.null.reset(fcntl(null.get(), F_DUPFD_CLOEXEC, 3));
  if (!plan.report.valid() || !plan.null.valid() || !spawn(plan)) return no_process();
  return listen_end;
}

/// The user's own service manager, at the socket that it keeps for its tools.
bool manager_answers(const std::string& runtime) {
  const std::string path = runtime + "/systemd/private";
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return false;
  std::memcpy(address.sun_path, path.data(), path.size());
  const OwnedFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return false;
  }
  ucred peer{};
  socklen_t size = sizeof peer;
  // One of another process namespace (pid 0) would start the program outside of ours.
  return getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
         peer.uid == geteuid() && peer.pid > 0;
}

std::string parent_of(std::string path) {
  path.erase(std::min(path.rfind('/'), path.size()));
  return path;
}

}  // namespace

Result<OwnedFd> launch_here(Program program, const std::string& socket) {
  Plan plan;
  plan.texts = {program.path, "--socket", socket, "--idle-exit", kIdleSeconds};
  plan.variables = daemon_variables();
  plan.variables.emplace_back("SHMSTORE_AUTOSTARTED=1");
  plan.program = std::move(program);
  return carry_out(std::move(plan));
}

Result<OwnedFd> launch_in_manager(const Program& program, const std::string& socket) {
  const Error none = make_error(ErrorCode::not_found, "no service manager of the user");
  const char* wish = secure_getenv("SHMSTORE_AUTOSTART");
  const std::string runtime = parent_of(parent_of(socket));
  if (wish != nullptr && std::string_view(wish) == "inside") return none;
  if (!program.path.starts_with('/') || !manager_answers(runtime)) return none;
  const std::string tool = "/usr/bin/systemd-run";
  Result<OwnedFd> file = open_program(tool, Owners::own);
  if (!file) return none;
  Plan plan;
  plan.program = {tool, OwnedFd(fcntl(file->get(), F_DUPFD_CLOEXEC, 3))};
  plan.texts = {tool,
                "--user",
                "--quiet",
                "--collect",
                "--service-type=notify",
                "--description=Shared-memory object store that a program has started",
                "--setenv=SHMSTORE_AUTOSTARTED=manager"};
  for (const std::string& variable : daemon_variables()) {
    const bool passed = variable.starts_with("SHMSTORE_") || variable.starts_with("LD_");
    if (passed) plan.texts.push_back("--setenv=" + variable);
  }
  const std::initializer_list<std::string> command = {"--",   program.path,  "--socket",
                                                      socket, "--idle-exit", kIdleSeconds};
  plan.texts.insert(plan.texts.end(), command);
  plan.variables = {"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "XDG_RUNTIME_DIR=" + runtime};
  return carry_out(std::move(plan));
}

}  // namespace shmstore::client_internal
