#pragma once
/// Threads for slow memory work. One gets, clears and gives back pages: in slices of a millisecond,
/// and between slices it looks again for what is most urgent: create before zero before free, and
/// within a kind one slice per user in turn, so that nobody's 64 GiB keep anybody else's 64 KiB
/// waiting. What the kernel does in one go however long that takes has threads of its own, where it
/// keeps nobody waiting but its like: hard seals, those of users whose pages are pinned, and the
/// last close of large files that cannot be punched. Within a kind users take turns there as well.

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "server/unique_fd.hpp"

namespace shmstore::server {

class MemoryWorker {
 public:
  enum class Kind : std::uint8_t {
    create = 0,
    zero = 1,
    free = 2,
    seal = 3,       ///< One go: the kernel looks at every page.
    slow_seal = 4,  ///< The same, when it is likely to wait 150 ms for pinned pages.
    close = 5,      ///< One go.
  };
  struct Job {
    Kind kind = Kind::create;
    std::uint32_t uid = 0;
    std::function<bool()> slice;  ///< On the worker, again and again until it returns true.
    std::function<void()> done;   ///< On the event loop's thread, afterwards.
  };

  MemoryWorker();
  ~MemoryWorker() { stop(); }
  MemoryWorker(const MemoryWorker&) = delete;
  MemoryWorker& operator=(const MemoryWorker&) = delete;

  void submit(Job job);
  /// Ends the threads after the slices under way; jobs not done are dropped. Twice is fine.
  void stop();
  /// Readable when run_completions() has something to do.
  [[nodiscard]] int completion_fd() const noexcept { return completion_.get(); }
  /// Calls `done` of some finished jobs; what is left is told again. On the event loop's thread.
  void run_completions();

 private:
  static constexpr std::size_t kKinds = 6;
  using Queues = std::map<std::uint32_t, std::deque<Job>>;  // by uid; no queue is empty
  /// A thread, and the kinds that it works on.
  struct Lane {
    std::size_t first = 0, last = 0;
    std::condition_variable wake = {};
    std::thread thread = {};
  };
  Lane& lane_of(Kind kind);
  void run(Lane& lane);
  bool take(Lane& lane, Job& job);
  [[nodiscard]] std::size_t most_urgent(const Lane& lane) const;
  void put_back_or_complete(Job job, bool finished);

  const UniqueFd completion_;
  std::mutex mutex_;  // guards everything below
  std::array<Queues, kKinds> queues_;
  std::array<std::uint32_t, kKinds> last_uid_{};
  std::uint32_t slices_since_free_ = 0;
  std::deque<Job> finished_;
  bool stopping_ = false;
  std::array<Lane, 4> lanes_{{{0, 2}, {3, 3}, {4, 4}, {5, 5}}};
};

}  // namespace shmstore::server
