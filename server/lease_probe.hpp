#pragma once
/// Asks the kernel whether any process but the daemon still has a segment: as an open descriptor,
/// as a mapping, inherited by fork or on its way in a message.
///
/// A write lease (F_SETLEASE) is granted only to the sole description of a file. The memfd that
/// the daemon made does not count, every re-opened description does, and a mapping keeps its
/// description alive: so "granted" means that nobody else has it. Holders cannot forge the answer.
///
/// The self-test at start-up finds kernels where this does not hold. There the probe falls back on
/// a shared lock that every description gets before it is sent: right for every program that
/// leaves it alone, while one that unlocks it escapes its charge. The daemon says so in its log.

#include "server/unique_fd.hpp"

namespace shmstore::server {

class LeaseProbe {
 public:
  /// Finds out what works here. `try_leases` false: the fallback in any case, for tests.
  explicit LeaseProbe(bool try_leases = true);

  /// True when leases answer; false when the fallback is in force.
  [[nodiscard]] bool exact() const noexcept { return exact_; }

  /// To be called for every re-opened description before it leaves the process.
  void prepare(int description) const noexcept;

  /// True only when nobody but this process has the file. REQUIRES: no description of it other
  /// than `fd`, the original one, is open in this process.
  [[nodiscard]] bool is_free(int fd) const noexcept;

 private:
  bool exact_ = false;
};

}  // namespace shmstore::server
