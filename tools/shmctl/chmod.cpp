#include "commands.hpp"
#include "connect.hpp"
#include "output.hpp"
#include "publish.hpp"

namespace shmctl {

int run_chmod(const Globals& globals, const ChmodOptions& options) {
  Result<std::uint16_t> perms = parse_perms(options.perms);
  if (!perms) return fail(perms.error());
  Result<shmstore::Client> client = connect(globals);
  if (!client) return fail(client.error());
  if (Result<void> done = client->chmod(options.name, *perms); !done) return fail(done.error());
  if (globals.json) return print_json(admin_on(*client, "info", options.name));
  Result<shmstore::ArrayInfo> info = client->info(options.name);
  if (!info) return fail(info.error());
  say(options.name + " has perms " + info->perms);
  return kDone;
}

}  // namespace shmctl
