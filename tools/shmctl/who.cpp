#include <vector>

#include "commands.hpp"
#include "connect.hpp"
#include "json.hpp"
#include "output.hpp"
#include "table.hpp"

namespace shmctl {

using shmstore::Holder;

int run_who(const Globals& globals, const NameOption& options) {
  Result<shmstore::Client> client = connect(globals);
  if (!client) return fail(client.error());
  const Result<std::string> reply = admin_on(*client, "holders", options.name);
  if (!reply) return fail(reply.error());
  if (globals.json) return print_json(json_member(*reply, "holders"));
  Result<std::vector<Holder>> holders = parse_holders(*reply);
  if (!holders) return fail(holders.error());
  if (holders->empty()) {
    say("nobody holds " + options.name);
    return kDone;
  }
  Table table({{"PID", Align::right},
               {"COMMAND", Align::left, true},
               {"USER", Align::left, true},
               {"ACCESS", Align::left},
               {"SINCE", Align::right}});
  for (const Holder& holder : *holders) {
    // A hand-over lease has no process: it waits for whoever unpickles the handle.
    std::string command = holder.command;
    if (holder.in_flight > 0) {
      command += " (" + std::to_string(holder.in_flight) + " in flight, pid " +
                 std::to_string(holder.from_pid) + ")";
    }
    table.add_plain({holder.pid == 0 ? "-" : std::to_string(holder.pid), command,
                     user_text(holder.uid), holder.access, age_text(holder.since)});
  }
  table.print();
  return kDone;
}

}  // namespace shmctl
