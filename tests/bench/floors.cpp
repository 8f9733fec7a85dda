#include "tests/bench/floors.hpp"

#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace shmstore::bench {
namespace {

constexpr std::size_t kPingBytes = 64;

[[noreturn]] void answer_for_ever(int fd) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  char message[kPingBytes];
  while (::recv(fd, message, sizeof message, 0) > 0) {
    if (::send(fd, message, sizeof message, MSG_NOSIGNAL) < 0) break;
  }
  ::_exit(0);
}

const std::vector<std::size_t>& allowed() {
  static const std::vector<std::size_t> processors = [] {
    cpu_set_t set;
    CPU_ZERO(&set);
    ::sched_getaffinity(0, sizeof set, &set);
    std::vector<std::size_t> found;
    for (std::size_t i = 0; i < CPU_SETSIZE; ++i) {
      if (CPU_ISSET(i, &set)) found.push_back(i);
    }
    return found;
  }();
  return processors;
}

bool bind_all(pid_t pid, const cpu_set_t& set) {
  DIR* tasks = ::opendir(("/proc/" + std::to_string(pid) + "/task").c_str());
  if (tasks == nullptr) return false;
  bool bound = true;
  while (const dirent* task = ::readdir(tasks)) {
    if (task->d_name[0] == '.') continue;
    bound = ::sched_setaffinity(std::atoi(task->d_name), sizeof set, &set) == 0 && bound;
  }
  ::closedir(tasks);
  return bound;
}

}  // namespace

PingPong::PingPong() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) std::abort();
  pid_ = ::fork();
  if (pid_ == 0) {
    ::close(fds[0]);
    answer_for_ever(fds[1]);
  }
  ::close(fds[1]);
  fd_ = fds[0];
}

PingPong::~PingPong() {
  ::close(fd_);
  ::waitpid(pid_, nullptr, 0);
}

void PingPong::round_trip() const {
  char message[kPingBytes] = {};
  if (::send(fd_, message, sizeof message, MSG_NOSIGNAL) < 0 ||
      ::recv(fd_, message, sizeof message, 0) < 0) {
    std::abort();
  }
}

void fill_cold_memfd(std::span<const std::byte> source) {
  const int fd = ::memfd_create("floor", MFD_CLOEXEC);
  if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(source.size())) != 0) std::abort();
  void* map = ::mmap(nullptr, source.size(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) std::abort();
  std::memcpy(map, source.data(), source.size());
  ::munmap(map, source.size());
  ::close(fd);
}

void write_cold_memfd(std::span<const std::byte> source) {
  const int fd = ::memfd_create("floor", MFD_CLOEXEC);
  if (fd < 0) std::abort();
  while (!source.empty()) {
    const ssize_t written = ::write(fd, source.data(), source.size());
    if (written <= 0) std::abort();
    source = source.subspan(static_cast<std::size_t>(written));
  }
  ::close(fd);
}

std::size_t processors() {
  return allowed().size();
}

bool pin(pid_t pid, std::size_t processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(allowed().at(processor), &set);
  return bind_all(pid, set);
}

bool unpin(pid_t pid) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (std::size_t processor : allowed()) CPU_SET(processor, &set);
  return bind_all(pid, set);
}

}  // namespace shmstore::bench
