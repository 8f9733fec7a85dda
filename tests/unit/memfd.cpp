#include "server/memfd.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>

#include "server/lease_probe.hpp"

using namespace shmstore;
using namespace shmstore::server;

namespace {

/// A mapping for the time of a scope.
class Mapped {
 public:
  Mapped(int fd, std::size_t bytes, int protection)
      : bytes_(bytes), address_(::mmap(nullptr, bytes, protection, MAP_SHARED, fd, 0)) {
    REQUIRE(address_ != MAP_FAILED);
  }
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;
  ~Mapped() { ::munmap(address_, bytes_); }
  [[nodiscard]] char* data() const { return static_cast<char*>(address_); }

 private:
  std::size_t bytes_;
  void* address_;
};

}  // namespace

TEST_CASE("memfd: sealed against resizing, mode 0600, zeroed and backed") {
  const UniqueFd fd = make_memfd(3 * kPageBytes).value();
  struct stat status {};
  REQUIRE(::fstat(fd.get(), &status) == 0);
  CHECK((status.st_mode & 0777U) == 0600U);
  CHECK(status.st_size == 3 * std::int64_t{kPageBytes});
  CHECK(::ftruncate(fd.get(), 0) != 0);
  CHECK(::ftruncate(fd.get(), 4 * std::int64_t{kPageBytes}) != 0);
  CHECK(backed_bytes(fd.get()) == 0);
  REQUIRE(populate(fd.get(), 0, 3 * kPageBytes, HugePages::never).has_value());
  CHECK(backed_bytes(fd.get()) == 3 * kPageBytes);
  const Mapped map(fd.get(), 3 * kPageBytes, PROT_READ);
  for (std::size_t at = 0; at < 3 * kPageBytes; ++at) REQUIRE(map.data()[at] == 0);
  CHECK(punch(fd.get(), 0, 3 * kPageBytes));
  CHECK(backed_bytes(fd.get()) == 0);
}

TEST_CASE("memfd: many pages, with and without the wish for huge ones") {
  constexpr std::uint64_t kBytes = 2 * kHugePageBytes + 5 * kPageBytes;
  for (HugePages wish : {HugePages::never, HugePages::advise, HugePages::always}) {
    const UniqueFd fd = make_memfd(kBytes).value();
    REQUIRE(populate(fd.get(), 0, kBytes, wish).has_value());
    CHECK(backed_bytes(fd.get()) >= kBytes);
    CHECK(backed_bytes(fd.get()) <= kBytes + kHugePageBytes);
  }
}

TEST_CASE("memfd: a read-only description cannot be written through") {
  const UniqueFd fd = make_memfd(kPageBytes).value();
  const UniqueFd reader = reopen(fd.get(), false).value();
  const UniqueFd writer = reopen(fd.get(), true).value();
  CHECK(::mmap(nullptr, kPageBytes, PROT_WRITE, MAP_SHARED, reader.get(), 0) == MAP_FAILED);
  const Mapped read(reader.get(), kPageBytes, PROT_READ);
  CHECK(::mprotect(read.data(), kPageBytes, PROT_READ | PROT_WRITE) != 0);
  const Mapped write(writer.get(), kPageBytes, PROT_READ | PROT_WRITE);
  std::memcpy(write.data(), "grid", 5);
  CHECK(std::strcmp(read.data(), "grid") == 0);
}

TEST_CASE("memfd: a hard seal waits for writable mappings, then holds for everybody") {
  const UniqueFd fd = make_memfd(kPageBytes).value();
  const UniqueFd writer = reopen(fd.get(), true).value();
  {
    const Mapped map(writer.get(), kPageBytes, PROT_READ | PROT_WRITE);
    CHECK(seal_against_writing(fd.get()).error().code == ErrorCode::busy);
  }
  CHECK(seal_against_writing(fd.get()).has_value());
  CHECK(seal_against_writing(fd.get()).has_value());
  CHECK(::mmap(nullptr, kPageBytes, PROT_WRITE, MAP_SHARED, writer.get(), 0) == MAP_FAILED);
  CHECK(::pwrite(writer.get(), "x", 1, 0) < 0);
  CHECK_FALSE(punch(fd.get(), 0, kPageBytes));
}

