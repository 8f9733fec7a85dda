#pragma once
/// Tells when a peer has read something: for sessions whose outgoing queue waits for room, or for
/// an unread descriptor to be taken.
///
/// The event loop cannot say that: a socket with little queued is "writable" all the time. This is
/// an epoll of its own in edge-triggered mode, which reports each time that the peer takes a
/// message; the event loop watches this epoll's descriptor.

#include <sys/epoll.h>

#include <array>
#include <cstdint>

#include "server/unique_fd.hpp"

namespace shmstore::server {

class WritablePoll {
 public:
  WritablePoll() : epoll_(::epoll_create1(EPOLL_CLOEXEC)) {}

  /// Readable when take() has something to return.
  [[nodiscard]] int native_handle() const noexcept { return epoll_.get(); }

  /// Watches `fd` until remove() or until it is closed. False: the kernel refused.
  [[nodiscard]] bool add(int fd, std::uint64_t key) const noexcept {
    epoll_event event{};
    event.events = EPOLLOUT | static_cast<std::uint32_t>(EPOLLET);
    event.data.u64 = key;
    return ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
  }
  void remove(int fd) const noexcept {
    (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  }

  /// Calls `each(key)` for what has happened, at most 64 of them; what is left is told again.
  template <class Each>
  void take(Each each) const {
    std::array<epoll_event, 64> events;
    const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), 0);
    for (int i = 0; i < count; ++i) each(events[static_cast<std::size_t>(i)].data.u64);
  }

 private:
  const UniqueFd epoll_;
};

}  // namespace shmstore::server
