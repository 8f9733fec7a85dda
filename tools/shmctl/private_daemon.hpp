#pragma once
/// A daemon of its own for one command, in a folder of its own.

#include <sys/types.h>

#include <string>
#include <vector>

#include "client/program.hpp"
#include "output.hpp"

namespace shmctl {

class PrivateDaemon {
 public:
  /// Starts a daemon and waits until it accepts connections. An empty `socket` puts it in a new
  /// folder with mode 0700. Error: disconnected with the daemon's own words.
  static Result<PrivateDaemon> start(const std::string& socket);
  PrivateDaemon(PrivateDaemon&& other) noexcept;
  PrivateDaemon& operator=(PrivateDaemon&&) = delete;
  PrivateDaemon(const PrivateDaemon&) = delete;
  PrivateDaemon& operator=(const PrivateDaemon&) = delete;
  /// Stops the daemon and removes its folder.
  ~PrivateDaemon();

  [[nodiscard]] const std::string& socket() const noexcept { return socket_; }
  [[nodiscard]] pid_t pid() const noexcept { return pid_; }
  /// Tells that the process was waited for and is gone.
  void ended() noexcept { alive_ = false; }
  [[nodiscard]] bool alive() const noexcept { return alive_; }
  /// The last lines of what the daemon logged.
  [[nodiscard]] std::string log_tail() const;

 private:
  PrivateDaemon() = default;
  Result<void> make_folder();
  Result<void> spawn(const shmstore::client_internal::Program& program);
  Result<void> wait_until_ready();
  void stop() noexcept;

  std::string folder_;
  std::string socket_;
  pid_t pid_ = -1;
  bool alive_ = false;
};

}  // namespace shmctl
