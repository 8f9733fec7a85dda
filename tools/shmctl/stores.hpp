#pragma once
/// The daemons that this user can meet: at the places where clients look, and elsewhere.

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "commands.hpp"
#include "output.hpp"

namespace shmctl {

/// The sockets that a client with these globals tries, in its order.
[[nodiscard]] std::vector<std::string> candidate_sockets(const Globals& globals);

/// True when the socket is given, and no other is tried.
[[nodiscard]] bool is_final(const Globals& globals);

struct Store {
  std::string socket;
  pid_t pid = 0;
  std::uint64_t arrays = 0;
  std::uint64_t bytes = 0;
  double uptime_s = 0;
};

/// The store that listens at this socket. Starts none, but a service manager that keeps the socket
/// may. Error: why there is none.
[[nodiscard]] Result<Store> store_at(const std::string& socket);

/// The processes of this user that are daemons of shmstore, wherever they listen.
[[nodiscard]] std::vector<pid_t> own_daemons();

/// The socket that a daemon was told to listen on; empty if its command line does not say.
[[nodiscard]] std::string told_socket(pid_t daemon);

}  // namespace shmctl
