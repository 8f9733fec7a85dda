#include <array>
#include <cstdio>
#include <string>

#include "commands.hpp"
#include "connect.hpp"
#include "json.hpp"
#include "output.hpp"
#include "publish.hpp"

namespace shmctl {

namespace {

/// As the protocol spells it: "0644".
std::string octal_text(std::uint16_t perms) {
  std::array<char, 8> text{};
  std::snprintf(text.data(), text.size(), "%04o", unsigned{perms});
  return text.data();
}

}  // namespace

int run_chmod(const Globals& globals, const ChmodOptions& options) {
  Result<std::uint16_t> perms = parse_perms(options.perms);
  if (!perms) return fail(perms.error());
  Result<shmstore::Client> client = connect(globals);
  if (!client) return fail(client.error());
  Result<std::string> done =
      admin_on(*client, "chmod", options.name, "perms", json_quote(octal_text(*perms)));
  if (!done) return fail(done.error());
  if (globals.json) return print_json(admin_on(*client, "info", options.name));
  Result<shmstore::ArrayInfo> info = find_info(*client, options.name);
  if (!info) return fail(info.error());
  say(options.name + " has perms " + info->perms);
  return kDone;
}

}  // namespace shmctl
