// Time: one ordered set of timers for deadlines of waits, ttl of kept arrays, hand-over leases and
// repeated hard seals. Whoever ends one of these takes its timer out.
#include "server/registry_impl.hpp"

namespace shmstore::server {

namespace {

// A million arrays may have been given the same last moment.
constexpr std::size_t kTimersAtOnce = 256;

}  // namespace

void Registry::Impl::tick() {
  room = true;  // Limits may have been raised since.
  creates_left_over = false;
  for (std::size_t n = 0; n < kTimersAtOnce;) {
    if (timers.empty() || timers.begin()->at_ms > now.boot_ms) break;
    const Timer timer = *timers.begin();
    timers.erase(timers.begin());
    n += 1 + handles_of(timer);
    fire(timer);
  }
}

// An array that goes takes its handles for one receiver along: each counts as a deadline.
std::size_t Registry::Impl::handles_of(const Timer& timer) const {
  const Array* array = timer.kind == TimerKind::ttl ? arrays.find(ArrayId{timer.key}) : nullptr;
  return array == nullptr ? 0 : array->handles.size();
}

void Registry::Impl::fire(const Timer& timer) {
  if (timer.kind == TimerKind::wait) {
    const auto found = waiters.find(timer.key);
    if (found != waiters.end()) expire(*found->second);
    return;
  }
  Array* array = arrays.find(ArrayId{timer.key});
  if (array == nullptr) return;
  switch (timer.kind) {
    case TimerKind::ttl: make_dying(*array); break;
    case TimerKind::handover: end_handover(*array, static_cast<std::uint32_t>(timer.more)); break;
    case TimerKind::handle: end_handle(*array, timer.more); break;
    case TimerKind::seal_retry:
      array->wake_seal = true;
      mark(*array);
      break;
    case TimerKind::wait: break;
  }
}

// A seal says who is in its way, a create what was missing.
void Registry::Impl::expire(Waiter& waiter) {
  if (const auto* job = std::get_if<SealJob>(&waiter.job)) {
    return answer(waiter, busy(at(job->id), waiter.session));
  }
  if (const auto* job = std::get_if<CreateJob>(&waiter.job)) {
    const std::string more = held_unread(waiter.session->identity.uid, job->refusal);
    return answer(waiter, timed_out("no room in time; " + job->refusal + more));
  }
  if (waiter.line != nullptr) {
    const std::string who = held(*waiter.line, *waiter.session).text;
    return answer(waiter, timed_out("passed; " + who.substr(who.find(": ") + 2)));
  }
  answer(waiter, timed_out("passed; " + still_missing(waiter)));
}

}  // namespace shmstore::server
