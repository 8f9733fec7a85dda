#pragma once
/// What a command left in its private store: the report of `run`.

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "output.hpp"
#include "private_daemon.hpp"
#include "shmstore/client.hpp"

namespace shmctl {

/// A process of the command that outlived it and holds memory of the store.
struct Survivor {
  pid_t pid = 0;
  std::string command;
  std::uint64_t bytes = 0;
};

/// Handles that were pickled and not opened: the store keeps their arrays for a grace time and
/// frees them then. Pools end with some under way; nothing of that is lost.
struct HandedOver {
  std::vector<shmstore::ArrayInfo> listed;
  std::uint64_t bytes = 0;
  std::uint64_t leases = 0;
};

struct Leftovers {
  HandedOver handed_over;  ///< Not counted below.
  std::uint64_t arrays = 0;
  std::vector<shmstore::ArrayInfo> listed;  ///< Those of them that have not been deleted.
  std::uint64_t bytes = 0;  ///< Of the arrays, and of arrays gone that survivors still map.
  std::uint64_t leases = 0;
  std::uint64_t descriptors = 0;  ///< Open in the daemon now, and not before the command.
  std::vector<Survivor> survivors;
  bool settled = true;  ///< False: the daemon still had sessions of dead processes at the end.
  [[nodiscard]] bool nothing() const noexcept {
    return arrays == 0 && bytes == 0 && leases == 0 && descriptors == 0 && survivors.empty();
  }
};

/// Descriptors that the daemon has open while one client, this one, is connected.
[[nodiscard]] Result<std::uint64_t> descriptors_in_use(const std::string& socket);

/// Waits until the daemon has taken note of every process that has ended, then looks. Processes
/// that hold memory get a moment to end by themselves (workers whose parent is gone).
[[nodiscard]] Result<Leftovers> find_leftovers(const PrivateDaemon& daemon,
                                               std::uint64_t descriptors_before);

[[nodiscard]] std::vector<std::string> leftovers_text(const Leftovers& left, bool colour);
[[nodiscard]] std::string leftovers_json(const Leftovers& left, int exit_status);

}  // namespace shmctl
