#include <string>

#include "commands.hpp"
#include "connect.hpp"
#include "json.hpp"
#include "output.hpp"

namespace shmctl {

int run_gc(const Globals& globals) {
  Result<shmstore::Client> client = connect(globals);
  if (!client) return fail(client.error());
  Result<std::string> reply = client->admin("gc");
  if (globals.json || !reply) return print_json(reply);
  Result<std::uint64_t> freed = json_count_member(*reply, "freed_bytes");
  if (!freed) return fail(freed.error());
  Result<std::uint64_t> pinned = json_count_member(*reply, "pinned_bytes");
  if (!pinned) return fail(pinned.error());
  Result<std::uint64_t> ended = json_count_member(*reply, "handovers_ended");
  if (!ended) return fail(ended.error());
  if (*ended > 0) {
    say("ended " + std::to_string(*ended) +
        " hand-overs that nobody has opened and whose sender has ended");
  }
  say(*freed == 0 ? "nothing to free" : "freed " + bytes_text(*freed));
  if (*pinned > 0) {
    say(bytes_text(*pinned) + " of deleted arrays stay until the processes that map them let go");
  }
  return kDone;
}

}  // namespace shmctl
