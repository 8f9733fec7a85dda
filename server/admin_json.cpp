#include "server/admin_json.hpp"

#include <array>
#include <charconv>
#include <cstdio>
#include <utility>

#include "server/dispatch_admin.hpp"
#include "server/wire.hpp"

namespace shmstore::server {
namespace {

constexpr double kTtlSecondsMax = static_cast<double>(protocol::kTimeoutMsMax) / 1000;
/// Of a document that asks for something. The longest one that makes sense is a long name that is
/// escaped throughout; 64 KiB of brackets would take milliseconds to parse.
constexpr std::size_t kRequestBytesMax = 8192;
constexpr std::uint32_t kUidMax = 0xfffffffeU;  // 2^32 - 1 means "nobody", "the caller's own"

Error invalid(std::string text) {
  return make_error(ErrorCode::invalid_argument, std::move(text));
}

/// "x" → own namespace, "~1000/x" → that of 1000. The rest is not checked.
Result<QualifiedName> split_name(std::string_view text) {
  QualifiedName name;
  if (text.empty() || text.front() != '~') {
    name.name = text;
    return name;
  }
  const std::size_t slash = text.find('/');
  const auto uid =
      parse_decimal(text.substr(1, slash == std::string_view::npos ? slash : slash - 1));
  if (!uid || *uid > kUidMax) {
    return invalid("name: after '~' comes a user's number and '/', as in ~1000/grid");
  }
  name.uid = static_cast<std::uint32_t>(*uid);
  if (slash != std::string_view::npos) name.name = text.substr(slash + 1);
  return name;
}

Result<QualifiedName> full_name(std::string_view text) {
  Result<QualifiedName> name = split_name(text);
  if (!name) return name;
  if (Result<void> checked = check_name(name->name); !checked) return checked.error();
  return name;
}

/// The part of a request that says which array.
Result<Target> read_target(JsonFields& fields, std::uint64_t store_id) {
  const std::optional<std::string> name = fields.text("name");
  const std::optional<std::uint64_t> id = fields.decimal("id");
  const std::optional<std::uint64_t> store = fields.decimal("store_id");
  if (name.has_value() == id.has_value()) {
    // A mistyped key is the better message, if that is why.
    if (Result<void> read = fields.finish(); !read) return read.error();
    return invalid("name: either a name or an id must be given");
  }
  if (store && *store != store_id) {
    return make_error(ErrorCode::not_found, "id: this handle is of an earlier or another store");
  }
  Target target;
  if (id) {
    target.id = ArrayId{*id};
    if (!target.id.valid()) return invalid("id: must not be 0");
    return target;
  }
  Result<QualifiedName> qualified = full_name(*name);
  if (!qualified) return qualified.error();
  target.name = std::move(*qualified);
  return target;
}

Result<PrefixRequest> read_prefix(JsonFields& fields) {
  PrefixRequest request;
  Result<QualifiedName> prefix = split_name(fields.text("prefix").value_or(""));
  if (!prefix) return prefix.error();
  request.prefix = std::move(prefix->name);
  if (prefix->uid != QualifiedName::kOwn) request.ns_uid = prefix->uid;
  if (const auto uid = fields.number("uid", kUidMax)) {
    if (request.ns_uid && *request.ns_uid != *uid) {
      return invalid("uid: another one than in the prefix");
    }
    request.ns_uid = static_cast<std::uint32_t>(*uid);
  }
  return request;
}

std::optional<std::uint16_t> parse_perms(std::string_view text) {
  unsigned value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 8);
  if (error != std::errc{} || end != text.data() + text.size() || text.size() > 4 ||
      (value & ~unsigned{kPermsMax}) != 0) {
    return std::nullopt;
  }
  return static_cast<std::uint16_t>(value);
}

std::string perms_text(std::uint16_t perms) {
  std::array<char, 8> text{};
  (void)std::snprintf(text.data(), text.size(), "%04o", unsigned{perms});
  return text.data();
}

}  // namespace

// -- documents ------------------------------------------------------------------------------------