TEST_CASE("memfd: re-opening does not wait for the end of somebody's file lease") {
  // The kernel tells the holder of the lease that it ends.
  struct sigaction ignored {};
  struct sigaction before {};
  ignored.sa_handler = SIG_IGN;
  REQUIRE(::sigaction(SIGIO, &ignored, &before) == 0);
  const UniqueFd fd = make_memfd(kPageBytes).value();
  UniqueFd holder = reopen(fd.get(), false).value();
  if (::fcntl(holder.get(), F_SETLEASE, F_RDLCK) == 0) {
    const Result<UniqueFd> writer = reopen(fd.get(), true);  // breaks the lease: that takes 45 s
    REQUIRE_FALSE(writer.has_value());
    CHECK(writer.error().code == ErrorCode::busy);
    CHECK(writer.error().text.find("F_SETLEASE") != std::string::npos);
    CHECK_FALSE(LeaseProbe().is_free(fd.get()));
    holder.reset();
    CHECK(reopen(fd.get(), true).has_value());
  }
  (void)::sigaction(SIGIO, &before, nullptr);
}

TEST_CASE("memfd: who has closed the list of seals makes a hard seal impossible, not busy") {
  const UniqueFd fd = make_memfd(kPageBytes).value();
  const UniqueFd writer = reopen(fd.get(), true).value();
  const Mapped map(writer.get(), kPageBytes, PROT_READ | PROT_WRITE);
  REQUIRE(::fcntl(writer.get(), F_ADD_SEALS, F_SEAL_SEAL) == 0);
  const Error error = seal_against_writing(fd.get()).error();
  CHECK(error.code == ErrorCode::permission_denied);
  CHECK(error.text.find("F_SEAL_SEAL") != std::string::npos);
  CHECK(reopen(fd.get(), true).has_value());
}

TEST_CASE("memfd: who has sealed against new writers is named to those who come") {
  const UniqueFd fd = make_memfd(kPageBytes).value();
  const UniqueFd writer = reopen(fd.get(), true).value();
  constexpr int kFutureWrite = 0x0010;
  if (::fcntl(writer.get(), F_ADD_SEALS, kFutureWrite) != 0) return;  // A kernel before 5.1.
  const Result<void> refused = check_writable(fd.get());
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().code == ErrorCode::permission_denied);
  CHECK(reopen(fd.get(), false).has_value());
  CHECK(seal_against_writing(fd.get()).has_value());
}

TEST_CASE("lease probe: held by descriptors and by mappings, of either kind") {
  bool leases = true;
  SUBCASE("by leases, where they work") {}
  SUBCASE("by the fallback") {
    leases = false;
  }
  const LeaseProbe probe(leases);
  for (bool writable : {false, true}) {
    const UniqueFd fd = make_memfd(kPageBytes).value();
    CHECK(probe.is_free(fd.get()));
    UniqueFd holder = reopen(fd.get(), writable).value();
    probe.prepare(holder.get());
    CHECK_FALSE(probe.is_free(fd.get()));
    {
      const Mapped map(holder.get(), kPageBytes, PROT_READ);
      holder.reset();
      CHECK_FALSE(probe.is_free(fd.get()));
    }
    CHECK(probe.is_free(fd.get()));
  }
}

TEST_CASE("lease probe: exact on every kernel that gives leases on memory files") {
  const UniqueFd fd = make_memfd(kPageBytes).value();
  const UniqueFd only = reopen(fd.get(), true).value();
  const bool given = ::fcntl(only.get(), F_SETLEASE, F_WRLCK) == 0;
  CHECK(LeaseProbe().exact() == given);
}

TEST_CASE("lease probe: a holder that unlocks and unleases is still seen, where leases work") {
  const LeaseProbe probe;
  if (!probe.exact()) return;
  const UniqueFd fd = make_memfd(kPageBytes).value();
  const UniqueFd holder = reopen(fd.get(), true).value();
  struct flock lock {};
  lock.l_type = F_UNLCK;
  CHECK(::fcntl(holder.get(), F_OFD_SETLK, &lock) == 0);
  CHECK(::fcntl(holder.get(), F_SETLEASE, F_UNLCK) != 0);
  CHECK_FALSE(probe.is_free(fd.get()));
}

// In a process of its own, because the handle is opened once in each.
TEST_CASE("memfd: inner, /proc/self/fd cannot be opened at first" * doctest::skip()) {
  const UniqueFd file = make_memfd(kPageBytes).value();
  const UniqueFd lowest(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
  rlimit none = before;
  none.rlim_cur = static_cast<rlim_t>(lowest.get()) + 1;
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
  const Result<UniqueFd> refused = reopen(file.get(), false);
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().code == ErrorCode::no_capacity);
  CHECK(reopen(file.get(), false).has_value());
}

TEST_CASE("memfd: one failure to open /proc/self/fd does not fail all later re-openings") {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe");
  const std::string command = "'" + self + "' -ns -tc='memfd: inner*' >/dev/null 2>&1";
  CHECK(std::system(command.c_str()) == 0);  // tidy: allow(shell) because it is all ours
}
