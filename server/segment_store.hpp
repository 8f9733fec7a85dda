#pragma once
/// Where array bytes live. The interface that the dispatcher talks to; the real store makes one
/// memfd per array, tests use one in memory or one that fails on demand, slabs and pools come
/// behind the same calls.

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "server/registry.hpp"
#include "server/unique_fd.hpp"
#include "shmstore/error.hpp"

namespace shmstore::server {

/// All calls on the event loop's thread, none blocks on slow memory work: that is the worker's.
/// Every callback runs on the event loop's thread, during the call or later.
class SegmentStore {
 public:
  virtual ~SegmentStore() = default;

  using Allocated = std::function<void(Result<SegmentId>)>;
  using HardSealed = std::function<void(Result<void>)>;

  /// Gets `bytes` (> 0) of zeroed memory for `uid`, backed by pages and sealed against resizing.
  /// `ticket` (> 0, unique among the allocations under way) names the call for cancel().
  /// Errors through `done`: no_capacity (text: "segments", memory available, or what failed).
  virtual void allocate(std::uint64_t ticket, std::uint32_t uid, std::uint64_t bytes,
                        Allocated done) = 0;

  /// May the daemon itself take `bytes` more, for the record of an array? Error: no_capacity.
  virtual Result<void> admit_record(std::uint64_t bytes) = 0;

  /// Nobody wants this allocation any more: stop early and answer no_capacity. Unknown: nothing.
  virtual void cancel(std::uint64_t ticket) = 0;

  /// A freshly opened description to send; never the original. Never waits. Errors:
  /// no_capacity, not_found, busy (a process has a file lease on it), permission_denied (writable:
  /// a writer has sealed it against others).
  virtual Result<UniqueFd> open(SegmentId segment, bool writable) = 0;

  /// F_SEAL_WRITE. Errors through `done`: busy while somebody has a writable mapping,
  /// permission_denied when a writer has closed it to seals.
  virtual void seal_hard(SegmentId segment, HardSealed done) = 0;

  /// Nobody is entitled to it any more: frees it as soon as the kernel says that no description
  /// and no mapping is left, then calls `on_freed`. The kernel is asked now, or (`ask_now` false,
  /// when there are many) in one of the next calls of probe_released(). If it says for the first
  /// time that somebody has it, `on_pinned` is called.
  virtual void release(SegmentId segment, bool ask_now) = 0;

  /// Asks the kernel about at most `limit` released segments: those that it was not asked about
  /// yet, then those asked about longest ago.
  /// Stops early once `bytes_max` of pages have been given back during the call (what is large is
  /// left to the worker). Returns the bytes of those that turned out to be free.
  virtual std::uint64_t probe_released(std::size_t limit, std::uint64_t bytes_max) = 0;

  [[nodiscard]] virtual std::uint64_t segment_bytes(SegmentId segment) const = 0;  ///< File length.
  [[nodiscard]] virtual std::uint64_t segments() const = 0;
  /// Released segments to ask the kernel about: some process still has them, or nobody has asked.
  [[nodiscard]] virtual std::uint64_t pinned_segments() const = 0;
  /// Bytes that may be on their way back to the kernel: nobody has them and freeing takes its time,
  /// or nobody has asked yet. The other released ones are pinned by some process.
  [[nodiscard]] virtual std::uint64_t freeing_bytes() const = 0;
  /// Σ st_blocks × 512 of all segments, asked from the kernel. For selfcheck and status.
  [[nodiscard]] virtual std::uint64_t kernel_bytes() const = 0;
  /// How far kernel_bytes() may be above what is charged, for reasons of the kernel's.
  [[nodiscard]] virtual std::uint64_t slack_bytes() const = 0;
  /// Contradictions between what is charged and what the kernel says; empty when clean.
  [[nodiscard]] virtual std::vector<std::string> selfcheck() const = 0;

  void set_on_freed(std::function<void(SegmentId)> on_freed) { on_freed_ = std::move(on_freed); }
  void set_on_pinned(std::function<void(SegmentId)> on_pinned) {
    on_pinned_ = std::move(on_pinned);
  }

 protected:
  std::function<void(SegmentId)> on_freed_;
  std::function<void(SegmentId)> on_pinned_;
};

}  // namespace shmstore::server