std::optional<std::uint64_t> parse_decimal(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<std::uint64_t> JsonFields::decimal(const char* key) {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  const std::optional<std::uint64_t> number =
      value->is_string() ? parse_decimal(value->get_ref<const std::string&>())
                         : std::optional<std::uint64_t>();
  if (!number) return fail<std::uint64_t>(key, "must be a decimal number as a text");
  return number;
}

Result<Json> parse_document(std::string_view text) {
  if (json_depth(text) > protocol::kJsonDepthMax) {
    return make_error(
        ErrorCode::protocol_error,
        "the document nests deeper than " + std::to_string(protocol::kJsonDepthMax) + " levels");
  }
  if (text.size() > kRequestBytesMax) {
    return invalid("document: " + std::to_string(text.size()) + " bytes, at most " +
                   std::to_string(kRequestBytesMax) + " are allowed");
  }
  Json document = parse_json(text);
  if (!document.is_object()) {
    return make_error(ErrorCode::protocol_error, "the document is not a JSON object");
  }
  return document;
}

std::string document_text(const Json& document) {
  return document.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<std::string> canonical_attrs(std::string_view text) {
  if (text.empty()) return std::string("{}");
  if (text.size() > kAttrsBytesMax) {
    return invalid("attrs: " + std::to_string(text.size()) + " bytes, at most " +
                   std::to_string(kAttrsBytesMax) + " are allowed");
  }
  if (json_depth(text) > protocol::kJsonDepthMax) {
    return invalid("attrs: nests deeper than " + std::to_string(protocol::kJsonDepthMax) +
                   " levels");
  }
  const Json attrs = parse_json(text);
  if (!attrs.is_object()) return invalid("attrs: must be a JSON object");
  std::string canonical = document_text(attrs);
  if (canonical.size() > kAttrsBytesMax) {
    return invalid("attrs: more than " + std::to_string(kAttrsBytesMax) +
                   " bytes when written without abbreviations");
  }
  return canonical;
}

// -- requests -------------------------------------------------------------------------------------

Result<TargetRequest> target_request(const Json& json, std::uint64_t store_id) {
  JsonFields fields(json);
  Result<Target> target = read_target(fields, store_id);
  if (!target) return target.error();
  if (Result<void> read = fields.finish(); !read) return read.error();
  return TargetRequest{std::move(*target)};
}

Result<KeepRequest> keep_request(const Json& json, std::uint64_t store_id) {
  JsonFields fields(json);
  const std::optional<double> ttl_s = fields.seconds("ttl_s", kTtlSecondsMax);
  Result<Target> target = read_target(fields, store_id);
  if (!target) return target.error();
  if (Result<void> read = fields.finish(); !read) return read.error();
  KeepRequest request{std::move(*target), std::nullopt};
  // 0 would mean "no limit": the shortest life is a millisecond.
  if (ttl_s) request.ttl_ms = std::max<std::uint64_t>(1, static_cast<std::uint64_t>(*ttl_s * 1000));
  return request;
}

Result<ChmodRequest> chmod_request(const Json& json, std::uint64_t store_id) {
  JsonFields fields(json);
  const std::optional<std::string> text = fields.text("perms");
  Result<Target> target = read_target(fields, store_id);
  if (!target) return target.error();
  if (Result<void> read = fields.finish(); !read) return read.error();
  const auto perms = parse_perms(text.value_or(""));
  if (!perms) {
    return invalid("perms: must be an octal text of bits of 0666, as in \"0644\"");
  }
  return ChmodRequest{std::move(*target), *perms};
}

Result<PrefixRequest> prefix_request(const Json& json) {
  JsonFields fields(json);
  Result<PrefixRequest> request = read_prefix(fields);
  if (Result<void> read = fields.finish(); !read) return read.error();
  return request;
}

Result<ListRequest> list_request(const Json& json) {
  JsonFields fields(json);
  Result<PrefixRequest> of = read_prefix(fields);
  ListRequest request;
  request.cursor = fields.text("cursor").value_or("");
  request.limit = fields.number("limit", protocol::kListLimitMax).value_or(request.limit);
  if (Result<void> read = fields.finish(); !read) return read.error();
  if (!of) return of.error();
  if (request.limit == 0) return invalid("limit: must be at least 1");
  request.of = std::move(*of);
  return request;
}

Result<QuotasRequest> quotas_request(const Json& json) {
  JsonFields fields(json);
  QuotasRequest request;
  if (const auto uid = fields.number("uid", kUidMax)) {
    request.uid = static_cast<std::uint32_t>(*uid);
  }
  request.bytes_max = fields.number("bytes_max", kArrayBytesMax);
  request.arrays_max = fields.number("arrays_max", ArrayId::kSlotMax);
  if (Result<void> read = fields.finish(); !read) return read.error();
  return request;
}

Result<EmptyRequest> empty_request(const Json& json) {
  JsonFields fields(json);
  if (Result<void> read = fields.finish(); !read) return read.error();
  return EmptyRequest{};
}

// -- replies --------------------------------------------------------------------------------------

std::string name_for(std::uint32_t uid, std::uint32_t ns_uid, std::string_view name) {
  if (uid == ns_uid) return std::string(name);
  return "~" + std::to_string(ns_uid) + "/" + std::string(name);
}

Json to_json(const BrokenBy& by) {
  Json json;
  json["pid"] = by.pid;
  json["command"] = by.command;
  json["at"] = by.at_s;
  json["gave_up"] = by.gave_up;
  return json;
}

std::string array_text(const ArrayView& array, std::uint32_t uid) {
  Json json;
  json["id"] = std::to_string(array.id.raw);
  json["name"] = array.name.empty() ? Json() : Json(name_for(uid, array.ns_uid, array.name));
  json["dtype"] = array.dtype;
  json["shape"] = Json::array();
  for (std::uint64_t dim : array.shape) json["shape"].push_back(dim);
  json["order"] = array.order == Order::c ? "C" : "F";
  json["nbytes"] = array.bytes;
  json["state"] = to_string(array.state);
  json["version"] = array.version;
  json["perms"] = perms_text(array.perms);
  json["uid"] = array.uid;
  json["ns_uid"] = array.ns_uid;
  json["leases"] = array.leases;
  json["kept"] = array.kept;
  json["ttl_s"] = array.ttl_left_ms ? Json(static_cast<double>(*array.ttl_left_ms) / 1000) : Json();
  json["created"] = array.created_s;
  json["sealed"] = array.sealed_s ? Json(*array.sealed_s) : Json();
  json["seal"] =
      array.seal == Seal::none ? Json() : Json(array.seal == Seal::soft ? "soft" : "hard");
  json["in_flight"] = array.in_flight;
  json["broken"] = array.broken ? to_json(*array.broken) : Json();
  // Canonical text since it came in; the empty one is that of an array that has none. Its key comes
  // first in the order of a document.
  std::string text = R"({"attrs":)";
  text += array.attrs.empty() ? "{}" : array.attrs;
  return text.append(",").append(document_text(json), 1);
}

Json to_json(const HolderView& holder) {
  Json json;
  json["pid"] = holder.pid;
  json["command"] = holder.pid == 0 ? "hand-over" : holder.command;
  json["uid"] = holder.uid;
  json["access"] = to_string(holder.access);
  json["since"] = holder.since_s;
  if (holder.pid == 0) {
    json["in_flight"] = holder.in_flight;
    json["from_pid"] = holder.from_pid;
  }
  return json;
}

Json to_json(const EventRecord& record, std::uint32_t uid) {
  Json json;
  json["event"] = record.event;
  json["name"] = record.name.empty() ? Json() : Json(name_for(uid, record.ns_uid, record.name));
  json["id"] = std::to_string(record.id.raw);
  json["version"] = record.version;
  json["state"] = to_string(record.state);
  json["uid"] = record.owner_uid;
  return json;
}

Json to_json(std::uint32_t uid, const Usage& usage) {
  Json json;
  json["uid"] = uid;
  json["bytes"] = usage.bytes;
  json["bytes_max"] = usage.bytes_max;
  json["arrays"] = usage.arrays;
  json["arrays_max"] = usage.arrays_max;
  json["segments"] = usage.segments;
  json["segments_max"] = usage.segments_max;
  json["leases"] = usage.leases;
  json["connections"] = usage.connections;
  json["connections_max"] = usage.connections_max;
  return json;
}

}  // namespace shmstore::server
