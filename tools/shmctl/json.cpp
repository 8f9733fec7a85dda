#include "json.hpp"

#include <cmath>
#include <nlohmann/json.hpp>

namespace shmctl {

using Json = nlohmann::ordered_json;
using shmstore::Error;
using shmstore::ErrorCode;
using shmstore::Holder;
using shmstore::make_error;
using shmstore::Result;

namespace {

std::string dump(const Json& value, int indent = -1) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

Error unexpected(std::string_view text, std::string_view what) {
  return make_error(ErrorCode::protocol_error, "the daemon's answer " + std::string(what) + ": " +
                                                   std::string(text.substr(0, 200)));
}

/// The member, or null when the text is no object or has no such key. Never throws.
Result<Json> member(std::string_view text, std::string_view key) {
  const Json document = Json::parse(text, nullptr, false);
  if (!document.is_object()) return unexpected(text, "is no JSON object");
  const auto found = document.find(std::string(key));
  if (found == document.end()) return unexpected(text, "has no '" + std::string(key) + "'");
  return Json(*found);
}

}  // namespace

std::string json_quote(std::string_view text) {
  return dump(Json(std::string(text)));
}

std::string json_object(std::initializer_list<std::pair<std::string_view, std::string>> members) {
  std::string text = "{";
  for (const auto& [key, value] : members) {
    text += (text.size() > 1 ? "," : "") + json_quote(key) + ":" + value;
  }
  return text + "}";
}

std::string json_array(const std::vector<std::string>& values) {
  std::string text = "[";
  for (const std::string& value : values) text += (text.size() > 1 ? "," : "") + value;
  return text + "]";
}

std::string json_number(double value) {
  return std::isfinite(value) ? dump(Json(value)) : "null";
}

std::string json_layout(std::string_view text, bool indented) {
  const Json document = Json::parse(text, nullptr, false);
  if (document.is_discarded()) return std::string(text);
  return dump(document, indented ? 2 : -1);
}

Result<std::string> json_member(std::string_view text, std::string_view key) {
  Result<Json> value = member(text, key);
  if (!value) return value.error();
  return dump(*value);
}

Result<std::string> json_string_member(std::string_view text, std::string_view key) {
  Result<Json> value = member(text, key);
  if (!value) return value.error();
  if (!value->is_string()) return unexpected(text, "has no text '" + std::string(key) + "'");
  return value->get<std::string>();
}

Result<std::uint64_t> json_count_member(std::string_view text, std::string_view key) {
  Result<Json> value = member(text, key);
  if (!value) return value.error();
  if (!value->is_number_unsigned()) {
    return unexpected(text, "has no number '" + std::string(key) + "'");
  }
  return value->get<std::uint64_t>();
}

Result<SelfcheckReply> parse_selfcheck(std::string_view text) {
  Result<Json> clean = member(text, "clean");
  if (!clean) return clean.error();
  if (!clean->is_boolean()) return unexpected(text, "has no true or false 'clean'");
  SelfcheckReply reply;
  reply.clean = clean->get<bool>();
  Result<Json> problems = member(text, "problems");
  if (!problems) return problems.error();
  for (const Json& problem : *problems) {
    reply.problems.push_back(problem.is_string() ? problem.get<std::string>() : dump(problem));
  }
  return reply;
}

Result<std::vector<Holder>> parse_holders(std::string_view text) {
  Result<Json> rows = member(text, "holders");
  if (!rows) return rows.error();
  std::vector<Holder> holders;
  try {
    for (const Json& row : *rows) {
      holders.push_back({row.at("pid").get<std::int64_t>(), row.at("command").get<std::string>(),
                         row.at("uid").get<std::uint32_t>(), row.at("access").get<std::string>(),
                         row.at("since").get<double>(), row.value("in_flight", std::uint64_t{0}),
                         row.value("from_pid", std::int64_t{0})});
    }
  } catch (const Json::exception& exception) {
    return unexpected(text, exception.what());
  }
  return holders;
}

}  // namespace shmctl
