#include "connect.hpp"

#include "json.hpp"

namespace shmctl {

Result<shmstore::Client> connect(const Globals& globals, Autostart autostart) {
  shmstore::ConnectOptions options;
  options.socket = globals.socket;
  if (autostart == Autostart::never) options.autostart = false;
  return shmstore::Client::connect(options);
}

Result<std::string> admin_on(shmstore::Client& client, std::string_view op, std::string_view name) {
  Result<std::string> resolved = shmstore::Client::resolve_name(name);
  if (!resolved) return resolved.error();
  return client.admin(op, json_object({{"name", json_quote(*resolved)}}));
}

}  // namespace shmctl
