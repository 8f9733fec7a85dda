#include "system_checks.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <fstream>

#include "output.hpp"
#include "unique_fd.hpp"

namespace shmctl {

namespace {

constexpr int kPeerPidfd = 77;            // SO_PEERPIDFD; headers before Linux 6.5 lack it.
constexpr rlim_t kDescriptorsLow = 4096;  // One array takes one descriptor of the daemon.

/// The word in brackets of "always [never] advise".
std::string chosen(const std::string& line) {
  const std::size_t open = line.find('[');
  const std::size_t close = line.find(']');
  if (open == std::string::npos || close == std::string::npos || close < open) return line;
  return line.substr(open + 1, close - open - 1);
}

Check kernel_check() {
  utsname names{};
  uname(&names);
  return {Level::ok, "kernel", std::string(names.sysname) + " " + names.release, ""};
}

/// Makes a memory file and asks the kernel who has it open, as the daemon does to free memory.
Check lease_check() {
  const std::string what = "memory probe";
  const UniqueFd memory(memfd_create("shmctl-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory.valid()) {
    return {Level::fail, what, std::string("memfd_create: ") + std::strerror(errno),
            "the store needs memory files: see vm.memfd_noexec, and seccomp rules of a container"};
  }
  const std::string path = "/proc/self/fd/" + std::to_string(memory.get());
  const UniqueFd again(open(path.c_str(), O_RDWR | O_CLOEXEC));
  const bool probed = again.valid() && fcntl(again.get(), F_SETLEASE, F_WRLCK) == 0;
  if (probed) {
    fcntl(again.get(), F_SETLEASE, F_UNLCK);
    return {Level::ok, what, "memfd and F_SETLEASE work: memory of dead clients is freed at once",
            ""};
  }
  const std::string reason = std::strerror(errno);
  const std::optional<std::string> enabled = first_line("/proc/sys/fs/leases-enable");
  return {Level::warn, what, "F_SETLEASE: " + reason + "; memory stays charged until holders exit",
          enabled == "0" ? "sysctl fs.leases-enable=1" : ""};
}

Check huge_page_check() {
  const std::string what = "huge pages";
  const std::string folder = "/sys/kernel/mm/transparent_hugepage/";
  const std::optional<std::string> all = first_line(folder + "shmem_enabled");
  if (!all) return {Level::warn, what, "the kernel has none for shared memory", ""};
  std::string mode = chosen(*all);
  const std::optional<std::string> size = first_line(folder + "hugepages-2048kB/shmem_enabled");
  if (size && chosen(*size) != "inherit" && chosen(*size) != "never") mode = chosen(*size);
  if (mode != "never" && mode != "deny") {
    return {Level::ok, what, "on for shared memory (" + mode + ")", ""};
  }
  return {Level::warn, what,
          "off for shared memory (" + mode +
              "): new arrays of 2 MiB and more fill several times "
              "slower than they could",
          "echo advise > " + folder + "shmem_enabled"};
}

Check descriptor_check() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  const auto text = [](rlim_t value) {
    return value == RLIM_INFINITY ? std::string("unlimited") : grouped_text(value);
  };
  const std::string state = text(limit.rlim_cur) + " now, at most " + text(limit.rlim_max);
  if (limit.rlim_max >= kDescriptorsLow) return {Level::ok, "open files", state, ""};
  return {Level::warn, "open files", state + "; a daemon started here holds fewer arrays than that",
          "raise the hard limit: ulimit -Hn, or LimitNOFILE= of the unit"};
}

Check overcommit_check() {
  const std::string mode = first_line("/proc/sys/vm/overcommit_memory").value_or("0");
  if (mode != "2") return {Level::ok, "overcommit", "vm.overcommit_memory=" + mode, ""};
  return {Level::warn, "overcommit",
          "vm.overcommit_memory=2: arrays count against CommitLimit before they are filled",
          "raise vm.overcommit_ratio if creating arrays fails with no_capacity"};
}

/// The daemon watches clients by pidfd; without it the end of a connection has to do.
Check pidfd_check() {
  std::array<int, 2> ends{};
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    return {Level::fail, "sockets", std::string("socketpair: ") + std::strerror(errno), ""};
  }
  const UniqueFd first(ends[0]);
  const UniqueFd second(ends[1]);
  int pidfd = -1;
  socklen_t length = sizeof(pidfd);
  if (getsockopt(first.get(), SOL_SOCKET, kPeerPidfd, &pidfd, &length) == 0) {
    const UniqueFd closed(pidfd);
    return {Level::ok, "client pidfds", "SO_PEERPIDFD works: the end of a client is seen at once",
            ""};
  }
  return {Level::warn, "client pidfds",
          "no SO_PEERPIDFD (before Linux 6.5): a dead client whose child keeps its socket open "
          "is noticed late",
          ""};
}

Check memory_check() {
  const std::uint64_t total = memory_bytes("MemTotal").value_or(0);
  const std::uint64_t available = memory_bytes("MemAvailable").value_or(0);
  const std::string text = bytes_text(available) + " of " + bytes_text(total) + " available";
  if (available >= total / 10) return {Level::ok, "memory", text, ""};
  return {Level::warn, "memory", text, "new arrays may be refused with no_capacity"};
}

Check cgroup_check() {
  const std::string cgroup = cgroup_of("self");
  if (cgroup.empty()) return {Level::ok, "cgroup", "none (version 2) to be seen", ""};
  const std::optional<std::uint64_t> limit = cgroup_memory_limit(cgroup);
  const std::uint64_t total = memory_bytes("MemTotal").value_or(0);
  if (!limit) return {Level::ok, "cgroup", cgroup + ", no memory limit", ""};
  const Level level = *limit < total / 4 ? Level::warn : Level::ok;
  return {level, "cgroup", cgroup + ", memory limit " + bytes_text(*limit),
          level == Level::ok ? "" : "a daemon started from here is held to this limit as well"};
}

}  // namespace

std::string_view to_string(Level level) {
  switch (level) {
    case Level::ok: return "OK";
    case Level::warn: return "WARN";
    case Level::fail: return "FAIL";
  }
  return "?";
}

std::vector<Check> system_checks() {
  return {kernel_check(), memory_check(), cgroup_check(),     huge_page_check(),
          lease_check(),  pidfd_check(),  descriptor_check(), overcommit_check()};
}

std::optional<std::string> first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  return line;
}

std::optional<std::uint64_t> memory_bytes(std::string_view key) {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(std::string(key) + ":")) continue;
    const std::size_t digits = line.find_first_of("0123456789");
    std::uint64_t kibibytes = 0;
    if (digits == std::string::npos) return std::nullopt;
    std::from_chars(line.data() + digits, line.data() + line.size(), kibibytes);
    return kibibytes * 1024;
  }
  return std::nullopt;
}

std::string cgroup_of(std::string_view pid) {
  std::ifstream file("/proc/" + std::string(pid) + "/cgroup");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("0::")) return line.substr(3);
  }
  return {};
}

std::optional<std::uint64_t> cgroup_memory_limit(std::string cgroup) {
  std::optional<std::uint64_t> smallest;
  while (!cgroup.empty()) {
    const std::optional<std::string> line = first_line("/sys/fs/cgroup" + cgroup + "/memory.max");
    std::uint64_t bytes = 0;
    if (line &&
        std::from_chars(line->data(), line->data() + line->size(), bytes).ec == std::errc()) {
      smallest = std::min(smallest.value_or(bytes), bytes);
    }
    cgroup.erase(cgroup.rfind('/'));
  }
  return smallest;
}

}  // namespace shmctl
