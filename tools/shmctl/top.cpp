#include <unistd.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "commands.hpp"
#include "connect.hpp"
#include "json.hpp"
#include "output.hpp"
#include "screen.hpp"
#include "table.hpp"

namespace shmctl {

using shmstore::ArrayInfo;
using shmstore::Client;
using shmstore::StoreStatus;
using shmstore::UserStatus;

namespace {

constexpr std::size_t kUserRowsMax = 5;  // The rest of the screen is for arrays.

struct Snapshot {
  StoreStatus status;
  std::vector<ArrayInfo> arrays;  ///< Largest first.
};

Result<Snapshot> take_snapshot(Client& client) {
  Result<StoreStatus> status = client.status();
  if (!status) return status.error();
  Result<std::vector<ArrayInfo>> arrays = client.list();
  if (!arrays) return arrays.error();
  Snapshot snapshot{std::move(*status), std::move(*arrays)};
  std::sort(snapshot.arrays.begin(), snapshot.arrays.end(),
            [](const ArrayInfo& a, const ArrayInfo& b) {
              return a.nbytes != b.nbytes ? a.nbytes > b.nbytes : a.name < b.name;
            });
  std::sort(snapshot.status.uids.begin(), snapshot.status.uids.end(),
            [](const UserStatus& a, const UserStatus& b) { return a.bytes > b.bytes; });
  return snapshot;
}

Table user_table(const StoreStatus& status) {
  Table table({{"USER", Align::left, true},
               {"BYTES", Align::right},
               {"ARRAYS", Align::right},
               {"LEASES", Align::right},
               {"CONNECTIONS", Align::right}});
  for (std::size_t i = 0; i < std::min(status.uids.size(), kUserRowsMax); ++i) {
    const UserStatus& user = status.uids[i];
    table.add_plain({user_text(user.uid), bytes_text(user.bytes), grouped_text(user.arrays),
                     grouped_text(user.leases), grouped_text(user.connections)});
  }
  return table;
}

Table array_table(const std::vector<ArrayInfo>& arrays) {
  Table table({{"NAME", Align::left, true},
               {"SIZE", Align::right},
               {"HELD", Align::right},
               {"STATE", Align::left},
               {"KEPT", Align::left},
               {"OWNER", Align::left, true},
               {"AGE", Align::right}});
  for (const ArrayInfo& info : arrays) {
    std::string kept = "no";
    if (info.kept) kept = info.ttl_s ? span_text(*info.ttl_s) : "yes";
    table.add_plain({label_text(info), bytes_text(info.nbytes), grouped_text(info.leases),
                     info.state, kept, user_text(info.uid), age_text(info.created)});
  }
  return table;
}

/// At most `rows` lines; 0: as many as there are.
std::vector<std::string> render(const Snapshot& snapshot, int columns, int rows, bool colour) {
  const StoreStatus& status = snapshot.status;
  const double full = status.capacity == 0
                          ? 0
                          : static_cast<double>(status.used) / static_cast<double>(status.capacity);
  std::vector<std::string> lines;
  lines.push_back(paint(Style::bold, "shmstored " + status.version, colour) + "  pid " +
                  std::to_string(status.pid) + "  up " + span_text(status.uptime_s) + "  " +
                  count_text(status.arrays, "array") + "  " +
                  count_text(status.sessions, "session") + "  " + grouped_text(status.fds) +
                  " fds" + paint(Style::dim, rows > 0 ? "  q quits" : "", colour));
  std::string memory = "  " + bytes_text(status.used) + " of " + bytes_text(status.capacity);
  if (status.pinned > 0) memory += ", " + bytes_text(status.pinned) + " pinned";
  if (status.pooled > 0) memory += ", " + bytes_text(status.pooled) + " pooled";
  const int room = (columns == 0 ? 80 : columns) - static_cast<int>(memory.size());
  lines.push_back(bar_text(full, std::clamp(room, 10, 60), colour) + memory);
  const auto append = [&](const Table& table, std::string_view if_empty) {
    lines.emplace_back();
    if (table.empty()) {
      lines.emplace_back(if_empty);
      return;
    }
    for (std::string& line : table.lines(columns, colour)) lines.push_back(std::move(line));
  };
  append(user_table(status), "no users");
  append(array_table(snapshot.arrays), "no arrays");
  const auto limit = static_cast<std::size_t>(rows);
  if (rows > 0 && lines.size() > limit) {
    const std::size_t hidden = lines.size() - limit + 1;
    lines.resize(limit - 1);
    lines.push_back(paint(Style::dim, "and " + grouped_text(hidden) + " more", colour));
  }
  return lines;
}

int print_json_snapshot(Client& client) {
  Result<std::string> status = client.admin("status");
  if (!status) return fail(status.error());
  Result<std::string> arrays = client.admin("list");
  if (!arrays) return fail(arrays.error());
  return print_json(json_object({{"status", *status}, {"arrays", *arrays}}));
}

/// Without a terminal: plain text, once or `count` times.
int print_plain(Client& client) {
  Result<Snapshot> snapshot = take_snapshot(client);
  if (!snapshot) return fail(snapshot.error());
  for (const std::string& line : render(*snapshot, 0, 0, false)) say(line);
  return kDone;
}

Result<void> refresh(Client& client, Screen& screen, const TopOptions& options) {
  const bool colour = colour_wanted(stdout);
  for (std::uint64_t shown = 1;; ++shown) {
    Result<Snapshot> snapshot = take_snapshot(client);
    if (screen.quit_pending()) return {};
    if (!snapshot) return snapshot.error();
    Screen::Wake wake = Screen::Wake::resize;
    while (wake == Screen::Wake::resize) {
      screen.show(render(*snapshot, terminal_columns(), screen.rows(), colour));
      if (shown == options.count) return {};
      wake = screen.wait(options.interval);
    }
    if (wake == Screen::Wake::quit) return {};
  }
}

}  // namespace

int run_top(const Globals& globals, const TopOptions& options) {
  std::optional<Screen> screen;
  // A daemon that does not answer must not keep the keys from being read.
  Result<Client> client =
      connect(globals, Autostart::never, [&screen] { return screen && screen->quit_pending(); });
  if (!client) return fail(client.error());
  if (globals.json) return print_json_snapshot(*client);
  if (isatty(STDIN_FILENO) != 1 || isatty(STDOUT_FILENO) != 1) return print_plain(*client);
  Result<Screen> opened = Screen::open();
  if (!opened) return fail(opened.error());
  screen.emplace(std::move(*opened));
  Result<void> done = refresh(*client, *screen, options);
  screen.reset();
  // Said after the screen is gone, where it stays to be read.
  return done ? kDone : fail(done.error());
}

}  // namespace shmctl
