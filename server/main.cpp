/// shmstored: exit code 0 clean stop, 1 could not start (the text says why), 2 usage.

#include <fcntl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string_view>

#include "server/daemon.hpp"
#include "server/listener.hpp"
#include "server/log.hpp"
#include "server/options.hpp"
#include "server/service_manager.hpp"
#include "server/unique_fd.hpp"

namespace {

using namespace shmstore;
using namespace shmstore::server;

/// A second descriptor of the socket that a service manager has handed over, until the daemon runs.
UniqueFd& waiting_clients() {
  static UniqueFd socket;
  return socket;
}

/// Whoever waits for this daemon is told as well.
int fail(int code, const std::string& text) {
  (void)std::fprintf(stderr, "shmstored: %s\n", text.c_str());
  if (code != 0 && waiting_clients().valid()) {
    refuse_waiting(waiting_clients().get(),
                   make_error(ErrorCode::disconnected, "the daemon cannot start: " + text));
  }
  return code;
}

/// A client's child so far: nothing of that client's may live on in the daemon. Its standard error
/// is the pipe on which the client waits.
void leave_the_client() {
  (void)::setsid();
  // A service manager that watches over the client is not ours to talk to.
  for (const char* variable : {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS",
                               "LISTEN_PID", "LISTEN_FDNAMES"}) {
    (void)::unsetenv(variable);
  }
  (void)::close_range(3, ~0U, 0);
  if (::chdir("/") != 0) log(LogLevel::warning, "cannot leave the working folder");
}

void close_standard_streams() {
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0) return;
  for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) (void)::dup2(null, fd);
  if (null > STDERR_FILENO) (void)::close(null);
}

int serve(int argc, char** argv) {
  const ParsedFlags flags = parse_flags(argc, argv);
  if (!flags.options && flags.exit_code != 0) return fail(flags.exit_code, "wrong command line");
  if (!flags.options) return flags.exit_code;
  const Result<Options> options = with_config(*flags.options);
  if (!options) return fail(1, options.error().text);
  if (options->supervise) {
    return fail(2, "--supervise comes with restart support, which this version does not have");
  }
  const char* variable = std::getenv("SHMSTORE_AUTOSTARTED");
  const std::string_view starter = variable == nullptr ? "" : variable;
  const bool by_client = starter == "1";
  const bool autostarted = by_client || starter == "manager";
  if (by_client) leave_the_client();
  set_log_level(options->log_level);
  // Whatever the parent blocked: a daemon that cannot be stopped is no use.
  sigset_t none;
  sigemptyset(&none);
  (void)::pthread_sigmask(SIG_SETMASK, &none, nullptr);
  (void)std::signal(SIGPIPE, SIG_IGN);
  // Its default action would end the daemon whenever somebody opens a file under a lease probe.
  (void)std::signal(SIGIO, SIG_IGN);
  // Memory files have sizes too: over a hard limit (ulimit -f) a create fails, not the daemon.
  (void)std::signal(SIGXFSZ, SIG_IGN);
  Result<std::unique_ptr<Daemon>> daemon = Daemon::start(*flags.options, autostarted);
  if (!daemon && daemon.error().code == ErrorCode::aborted) {  // not needed here
    notify_manager("READY=1");
    return fail(0, daemon.error().text);
  }
  if (!daemon) return fail(1, daemon.error().text);
  waiting_clients().reset();
  if (by_client) close_standard_streams();
  return (*daemon)->run();
}

}  // namespace

int main(int argc, char** argv) {
  // Executed by descriptor, the kernel names the process after the descriptor's number.
  (void)::prctl(PR_SET_NAME, "shmstored");
  waiting_clients() = copy_of_listen_fd();
  try {
    return serve(argc, argv);
  } catch (const std::exception& error) {
    return fail(1, error.what());
  }
}
