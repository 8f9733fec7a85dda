#pragma once
/// Where array bytes live. The interface that the daemon's event loop talks to; the real store
/// makes one memfd per array, tests use one in memory or one that fails on demand, slabs and pools
/// come behind the same calls.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "server/registry.hpp"
#include "server/unique_fd.hpp"
#include "shmstore/error.hpp"

namespace shmstore::server {

/// All calls on the event loop's thread, none blocks on slow memory work: that is the worker's.
class SegmentStore {
 public:
  virtual ~SegmentStore() = default;

  using Allocated = std::function<void(Result<SegmentId>)>;
  /// Gets `bytes` (> 0) of zeroed, pre-faulted memory for `uid`, sealed against resizing. `done`
  /// runs on the event loop's thread: before this call returns for small sizes, later for others.
  /// Errors through `done`: no_capacity (text: "segments", memory available, or what failed).
  virtual void allocate(std::uint32_t uid, std::uint64_t bytes, Allocated done) = 0;

  /// A freshly opened description to send; never the original. Errors: no_capacity, not_found.
  virtual Result<UniqueFd> open(SegmentId segment, bool writable) = 0;

  /// F_SEAL_WRITE. Error: busy while somebody has a writable mapping.
  virtual Result<void> seal_hard(SegmentId segment) = 0;

  /// Nobody is entitled to it any more: frees it as soon as the kernel says that no description
  /// and no mapping is left, then calls `on_freed` (on the event loop's thread, maybe at once).
  virtual void release(SegmentId segment) = 0;

  /// Probes every released segment now.
  virtual void probe_released() = 0;

  [[nodiscard]] virtual std::uint64_t segment_bytes(SegmentId segment) const = 0;  ///< File length.
  [[nodiscard]] virtual std::uint64_t segments() const = 0;
  /// Σ st_blocks × 512 of all segments, asked from the kernel. For selfcheck and status.
  [[nodiscard]] virtual std::uint64_t kernel_bytes() const = 0;
  /// Contradictions between what is charged and what the kernel says; empty when clean.
  [[nodiscard]] virtual std::vector<std::string> selfcheck() const = 0;

  void set_on_freed(std::function<void(SegmentId)> on_freed) { on_freed_ = std::move(on_freed); }

 protected:
  std::function<void(SegmentId)> on_freed_;
};

}  // namespace shmstore::server
