// A daemon is asked to end by a signal, and waited for: when `stop` returns, its socket is gone or
// somebody else's, and the next client meets another store.
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "commands.hpp"
#include "connect.hpp"
#include "json.hpp"
#include "output.hpp"
#include "stores.hpp"
#include "system_checks.hpp"
#include "unique_fd.hpp"

namespace shmctl {

using shmstore::ErrorCode;
using shmstore::make_error;

namespace {

constexpr int kStopMsMax = 30'000;

std::string process_text(pid_t pid) {
  return "shmstored (pid " + std::to_string(pid) + ")";
}

/// Ends one daemon and waits until it is gone.
Result<void> stop_daemon(pid_t pid) {
  // The descriptor first: from then on the number cannot come to mean another process.
  const UniqueFd process(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  const std::string path = "/proc/" + std::to_string(pid) + "/comm";
  if (first_line(path) != "shmstored") {
    return make_error(ErrorCode::permission_denied,
                      process_text(pid) +
                          " is not to be seen from here: it runs in another container or PID "
                          "namespace, stop it there");
  }
  if (kill(pid, SIGTERM) != 0) {
    if (errno == ESRCH) return {};
    return make_error(ErrorCode::permission_denied,
                      process_text(pid) + ": " + std::strerror(errno) +
                          "; for the machine's store: systemctl stop shmstored.socket shmstored");
  }
  pollfd ended{process.get(), POLLIN, 0};
  if (process.valid() && poll(&ended, 1, kStopMsMax) > 0) return {};
  for (int waited = 0; waited < kStopMsMax; waited += 10) {  // no pidfds: before Linux 5.3
    if (kill(pid, 0) != 0 && errno == ESRCH) return {};
    if (process.valid()) break;
    poll(nullptr, 0, 10);
  }
  return make_error(
      ErrorCode::timed_out,
      process_text(pid) + " has not ended in 30 s; kill -KILL " + std::to_string(pid) + " ends it");
}

/// A service manager may go on listening, and start the next daemon.
void note_socket_unit(const std::string& socket) {
  if (socket.empty() || access(socket.c_str(), F_OK) != 0) return;
  const bool system = socket == "/run/shmstore/socket";
  note(socket + " stays: its unit starts a daemon for the next client (systemctl " +
       (system ? "" : "--user ") + "stop shmstored.socket ends that)");
}

int stop_all(const Globals& globals) {
  std::vector<std::string> stopped;
  int status = kDone;
  for (const pid_t pid : own_daemons()) {
    const std::string socket = told_socket(pid);
    if (Result<void> done = stop_daemon(pid); !done) {
      status = fail(done.error());
      continue;
    }
    stopped.push_back(json_object(
        {{"pid", std::to_string(pid)}, {"socket", socket.empty() ? "null" : json_quote(socket)}}));
    if (globals.json) continue;
    say("stopped " + process_text(pid) + (socket.empty() ? "" : ", " + socket));
    note_socket_unit(socket);
  }
  if (globals.json) {
    print_json(json_object({{"stopped", json_array(stopped)}}));
  } else if (stopped.empty() && status == kDone) {
    say("no daemon of this user runs");
  }
  return status;
}

}  // namespace

int run_stop(const Globals& globals, const StopOptions& options) {
  if (options.all) return stop_all(globals);
  std::string socket;
  {
    Result<shmstore::Client> client = connect(globals);
    if (!client) return fail(client.error());
    socket = client->socket_path();
  }
  Result<Store> store = store_at(socket);
  if (!store) return fail(store.error());
  if (Result<void> done = stop_daemon(store->pid); !done) return fail(done.error());
  if (globals.json) {
    return print_json(json_object(
        {{"stopped", json_array({json_object({{"pid", std::to_string(store->pid)},
                                              {"socket", json_quote(socket)},
                                              {"arrays", std::to_string(store->arrays)}})})}}));
  }
  const std::string lost = store->arrays == 0 ? "it held no arrays"
                                              : count_text(store->arrays, "array") + " (" +
                                                    bytes_text(store->bytes) + ") went with it";
  say("stopped " + process_text(store->pid) + ", " + socket + ": " + lost);
  note_socket_unit(socket);
  return kDone;
}

}  // namespace shmctl
