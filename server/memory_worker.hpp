#pragma once
/// The one thread for slow memory work: getting, clearing and giving back pages. Work is cut into
/// slices of a few milliseconds; between slices the worker looks again for what is most urgent:
/// create before zero before free, and within a kind one slice per user in turn, so that nobody's
/// 64 GiB keep anybody else's 64 KiB waiting.

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "server/unique_fd.hpp"

namespace shmstore::server {

class MemoryWorker {
 public:
  enum class Kind : std::uint8_t {
    create = 0,
    zero = 1,
    free = 2
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
  /// Ends the thread after the slice under way; jobs not done are dropped. Twice is fine.
  void stop();
  /// Readable when run_completions() has something to do.
  [[nodiscard]] int completion_fd() const noexcept { return completion_.get(); }
  /// Calls `done` of every finished job. On the event loop's thread.
  void run_completions();

 private:
  using Queues = std::map<std::uint32_t, std::deque<Job>>;  // by uid; no queue is empty
  void run();
  bool take(Job& job);
  void put_back_or_complete(Job job, bool finished);

  const UniqueFd completion_;
  std::mutex mutex_;  // guards everything below
  std::condition_variable wake_;
  std::array<Queues, 3> queues_;
  std::array<std::uint32_t, 3> last_uid_{};
  std::uint32_t slices_since_free_ = 0;
  std::vector<Job> finished_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace shmstore::server
