#pragma once
/// What the machine itself can do: the raw costs that the store's are put beside.

#include <sys/types.h>

#include <cstddef>
#include <span>

namespace shmstore::bench {

/// A process that answers each 64-byte message with one: the least that a round trip to another
/// process can cost over a blocking SOCK_SEQPACKET socket.
class PingPong {
 public:
  PingPong();
  ~PingPong();
  PingPong(const PingPong&) = delete;
  PingPong& operator=(const PingPong&) = delete;
  [[nodiscard]] pid_t pid() const { return pid_; }
  void round_trip() const;

 private:
  int fd_ = -1;
  pid_t pid_ = -1;
};

/// Copies into a fresh memfd of the same size, as a first writer has to: every page is new.
void fill_cold_memfd(std::span<const std::byte> source);
/// Writes into a fresh memfd of the same size without mapping it: the kernel need not clear pages.
void write_cold_memfd(std::span<const std::byte> source);

/// The processors that this process may use, as it was started.
[[nodiscard]] std::size_t processors();
/// Binds all threads of a process to the n-th of these processors, or to all of them. False when
/// that is not allowed.
bool pin(pid_t pid, std::size_t processor);
bool unpin(pid_t pid);

}  // namespace shmstore::bench
