// The client's side of the admin plane, and the only unit of the client that knows JSON. Documents
// come from the daemon and are believed as far as their types go: a missing or mistyped key is a
// protocol_error that names it.
#include "client/admin.hpp"

#include <charconv>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "client/guarded.hpp"
#include "client/names.hpp"
#include "client/operations.hpp"

namespace shmstore {

using client_internal::Call;
using client_internal::guarded;
using nlohmann::json;
using protocol::Op;

namespace {

/// Thrown within this unit only; parsed() turns it into a protocol_error.
struct BadDocument {
  std::string text;
};

const json& at(const json& object, const char* key) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  if (!object.is_object() || found == object.end()) {
    throw BadDocument{std::string("key '") + key + "' is missing"};
  }
  return *found;
}

template <class T>
T get(const json& object, const char* key) {
  const json& value = at(object, key);
  try {
    // Numbers that may exceed what other JSON readers can hold travel as strings.
    if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
      if (value.is_string()) {
        const auto& text = value.get_ref<const std::string&>();
        T number{};
        const char* end = text.data() + text.size();
        const auto [rest, error] = std::from_chars(text.data(), end, number);
        if (error != std::errc{} || rest != end) throw BadDocument{std::string(key) + ": number"};
        return number;
      }
    }
    return value.get<T>();
  } catch (const json::exception&) {
    throw BadDocument{std::string("key '") + key + "' has the wrong type"};
  }
}

/// Absent and null are the same.
template <class T>
std::optional<T> get_optional(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return std::nullopt;
  return get<T>(object, key);
}

template <class T>
T get_or(const json& object, const char* key, T otherwise) {
  return get_optional<T>(object, key).value_or(std::move(otherwise));
}

std::string to_text(const json& document) {
  return document.dump(-1, ' ', false, json::error_handler_t::replace);
}

/// Parses `text` and makes a value of it with `read`.
template <class Read>
auto parsed(std::string_view text, Read&& read) -> Result<decltype(read(json()))> {
  try {
    return std::forward<Read>(read)(json::parse(text));
  } catch (const BadDocument& bad) {
    return make_error(ErrorCode::protocol_error, "reply: " + bad.text);
  } catch (const json::exception&) {
    return make_error(ErrorCode::protocol_error, "reply: it is not a JSON document");
  }
}

ArrayInfo read_info(const json& from) {
  ArrayInfo info;
  info.id = get<std::string>(from, "id");
  info.name = get_or<std::string>(from, "name", {});
  info.dtype = get<std::string>(from, "dtype");
  info.shape = get<std::vector<std::uint64_t>>(from, "shape");
  info.order = get<std::string>(from, "order");
  info.nbytes = get<std::uint64_t>(from, "nbytes");
  info.state = get<std::string>(from, "state");
  info.sealed = get_or<std::string>(from, "seal", {});
  info.version = get<std::uint64_t>(from, "version");
  info.perms = get<std::string>(from, "perms");
  info.uid = get<std::uint32_t>(from, "uid");
  info.leases = get<std::uint64_t>(from, "leases");
  info.kept = get<bool>(from, "kept");
  info.ttl_s = get_optional<double>(from, "ttl_s");
  info.created = get<double>(from, "created");
  info.sealed_at = get_optional<double>(from, "sealed");
  info.attrs = to_text(at(from, "attrs"));
  info.in_flight = get_or<std::uint64_t>(from, "in_flight", 0);
  if (const auto broken = from.find("broken"); broken != from.end() && !broken->is_null()) {
    info.broken = {get<std::int64_t>(*broken, "pid"), get<std::string>(*broken, "command"),
                   get<double>(*broken, "at"), get_or<bool>(*broken, "gave_up", false)};
  }
  return info;
}

Holder read_holder(const json& from) {
  Holder holder;
  holder.pid = get<std::int64_t>(from, "pid");
  holder.command = get<std::string>(from, "command");
  holder.uid = get<std::uint32_t>(from, "uid");
  holder.access = get<std::string>(from, "access");
  holder.since = get<double>(from, "since");
  holder.in_flight = get_or<std::uint64_t>(from, "in_flight", 0);
  holder.from_pid = get_or<std::int64_t>(from, "from_pid", 0);
  return holder;
}

UserStatus read_user(const json& from) {
  UserStatus user;
  user.uid = get<std::uint32_t>(from, "uid");
  user.bytes = get<std::uint64_t>(from, "bytes");
  user.bytes_max = get<std::uint64_t>(from, "bytes_max");
  user.arrays = get<std::uint64_t>(from, "arrays");
  user.arrays_max = get<std::uint64_t>(from, "arrays_max");
  user.leases = get<std::uint64_t>(from, "leases");
  user.connections = get<std::uint64_t>(from, "connections");
  return user;
}

