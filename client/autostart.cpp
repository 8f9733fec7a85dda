// Who starts: the holder of a lock on `start.lock` in the socket's folder. The others keep trying
// to connect meanwhile, so they go on as soon as the daemon listens. The daemon writes to the pipe
// we give it as stderr until it listens, then lets go of it: the end of the pipe is the news, what
// came before it the reason if it failed.
#include "client/autostart.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string_view>

#include "client/owned_fd.hpp"

namespace shmstore::client_internal {

namespace {

constexpr std::chrono::seconds kStartMax{30};
constexpr std::chrono::milliseconds kLockPause{10};
constexpr std::size_t kReasonBytesMax = 4096;
constexpr std::string_view kProgram = "shmstored";

Error cannot_start(const std::string& why) {
  return make_error(ErrorCode::disconnected, "no daemon, and none could be started: " + why);
}

std::string errno_text() {
  return strerrordesc_np(errno);
}

/// The folder, ours alone: what lies in it decides whom every program of this user believes.
Result<OwnedFd> open_folder(const std::string& folder) {
  if (mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) {
    return cannot_start("folder " + folder + ": " + errno_text());
  }
  OwnedFd fd(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat status {};
  if (!fd.valid() || fstat(fd.get(), &status) != 0) {
    return cannot_start("folder " + folder + ": " + errno_text());
  }
  if (status.st_uid != geteuid()) {
    return make_error(ErrorCode::permission_denied,
                      "folder " + folder + " belongs to user " + std::to_string(status.st_uid));
  }
  if ((status.st_mode & 077U) != 0 && fchmod(fd.get(), 0700) != 0) {
    return cannot_start("folder " + folder + ": " + errno_text());
  }
  return fd;
}

bool nobody_there(const Opened& opened) {
  return opened.problem == OpenProblem::absent || opened.problem == OpenProblem::refused ||
         opened.problem == OpenProblem::closed;
}

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? std::string() : path.substr(0, slash);
}

/// Folder of the running program.
std::string program_folder() {
  std::array<char, 4096> path{};
  const ssize_t bytes = readlink("/proc/self/exe", path.data(), path.size());
  if (bytes <= 0 || static_cast<std::size_t>(bytes) == path.size()) return {};
  return folder_of(std::string(path.data(), static_cast<std::size_t>(bytes)));
}

/// Folder of the file that this code was loaded from: libshmstore.so, if it was linked that way.
std::string library_folder() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&start_daemon), &info) == 0) return {};
  return info.dli_fname == nullptr ? std::string() : folder_of(info.dli_fname);
}

/// Everything that the new process needs, made before it exists: between fork and exec nothing
/// may be allocated.
struct StartPlan {
  std::string program;
  std::vector<std::string> texts;  ///< Own the arguments and the added variable.
  std::vector<char*> arguments;
  std::vector<char*> environment;
  OwnedFd null;
  OwnedFd report;
};

void fill(StartPlan& plan, const std::string& socket) {
  plan.texts = {plan.program, "--socket", socket, "--idle-exit", "60", "SHMSTORE_AUTOSTARTED=1"};
  for (std::size_t i = 0; i + 1 < plan.texts.size(); ++i) {
    plan.arguments.push_back(plan.texts[i].data());
  }
  plan.arguments.push_back(nullptr);
  for (char** variable = environ; variable != nullptr && *variable != nullptr; ++variable) {
    plan.environment.push_back(*variable);
  }
  plan.environment.push_back(plan.texts.back().data());
  plan.environment.push_back(nullptr);
}

[[noreturn]] void become_daemon(const StartPlan& plan, const sigset_t& mask) {
  dup2(plan.null.get(), STDIN_FILENO);
  dup2(plan.null.get(), STDOUT_FILENO);
  dup2(plan.report.get(), STDERR_FILENO);
  sigprocmask(SIG_SETMASK, &mask, nullptr);
  execve(plan.program.c_str(), plan.arguments.data(), plan.environment.data());
  constexpr std::string_view kText = "cannot be executed";
  static_cast<void>(!write(STDERR_FILENO, kText.data(), kText.size()));
  _exit(127);
}

