#include "connect.hpp"

#include <charconv>
#include <utility>

#include "json.hpp"

namespace shmctl {

using shmstore::AnyArray;
using shmstore::ArrayInfo;
using shmstore::AttachOptions;
using shmstore::Client;

Result<Client> connect(const Globals& globals, Autostart autostart,
                       std::function<bool()> interrupted) {
  shmstore::ConnectOptions options;
  options.socket = globals.socket;
  if (autostart == Autostart::never) options.autostart = false;
  options.interrupted = std::move(interrupted);
  Result<Client> client = Client::connect(options);
  constexpr std::string_view kOurs = ", and starting one is turned off";
  if (!client && client.error().text.ends_with(kOurs)) {
    shmstore::Error error = client.error();
    error.text.resize(error.text.size() - kOurs.size());
    error.text += ": there is no store, so there are no arrays; a program that uses one starts it";
    return error;
  }
  return client;
}

std::optional<std::uint64_t> id_of(std::string_view target) {
  if (!target.starts_with('%')) return std::nullopt;
  std::uint64_t id = 0;
  const char* end = target.data() + target.size();
  const auto [stop, status] = std::from_chars(target.data() + 1, end, id);
  return status == std::errc() && stop == end ? std::optional(id) : std::nullopt;
}

Result<AnyArray> attach(Client& client, std::string_view target, const AttachOptions& options) {
  const std::optional<std::uint64_t> id = id_of(target);
  if (id) return client.attach_id(shmstore::ArrayId{*id}, 0, options);
  return client.attach_any(target, options);
}

Result<ArrayInfo> find_info(Client& client, std::string_view target) {
  const std::optional<std::uint64_t> id = id_of(target);
  return id ? client.info(shmstore::ArrayId{*id}) : client.info(target);
}

Result<std::string> admin_on(Client& client, std::string_view op, std::string_view target,
                             std::string_view key, std::string value) {
  std::pair<std::string_view, std::string> array{"id", {}};
  if (id_of(target)) {
    array.second = json_quote(target.substr(1));
  } else {
    Result<std::string> resolved = Client::resolve_name(target);
    if (!resolved) return resolved;
    array = {"name", json_quote(*resolved)};
  }
  if (key.empty()) return client.admin(op, json_object({array}));
  return client.admin(op, json_object({array, {key, std::move(value)}}));
}

}  // namespace shmctl
