#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "client/program.hpp"
#include "commands.hpp"
#include "connect.hpp"
#include "daemon_checks.hpp"
#include "json.hpp"
#include "output.hpp"
#include "stores.hpp"
#include "system_checks.hpp"

namespace shmctl {

using shmstore::Client;
using shmstore::ErrorCode;
using shmstore::StoreStatus;
using shmstore::client_internal::find_daemon_program;
using shmstore::client_internal::Program;

namespace {

std::string octal_text(mode_t mode) {
  std::array<char, 8> text{};
  std::snprintf(text.data(), text.size(), "%04o", mode & 07777U);
  return text.data();
}

Check socket_check(const std::string& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) return {Level::ok, "socket", path + ": not there", ""};
    return {Level::warn, "socket", path + ": " + std::strerror(errno),
            "ask whoever runs the system's store for access to its folder"};
  }
  if (!S_ISSOCK(status.st_mode)) {
    return {Level::fail, "socket", path + " is no socket", "remove it, or name another path"};
  }
  const std::string owner = user_text(status.st_uid);
  const std::string text = path + ", mode " + octal_text(status.st_mode) + ", owner " + owner;
  if (access(path.c_str(), R_OK | W_OK) == 0) return {Level::ok, "socket", text, ""};
  return {Level::warn, "socket", text + ": this user may not connect",
          "its mode alone decides who connects"};
}

Check unreachable_check(const Globals& globals, const shmstore::Error& error) {
  const std::string text = std::string(to_string(error.code)) + ": " + error.text;
  if (error.code != ErrorCode::disconnected) return {Level::fail, "daemon", text, ""};
  if (is_final(globals)) {
    return {Level::fail, "daemon", text,
            "start it, or unset SHMSTORE_SOCKET and leave out --socket"};
  }
  const char* variable = std::getenv("SHMSTORE_AUTOSTART");
  if (variable != nullptr && std::strcmp(variable, "0") == 0) {
    return {Level::fail, "daemon",
            "none runs, and SHMSTORE_AUTOSTART=0 keeps clients from "
            "starting one",
            "start shmstored, or unset SHMSTORE_AUTOSTART"};
  }
  Result<Program> program = find_daemon_program();
  if (!program) return {Level::fail, "daemon", "none runs, and " + program.error().text, ""};
  return {Level::ok, "daemon", "none runs; the first client starts " + program->path, ""};
}

Check version_check(const StoreStatus& status) {
  const std::string text = "version " + status.version + ", pid " + std::to_string(status.pid) +
                           ", up " + span_text(status.uptime_s);
  if (status.version == SHMSTORE_VERSION_STRING) return {Level::ok, "daemon", text, ""};
  return {Level::warn, "daemon", text + "; this shmctl is " SHMSTORE_VERSION_STRING,
          "restart the daemon after an upgrade"};
}

Check capacity_check(const StoreStatus& status) {
  const std::string text = bytes_text(status.used) + " of " + bytes_text(status.capacity) +
                           " used, " + bytes_text(status.pinned) + " pinned";
  const std::uint64_t free = status.capacity - std::min(status.used, status.capacity);
  const std::uint64_t available = memory_bytes("MemAvailable").value_or(free);
  if (free < status.capacity / 10) {
    return {Level::warn, "capacity", text, "see shmctl top for what takes it; shmctl gc, rm"};
  }
  if (free > available) {
    return {Level::warn, "capacity",
            text + "; only " + bytes_text(available) + " of memory are available for the rest",
            "a smaller --capacity says no_capacity before the machine runs short"};
  }
  return {Level::ok, "capacity", text, ""};
}

Check daemon_descriptor_check(const StoreStatus& status) {
  const std::string text = grouped_text(status.fds) + " of " + grouped_text(status.fds_max) +
                           " descriptors of the daemon in use";
  if (status.fds < status.fds_max / 10 * 8) return {Level::ok, "descriptors", text, ""};
  return {Level::warn, "descriptors", text, "raise LimitNOFILE= of its unit, or use fewer arrays"};
}

