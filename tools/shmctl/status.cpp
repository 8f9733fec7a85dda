#include "commands.hpp"
#include "connect.hpp"
#include "output.hpp"
#include "table.hpp"

namespace shmctl {

using shmstore::StoreStatus;
using shmstore::UserStatus;

namespace {

constexpr int kBarColumns = 24;

double part_of(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

std::string percent_text(double part) {
  const double percent = part * 100;
  if (percent > 0 && percent < 1) return "under 1 %";
  return std::to_string(static_cast<int>(percent)) + " %";
}

void line(std::string_view label, const std::string& text, bool colour) {
  std::string padded(label);
  padded.resize(13, ' ');
  say(paint(Style::dim, padded, colour) + text);
}

std::string limit_text(std::uint64_t limit, const std::string& text) {
  return limit == 0 ? "no limit" : text;
}

void print_users(const StoreStatus& status) {
  Table table({{"USER", Align::left, true},
               {"BYTES", Align::right},
               {"LIMIT", Align::right},
               {"ARRAYS", Align::right},
               {"LIMIT", Align::right},
               {"LEASES", Align::right},
               {"CONNECTIONS", Align::right}});
  for (const UserStatus& user : status.uids) {
    table.add_plain({user_text(user.uid), bytes_text(user.bytes),
                     limit_text(user.bytes_max, bytes_text(user.bytes_max)),
                     grouped_text(user.arrays),
                     limit_text(user.arrays_max, grouped_text(user.arrays_max)),
                     grouped_text(user.leases), grouped_text(user.connections)});
  }
  if (table.empty()) return;
  say("");
  table.print();
}

}  // namespace

int run_status(const Globals& globals) {
  Result<shmstore::Client> client = connect(globals);
  if (!client) return fail(client.error());
  if (globals.json) return print_json(client->admin("status"));
  Result<StoreStatus> status = client->status();
  if (!status) return fail(status.error());

  const bool colour = colour_wanted(stdout);
  const double full = part_of(status->used, status->capacity);
  say(paint(Style::bold, "shmstored " + status->version, colour) + ", pid " +
      std::to_string(status->pid) + ", up " + span_text(status->uptime_s));
  line("socket", client->socket_path(), colour);
  line("memory",
       bar_text(full, kBarColumns, colour) + " " + bytes_text(status->used) + " of " +
           bytes_text(status->capacity) + ", " + percent_text(full),
       colour);
  if (status->pinned > 0) {
    line("", bytes_text(status->pinned) + " of it deleted, but still mapped by somebody", colour);
  }
  if (status->pooled > 0) {
    line("", bytes_text(status->pooled) + " more pooled for reuse (gc gives it back)", colour);
  }
  line("arrays", grouped_text(status->arrays), colour);
  line("sessions", grouped_text(status->sessions), colour);
  line("descriptors", grouped_text(status->fds) + " of " + grouped_text(status->fds_max), colour);
  print_users(*status);
  return kDone;
}

}  // namespace shmctl
