// Who starts: the holder of a lock on `start.lock` in the socket's folder. The others keep trying
// to connect meanwhile, so they go on as soon as the daemon listens. The daemon writes to the pipe
// we give it as stderr until it listens, then lets go of it: the end of the pipe is the news, what
// came before it the reason if it failed.
#include "client/autostart.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/auxv.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string_view>

#include "client/launch.hpp"
#include "client/owned_fd.hpp"
#include "client/program.hpp"

namespace shmstore::client_internal {

namespace {

constexpr std::chrono::seconds kStartMax{30};
constexpr std::chrono::seconds kManagerMax{10};
constexpr std::chrono::milliseconds kLockPause{10};
constexpr std::size_t kReasonBytesMax = 4096;

Error cannot_start(const std::string& why) {
  return make_error(ErrorCode::disconnected, "no daemon, and none could be started: " + why);
}

std::string errno_text() {
  return strerrordesc_np(errno);
}

/// Sets the permissions of what we have made or found, whatever the umask was. By its name where
/// there is no /proc: the folder above lets nobody exchange what is ours.
bool set_mode(int fd, const std::string& path, mode_t mode) {
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  return chmod(link.c_str(), mode) == 0 || chmod(path.c_str(), mode) == 0;
}

/// The folder, ours alone: what lies in it decides whom every program of this user believes.
Result<OwnedFd> open_folder(const std::string& folder) {
  if (mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) {
    return cannot_start("folder " + folder + ": " + errno_text());
  }
  // O_PATH: a umask that takes our own rights away may have left it closed to us.
  OwnedFd fd(open(folder.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat status {};
  if (!fd.valid() || fstat(fd.get(), &status) != 0) {
    return cannot_start("folder " + folder + ": " + errno_text());
  }
  if (status.st_uid != geteuid()) {
    return make_error(ErrorCode::permission_denied,
                      "folder " + folder + " belongs to user " + std::to_string(status.st_uid));
  }
  if ((status.st_mode & 0777U) != 0700 && !set_mode(fd.get(), folder, 0700)) {
    return cannot_start("folder " + folder + ": " + errno_text());
  }
  return fd;
}

/// The lock on who starts.
Result<OwnedFd> open_lock(int folder, const std::string& path) {
  const auto open_it = [folder] {
    return OwnedFd(openat(folder, "start.lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  };
  OwnedFd lock = open_it();
  if (!lock.valid() && errno == EACCES && fchmodat(folder, "start.lock", 0600, 0) == 0) {
    lock = open_it();
  }
  if (!lock.valid()) return cannot_start(path + "/start.lock: " + errno_text());
  static_cast<void>(!fchmod(lock.get(), 0600));
  return lock;
}

bool nobody_there(const Opened& opened) {
  return opened.problem == OpenProblem::absent || opened.problem == OpenProblem::refused ||
         opened.problem == OpenProblem::closed;
}

/// Reads what the daemon says until it lets go of the pipe, or until somebody answers at the
/// socket (a process forked just now may hold the pipe's other end for long).
Result<Found> await_daemon(const Candidate& candidate, int pipe, std::chrono::seconds most,
                           const Interrupted& interrupted) {
  const auto deadline = std::chrono::steady_clock::now() + most;
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

/// By the user's service manager where one runs; if that comes to nothing, as our own grandchild,
/// which then says why.
Result<Found> start_locked(const Candidate& candidate, const Interrupted& interrupted) {
  Result<Program> program = find_daemon_program();
  if (!program) return cannot_start(program.error().text);
  if (Result<OwnedFd> asked = launch_in_manager(*program, candidate.path); asked) {
    Result<Found> found = await_daemon(candidate, asked->get(), kManagerMax, interrupted);
    if (found || found.error().code != ErrorCode::disconnected) return found;
  }
  Result<OwnedFd> report = launch_here(std::move(*program), candidate.path);
  if (!report) return cannot_start(report.error().text);
  return await_daemon(candidate, report->get(), kStartMax, interrupted);
}

}  // namespace

Result<Found> start_daemon(const std::string& folder, const Interrupted& interrupted) {
  if (getauxval(AT_SECURE) != 0) return cannot_start("this program runs with raised privileges");
  Result<OwnedFd> directory = open_folder(folder);
  if (!directory) return directory.error();
  Result<OwnedFd> lock = open_lock(directory->get(), folder);
  if (!lock) return lock.error();
  const Candidate candidate{folder + "/socket", Origin::user};
  for (;;) {
    const bool locked = flock(lock->get(), LOCK_EX | LOCK_NB) == 0;
    Opened opened = open_session(candidate, interrupted);
    std::optional<Result<Found>> result;
    if (opened.problem == OpenProblem::none) {
      result.emplace(Found{candidate, std::move(opened.socket), opened.hello});
    } else if (!nobody_there(opened)) {
      result.emplace(std::move(opened.error));
    } else if (locked) {
      result.emplace(start_locked(candidate, interrupted));
      if (*result) (*result)->started = true;
    }
    // A child forked meanwhile shares the lock: closing alone would leave it locked.
    if (locked) flock(lock->get(), LOCK_UN);
    if (result) return std::move(*result);
    if (!pause_for(kLockPause, interrupted)) return interrupted_error();
  }
}

}  // namespace shmstore::client_internal
