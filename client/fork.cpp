// Model: one gate (a read-write lock) stands between fork() and all short moments of ForkGuard.
// Invariant: whenever no ForkGuard is held, every map and every descriptor of the process that a
// child shall not have is listed by an object, and all leaf locks are free. prepare() takes the
// gate for writing, so the child finds exactly that; the child gets a fresh gate, because the old
// one still counts threads that do not exist there.
#include "client/fork.hpp"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace shmstore::client_internal {

namespace {

/// Never destroyed: handles may outlive static destruction.
struct Globals {
  pthread_rwlock_t gate{};
  std::mutex uninherited_mutex;
  std::vector<int> uninherited;
  std::atomic<std::uint64_t>* word = nullptr;  ///< On the page that a child finds wiped.
  std::atomic<std::uint64_t> epoch{1};         ///< What the word holds, to count on from.
  std::atomic<void (*)()> in_child{nullptr};
  bool fork_holds_gate = false;  ///< Written and read under the gate only.
};

Globals* g_globals = nullptr;

void init_gate(pthread_rwlock_t& gate) noexcept {
  pthread_rwlockattr_t attributes;
  pthread_rwlockattr_init(&attributes);
  // fork() must get its turn while other threads map and unmap all the time.
  pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
  pthread_rwlock_init(&gate, &attributes);
  pthread_rwlockattr_destroy(&attributes);
}

void before_fork() {
  // In a child of a raw clone() the gate may be held by a thread that is not there.
  if (process_epoch() == 0) return;
  pthread_rwlock_wrlock(&g_globals->gate);
  g_globals->fork_holds_gate = true;
}

void after_fork_in_parent() {
  if (process_epoch() == 0) return;
  g_globals->fork_holds_gate = false;
  pthread_rwlock_unlock(&g_globals->gate);
}

void after_fork_in_child() {
  Globals& globals = *g_globals;
  if (!globals.fork_holds_gate) return;
  globals.fork_holds_gate = false;
  for (int fd : globals.uninherited) ::close(fd);
  globals.uninherited.clear();
  const std::uint64_t epoch = globals.epoch.load(std::memory_order_relaxed) + 1;
  globals.epoch.store(epoch, std::memory_order_relaxed);
  globals.word->store(epoch, std::memory_order_relaxed);
  // Given back by the one thread there is, then made anew: it still counts the parent's threads.
  pthread_rwlock_unlock(&globals.gate);
  init_gate(globals.gate);
  if (void (*handler)() = globals.in_child.load(std::memory_order_relaxed)) handler();
}

bool install() {
  auto* globals = new (std::nothrow) Globals;
  if (globals == nullptr) return false;
  init_gate(globals->gate);
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    delete globals;
    return false;
  }
  // Without it (kernels before 4.14) only children of fork() are noticed.
  static_cast<void>(madvise(memory, page, MADV_WIPEONFORK));
  globals->word = new (memory) std::atomic<std::uint64_t>(1);
  g_globals = globals;
  return pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) == 0;
}

}  // namespace

bool prepare_for_fork() noexcept {
  static const bool installed = install();
  return installed;
}

void set_child_handler(void (*handler)()) noexcept {
  if (prepare_for_fork()) g_globals->in_child.store(handler, std::memory_order_relaxed);
}

std::uint64_t process_epoch() noexcept {
  return g_globals == nullptr ? 0 : g_globals->word->load(std::memory_order_relaxed);
}

ForkGuard::ForkGuard() noexcept : held_(process_epoch() != 0) {
  if (held_) pthread_rwlock_rdlock(&g_globals->gate);
}

ForkGuard::~ForkGuard() {
  if (held_) pthread_rwlock_unlock(&g_globals->gate);
}

UninheritedFd::UninheritedFd(int fd) : UninheritedFd(fd, ForkGuard()) {}

UninheritedFd::UninheritedFd(int fd, const ForkGuard&) : fd_(fd), epoch_(process_epoch()) {
  const std::lock_guard lock(g_globals->uninherited_mutex);
  try {
    g_globals->uninherited.push_back(fd);
  } catch (...) {
    ::close(fd);
    throw;
  }
}

UninheritedFd::UninheritedFd(UninheritedFd&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), epoch_(other.epoch_) {}

UninheritedFd& UninheritedFd::operator=(UninheritedFd&& other) noexcept {
  if (this != &other) {
    close();
    fd_ = std::exchange(other.fd_, -1);
    epoch_ = other.epoch_;
  }
  return *this;
}

UninheritedFd::~UninheritedFd() {
  close();
}

void UninheritedFd::close() noexcept {
  if (fd_ < 0) return;
  // A child's handler has closed it already; its number may be somebody else's by now.
  if (own() && epoch_ != 0) {
    const ForkGuard guard;
    const std::lock_guard lock(g_globals->uninherited_mutex);
    std::erase(g_globals->uninherited, fd_);
    ::close(fd_);
  }
  fd_ = -1;
}

}  // namespace shmstore::client_internal
