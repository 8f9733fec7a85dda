/// Order matters in two places. Seals and mode come before any descriptor leaves: a holder of an
/// unsealed file could shrink it under its readers, and one of mode 0666 could be re-opened for
/// writing by anybody who may read it. And huge pages come from faults only: a file that has been
/// fallocate'd gets small ones for good.

#include "server/memfd.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/interprocess/detail/os_file_functions.hpp>
#include <boost/interprocess/exceptions.hpp>
#include <boost/interprocess/mapped_region.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>
#include <system_error>

#include "server/small_file.hpp"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef F_SEAL_WRITE
#error "memory files with seals need <fcntl.h> of glibc 2.27 or later"
#endif

namespace shmstore::server {
namespace {

namespace interprocess = boost::interprocess;

constexpr int kSealFutureWrite = 0x0010;  // F_SEAL_FUTURE_WRITE, of kernels since 5.1

/// The limit of the daemon's own process behind an error, which says little by itself.
std::string limit_text(int error) {
  rlimit limit{};
  if (error != EFBIG || ::getrlimit(RLIMIT_FSIZE, &limit) != 0) return {};
  return " (the daemon's process is limited to files of " + std::to_string(limit.rlim_cur) +
         " bytes, ulimit -f)";
}

Error no_capacity(const std::string& what, int error) {
  return make_error(ErrorCode::no_capacity, errno_text(what, error) + limit_text(error));
}

/// The `[word]` that a file of /sys has in force; empty when there is none.
std::string chosen_word(const char* path) {
  const std::string text = read_small_file(path).value_or("");
  const std::size_t open = text.find('[');
  const std::size_t close = text.find(']');
  if (open == std::string::npos || close == std::string::npos || close < open) return {};
  return text.substr(open + 1, close - open - 1);
}

/// Lets mapped_region map a descriptor that it does not own.
struct DescriptorMapping {
  int fd;
  [[nodiscard]] interprocess::mapping_handle_t get_mapping_handle() const { return {fd, false}; }
};

/// Address space of at least `bytes` that begins at a multiple of 2 MiB: a place to map to.
class AlignedSpace {
 public:
  explicit AlignedSpace(std::size_t bytes) : bytes_(bytes + kHugePageBytes) {
    void* base = ::mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base != MAP_FAILED) base_ = static_cast<std::byte*>(base);
  }
  AlignedSpace(const AlignedSpace&) = delete;
  AlignedSpace& operator=(const AlignedSpace&) = delete;
  ~AlignedSpace() {
    if (base_ != nullptr) ::munmap(base_, bytes_);
  }
  [[nodiscard]] std::byte* aligned() const noexcept {
    if (base_ == nullptr) return nullptr;
    const auto address = reinterpret_cast<std::uintptr_t>(base_);
    return base_ + (round_up(address, kHugePageBytes) - address);
  }
  /// The first `used` bytes from aligned() belong to somebody else now; the rest goes back.
  void hand_over(std::size_t used) noexcept {
    std::byte* first = aligned();
    std::byte* last = first + round_up(used, kPageBytes);
    if (first != base_) ::munmap(base_, static_cast<std::size_t>(first - base_));
    if (last != base_ + bytes_) ::munmap(last, static_cast<std::size_t>(base_ + bytes_ - last));
    base_ = nullptr;
  }

