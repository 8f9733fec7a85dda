#pragma once
/// All that shmctl does with JSON, behind plain strings: the library is expensive to include, so
/// only json.cpp does. Texts that come from the daemon are valid; anything else is reported as
/// protocol_error.

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "shmstore/client.hpp"
#include "shmstore/error.hpp"

namespace shmctl {

/// A JSON string literal. Bytes that are no UTF-8 are replaced.
[[nodiscard]] std::string json_quote(std::string_view text);
/// An object from keys and values that are JSON text already.
[[nodiscard]] std::string json_object(
    std::initializer_list<std::pair<std::string_view, std::string>> members);
/// An array of values that are JSON text already.
[[nodiscard]] std::string json_array(const std::vector<std::string>& values);
/// A number, as JSON wants it.
[[nodiscard]] std::string json_number(double value);

/// The same value, indented or on one line. Text that is no JSON comes back as it is.
[[nodiscard]] std::string json_layout(std::string_view text, bool indented);

/// The member `key` of an object, as JSON text.
[[nodiscard]] shmstore::Result<std::string> json_member(std::string_view text,
                                                        std::string_view key);
/// The member `key` of an object, which must be a string.
[[nodiscard]] shmstore::Result<std::string> json_string_member(std::string_view text,
                                                               std::string_view key);
/// The member `key` of an object, which must be a number ≥ 0.
[[nodiscard]] shmstore::Result<std::uint64_t> json_count_member(std::string_view text,
                                                                std::string_view key);

/// What `selfcheck` answered.
struct SelfcheckReply {
  bool clean = false;
  std::vector<std::string> problems;
};
[[nodiscard]] shmstore::Result<SelfcheckReply> parse_selfcheck(std::string_view text);

/// What `holders` answered.
[[nodiscard]] shmstore::Result<std::vector<shmstore::Holder>> parse_holders(std::string_view text);

}  // namespace shmctl
