#include <algorithm>

#include "commands.hpp"
#include "connect.hpp"
#include "json.hpp"
#include "output.hpp"

namespace shmctl {

int run_rm(const Globals& globals, const RmOptions& options) {
  Result<shmstore::Client> client = connect(globals);
  if (!client) return fail(client.error());
  int status = kDone;
  std::vector<std::string> removed;
  // One that is refused does not stop the others, as with rm(1).
  for (const std::string& name : options.names) {
    if (Result<std::string> done = admin_on(*client, "remove", name); !done) {
      status = std::max(status, fail(done.error()));
    } else {
      removed.push_back(json_quote(name));
      if (!globals.json) say("removed " + name);
    }
  }
  if (!globals.json) return status;
  return std::max(status, print_json(json_object({{"removed", json_array(removed)}})));
}

}  // namespace shmctl
