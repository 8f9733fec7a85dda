#include "client/write_file.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

namespace shmstore::client_internal {

namespace {

Error write_error(int number) {
  if (number == EFAULT) {
    return make_error(ErrorCode::invalid_argument,
                      "bytes: some of them cannot be read (EFAULT): memory that is not mapped, or "
                      "a mapped file that was truncated");
  }
  if (number == EPERM) {
    return make_error(ErrorCode::aborted,
                      "name: the array was sealed through another handle while it was written");
  }
  const bool no_memory = number == ENOSPC || number == ENOMEM;
  return make_error(no_memory ? ErrorCode::no_capacity : ErrorCode::internal,
                    "segment: writing it failed: " + std::string(strerrordesc_np(number)));
}

}  // namespace

bool may_write_file(std::uint64_t end) noexcept {
  rlimit limit{};
  return getrlimit(RLIMIT_FSIZE, &limit) == 0 &&
         (limit.rlim_cur == RLIM_INFINITY || end <= limit.rlim_cur);
}

Result<void> write_file(int fd, std::uint64_t offset, std::span<const std::byte> content) {
  while (!content.empty()) {
    const ssize_t written = pwrite(fd, content.data(), content.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return write_error(errno);
    if (written == 0) return write_error(ENOSPC);
    offset += static_cast<std::uint64_t>(written);
    content = content.subspan(static_cast<std::size_t>(written));
  }
  return {};
}

}  // namespace shmstore::client_internal
