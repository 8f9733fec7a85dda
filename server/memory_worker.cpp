#include "server/memory_worker.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>

#include <utility>

namespace shmstore::server {
namespace {

/// Frees come last but not never: whoever waits for room waits for them.
constexpr std::uint32_t kSlicesBeforeFree = 8;

}  // namespace

MemoryWorker::MemoryWorker() : completion_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  // Signals are the event loop's.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void MemoryWorker::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void MemoryWorker::submit(Job job) {
  {
    const std::lock_guard lock(mutex_);
    queues_[static_cast<std::size_t>(job.kind)][job.uid].push_back(std::move(job));
  }
  wake_.notify_one();
}

void MemoryWorker::run_completions() {
  std::uint64_t count = 0;
  (void)::eventfd_read(completion_.get(), &count);
  std::vector<Job> finished;
  {
    const std::lock_guard lock(mutex_);
    finished.swap(finished_);
  }
  for (Job& job : finished) job.done();
}

void MemoryWorker::run() {
  Job job;
  while (take(job)) {
    const bool finished = job.slice();
    put_back_or_complete(std::move(job), finished);
  }
}

/// Waits for a job; false when the worker ends.
bool MemoryWorker::take(Job& job) {
  std::unique_lock lock(mutex_);
  wake_.wait(lock, [this] {
    return stopping_ || !queues_[0].empty() || !queues_[1].empty() || !queues_[2].empty();
  });
  if (stopping_) return false;
  std::size_t kind = 0;
  while (queues_[kind].empty()) ++kind;
  if (!queues_[2].empty() && slices_since_free_ >= kSlicesBeforeFree) kind = 2;
  slices_since_free_ = kind == 2 ? 0 : slices_since_free_ + 1;
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
