#pragma once
/// What of the admin plane other units need, without the JSON library.

#include <string>
#include <string_view>

#include "client/state.hpp"
#include "shmstore/client.hpp"

namespace shmstore::client_internal {

/// The request that subscribes to events of names with this prefix.
[[nodiscard]] Result<std::string> watch_request(std::string_view prefix);

/// One event frame's body. Error: protocol_error.
[[nodiscard]] Result<Event> parse_event(std::string_view text);

}  // namespace shmstore::client_internal
