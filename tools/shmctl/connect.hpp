#pragma once
/// From the command line's globals to a connected client, and from a NAME to a request.

#include <functional>
#include <string>
#include <string_view>

#include "commands.hpp"
#include "output.hpp"
#include "shmstore/client.hpp"

namespace shmctl {

/// Only create and import start a daemon when there is none: asking about a store that does not
/// exist should not make one.
enum class Autostart {
  never,
  if_missing
};

[[nodiscard]] Result<shmstore::Client> connect(const Globals& globals,
                                               Autostart autostart = Autostart::never);

/// One admin operation on one array. `name` as the user wrote it (`~alice/x`).
[[nodiscard]] Result<std::string> admin_on(shmstore::Client& client, std::string_view op,
                                           std::string_view name);

}  // namespace shmctl
