/// An open() by anybody during the moment in which the lease is held makes the kernel send SIGIO to
/// the daemon, whose default action is to end it: main ignores SIGIO before a probe is made.

#include "server/lease_probe.hpp"

#include <fcntl.h>
#include <sys/mman.h>

#include <cerrno>

#include "server/memfd.hpp"

namespace shmstore::server {
namespace {

bool lease_is_granted(int fd) {
  const Result<UniqueFd> fresh = reopen(fd, true);
  if (!fresh) return false;
  if (::fcntl(fresh->get(), F_SETLEASE, F_WRLCK) != 0) return false;
  (void)::fcntl(fresh->get(), F_SETLEASE, F_UNLCK);
  return true;
}

bool nobody_locks(int fd) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  return ::fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type == F_UNLCK;
}

/// Free alone, held by a read-only or a writable description, also when only its mapping is left,
/// free again after that.
bool leases_answer(bool writable, bool write_sealed) {
  const Result<UniqueFd> file = make_memfd(kPageBytes);
  if (!file || (write_sealed && !seal_against_writing(file->get()))) return false;
  if (!lease_is_granted(file->get())) return false;
  void* map = MAP_FAILED;
  {
    const Result<UniqueFd> holder = reopen(file->get(), writable);
    if (!holder || lease_is_granted(file->get())) return false;
    map = ::mmap(nullptr, kPageBytes, PROT_READ, MAP_SHARED, holder->get(), 0);
    // Kernels before 6.7 refuse a shared mapping of a write-sealed file.
    if (map == MAP_FAILED)
      map = ::mmap(nullptr, kPageBytes, PROT_READ, MAP_PRIVATE, holder->get(), 0);
  }
  if (map == MAP_FAILED) return false;
  const bool held = !lease_is_granted(file->get());
  (void)::munmap(map, kPageBytes);
  return held && lease_is_granted(file->get());
}

}  // namespace

LeaseProbe::LeaseProbe(bool try_leases)
    : exact_(try_leases && leases_answer(false, false) && leases_answer(true, false) &&
             leases_answer(false, true)) {}

void LeaseProbe::prepare(int description) const noexcept {
  if (exact_) return;
  struct flock lock {};
  lock.l_type = F_RDLCK;
  lock.l_whence = SEEK_SET;
  (void)::fcntl(description, F_OFD_SETLK, &lock);
}

bool LeaseProbe::is_free(int fd) const noexcept {
  return exact_ ? lease_is_granted(fd) : nobody_locks(fd);
}

}  // namespace shmstore::server
