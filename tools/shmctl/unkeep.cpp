#include "commands.hpp"
#include "connect.hpp"
#include "json.hpp"
#include "output.hpp"

namespace shmctl {

int run_unkeep(const Globals& globals, const NameOption& options) {
  Result<shmstore::Client> client = connect(globals);
  if (!client) return fail(client.error());
  Result<std::string> done = admin_on(*client, "unkeep", options.name);
  if (!done) return fail(done.error());
  const Result<shmstore::ArrayInfo> info = find_info(*client, options.name);
  if (!info && info.error().code != shmstore::ErrorCode::not_found) return fail(info.error());
  const bool there = info.has_value();
  if (globals.json) {
    return print_json(
        json_object({{"name", json_quote(options.name)}, {"exists", there ? "true" : "false"}}));
  }
  say(options.name +
      (there ? " is not kept any more: it goes with its last holder" : " is gone: nobody held it"));
  return kDone;
}

}  // namespace shmctl
