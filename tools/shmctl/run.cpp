#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>

#include "commands.hpp"
#include "leftovers.hpp"
#include "output.hpp"
#include "private_daemon.hpp"
#include "unique_fd.hpp"

// shmctl is the subreaper of the command: what the command leaves behind becomes its child, so
// that survivors can be named. The command stays in shmctl's process group; a signal from the
// terminal reaches both, one from kill(1) is passed on.

namespace shmctl {

using shmstore::ErrorCode;
using shmstore::make_error;

namespace {

constexpr int kSignalled = 128;      // As shells say it: 128 + the signal's number.
constexpr int kNotFound = 127;       // The command does not exist,
constexpr int kNotExecutable = 126;  // or cannot be executed.

/// Keeps signals for reading; children get the mask that was there before.
class Signals {
 public:
  Signals() {
    sigemptyset(&set_);
    for (int number : {SIGCHLD, SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2}) {
      sigaddset(&set_, number);
    }
    sigprocmask(SIG_BLOCK, &set_, &before_);
    fd_ = UniqueFd(signalfd(-1, &set_, SFD_CLOEXEC));
  }
  [[nodiscard]] const sigset_t& mask_before() const noexcept { return before_; }

  /// The next signal; waits for it.
  [[nodiscard]] signalfd_siginfo next() const {
    signalfd_siginfo info{};
    while (::read(fd_.get(), &info, sizeof(info)) < 0 && errno == EINTR) {
    }
    return info;
  }

 private:
  sigset_t set_{};
  sigset_t before_{};
  UniqueFd fd_;
};

[[noreturn]] void exec_command(const std::vector<std::string>& command, const sigset_t& mask,
                               int report) {
  std::vector<char*> arguments;
  std::vector<std::string> copies = command;  // execvp(3) wants them writable.
  for (std::string& argument : copies) arguments.push_back(argument.data());
  arguments.push_back(nullptr);
  sigprocmask(SIG_SETMASK, &mask, nullptr);
  execvp(arguments.front(), arguments.data());
  const int number = errno;
  if (::write(report, &number, sizeof(number)) < 0) _exit(kNotExecutable);
  _exit(kNotFound);
}

/// Starts the command. Error: what execvp(3) said.
Result<pid_t> start_command(const std::vector<std::string>& command, const sigset_t& mask) {
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) return file_error("pipe", errno);
  const UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  const pid_t child = fork();
  if (child < 0) return file_error("fork", errno);
  if (child == 0) exec_command(command, mask, write_end.get());
  write_end.reset();
  int number = 0;
  if (::read(read_end.get(), &number, sizeof(number)) != static_cast<ssize_t>(sizeof(number))) {
    return child;  // The pipe was closed by a successful exec.
  }
  waitpid(child, nullptr, 0);
  return file_error(command.front(), number);
}

int status_of(int wait_status) {
  return WIFSIGNALED(wait_status) ? kSignalled + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

/// Waits for the command, passing signals on. Whoever else ends is reaped on the way.
int wait_for_command(pid_t command, PrivateDaemon& daemon, const Signals& signals) {
  for (;;) {
    const signalfd_siginfo info = signals.next();
    if (info.ssi_signo != SIGCHLD) {
      // The terminal's own signals (SI_KERNEL) went to the command as well.
      if (info.ssi_code != SI_KERNEL) kill(command, static_cast<int>(info.ssi_signo));
      continue;
    }
    int status = 0;
    int result = -1;
    for (pid_t ended = waitpid(-1, &status, WNOHANG); ended > 0;
         ended = waitpid(-1, &status, WNOHANG)) {
      if (ended == daemon.pid()) daemon.ended();
      if (ended == command) result = status_of(status);
    }
    if (result >= 0) return result;
  }
}

void report(const Globals& globals, const Leftovers& left, int exit_status) {
  if (globals.json) {
    std::fputs((leftovers_json(left, exit_status) + "\n").c_str(), stderr);
    return;
  }
  const bool colour = colour_wanted(stderr);
  const std::string head = paint(Style::bold, "shmctl run:", colour) + " ";
  for (const std::string& line : leftovers_text(left, colour)) {
    std::fputs((head + line + "\n").c_str(), stderr);
  }
}

}  // namespace

int run_run(const Globals& globals, const RunOptions& options) {
  const Signals signals;
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  Result<PrivateDaemon> daemon = PrivateDaemon::start(globals.socket);
  if (!daemon) return fail(daemon.error());
  Result<std::uint64_t> descriptors = descriptors_in_use(daemon->socket());
  if (!descriptors) return fail(descriptors.error());

  setenv("SHMSTORE_SOCKET", daemon->socket().c_str(), 1);
  Result<pid_t> command = start_command(options.command, signals.mask_before());
  if (!command) {
    fail(command.error());
    return command.error().code == ErrorCode::not_found ? kNotFound : kNotExecutable;
  }
  const int status = wait_for_command(*command, *daemon, signals);
  if (!daemon->alive()) {
    fail(make_error(ErrorCode::disconnected,
                    "the private daemon ended before the command: " + daemon->log_tail()));
    return status;
  }
  Result<Leftovers> left = find_leftovers(*daemon, *descriptors);
  if (!left) {
    fail(left.error());
    return status;
  }
  report(globals, *left, status);
  return status;
}

}  // namespace shmctl
