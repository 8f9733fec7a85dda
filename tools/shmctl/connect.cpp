#include "connect.hpp"

#include <charconv>
#include <vector>

#include "json.hpp"

namespace shmctl {

using shmstore::AnyArray;
using shmstore::ArrayInfo;
using shmstore::AttachOptions;
using shmstore::Client;
using shmstore::ErrorCode;
using shmstore::make_error;

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
  if (!id_of(target)) return client.info(target);
  Result<std::vector<ArrayInfo>> arrays = client.list();
  if (!arrays) return arrays.error();
  for (ArrayInfo& info : *arrays) {
    if (info.id == target.substr(1)) return std::move(info);
  }
  return make_error(ErrorCode::not_found, "id: there is no array " + std::string(target));
}

Result<std::string> target_json(std::string_view target) {
  if (id_of(target)) return json_object({{"id", json_quote(target.substr(1))}});
  Result<std::string> resolved = Client::resolve_name(target);
  if (!resolved) return resolved.error();
  return json_object({{"name", json_quote(*resolved)}});
}

Result<std::string> admin_on(Client& client, std::string_view op, std::string_view target) {
  Result<std::string> request = target_json(target);
  return request ? client.admin(op, *request) : request;
}

}  // namespace shmctl
