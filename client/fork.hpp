#pragma once
/// What fork() means to the client.
///
/// A forked child has copies of all handles and maps, but no session: the socket belongs to the
/// parent. Every object of the client remembers the *epoch* of the process that made it; where the
/// epoch differs, the object was inherited and only its memory may be used and unmapped.
///
/// The handlers make no round trip and wait for nothing that waits: a thread may sit in a
/// blocking call for hours while another one forks. They only hold off the moments in which a map
/// or descriptor exists that no object accounts for yet (ForkGuard), so that a child can always
/// unmap what it inherited, and has no descriptor of its parent's: a thread waits for a message
/// with poll(), and takes it, with its descriptor, under the guard.
///
/// Children of a raw clone() run no handlers. A page that the kernel wipes in every child
/// (MADV_WIPEONFORK) gives them away: their epoch is 0 and every call is disconnected.

#include <cstdint>

namespace shmstore::client_internal {

/// Installs the handlers; later calls do nothing. False when the process has no memory for it.
[[nodiscard]] bool prepare_for_fork() noexcept;

/// `handler` runs in each child, after the epoch has changed and before fork() returns; for memory
/// only. There is one; a later one replaces it.
void set_child_handler(void (*handler)()) noexcept;

/// 1 in the process that first used the client, one more in each child; 0 after a raw clone().
[[nodiscard]] std::uint64_t process_epoch() noexcept;

/// While one lives, fork() in another thread waits. Held for single system calls, never while
/// waiting. A thread that holds one takes no lock but leaf ones (mapping cache, socket list).
class ForkGuard {
 public:
  ForkGuard() noexcept;
  ~ForkGuard();
  ForkGuard(const ForkGuard&) = delete;
  ForkGuard& operator=(const ForkGuard&) = delete;

 private:
  bool held_ = false;
};

/// A descriptor that is closed in forked children: a session's socket, so that the daemon sees the
/// end of the session when the parent closes it; a segment that is being written. Move-only.
class UninheritedFd {
 public:
  UninheritedFd() noexcept = default;
  /// Takes `fd` over. Throws std::bad_alloc, having closed it.
  explicit UninheritedFd(int fd);
  /// Likewise of a descriptor that was made under `guard`: no child can have it, then.
  UninheritedFd(int fd, const ForkGuard& guard);
  UninheritedFd(UninheritedFd&& other) noexcept;
  UninheritedFd& operator=(UninheritedFd&& other) noexcept;
  ~UninheritedFd();

  [[nodiscard]] int fd() const noexcept { return fd_; }
  [[nodiscard]] bool valid() const noexcept { return fd_ >= 0; }
  /// True in the process that opened it.
  [[nodiscard]] bool own() const noexcept { return epoch_ == process_epoch(); }

 private:
  void close() noexcept;
  int fd_ = -1;
  std::uint64_t epoch_ = 0;
};

}  // namespace shmstore::client_internal
