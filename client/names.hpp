#pragma once
/// Names as callers write them. The wire knows user numbers only, so `~alice/x` is looked up here:
/// the daemon never calls the name service.

#include <optional>
#include <string>
#include <string_view>

#include "shmstore/array.hpp"
#include "shmstore/error.hpp"

namespace shmstore::client_internal {

/// `x`, `~1000/x` or `~alice/x` as namespace and checked name.
/// Errors: invalid_argument (the name's rules, an unknown user).
[[nodiscard]] Result<QualifiedName> parse_name(std::string_view text);

/// As parse_name for the beginning of names: the part after `~user/` may be empty or unfinished.
[[nodiscard]] Result<QualifiedName> parse_prefix(std::string_view text);

/// As the admin plane wants it: `x` or `~1000/x`.
[[nodiscard]] std::string wire_name(const QualifiedName& name);

}  // namespace shmstore::client_internal