StoreStatus read_status(const json& from) {
  StoreStatus status;
  status.capacity = get<std::uint64_t>(from, "capacity");
  status.used = get<std::uint64_t>(from, "used");
  status.pooled = get<std::uint64_t>(from, "pooled");
  status.pinned = get_or<std::uint64_t>(from, "pinned", 0);
  status.arrays = get<std::uint64_t>(from, "arrays");
  status.sessions = get<std::uint64_t>(from, "sessions");
  status.fds = get<std::uint64_t>(from, "fds");
  status.fds_max = get<std::uint64_t>(from, "fds_max");
  status.uptime_s = get<double>(from, "uptime_s");
  status.version = get<std::string>(from, "version");
  status.pid = get_or<std::int64_t>(from, "pid", 0);
  status.store_id = get_or<std::uint64_t>(from, "store_id", 0);
  for (const json& user : at(from, "uids")) status.uids.push_back(read_user(user));
  return status;
}

struct AdminOp {
  std::string_view name;
  Op op;
};

constexpr AdminOp kAdminOps[] = {
    {"list", Op::list},       {"info", Op::info},           {"holders", Op::holders},
    {"status", Op::status},   {"keep", Op::keep},           {"unkeep", Op::unkeep},
    {"remove", Op::remove},   {"delete", Op::remove},       {"chmod", Op::chmod},
    {"metrics", Op::metrics}, {"selfcheck", Op::selfcheck}, {"gc", Op::gc},
    {"quotas", Op::quotas},
};

/// One request and its answer, both as text.
Result<std::string> ask(client_internal::State& state, Op op, std::string_view request) {
  Call call(op);
  call.add_text(request);
  Result<std::shared_ptr<client_internal::Connection>> done = state.call(call);
  if (!done) return done.error();
  return std::string(call.text());
}

Result<std::string> ask(client_internal::State& state, Op op, const json& request) {
  return ask(state, op, std::string_view(to_text(request)));
}

/// {"name": …} of a name as callers write it.
Result<json> target(std::string_view name) {
  Result<QualifiedName> parsed_name = client_internal::parse_name(name);
  if (!parsed_name) return parsed_name.error();
  return json{{"name", client_internal::wire_name(*parsed_name)}};
}

Result<json> prefix_request(std::string_view prefix) {
  Result<QualifiedName> parsed_prefix = client_internal::parse_prefix(prefix);
  if (!parsed_prefix) return parsed_prefix.error();
  json request = json::object();
  if (!parsed_prefix->name.empty()) request["prefix"] = parsed_prefix->name;
  if (parsed_prefix->uid != QualifiedName::kOwn) request["uid"] = parsed_prefix->uid;
  return request;
}

/// All pages of `list` as one array.
Result<json> list_all(client_internal::State& state, json request) {
  json all = json::array();
  for (;;) {
    Result<std::string> page = ask(state, Op::list, request);
    if (!page) return page.error();
    Result<json> cursor = parsed(*page, [&](json document) {
      for (json& array : document.at("arrays")) all.push_back(std::move(array));
      const auto next = document.find("cursor");
      return next == document.end() ? json() : *next;
    });
    if (!cursor) return cursor.error();
    if (cursor->is_null()) return all;
    request["cursor"] = std::move(*cursor);
  }
}

Result<ArrayInfo> info_of(client_internal::State& state, const json& request) {
  Result<std::string> reply = ask(state, Op::info, request);
  if (!reply) return reply.error();
  return parsed(*reply, read_info);
}

/// An operation on one name whose answer says nothing.
Result<void> act(client_internal::State& state, Op op, std::string_view name) {
  Result<json> request = target(name);
  if (!request) return request.error();
  Result<std::string> done = ask(state, op, *request);
  if (!done) return done.error();
  return {};
}

std::string octal(std::uint16_t perms) {
  char text[] = "0000";
  for (std::size_t i = 4; i-- > 1; perms = static_cast<std::uint16_t>(perms >> 3U)) {
    text[i] = static_cast<char>('0' + (perms & 7U));
  }
  return text;
}

}  // namespace

