#pragma once
/// The listening socket and its place in the file system: folder, lock, replacement of what a dead
/// daemon left, removal at the end. Also who is at the other end of an accepted connection.

#include <chrono>
#include <cstdint>
#include <ctime>
#include <optional>
#include <string>

#include "server/registry.hpp"
#include "server/unique_fd.hpp"
#include "shmstore/error.hpp"

namespace shmstore::server {

/// Where a daemon of this user listens when nobody says otherwise.
[[nodiscard]] std::string default_socket_path();

/// One file, whatever its name may be by now.
struct FileId {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  friend bool operator==(const FileId&, const FileId&) = default;
};

/// A bound and listening socket. Removes its files when it goes, and no other's that have come to
/// lie at their paths.
class Listener {
 public:
  /// Binds `path`. The folder is made when `path` is one of the default ones, else it must exist;
  /// a folder that belongs to somebody else or is a symbolic link is refused. `<path>.lock` is held
  /// for life: who has it may replace the socket. Waits some seconds for a daemon that has the lock
  /// and does not answer: it is ending.
  /// Errors: busy (a living daemon is there; names its pid if it can), invalid_argument,
  /// permission_denied, internal (what failed).
  static Result<Listener> open(const std::string& path);
  /// Takes over a socket that listens already (socket activation); its file stays. Takes the lock
  /// if that can be had.
  /// Errors: aborted (a daemon that was there before is in charge and has taken the path back; who
  /// connected here meanwhile was turned away and will find it), invalid_argument.
  static Result<Listener> adopt(UniqueFd socket);

  Listener(Listener&& other) noexcept { swap(other); }
  Listener& operator=(Listener&&) = delete;
  ~Listener();

  [[nodiscard]] int native_handle() const noexcept { return socket_.get(); }
  /// May others than the daemon's own user, and root, connect? True when that cannot be told.
  [[nodiscard]] bool open_to_others() const;
  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  [[nodiscard]] bool adopted() const noexcept { return adopted_; }
  /// What somebody should know who looks for an array of an earlier store here; empty if nothing.
  [[nodiscard]] std::string note() const;

  /// False when clients do not reach it any more: its file was removed, or is another's. A socket
  /// without a file (abstract, or out of sight) is in place.
  [[nodiscard]] bool in_place() const;
  /// Listens at the path again, with a new socket, making a default folder anew. Who has the lock
  /// replaces what lies there. On an error nothing has changed.
  /// Errors: those of open().
  Result<void> rebind();

 private:
  Listener() = default;
  static Result<Listener> open(const std::string& path, std::chrono::milliseconds patience);
  static Result<Listener> await_predecessor(Listener listener);
  void swap(Listener& other) noexcept;
  [[nodiscard]] bool has_lock_file() const;
  [[nodiscard]] Result<void> bind();

  std::string path_;
  UniqueFd socket_;
  UniqueFd lock_;               // invalid: adopted where no lock can be made
  std::optional<FileId> file_;  // the socket's, since it was bound
  bool adopted_ = false;
  std::optional<std::time_t> new_since_;  // a daemon was here before, and was killed
};

/// Answers all who wait at a socket of a service manager with the reason why nobody serves them, so
/// that the manager does not start the next daemon for them.
void refuse_waiting(int listener, const Error& reason);

/// Clients must not send descriptors: asks the kernel to refuse them (Linux 6.16).
void refuse_descriptors(int socket) noexcept;

struct Peer {
  Identity identity;
  UniqueFd process;  ///< A pidfd; invalid where the kernel has none.
};
/// Who connected. Error: internal (the process is gone already).
[[nodiscard]] Result<Peer> peer_of(int socket);

}  // namespace shmstore::server
