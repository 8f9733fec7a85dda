#include "commands.hpp"
#include "connect.hpp"
#include "json.hpp"
#include "output.hpp"

namespace shmctl {

int run_unkeep(const Globals& globals, const NameOption& options) {
  Result<shmstore::Client> client = connect(globals);
  if (!client) return fail(client.error());
  if (Result<void> done = client->unkeep(options.name); !done) return fail(done.error());
  Result<bool> there = client->exists(options.name);
  if (!there) return fail(there.error());
  if (globals.json) {
    return print_json(
        json_object({{"name", json_quote(options.name)}, {"exists", *there ? "true" : "false"}}));
  }
  say(options.name + (*there ? " is not kept any more: it goes with its last holder"
                             : " is gone: nobody held it"));
  return kDone;
}

}  // namespace shmctl
