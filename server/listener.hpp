#pragma once
/// The listening socket and its place in the file system: folder, lock, replacement of what a dead
/// daemon left, removal at the end. Also who is at the other end of an accepted connection.

#include <string>

#include "server/registry.hpp"
#include "server/unique_fd.hpp"
#include "shmstore/error.hpp"

namespace shmstore::server {

/// Where a daemon of this user listens when nobody says otherwise.
[[nodiscard]] std::string default_socket_path();

/// A bound and listening socket. Removes its files when it goes.
class Listener {
 public:
  /// Binds `path`. The folder is made when `path` is one of the default ones, else it must exist;
  /// a folder that belongs to somebody else or is a symbolic link is refused. `<path>.lock` is held
  /// for life: who has it may replace the socket.
  /// Errors: busy (a living daemon is there; names its pid if it can), invalid_argument,
  /// permission_denied, internal (what failed).
  static Result<Listener> open(const std::string& path);
  /// Takes over a socket that listens already (socket activation); its files stay.
  static Result<Listener> adopt(UniqueFd socket);

  Listener(Listener&&) noexcept = default;
  Listener& operator=(Listener&&) = delete;
  ~Listener();

  [[nodiscard]] int native_handle() const noexcept { return socket_.get(); }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

 private:
  Listener(std::string path, UniqueFd socket, UniqueFd lock)
      : path_(std::move(path)), socket_(std::move(socket)), lock_(std::move(lock)) {}
  std::string path_;
  UniqueFd socket_;
  UniqueFd lock_;  // invalid: adopted
};

/// Clients must not send descriptors: asks the kernel to refuse them (Linux 6.16).
void refuse_descriptors(int socket) noexcept;

struct Peer {
  Identity identity;
  UniqueFd process;  ///< A pidfd; invalid where the kernel has none.
};
/// Who connected. Error: internal (the process is gone already).
[[nodiscard]] Result<Peer> peer_of(int socket);

}  // namespace shmstore::server