/// Runs the plan in a grandchild, which nobody has to wait for. _Fork: no fork handlers run, which
/// would be work for nothing in a program with many libraries.
bool spawn(const StartPlan& plan) {
  sigset_t all;
  sigset_t mask;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &mask);  // The program's handlers are not for the child.
  const pid_t child = _Fork();
  if (child == 0) {
    setsid();
    const pid_t grandchild = _Fork();
    if (grandchild == 0) become_daemon(plan, mask);
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

/// Reads what the daemon says until it lets go of the pipe, or until somebody answers at the
/// socket (a process forked just now may hold the pipe's other end for long).
Result<Found> await_daemon(const Candidate& candidate, int pipe, const Interrupted& interrupted) {
  const auto deadline = std::chrono::steady_clock::now() + kStartMax;
  std::string reason;
  for (;;) {
    pollfd waiting{pipe, POLLIN, 0};
    const int ready = poll(&waiting, 1, static_cast<int>(kSlice.count()));
    bool ended = false;
    if (ready > 0) {
      std::array<char, 512> text{};
      const ssize_t bytes = read(pipe, text.data(), text.size());
      ended = bytes == 0 || (bytes < 0 && errno != EINTR);
      if (bytes > 0 && reason.size() < kReasonBytesMax) {
        reason.append(text.data(), static_cast<std::size_t>(bytes));
      }
      if (!ended) continue;
    }
    Opened opened = open_session(candidate, interrupted);
    if (opened.problem == OpenProblem::none) {
      return Found{candidate, std::move(opened.socket), opened.hello};
    }
    if (!nobody_there(opened)) return std::move(opened.error);
    if (is_interrupted(interrupted)) return interrupted_error();
    const bool late = std::chrono::steady_clock::now() > deadline;
    if (!ended && !late) continue;
    while (!reason.empty() && reason.back() == '\n') reason.pop_back();
    return cannot_start(reason.empty() ? "it ended without a word" : reason);
  }
}

Result<Found> start_locked(const Candidate& candidate, const Interrupted& interrupted) {
  StartPlan plan;
  for (const std::string& path : daemon_candidates()) {
    if (access(path.c_str(), X_OK) != 0) continue;
    plan.program = path;
    break;
  }
  if (plan.program.empty()) {
    const char* given = secure_getenv("SHMSTORE_DAEMON");
    return cannot_start(given != nullptr && *given != '\0'
                            ? "$SHMSTORE_DAEMON is no program: " + std::string(given)
                            : "no program shmstored beside this one or in $PATH");
  }
  fill(plan, candidate.path);
  int ends[2] = {-1, -1};
  if (pipe2(ends, O_CLOEXEC) != 0) return cannot_start(errno_text());
  const OwnedFd listen_end(ends[0]);
  // Above the standard ones, which become_daemon() overwrites.
  plan.report.reset(fcntl(ends[1], F_DUPFD_CLOEXEC, 3));
  close(ends[1]);
  const OwnedFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  plan.null.reset(fcntl(null.get(), F_DUPFD_CLOEXEC, 3));
  if (!plan.report.valid() || !plan.null.valid()) return cannot_start(errno_text());
  if (!spawn(plan)) return cannot_start("no new process");
  plan.report.reset();
  return await_daemon(candidate, listen_end.get(), interrupted);
}

}  // namespace

std::vector<std::string> daemon_candidates() {
  std::vector<std::string> paths;
  if (const char* given = secure_getenv("SHMSTORE_DAEMON"); given != nullptr && *given != '\0') {
    paths.emplace_back(given);
    return paths;
  }
  const auto add = [&](const std::string& folder) {
    if (!folder.empty()) paths.push_back(folder + "/" + std::string(kProgram));
  };
  add(program_folder());
  if (const std::string folder = library_folder(); !folder.empty()) add(folder + "/../bin");
  const char* path = secure_getenv("PATH");
  std::string_view rest = path == nullptr ? "" : path;
  while (!rest.empty()) {
    const std::size_t colon = rest.find(':');
    add(std::string(rest.substr(0, colon)));
    rest = colon == rest.npos ? std::string_view{} : rest.substr(colon + 1);
  }
  return paths;
}

Result<Found> start_daemon(const std::string& folder, const Interrupted& interrupted) {
  if (getauxval(AT_SECURE) != 0) return cannot_start("this program runs with raised privileges");
  Result<OwnedFd> directory = open_folder(folder);
  if (!directory) return directory.error();
  const OwnedFd lock(
      openat(directory->get(), "start.lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!lock.valid()) return cannot_start(folder + "/start.lock: " + errno_text());
  const Candidate candidate{folder + "/socket", Origin::user};
  for (;;) {
    const bool locked = flock(lock.get(), LOCK_EX | LOCK_NB) == 0;
    Opened opened = open_session(candidate, interrupted);
    std::optional<Result<Found>> result;
    if (opened.problem == OpenProblem::none) {
      result.emplace(Found{candidate, std::move(opened.socket), opened.hello});
    } else if (!nobody_there(opened)) {
      result.emplace(std::move(opened.error));
    } else if (locked) {
      result.emplace(start_locked(candidate, interrupted));
    }
    // A child forked meanwhile shares the lock: closing alone would leave it locked.
    if (locked) flock(lock.get(), LOCK_UN);
    if (result) return std::move(*result);
    if (!pause_for(kLockPause, interrupted)) return interrupted_error();
  }
}

}  // namespace shmstore::client_internal