 private:
  std::size_t bytes_;
  std::byte* base_ = nullptr;
};

/// Writes a zero to each page: what MADV_POPULATE_WRITE does, for kernels before 5.14.
void touch_pages(void* address, std::size_t bytes) {
  auto* first = static_cast<volatile std::byte*>(address);
  for (std::size_t at = 0; at < bytes; at += kPageBytes) first[at] = std::byte{0};
}

Result<void> fault_in(const interprocess::mapped_region& region) {
  while (::madvise(region.get_address(), region.get_size(), MADV_POPULATE_WRITE) != 0) {
    const int error = errno;
    if (error == EINTR || error == EAGAIN) continue;
    if (error != EINVAL) return no_capacity("memory: pre-faulting", error);
    touch_pages(region.get_address(), region.get_size());
    break;
  }
  return {};
}

/// `huge`: offset and bytes are multiples of 2 MiB.
Result<void> populate_mapped(int fd, std::uint64_t offset, std::uint64_t bytes, bool huge) try {
  std::optional<AlignedSpace> space;
  const DescriptorMapping mapping{fd};
  interprocess::mapped_region region;
  if (huge) {
    space.emplace(bytes);
    if (space->aligned() == nullptr) return no_capacity("address space", errno);
    interprocess::mapped_region(mapping, interprocess::read_write,
                                static_cast<interprocess::offset_t>(offset), bytes,
                                space->aligned(), MAP_FIXED)
        .swap(region);
    space->hand_over(bytes);
  } else {
    interprocess::mapped_region(mapping, interprocess::read_write,
                                static_cast<interprocess::offset_t>(offset), bytes)
        .swap(region);
  }
  // Advice only: a kernel that does not know it gives small pages.
  (void)::madvise(region.get_address(), bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  return fault_in(region);
} catch (const interprocess::interprocess_exception& error) {
  return no_capacity("address space: mapping a segment", error.get_native_error());
}

Result<void> reserve(int fd, std::uint64_t offset, std::uint64_t bytes) {
  int failed = 0;
  do {
    failed = ::fallocate(fd, 0, static_cast<off_t>(offset), static_cast<off_t>(bytes));
  } while (failed != 0 && errno == EINTR);
  if (failed != 0) return no_capacity("memory: reserving pages", errno);
  return {};
}

constexpr const char* kHugePageSizeFile = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size";
constexpr const char* kHugePagesFile = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
constexpr const char* kHugePagesOfSizeFile =
    "/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/shmem_enabled";

/// /proc/self/fd, opened once: the walk from the root would take longer than all the rest of a
/// re-opening. Negative when it cannot be opened, for want of descriptors say: the next call tries
/// again.
int own_descriptors() {
  static std::atomic<int> folder{-1};
  if (const int known = folder.load(); known >= 0) return known;
  UniqueFd opened(::open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC));
  int expected = -1;
  if (!opened.valid()) return -1;
  if (folder.compare_exchange_strong(expected, opened.get())) return opened.release();
  return expected;  // Another thread was faster.
}

Error reopen_failed(int error) {
  if (error == EWOULDBLOCK) {
    return make_error(ErrorCode::busy,
                      "segment: some process has taken a file lease (F_SETLEASE) on this memory; "
                      "the kernel ends it after /proc/sys/fs/lease-break-time seconds");
  }
  if (error == EMFILE || error == ENFILE || error == ENOMEM) {
    return no_capacity("descriptors: none left to re-open a segment", error);
  }
  return make_error(ErrorCode::internal, errno_text("re-opening a segment", error));
}

}  // namespace

HugePages huge_pages_in_force() {
  const std::string size = read_small_file(kHugePageSizeFile).value_or(std::string());
  if (size.rfind("2097152", 0) != 0) return HugePages::never;
  std::string word = chosen_word(kHugePagesOfSizeFile);
  if (word.empty() || word == "inherit") {
    word = chosen_word(kHugePagesFile);
  }
  if (word == "advise") return HugePages::advise;
  if (word == "always" || word == "force" || word == "within_size") return HugePages::always;
  return HugePages::never;
}

Result<UniqueFd> make_memfd(std::uint64_t bytes) {
  constexpr unsigned kFlags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  UniqueFd fd(::memfd_create("shmstore", kFlags | MFD_NOEXEC_SEAL));
  // Kernels before 6.3 do not know NOEXEC_SEAL.
  if (!fd.valid() && errno == EINVAL) fd.reset(::memfd_create("shmstore", kFlags));
  if (!fd.valid()) {
    const bool descriptors = errno == EMFILE || errno == ENFILE;
    return no_capacity(descriptors ? "segments: no descriptor left" : "memory file", errno);
  }
  if (::fchmod(fd.get(), 0600) != 0) return no_capacity("memory file: mode", errno);
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    return no_capacity("memory file: length", errno);
  }
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return no_capacity("memory file: seals", errno);
  }
  return fd;
}

