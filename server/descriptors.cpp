#include "server/descriptors.hpp"

#include <dirent.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <memory>

namespace shmstore::server {
namespace {

/// Listener, epolls, timers, log, spare, a few files of /proc read at the same time, the
/// re-opened description on its way to a client, and connections that are being refused.
constexpr std::uint64_t kReserve = 64;
constexpr std::uint64_t kConnectionsMax = 16'384;
/// Beyond it the tables of the kernel cost more than anybody gains.
constexpr std::uint64_t kDescriptorsMax = std::uint64_t{1} << 20U;

}  // namespace

DescriptorBudget divide_descriptors(std::uint64_t descriptors_max) noexcept {
  DescriptorBudget budget;
  budget.descriptors_max = descriptors_max;
  const std::uint64_t free = descriptors_max - std::min(descriptors_max, kReserve);
  // A connection is a socket and a pidfd.
  budget.connections_max = std::clamp<std::uint64_t>(free / 8, 1, kConnectionsMax);
  budget.segments_max = free - std::min(free, 2 * budget.connections_max);
  return budget;
}

DescriptorBudget raise_descriptor_limit() noexcept {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return divide_descriptors(1024);
  const rlim_t wanted = std::min<rlim_t>(limit.rlim_max, kDescriptorsMax);
  if (limit.rlim_cur < wanted) {
    limit.rlim_cur = wanted;
    (void)::setrlimit(RLIMIT_NOFILE, &limit);
    (void)::getrlimit(RLIMIT_NOFILE, &limit);
  }
  return divide_descriptors(std::min<rlim_t>(limit.rlim_cur, kDescriptorsMax));
}

std::uint64_t open_descriptors() noexcept {
  // Linux 6.2 and later say how many there are; before that they have to be counted.
  struct stat status {};
  if (::stat("/proc/self/fd", &status) == 0 && status.st_size > 0) {
    return static_cast<std::uint64_t>(status.st_size);
  }
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir("/proc/self/fd"), &::closedir);
  if (folder == nullptr) return 0;
  std::uint64_t entries = 0;
  while (::readdir(folder.get()) != nullptr) ++entries;
  // ".", ".." and the descriptor of the folder itself.
  return entries < 3 ? 0 : entries - 3;
}

}  // namespace shmstore::server
