#include "commands.hpp"
#include "connect.hpp"
#include "json.hpp"
#include "output.hpp"

namespace shmctl {

int run_selfcheck(const Globals& globals) {
  Result<shmstore::Client> client = connect(globals);
  if (!client) return fail(client.error());
  Result<std::string> reply = client->admin("selfcheck");
  if (!reply) return fail(reply.error());
  Result<SelfcheckReply> check = parse_selfcheck(*reply);
  if (!check) return fail(check.error());
  const int status = check->clean ? kDone : kRefused;
  if (globals.json) {
    const int printed = print_json(reply);
    return printed == kDone ? status : printed;
  }
  say(check->clean ? "selfcheck: clean"
                   : "selfcheck: " + count_text(check->problems.size(), "problem"));
  for (const std::string& problem : check->problems) say("  " + problem);
  return status;
}

}  // namespace shmctl
