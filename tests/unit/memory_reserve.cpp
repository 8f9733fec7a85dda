#include "server/memory_reserve.hpp"

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <vector>

using namespace shmstore::server;

namespace {

std::size_t mapped_bytes() {
  std::FILE* statm = std::fopen("/proc/self/statm", "r");
  unsigned long pages = 0;
  if (statm != nullptr) (void)std::fscanf(statm, "%lu", &pages);
  if (statm != nullptr) (void)std::fclose(statm);
  return pages * 4096;
}

/// In a process of its own: the exit code says how far it came.
[[maybe_unused]] int use_up_memory() {
  hold_memory_reserve();
  if (memory_is_short()) return 1;
  rlimit limit{};
  ::getrlimit(RLIMIT_AS, &limit);
  limit.rlim_cur = mapped_bytes() + (std::size_t{4} << 20U);
  ::setrlimit(RLIMIT_AS, &limit);
  std::vector<std::unique_ptr<char[]>> held;
  held.reserve(10'000);
  try {
    while (!memory_is_short()) held.push_back(std::make_unique<char[]>(std::size_t{64} << 10U));
    // In the midst of a request: it can be finished.
    for (int i = 0; i < 40; ++i) held.push_back(std::make_unique<char[]>(std::size_t{64} << 10U));
  } catch (const std::exception&) {
    return 2;
  }
  if (!memory_is_short()) return 3;
  held.clear();
  return memory_is_short() ? 4 : 0;
}

}  // namespace

TEST_CASE("memory reserve: what fails takes it, and it comes back when there is memory again") {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  MESSAGE("sanitizers have an allocator of their own");
#else
  const pid_t child = ::fork();
  if (child == 0) ::_exit(use_up_memory());
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
#endif
}
