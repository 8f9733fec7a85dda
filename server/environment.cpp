/// Each check does the very thing that the daemon will do later, so that it cannot say yes where
/// that fails.

#include "server/environment.hpp"

#include <sys/stat.h>

#include <cerrno>
#include <string>

#include "server/admission.hpp"
#include "server/memfd.hpp"

namespace shmstore::server {
namespace {

Result<void> check_proc() {
  struct stat status {};
  if (::stat("/proc/self/fd", &status) == 0) return {};
  return make_error(ErrorCode::not_found,
                    errno_text("/proc: /proc/self/fd cannot be looked at", errno) +
                        "; shmstored re-opens its memory files there and reads how much memory "
                        "the machine has, so /proc has to be mounted");
}

Result<void> check_descriptors(const DescriptorBudget& budget) {
  if (budget.descriptors_max >= kDescriptorsMin) return {};
  return make_error(ErrorCode::no_capacity,
                    "open files: the limit is " + std::to_string(budget.descriptors_max) +
                        " (ulimit -Hn), shmstored needs " + std::to_string(kDescriptorsMin) +
                        " and one more for each array with bytes; raise it, LimitNOFILE= in a "
                        "unit");
}

Result<void> check_memory_files() {
  const Result<UniqueFd> made = make_memfd(kPageBytes);
  const Result<UniqueFd> opened = made ? reopen(made->get(), true) : Result<UniqueFd>(UniqueFd());
  if (made && opened) return {};
  const Error& error = made ? opened.error() : made.error();
  return make_error(error.code, "memory files do not work here: " + error.text +
                                    "; shmstored needs memfd_create with seals, which this kernel "
                                    "does not have or a sandbox (seccomp) does not let through");
}

}  // namespace

Result<void> check_environment(const DescriptorBudget& budget, bool by_share) {
  if (Result<void> proc = check_proc(); !proc) return proc;
  if (Result<void> descriptors = check_descriptors(budget); !descriptors) return descriptors;
  if (by_share && Admission().total_bytes() == 0) {
    return make_error(ErrorCode::not_found,
                      "capacity: /proc/meminfo does not say how much memory this machine has, so "
                      "--capacity must be given in bytes");
  }
  return check_memory_files();
}

}  // namespace shmstore::server