namespace client_internal {

Result<std::string> watch_request(std::string_view prefix) {
  Result<json> request = prefix_request(prefix);
  if (!request) return request.error();
  return to_text(*request);
}

Result<Event> parse_event(std::string_view text) {
  return parsed(text, [&](const json& from) {
    Event event;
    event.event = get<std::string>(from, "event");
    event.name = get_or<std::string>(from, "name", {});
    event.id = get_or<std::string>(from, "id", {});
    event.version = get_or<std::uint64_t>(from, "version", 0);
    event.state = get_or<std::string>(from, "state", {});
    event.uid = get_or<std::uint32_t>(from, "uid", 0);
    event.json = std::string(text);
    return event;
  });
}

}  // namespace client_internal

Result<std::string> Client::admin(std::string_view op, std::string_view request) {
  return guarded([&]() -> Result<std::string> {
    for (const AdminOp& known : kAdminOps) {
      if (known.name != op) continue;
      if (known.op != Op::list) return ask(*state_, known.op, request);
      json document = json::parse(request, nullptr, false);
      if (!document.is_object()) {
        return make_error(ErrorCode::invalid_argument, "request: must be a JSON object");
      }
      Result<json> all = list_all(*state_, std::move(document));
      if (!all) return all.error();
      return to_text(*all);
    }
    return make_error(ErrorCode::invalid_argument,
                      "op: '" + std::string(op) + "' is no admin operation");
  });
}

Result<ArrayInfo> Client::info(std::string_view name) {
  return guarded([&]() -> Result<ArrayInfo> {
    Result<json> request = target(name);
    if (!request) return request.error();
    return info_of(*state_, *request);
  });
}

Result<ArrayInfo> Client::info(ArrayId id) {
  return guarded([&] { return info_of(*state_, json{{"id", std::to_string(id.raw)}}); });
}

Result<bool> Client::exists(std::string_view name) {
  Result<ArrayInfo> found = info(name);
  if (found) return true;
  if (found.error().code == ErrorCode::not_found) return false;
  return std::move(found).error();
}

Result<std::vector<ArrayInfo>> Client::list(std::string_view prefix) {
  return guarded([&]() -> Result<std::vector<ArrayInfo>> {
    Result<json> request = prefix_request(prefix);
    if (!request) return request.error();
    Result<json> all = list_all(*state_, std::move(*request));
    if (!all) return all.error();
    try {
      std::vector<ArrayInfo> infos;
      for (const json& array : *all) infos.push_back(read_info(array));
      return infos;
    } catch (const BadDocument& bad) {
      return make_error(ErrorCode::protocol_error, "reply: " + bad.text);
    }
  });
}

Result<std::vector<Holder>> Client::holders(std::string_view name) {
  return guarded([&]() -> Result<std::vector<Holder>> {
    Result<json> request = target(name);
    if (!request) return request.error();
    Result<std::string> reply = ask(*state_, Op::holders, *request);
    if (!reply) return reply.error();
    return parsed(*reply, [](const json& from) {
      std::vector<Holder> holders;
      for (const json& holder : at(from, "holders")) holders.push_back(read_holder(holder));
      return holders;
    });
  });
}

Result<StoreStatus> Client::status() {
  return guarded([&]() -> Result<StoreStatus> {
    Result<std::string> reply = ask(*state_, Op::status, json::object());
    if (!reply) return reply.error();
    return parsed(*reply, read_status);
  });
}

Result<void> Client::remove(std::string_view name) {
  return guarded([&] { return act(*state_, Op::remove, name); });
}

Result<void> Client::unkeep(std::string_view name) {
  return guarded([&] { return act(*state_, Op::unkeep, name); });
}

Result<void> Client::keep(std::string_view name, std::optional<std::chrono::milliseconds> ttl) {
  return guarded([&]() -> Result<void> {
    if (Result<std::uint64_t> valid = client_internal::wire_ttl(ttl); !valid) return valid.error();
    Result<json> request = target(name);
    if (!request) return request.error();
    if (ttl) (*request)["ttl_s"] = std::chrono::duration<double>(*ttl).count();
    Result<std::string> done = ask(*state_, Op::keep, *request);
    if (!done) return done.error();
    return {};
  });
}

Result<void> Client::chmod(std::string_view name, std::uint16_t perms) {
  return guarded([&]() -> Result<void> {
    if ((perms & ~kPermsMax) != 0) {
      return make_error(ErrorCode::invalid_argument, "perms: only bits of 0666 may be set");
    }
    Result<json> request = target(name);
    if (!request) return request.error();
    (*request)["perms"] = octal(perms);
    Result<std::string> done = ask(*state_, Op::chmod, *request);
    if (!done) return done.error();
    return {};
  });
}

}  // namespace shmstore
