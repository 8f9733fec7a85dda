#pragma once
/// Reading JSON objects that strangers wrote: each key is asked for by name and type; what is
/// missing, mistyped, out of range or unknown is one error that names the key.

#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "shmstore/error.hpp"

namespace shmstore::server {

using Json = nlohmann::json;

/// The document that `text` is, whole; discarded when it is none. The parser takes a zero byte for
/// the end and says nothing of what comes behind it, so one anywhere makes the text no document.
[[nodiscard]] inline Json parse_json(std::string_view text, bool comments = false) {
  if (text.find('\0') != std::string_view::npos) return Json(Json::value_t::discarded);
  return Json::parse(text.begin(), text.end(), nullptr, false, comments);
}

/// Reads the keys of one object. Values of keys that were wrong are empty or zero: look at finish()
/// before using any.
class JsonFields {
 public:
  explicit JsonFields(const Json& object) : object_(object) {}

  [[nodiscard]] std::optional<std::string> text(const char* key) {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_string()) return fail<std::string>(key, "must be a text");
    return value->get<std::string>();
  }
  [[nodiscard]] std::optional<std::uint64_t> number(const char* key, std::uint64_t max) {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number_unsigned() || value->get<std::uint64_t>() > max) {
      return fail<std::uint64_t>(key, "must be a whole number from 0 to " + std::to_string(max));
    }
    return value->get<std::uint64_t>();
  }
  /// A time in seconds, fractions allowed, more than 0.
  [[nodiscard]] std::optional<double> seconds(const char* key, double max) {
    const Json* value = find(key);
    if (value == nullptr) return std::nullopt;
    const double number = value->is_number() ? value->get<double>() : -1;
    if (!std::isfinite(number) || number <= 0 || number > max) {
      return fail<double>(key, "must be a number of seconds above 0, at most " +
                                   std::to_string(static_cast<std::uint64_t>(max)));
    }
    return number;
  }
  /// A number written as a decimal text: ids do not fit into every reader's numbers.
  [[nodiscard]] std::optional<std::uint64_t> decimal(const char* key);

  /// The first thing that was wrong, unknown keys included.
  [[nodiscard]] Result<void> finish() {
    for (const auto& item : object_.items()) {
      if (!problem_ && known_.count(item.key()) == 0) {
        (void)fail<int>(item.key().substr(0, 64), "is not a key of this operation");
      }
    }
    if (problem_) return *problem_;
    return {};
  }

 private:
  const Json* find(const char* key) {
    known_.insert(key);
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  template <class T>
  std::optional<T> fail(const std::string& key, const std::string& problem) {
    if (!problem_) problem_ = make_error(ErrorCode::invalid_argument, key + ": " + problem);
    return std::nullopt;
  }

  const Json& object_;
  std::set<std::string, std::less<>> known_;
  std::optional<Error> problem_;
};

/// A JSON object within the protocol's depth. Errors: protocol_error, it is none.
[[nodiscard]] Result<Json> parse_document(std::string_view text);

/// The text of a document, as UTF-8 whatever is in it.
[[nodiscard]] std::string document_text(const Json& document);

/// A decimal number, digits only, that fits into 64 bits.
[[nodiscard]] std::optional<std::uint64_t> parse_decimal(std::string_view text);

}  // namespace shmstore::server
