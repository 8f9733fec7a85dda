#pragma once
/// The real SegmentStore: one memfd per segment.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "server/admission.hpp"
#include "server/lease_probe.hpp"
#include "server/memfd.hpp"
#include "server/memory_worker.hpp"
#include "server/segment_store.hpp"

namespace shmstore::server {

class MemfdStore final : public SegmentStore {
 public:
  /// All outlive the store. `segments_max`: descriptors it may hold.
  MemfdStore(MemoryWorker& worker, Admission& admission, const LeaseProbe& probe,
             std::uint64_t segments_max);

  void allocate(std::uint64_t ticket, std::uint32_t uid, std::uint64_t bytes,
                Allocated done) override;
  Result<void> admit_record(std::uint64_t bytes) override;
  void cancel(std::uint64_t ticket) override;
  Result<UniqueFd> open(SegmentId segment, bool writable) override;
  void seal_hard(SegmentId segment, HardSealed done) override;
  void release(SegmentId segment, bool ask_now) override;
  std::uint64_t probe_released(std::size_t limit, std::uint64_t bytes_max) override;

  [[nodiscard]] std::uint64_t segment_bytes(SegmentId segment) const override;
  [[nodiscard]] std::uint64_t segments() const override;
  [[nodiscard]] std::uint64_t pinned_segments() const override {
    return unasked_.size() + released_.size();
  }
  [[nodiscard]] std::uint64_t freeing_bytes() const override { return freeing_bytes_; }
  [[nodiscard]] std::uint64_t kernel_bytes() const override;
  [[nodiscard]] std::uint64_t slack_bytes() const override;
  [[nodiscard]] std::vector<std::string> selfcheck() const override;

 private:
  enum class Phase : std::uint8_t {
    live,      ///< → released
    released,  ///< Nobody is entitled to it; somebody may map it → freeing
    freeing,   ///< Nobody maps it; the worker gives its pages back → gone
  };
  struct Segment {
    std::shared_ptr<const UniqueFd> fd;  ///< Shared with jobs on the worker.
    std::uint32_t uid = 0;
    std::uint64_t bytes = 0;
    Phase phase = Phase::live;
    bool hard = false;
    bool sealing = false;  ///< The kernel is at it: it cannot be freed meanwhile.
  };
  /// One allocation on its way through the worker.
  struct Growth {
    std::shared_ptr<const UniqueFd> fd;
    std::uint64_t bytes = 0;
    std::uint64_t populated = 0;  // worker
    std::uint64_t touched = 0;    // worker: there may be pages up to here
    Result<void> outcome;         // worker until done
    std::atomic<bool> cancelled{false};
  };

  SegmentId add(std::shared_ptr<const UniqueFd> fd, std::uint32_t uid, std::uint64_t bytes);
  void grow_on_worker(std::uint64_t ticket, std::uint32_t uid,
                      const std::shared_ptr<Growth>& growth, Allocated done);
  bool grow_slice(Growth& growth) const;
  /// A hard seal on its way. One of a user is asked for at a time.
  struct Sealing {
    SegmentId id = 0;
    HardSealed done;
  };
  void seal_next(std::uint32_t uid);
  [[nodiscard]] std::uint64_t probe_first(std::deque<SegmentId>& line);
  [[nodiscard]] bool start_freeing(SegmentId id, Segment& segment);
  void forget(SegmentId id);

  MemoryWorker& worker_;
  Admission& admission_;
  const LeaseProbe& probe_;
  const std::uint64_t segments_max_;
  const HugePages huge_pages_;
  SegmentId last_id_ = 0;
  std::unordered_map<SegmentId, Segment> segments_;
  std::unordered_map<std::uint64_t, std::shared_ptr<Growth>> growths_;  // by ticket
  std::map<std::uint32_t, std::deque<Sealing>> sealings_;  // by uid; the first is under way
  /// Users whose pages were found pinned, and until when that is held against them.
  std::map<std::uint32_t, std::chrono::steady_clock::time_point> slow_until_;
  std::deque<SegmentId> unasked_;   // released, the kernel has not been asked
  std::deque<SegmentId> released_;  // asked, in vain; longest ago first
  std::uint64_t freeing_bytes_ = 0;
  std::uint64_t freed_at_once_ = 0;  // bytes, not by the worker
};

}  // namespace shmstore::server
