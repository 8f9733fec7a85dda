/// One mutex for all queues; a lane is a thread with the kinds that are its. A job that is not
/// finished goes back to the front of its user's queue, behind the turns of the other users.

#include "server/memory_worker.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>

#include <utility>
#include <vector>

namespace shmstore::server {
namespace {

/// Frees come last but not never: whoever waits for room waits for them.
constexpr std::uint32_t kSlicesBeforeFree = 8;
/// Each is answered on the event loop, in some 10 µs.
constexpr std::size_t kCompletionsAtOnce = 16;

}  // namespace

MemoryWorker::MemoryWorker() : completion_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  // Signals are the event loop's.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (Lane& lane : lanes_) lane.thread = std::thread([this, &lane] { run(lane); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void MemoryWorker::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  for (Lane& lane : lanes_) lane.wake.notify_one();
  for (Lane& lane : lanes_) {
    if (lane.thread.joinable()) lane.thread.join();
  }
}

MemoryWorker::Lane& MemoryWorker::lane_of(Kind kind) {
  const auto at = static_cast<std::size_t>(kind);
  for (Lane& lane : lanes_) {
    if (at <= lane.last) return lane;
  }
  return lanes_.back();
}

void MemoryWorker::submit(Job job) {
  Lane& lane = lane_of(job.kind);
  {
    const std::lock_guard lock(mutex_);
    queues_[static_cast<std::size_t>(job.kind)][job.uid].push_back(std::move(job));
  }
  lane.wake.notify_one();
}

void MemoryWorker::run_completions() {
  std::uint64_t count = 0;
  (void)::eventfd_read(completion_.get(), &count);
  std::vector<Job> finished;
  {
    const std::lock_guard lock(mutex_);
    while (!finished_.empty() && finished.size() < kCompletionsAtOnce) {
      finished.push_back(std::move(finished_.front()));
      finished_.pop_front();
    }
    if (!finished_.empty()) (void)::eventfd_write(completion_.get(), 1);
  }
  std::size_t next = 0;
  try {
    while (next < finished.size()) finished[next++].done();
  } catch (...) {  // What fails for one job is that one's loss.
    const std::lock_guard lock(mutex_);
    while (finished.size() > next) {
      finished_.push_front(std::move(finished.back()));
      finished.pop_back();
    }
    (void)::eventfd_write(completion_.get(), 1);
    throw;
  }
}

void MemoryWorker::run(Lane& lane) {
  Job job;
  while (take(lane, job)) {
    const bool finished = job.slice();
    put_back_or_complete(std::move(job), finished);
  }
}

/// Of the kinds that have jobs; one past the last when there is none.
std::size_t MemoryWorker::most_urgent(const Lane& lane) const {
  constexpr auto kFree = static_cast<std::size_t>(Kind::free);
  if (lane.last == kFree && !queues_[kFree].empty() && slices_since_free_ >= kSlicesBeforeFree) {
    return kFree;
  }
  std::size_t kind = lane.first;
  while (kind <= lane.last && queues_[kind].empty()) ++kind;
  return kind;
}

/// Waits for a job; false when the worker ends.
bool MemoryWorker::take(Lane& lane, Job& job) {
  std::unique_lock lock(mutex_);
  lane.wake.wait(lock, [&] { return stopping_ || most_urgent(lane) <= lane.last; });
  if (stopping_) return false;
  const std::size_t kind = most_urgent(lane);
  if (lane.first == 0) {
    slices_since_free_ = kind == static_cast<std::size_t>(Kind::free) ? 0 : slices_since_free_ + 1;
  }
  Queues& queues = queues_[kind];
  auto next = queues.upper_bound(last_uid_[kind]);
  if (next == queues.end()) next = queues.begin();
  last_uid_[kind] = next->first;
  job = std::move(next->second.front());
  next->second.pop_front();
  if (next->second.empty()) queues.erase(next);
  return true;
}

void MemoryWorker::put_back_or_complete(Job job, bool finished) {
  const std::lock_guard lock(mutex_);
  if (!finished) {
    queues_[static_cast<std::size_t>(job.kind)][job.uid].push_front(std::move(job));
    return;
  }
  finished_.push_back(std::move(job));
  (void)::eventfd_write(completion_.get(), 1);
}

}  // namespace shmstore::server
