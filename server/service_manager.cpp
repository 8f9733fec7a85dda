#include "server/service_manager.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <cstring>

namespace shmstore::server {
namespace {

constexpr int kFirstListenFd = 3;

std::optional<std::uint64_t> number_of(const char* variable) {
  const char* text = std::getenv(variable);
  if (text == nullptr) return std::nullopt;
  const std::string_view view(text);
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(view.data(), view.data() + view.size(), value);
  if (error != std::errc{} || end != view.data() + view.size()) return std::nullopt;
  return value;
}

bool is_for_us(const char* variable) {
  return number_of(variable) == static_cast<std::uint64_t>(::getpid());
}

}  // namespace

std::vector<UniqueFd> take_listen_fds() {
  std::vector<UniqueFd> fds;
  const std::optional<std::uint64_t> count = number_of("LISTEN_FDS");
  if (count && *count <= 16 && is_for_us("LISTEN_PID")) {
    for (int i = 0; i < static_cast<int>(*count); ++i) {
      const int fd = kFirstListenFd + i;
      if (::fcntl(fd, F_SETFD, FD_CLOEXEC) == 0) fds.emplace_back(fd);
    }
  }
  for (const char* variable : {"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"}) ::unsetenv(variable);
  return fds;
}

UniqueFd copy_of_listen_fd() {
  if (number_of("LISTEN_FDS").value_or(0) == 0 || !is_for_us("LISTEN_PID")) return {};
  return UniqueFd(::fcntl(kFirstListenFd, F_DUPFD_CLOEXEC, kFirstListenFd));
}

void notify_manager(std::string_view state) noexcept {
  const char* path = std::getenv("NOTIFY_SOCKET");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path == nullptr || (path[0] != '/' && path[0] != '@')) return;
  const std::size_t length = std::strlen(path);
  if (length >= sizeof address.sun_path) return;
  std::memcpy(address.sun_path, path, length);
  if (path[0] == '@') address.sun_path[0] = '\0';
  const UniqueFd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return;
  (void)::sendto(socket.get(), state.data(), state.size(), MSG_NOSIGNAL,
                 reinterpret_cast<const sockaddr*>(&address),
                 static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length));
}

std::optional<std::uint64_t> watchdog_interval_us() {
  const std::optional<std::uint64_t> limit = number_of("WATCHDOG_USEC");
  if (!limit || *limit == 0) return std::nullopt;
  if (std::getenv("WATCHDOG_PID") != nullptr && !is_for_us("WATCHDOG_PID")) return std::nullopt;
  return *limit / 2 + 1;
}

}  // namespace shmstore::server
