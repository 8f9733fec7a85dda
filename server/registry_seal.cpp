// Seal and abort. Sealing is decided by judge_seal() alone, also when a waiting seal is tried
// again; a hard seal then takes the way over the kernel (HardSealSegment → hard_sealed()), a soft
// one ends at once. While the kernel is asked, nobody becomes a writer of the array, and what else
// may happen is looked at again when it has answered. It cannot be called back: who cancels, too,
// is told how it came out, for a client that heard "cancelled" of what is sealed would go on
// writing.
#include <algorithm>

#include "server/registry_impl.hpp"

namespace shmstore::server {
namespace {

constexpr auto kOp = protocol::Op::seal;
constexpr std::size_t kPidsNamed = 16;
// A kernel that says busy is asked again while the seal may wait: maps go without telling us.
constexpr std::int64_t kHardSealRetryMs = 20;

}  // namespace

bool Registry::Impl::needs_hard(const Array& array, bool hard) {
  return hard || array.exposed || array.has_option(protocol::kCreateHard);
}

// "'x' is being sealed by pid 12 (python)"
std::string Registry::Impl::being_sealed(const Array& array) const {
  std::string text = label(array) + " is being sealed";
  const Session* sealer = find_session(array.hard_seal->session);
  return sealer == nullptr ? text : text + " by " + named(sealer->identity);
}

Error Registry::Impl::busy(const Array& array, const Session* except) const {
  if (array.hard_seal) return make_error(ErrorCode::busy, "seal: " + being_sealed(array));
  std::string text = "seal: " + label(array) + " is written by";
  std::set<std::int64_t> pids;
  std::size_t more = 0;
  for (const Lease* lease = array.leases.first(); lease != nullptr && writes(lease->access);
       lease = lease->next) {
    if (lease->session == except) continue;
    const Identity& who = lease->session->identity;
    if (pids.size() >= kPidsNamed) {
      ++more;
    } else if (pids.insert(who.pid).second) {
      text += (pids.size() == 1 ? " " : ", ") + named(who);
    }
  }
  if (pids.empty()) text = "seal: some process still maps " + label(array) + " writable";
  if (more > 0) text += " and " + std::to_string(more) + " more";
  return make_error(ErrorCode::busy, std::move(text));
}

// An Array in the outcome: go on.
Outcome Registry::Impl::judge_seal(Session& session, const SealJob& job) {
  Array* array = arrays.find(job.id);
  if (array == nullptr) return not_found(job.id);
  if (!owns(session.identity, *array)) return denied_by_id(session.identity, *array, "seal");
  const bool member = holds(session, job.id);
  if (array->aborted && member) {
    return make_error(ErrorCode::aborted, "id: the draft was dropped by its creator");
  }
  if (array->state == State::dying) return not_found(job.id);
  if (array->hard_seal) return MustWait{};
  if (array->state == State::sealed) return array;
  // Who has it alone may seal it; everybody else waits, before anything else is looked at.
  const bool alone = find_lease(session, job.id, Access::exclusive) != nullptr;
  if (array->exclusive != nullptr && !alone) return MustWait{};
  const bool writer = alone || find_lease(session, job.id, Access::write) != nullptr;
  if (!writer || array->allocating) {
    return make_error(ErrorCode::invalid_argument,
                      "seal: this session does not hold " + label(*array) + " for writing (r+)");
  }
  return array->writer_count > 1 ? Outcome(MustWait{}) : Outcome(array);
}

void Registry::Impl::seal(Session& session, RequestId request, ArrayId id, bool hard,
                          std::int64_t wait_ms) {
  const SealJob job{id, hard};
  const Outcome outcome = judge_seal(session, job);
  if (const auto* error = std::get_if<Error>(&outcome)) {
    reply(session, request, kOp, *error);
  } else if (Array* const* array = std::get_if<Array*>(&outcome)) {
    act_seal(session, request, **array, hard, deadline_of(wait_ms));
  } else if (wait_ms == 0) {
    reply(session, request, kOp, busy(at(id), &session));
  } else if (Waiter* waiter = add_waiter(session, request, kOp, deadline_of(wait_ms), job)) {
    at(id).seal_waiters.push_back(*waiter);
  }
}

void Registry::Impl::retry_seal(Waiter& waiter) {
  const SealJob job = std::get<SealJob>(waiter.job);
  Session& session = *waiter.session;
  const Outcome outcome = judge_seal(session, job);
  if (const auto* error = std::get_if<Error>(&outcome)) return answer(waiter, *error);
  Array* const* array = std::get_if<Array*>(&outcome);
  if (array == nullptr) return;
  const RequestId request = waiter.request;
  const std::int64_t deadline_ms = waiter.deadline_ms;
  drop_waiter(waiter);
  act_seal(session, request, **array, job.hard, deadline_ms);
}

// REQUIRES: judge_seal() said go.
void Registry::Impl::act_seal(Session& session, RequestId request, Array& array, bool hard,
                              std::int64_t deadline_ms) {
  const Seal level = needs_hard(array, hard) ? Seal::hard : Seal::soft;
  const bool sealed = array.state == State::sealed;
  if (sealed && (level == array.seal || !hard)) {
    return reply(session, request, kOp, Sealed{array.id, array.version, array.seal, array.state});
  }
  if (std::optional<Error> error = check_publish(array); error && !sealed) {
    return reply(session, request, kOp, *error);
  }
  if (level == Seal::hard && array.segment != 0) {
    if (std::optional<Error> error = check_work(session)) {
      return reply(session, request, kOp, *error);
    }
    Waiter& work = add_work(session, request, kOp, HardSealJob{array.id});
    array.hard_seal = HardSeal{session.id, &work, hard, deadline_ms};
    out->emplace_back(HardSealSegment{array.id, array.segment});
    return;
  }
  finish_seal(array, session.id, level);
  reply(session, request, kOp, Sealed{array.id, array.version, array.seal, array.state});
}

void Registry::Impl::finish_seal(Array& array, SessionId session, Seal level) {
  const bool first = array.state != State::sealed;
  array.seal = level;
  if (array.state == State::draft) publish(array, State::sealed);
  array.state = State::sealed;
  array.broken.reset();
  array.frozen = false;
  if (Session* sealer = find_session(session)) demote(*sealer, array);
  array.wake_attach = array.wake_seal = true;
  mark(array);
  if (!first) return;
  array.sealed_s = now.wall_s;
  if (array.entry == nullptr) return;
  mark(*array.entry, true);
  emit_event("sealed", array, *array.entry);
}

void Registry::Impl::hard_sealed(ArrayId id, const Result<void>& result) {
  Array* array = arrays.find(id);
  if (array != nullptr) forget_gone(*array);
  if (array == nullptr || !array->hard_seal) return;
  const HardSeal job = *array->hard_seal;
  array->hard_seal.reset();
  array->wake_attach = array->wake_seal = array->wake_line = true;
  mark(*array);
  if (array->entry != nullptr) mark(*array->entry, true);
  if (!result) {
    if (job.waiter != nullptr) refused_by_kernel(*array, job, result.error());
    return;
  }
  if (std::optional<Error> error = check_hard_sealed(*array, job)) {
    array->frozen = true;
    if (job.waiter != nullptr) answer(*job.waiter, *error);
    return;
  }
  finish_seal(*array, job.session, Seal::hard);
  if (job.waiter != nullptr) {
    answer(*job.waiter, Sealed{id, array->version, array->seal, array->state});
  }
}

// What may have come while the kernel was asked. That the array is the caller's stays true, and
// who deletes it answers the seal; but its name may have been taken, or its holder may have said
// that it is not whole. Then it is not sealed, and nobody can write it either.
std::optional<Error> Registry::Impl::check_hard_sealed(const Array& array,
                                                       const HardSeal& job) const {
  if (job.given_up) {
    return make_error(ErrorCode::aborted, "seal: " + label(array) + " was given up meanwhile");
  }
  return check_publish(array);
}

// Nothing has changed. A seal that may wait joins the others again, and asks anew soon.
void Registry::Impl::refused_by_kernel(Array& array, const HardSeal& job, const Error& error) {
  Session& session = *job.waiter->session;
  const RequestId request = job.waiter->request;
  if (job.cancelled) return answer(*job.waiter, make_error(ErrorCode::aborted, "cancelled"));
  if (error.code != ErrorCode::busy) return answer(*job.waiter, error);
  // It did not know that the seal has to be a hard one: most likely the map is its own.
  if (!job.hard) {
    return answer(*job.waiter, Sealed{array.id, array.version, Seal::hard, array.state});
  }
  if (job.deadline_ms <= now.boot_ms) return answer(*job.waiter, error);
  drop_waiter(*job.waiter);
  Waiter* waiter = add_waiter(session, request, kOp, job.deadline_ms, SealJob{array.id, job.hard});
  if (waiter == nullptr) return;
  array.seal_waiters.push_back(*waiter);
  array.wake_seal = false;
  timers.insert({now.boot_ms + kHardSealRetryMs, TimerKind::seal_retry, array.id.raw, 0});
}

// -- abort ----------------------------------------------------------------------------------------

void Registry::Impl::abort(Session& session, RequestId request, const Target& target) {
  const std::optional<Error> error = target.id.valid()
                                         ? abort_draft(session, target.id)
                                         : abort_loader(session, resolve(session, target.name));
  if (error) return reply(session, request, protocol::Op::abort, *error);
  reply(session, request, protocol::Op::abort, Done{});
}

// Drops a draft, and with it the caller's own write lease: one message is enough. Twice is fine.
// Who has an array alone gives it up half-written.
std::optional<Error> Registry::Impl::abort_draft(Session& session, ArrayId id) {
  Array* array = arrays.find(id);
  if (array == nullptr) return not_found(id);
  if (Lease* alone = find_lease(session, id, Access::exclusive)) {
    if (array->hard_seal) array->hard_seal->given_up = true;
    break_array(*array, session.identity, true);
    end_lease(*alone);
    return std::nullopt;
  }
  if (!owns(session.identity, *array)) return denied_by_id(session.identity, *array, "abort");
  if (array->state == State::dying && !array->aborted) return not_found(id);
  // Its maker gave up waiting for the answer that it is published: it has no handle to release.
  const bool made_here = array->has_option(protocol::kCreateUnseen) && array->creator == session.id;
  if (made_here && array->state == State::mutable_) {
    if (Lease* lease = find_lease(session, id, Access::write)) end_lease(*lease);
    return std::nullopt;
  }
  if (array->state != State::draft && array->state != State::dying) {
    return make_error(ErrorCode::invalid_argument, "abort: " + label(*array) + " is " +
                                                       std::string(to_string(array->state)) +
                                                       ", not a draft");
  }
  if (array->state == State::draft) make_dying(*array);
  if (Lease* lease = find_lease(session, id, Access::write)) end_lease(*lease);
  return std::nullopt;
}

}  // namespace shmstore::server
