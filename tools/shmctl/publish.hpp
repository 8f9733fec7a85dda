#pragma once
/// What create and import have in common: options for the daemon, and the end of the job.

#include <optional>
#include <string_view>

#include "commands.hpp"
#include "output.hpp"
#include "shmstore/client.hpp"

namespace shmctl {

/// "644" or "0644" → 0644. Errors: invalid_argument for what is no octal number.
[[nodiscard]] Result<std::uint16_t> parse_perms(std::string_view text);

[[nodiscard]] Result<shmstore::CreateOptions> create_options(const PublishOptions& options,
                                                             shmstore::Order order);

/// Seals the filled array (unless mutable), says what was made and lets go of it. Returns the exit
/// status. `verb` is what happened to it: "created", "imported".
int publish(const Globals& globals, shmstore::Client& client, shmstore::AnyArray array,
            const PublishOptions& options, std::string_view verb);

}  // namespace shmctl
