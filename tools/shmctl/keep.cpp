#include "commands.hpp"
#include "connect.hpp"
#include "json.hpp"
#include "output.hpp"

namespace shmctl {

int run_keep(const Globals& globals, const KeepOptions& options) {
  Result<shmstore::Client> client = connect(globals);
  if (!client) return fail(client.error());
  Result<std::string> kept =
      options.ttl ? admin_on(*client, "keep", options.name, "ttl_s",
                             json_number(std::chrono::duration<double>(*options.ttl).count()))
                  : admin_on(*client, "keep", options.name);
  if (!kept) return fail(kept.error());
  if (globals.json) return print_json(admin_on(*client, "info", options.name));
  std::string text = options.name + " is kept";
  if (options.ttl) {
    text += " for " + span_text(std::chrono::duration<double>(*options.ttl).count());
  }
  say(text);
  return kDone;
}

}  // namespace shmctl
