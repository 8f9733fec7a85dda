/// Preloaded into a daemon (LD_PRELOAD): makes what the kernel refuses now and then fail when a
/// test says so. Each fault is on while the file of its name is in the folder $SHMSTORE_FAULTS:
/// `epoll_ctl` refuses everything new (ENOSPC: the user's watches are used up), `malloc` every
/// hundredth piece of memory.

#include <dlfcn.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

extern "C" void* __libc_malloc(std::size_t bytes);  // of glibc

namespace {

bool is_on(const char* fault) {
  static const char* const folder = std::getenv("SHMSTORE_FAULTS");
  if (folder == nullptr) return false;
  std::array<char, 512> path{};
  (void)std::snprintf(path.data(), path.size(), "%s/%s", folder, fault);
  return ::access(path.data(), F_OK) == 0;
}

}  // namespace

extern "C" int epoll_ctl(int epoll, int op, int fd, epoll_event* event) noexcept {
  using Call = int (*)(int, int, int, epoll_event*);
  static const Call real = reinterpret_cast<Call>(::dlsym(RTLD_NEXT, "epoll_ctl"));
  if (op == EPOLL_CTL_ADD && is_on("epoll_ctl")) {
    errno = ENOSPC;
    return -1;
  }
  return real(epoll, op, fd, event);
}

extern "C" void* malloc(std::size_t bytes) {
  static std::atomic<unsigned> calls{0};
  if (calls.fetch_add(1) % 100 == 99 && is_on("malloc")) {
    errno = ENOMEM;
    return nullptr;
  }
  return __libc_malloc(bytes);
}
