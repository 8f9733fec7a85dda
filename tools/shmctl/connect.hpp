#pragma once
/// From the command line's globals to a connected client, and from a NAME to a request.

#include <cstdint>
#include <functional>
#include <optional>
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

/// `interrupted`: see shmstore::ConnectOptions.
[[nodiscard]] Result<shmstore::Client> connect(const Globals& globals,
                                               Autostart autostart = Autostart::never,
                                               std::function<bool()> interrupted = {});

/// The id in a target written `%ID`: an array that has no name.
[[nodiscard]] std::optional<std::uint64_t> id_of(std::string_view target);

/// As Client::attach_any and Client::info, for `%ID` as well.
[[nodiscard]] Result<shmstore::AnyArray> attach(shmstore::Client& client, std::string_view target,
                                                const shmstore::AttachOptions& options);
[[nodiscard]] Result<shmstore::ArrayInfo> find_info(shmstore::Client& client,
                                                    std::string_view target);

/// One admin operation on one array. `target` as the user wrote it (`x`, `~alice/x`, `%123`); `key`
/// and `value`, JSON text, are what the request says beside it.
[[nodiscard]] Result<std::string> admin_on(shmstore::Client& client, std::string_view op,
                                           std::string_view target, std::string_view key = {},
                                           std::string value = {});

}  // namespace shmctl
