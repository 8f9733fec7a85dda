#pragma once
/// What systemd and the daemon say to each other (sd_notify(3), sd_listen_fds(3), in a few lines
/// of our own): sockets that it hands over, readiness, the watchdog.

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "server/unique_fd.hpp"

namespace shmstore::server {

/// Descriptors handed over by LISTEN_FDS; closes those that were for somebody else. Takes the
/// variables out of the environment: call once, before there are threads.
[[nodiscard]] std::vector<UniqueFd> take_listen_fds();

/// Another descriptor of the first socket that is handed over; invalid when there is none for us.
[[nodiscard]] UniqueFd copy_of_listen_fd();

/// Sends `state` ("READY=1", …) to $NOTIFY_SOCKET, if there is one. Never blocks, never fails.
void notify_manager(std::string_view state) noexcept;

/// How often WATCHDOG=1 is due, half of what the manager allows; nothing: it does not watch us.
[[nodiscard]] std::optional<std::uint64_t> watchdog_interval_us();

}  // namespace shmstore::server
