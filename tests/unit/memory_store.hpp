#pragma once
/// A SegmentStore without memory: counts what it is asked for, fails or delays on demand.

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "server/segment_store.hpp"

namespace shmstore::server {

class MemoryStore final : public SegmentStore {
 public:
  // -- what the test decides ---------------------------------------------------------------------
  bool hold = false;             ///< Allocations and hard seals are answered by finish() only.
  std::optional<Error> failure;  ///< Every allocation fails with it.
  std::optional<Error> open_failure;
  std::optional<Error> record_failure;  ///< The machine has no room for what is no page.
  bool mapped = false;                  ///< Somebody maps what is released: nothing comes free.
  std::uint64_t freeing = 0;            ///< Bytes said to be on their way back.

  // -- what it sees -------------------------------------------------------------------------------
  std::vector<std::uint64_t> cancelled;
  std::size_t opened = 0;
  std::size_t probes = 0;
  std::size_t asked_now = 0;  ///< Releases after which the kernel is asked at once.

  void finish() {
    std::vector<std::function<void()>> now;
    now.swap(held_);
    for (auto& one : now) one();
  }

  void allocate(std::uint64_t /*ticket*/, std::uint32_t /*uid*/, std::uint64_t bytes,
                Allocated done) override {
    auto answer = [this, bytes, done = std::move(done)] {
      if (failure) return done(*failure);
      segments_[++last_] = charge_of(bytes);
      done(last_);
    };
    if (hold) {
      held_.push_back(std::move(answer));
    } else {
      answer();
    }
  }
  Result<void> admit_record(std::uint64_t /*bytes*/) override {
    if (record_failure) return *record_failure;
    return {};
  }
  void cancel(std::uint64_t ticket) override { cancelled.push_back(ticket); }
  Result<UniqueFd> open(SegmentId segment, bool /*writable*/) override {
    if (open_failure) return *open_failure;
    if (segments_.count(segment) == 0) return make_error(ErrorCode::not_found, "gone");
    ++opened;
    return UniqueFd();
  }
  void seal_hard(SegmentId /*segment*/, HardSealed done) override {
    if (hold) {
      held_.push_back([done = std::move(done)] { done({}); });
    } else {
      done({});
    }
  }
  void release(SegmentId segment, bool ask_now) override {
    released_.push_back(segment);
    if (ask_now) (void)probe_released(1, UINT64_MAX);
    if (ask_now && mapped) on_pinned_(segment);
    asked_now += ask_now ? 1U : 0U;
  }
  std::uint64_t probe_released(std::size_t limit, std::uint64_t /*bytes_max*/) override {
    probes += std::min(limit, released_.size());
    std::uint64_t freed = 0;
    while (!mapped && limit-- > 0 && !released_.empty()) {
      const SegmentId segment = released_.back();
      released_.pop_back();
      freed += segments_[segment];
      segments_.erase(segment);
      on_freed_(segment);
    }
    return freed;
  }

  [[nodiscard]] std::uint64_t segment_bytes(SegmentId segment) const override {
    const auto found = segments_.find(segment);
    return found == segments_.end() ? 0 : found->second;
  }
  [[nodiscard]] std::uint64_t segments() const override { return segments_.size(); }
  [[nodiscard]] std::uint64_t pinned_segments() const override { return released_.size(); }
  [[nodiscard]] std::uint64_t freeing_bytes() const override { return freeing; }
  [[nodiscard]] std::uint64_t kernel_bytes() const override {
    std::uint64_t bytes = 0;
    for (const auto& [segment, size] : segments_) bytes += size;
    return bytes;
  }
  [[nodiscard]] std::uint64_t slack_bytes() const override { return 0; }
  [[nodiscard]] std::vector<std::string> selfcheck() const override { return {}; }

 private:
  SegmentId last_ = 0;
  std::map<SegmentId, std::uint64_t> segments_;
  std::vector<SegmentId> released_;
  std::vector<std::function<void()>> held_;
};

}  // namespace shmstore::server