Result<void> check_writable(int fd) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & (F_SEAL_WRITE | kSealFutureWrite)) == 0) return {};
  return make_error(ErrorCode::permission_denied,
                    "access: a process that could write the array has sealed its memory against "
                    "new writers (F_SEAL_WRITE or F_SEAL_FUTURE_WRITE), for ever; it can be read, "
                    "copied, replaced and deleted");
}

Result<UniqueFd> reopen(int fd, bool writable) {
  const int folder = own_descriptors();
  if (folder < 0) return reopen_failed(errno);
  std::array<char, 16> name{};
  (void)std::snprintf(name.data(), name.size(), "%d", fd);
  // A process that may open the file could hold a lease on it (F_SETLEASE): without O_NONBLOCK the
  // kernel would let us wait for its end, 45 s. For memory files the flag means nothing else.
  const int flags = (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK;
  UniqueFd fresh(::openat(folder, name.data(), flags));
  if (fresh.valid()) return fresh;
  return reopen_failed(errno);
}

Result<void> populate(int fd, std::uint64_t offset, std::uint64_t bytes, HugePages huge_pages) {
  const std::uint64_t whole = bytes / kHugePageBytes * kHugePageBytes;
  if (huge_pages != HugePages::never && offset % kHugePageBytes == 0 && whole != 0) {
    if (Result<void> done = populate_mapped(fd, offset, whole, true); !done) return done;
    offset += whole;
    bytes -= whole;
  }
  if (bytes == 0) return {};
  // Where the kernel would take a huge page for the last few small ones, they are faulted in under
  // MADV_NOHUGEPAGE. Elsewhere reserving does: the pages are there and charged, which is what keeps
  // clients from SIGBUS and the OOM killer, and the kernel clears each at its first use, in the
  // time of whoever fills it. That takes a third of the time of map, fault and unmap.
  return huge_pages == HugePages::always ? populate_mapped(fd, offset, bytes, false)
                                         : reserve(fd, offset, bytes);
}

bool punch(int fd, std::uint64_t offset, std::uint64_t bytes) {
  int failed = 0;
  do {
    failed = ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                         static_cast<off_t>(bytes));
  } while (failed != 0 && errno == EINTR);
  return failed == 0;
}

bool can_be_punched(int fd) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  return seals >= 0 && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) == 0;
}

Result<void> seal_against_writing(int fd) {
  if (::fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL) == 0) return {};
  if (errno == EBUSY) {
    return make_error(ErrorCode::busy,
                      "seal: some process still has a mapping that could write; it cannot be "
                      "sealed hard before that is gone");
  }
  // A holder of a writable description may have closed the list of seals already: then it is as
  // good as sealed when F_SEAL_WRITE is among them, and else never will be.
  const int error = errno;
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals >= 0 && (seals & F_SEAL_WRITE) != 0) return {};
  if (error == EPERM && seals >= 0 && (seals & F_SEAL_SEAL) != 0) {
    return make_error(ErrorCode::permission_denied,
                      "seal: a process that could write the array has closed its memory to further "
                      "seals (F_SEAL_SEAL), so it can never be sealed hard; put a copy of it");
  }
  return make_error(ErrorCode::internal,
                    errno_text("seal: the kernel refuses F_SEAL_WRITE", error));
}

std::uint64_t backed_bytes(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return 0;
  return static_cast<std::uint64_t>(status.st_blocks) * 512;
}

std::string errno_text(const std::string& what, int error) {
  return what + ": " + std::generic_category().message(error);
}

}  // namespace shmstore::server
