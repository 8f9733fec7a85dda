#include "daemon_checks.hpp"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>

#include "output.hpp"
#include "stores.hpp"

namespace shmctl {

namespace {

std::string store_text(const Store& store) {
  return store.socket + ": pid " + std::to_string(store.pid) + ", up " + span_text(store.uptime_s) +
         ", " + count_text(store.arrays, "array") + ", " + bytes_text(store.bytes);
}

struct Limit {
  __rlimit_resource resource;
  const char* name;  ///< As ulimit has it.
  rlim_t low;        ///< From here on it is no hindrance.
};

constexpr std::array<Limit, 4> kLimits = {{{RLIMIT_CPU, "CPU seconds (ulimit -t)", RLIM_INFINITY},
                                           {RLIMIT_FSIZE, "file size (ulimit -f)", RLIM_INFINITY},
                                           {RLIMIT_AS, "address space (ulimit -v)", RLIM_INFINITY},
                                           {RLIMIT_NOFILE, "open files (ulimit -n)", 4096}}};

void add_scheduling(pid_t daemon, std::vector<std::string>& found) {
  errno = 0;
  const int nice = getpriority(PRIO_PROCESS, static_cast<id_t>(daemon));
  if (errno == 0 && nice > 0) found.push_back("nice " + std::to_string(nice));
  cpu_set_t its;
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  if (sched_getaffinity(daemon, sizeof its, &its) == 0 && CPU_COUNT(&its) < online) {
    found.push_back("bound to " + std::to_string(CPU_COUNT(&its)) + " of " +
                    std::to_string(online) + " CPUs");
  }
  const std::string score =
      first_line("/proc/" + std::to_string(daemon) + "/oom_score_adj").value_or("0");
  int adjusted = 0;
  std::from_chars(score.data(), score.data() + score.size(), adjusted);
  if (adjusted > 0) found.push_back("oom_score_adj " + score + " (killed early)");
}

}  // namespace

std::vector<Check> store_checks(const Globals& globals, const std::string& used) {
  std::vector<Check> checks;
  std::vector<pid_t> elsewhere = own_daemons();
  std::size_t stores = 0;
  for (const std::string& socket : candidate_sockets(globals)) {
    if (access(socket.c_str(), F_OK) != 0) continue;
    Result<Store> store = store_at(socket);
    if (!store) continue;  // the socket's own line says what is wrong
    ++stores;
    std::erase(elsewhere, store->pid);
    const bool this_one = socket == used;
    checks.push_back(
        {Level::ok, "store", store_text(*store) + (this_one ? "; used here" : ""), ""});
  }
  if (stores > 1) {
    checks.back().level = Level::warn;
    checks.back().text += "; arrays of one store are not in the other";
    checks.back().advice = "end the one that is not meant: shmctl --socket PATH stop";
  }
  for (const pid_t pid : elsewhere) {
    const std::string socket = told_socket(pid);
    checks.push_back({Level::ok, "store",
                      "pid " + std::to_string(pid) + " listens elsewhere" +
                          (socket.empty() ? "" : ": " + socket),
                      ""});
  }
  return checks;
}

Check surroundings_check(pid_t daemon) {
  std::vector<std::string> found;
  for (const Limit& limit : kLimits) {
    rlimit its{};
    if (prlimit(daemon, limit.resource, nullptr, &its) != 0) continue;
    if (its.rlim_cur >= limit.low) continue;
    found.push_back("at most " + grouped_text(its.rlim_cur) + " " + limit.name);
  }
  add_scheduling(daemon, found);
  if (found.empty()) return {Level::ok, "its process", "not limited by who started it", ""};
  std::string text;
  for (const std::string& one : found) text += (text.empty() ? "" : "; ") + one;
  return {Level::warn, "its process", text,
          "start the store where these limits do not hold: from a login shell, or as a service"};
}

}  // namespace shmctl
