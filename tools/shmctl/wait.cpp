#include "commands.hpp"
#include "connect.hpp"
#include "json.hpp"
#include "output.hpp"

namespace shmctl {

int run_wait(const Globals& globals, const WaitOptions& options) {
  Result<shmstore::Client> client = connect(globals);
  if (!client) return fail(client.error());
  Result<std::uint64_t> version = client->wait(options.name, options.newer_than, options.timeout);
  if (!version) return fail(version.error());
  if (globals.json) {
    return print_json(
        json_object({{"name", json_quote(options.name)}, {"version", std::to_string(*version)}}));
  }
  say(options.name + " is there, version " + std::to_string(*version));
  return kDone;
}

}  // namespace shmctl