/// A daemon that a job started lives, and is limited, with that job.
Check daemon_cgroup_check(const StoreStatus& status) {
  const std::string daemon = cgroup_of(std::to_string(status.pid));
  const std::string own = cgroup_of("self");
  if (daemon.empty()) return {Level::ok, "its cgroup", "not to be seen", ""};
  const std::optional<std::uint64_t> limit = cgroup_memory_limit(daemon);
  std::string text = daemon;
  if (limit) text += ", memory limit " + bytes_text(*limit);
  if (limit && *limit < status.capacity) {
    return {Level::warn, "its cgroup", text + " below its capacity",
            "give the daemon a smaller --capacity or its unit more memory"};
  }
  if (daemon == own && daemon != "/") {
    return {Level::warn, "its cgroup", text + ": the one of this session, whose end may end it",
            "run it as a user service: systemctl --user enable --now shmstored.socket"};
  }
  return {Level::ok, "its cgroup", text, ""};
}

Check selfcheck_check(Client& client) {
  Result<std::string> reply = client.admin("selfcheck");
  Result<SelfcheckReply> check = reply ? parse_selfcheck(*reply) : reply.error();
  if (!check) return {Level::warn, "selfcheck", check.error().text, ""};
  if (check->clean) return {Level::ok, "selfcheck", "clean", ""};
  return {Level::fail, "selfcheck", count_text(check->problems.size(), "problem"),
          "shmctl selfcheck lists them; please report them"};
}

void add_daemon_checks(Client& client, std::vector<Check>& checks) {
  Result<StoreStatus> status = client.status();
  if (!status) {
    checks.push_back({Level::fail, "daemon", status.error().text, ""});
    return;
  }
  checks.push_back(version_check(*status));
  checks.push_back(capacity_check(*status));
  checks.push_back(daemon_descriptor_check(*status));
  checks.push_back(daemon_cgroup_check(*status));
  checks.push_back(surroundings_check(static_cast<pid_t>(status->pid)));
  checks.push_back(selfcheck_check(client));
}

void print_checks(const std::vector<Check>& checks) {
  constexpr int kTextColumn = 20;  // After the level and what was looked at.
  const std::string indent(kTextColumn, ' ');
  const std::string arrow = utf8_wanted() ? "→ " : "> ";
  const bool colour = colour_wanted(stdout);
  const int width = terminal_columns() == 0 ? 0 : std::max(terminal_columns() - kTextColumn, 40);
  for (const Check& check : checks) {
    const Style style = check.level == Level::ok     ? Style::green
                        : check.level == Level::warn ? Style::yellow
                                                     : Style::red;
    std::string level(to_string(check.level));
    level.resize(4, ' ');
    std::string head = paint(style, level, colour) + "  " + check.what;
    head.append(kTextColumn - 6 - check.what.size(), ' ');
    for (const std::string& line : wrapped(check.text, width)) {
      say(head + line);
      head = indent;
    }
    // Not broken: it may be a command to copy.
    if (!check.advice.empty()) say("      " + paint(Style::cyan, arrow + check.advice, colour));
  }
}

void print_checks_json(const std::vector<Check>& checks, bool ok) {
  std::vector<std::string> rows;
  for (const Check& check : checks) {
    rows.push_back(json_object({{"level", json_quote(to_string(check.level))},
                                {"what", json_quote(check.what)},
                                {"text", json_quote(check.text)},
                                {"advice", json_quote(check.advice)}}));
  }
  print_json(json_object({{"ok", ok ? "true" : "false"}, {"checks", json_array(rows)}}));
}

}  // namespace

int run_doctor(const Globals& globals) {
  std::vector<Check> checks;
  for (const std::string& path : candidate_sockets(globals)) checks.push_back(socket_check(path));
  Result<Client> client = connect(globals);
  for (Check& check : store_checks(globals, client ? client->socket_path() : "")) {
    checks.push_back(std::move(check));
  }
  if (client) {
    add_daemon_checks(*client, checks);
  } else {
    checks.push_back(unreachable_check(globals, client.error()));
  }
  const bool daemon_failed = !client && checks.back().level == Level::fail;
  for (Check& check : system_checks()) checks.push_back(std::move(check));
  const bool ok = std::none_of(checks.begin(), checks.end(),
                               [](const Check& check) { return check.level == Level::fail; });
  if (globals.json) {
    print_checks_json(checks, ok);
  } else {
    print_checks(checks);
  }
  if (ok) return kDone;
  return daemon_failed && client.error().code == ErrorCode::disconnected ? kNoDaemon : kRefused;
}

}  // namespace shmctl
