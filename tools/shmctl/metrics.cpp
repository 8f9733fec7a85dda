#include <cstdio>

#include "commands.hpp"
#include "connect.hpp"
#include "json.hpp"
#include "output.hpp"

namespace shmctl {

int run_metrics(const Globals& globals) {
  Result<shmstore::Client> client = connect(globals);
  if (!client) return fail(client.error());
  Result<std::string> reply = client->admin("metrics");
  if (globals.json || !reply) return print_json(reply);
  Result<std::string> text = json_string_member(*reply, "text");
  if (!text) return fail(text.error());
  std::fwrite(text->data(), 1, text->size(), stdout);
  return kDone;
}

}  // namespace shmctl
