// Requests that wait. A waiter belongs to its session, stands in exactly one list (of a name, an
// array, or its user's create queue), and has a timer if it has a deadline. Nobody polls: what
// changes a name or an array marks it, settle() asks its waiters again.
#include <algorithm>
#include <cassert>

#include "server/registry_impl.hpp"

namespace shmstore::server {

std::int64_t Registry::Impl::deadline_of(std::int64_t timeout_ms) const {
  if (timeout_ms < 0) return kNever;
  return now.boot_ms + std::min(timeout_ms, protocol::kTimeoutMsMax);
}

// The daemon's own work on a request: no deadline, nobody's quota.
Waiter& Registry::Impl::add_work(Session& session, RequestId request, protocol::Op op,
                                 decltype(Waiter::job) job) {
  auto waiter = std::make_unique<Waiter>();
  waiter->session = &session;
  waiter->request = request;
  waiter->op = op;
  waiter->seq = next_seq++;
  waiter->deadline_ms = kNever;
  waiter->job = std::move(job);
  waiters.emplace(waiter->seq, waiter.get());
  Waiter& added = *waiter;
  session.waits.insert_or_assign(request, std::move(waiter));
  return added;
}

// May the daemon begin one more piece of work for this session?
std::optional<Error> Registry::Impl::check_work(const Session& session) {
  const std::uint64_t works = session.waits.size() - session.waits_charged;
  if (works < protocol::kOpenRequestsMax) return std::nullopt;
  return make_error(ErrorCode::quota_exceeded, "requests: " + std::to_string(works) +
                                                   " of this session are being worked on, " +
                                                   std::to_string(protocol::kOpenRequestsMax) +
                                                   " are allowed");
}

Waiter* Registry::Impl::add_waiter(Session& session, RequestId request, protocol::Op op,
                                   std::int64_t deadline_ms, decltype(Waiter::job) job) {
  if (session.waits_charged >= protocol::kOpenRequestsMax) {
    reply(session, request, op,
          make_error(ErrorCode::quota_exceeded, "waits: this session has " +
                                                    std::to_string(session.waits_charged) + " of " +
                                                    std::to_string(protocol::kOpenRequestsMax)));
    return nullptr;
  }
  // What a create asks for is kept until there is room: it counts for each KiB.
  const auto* create = std::get_if<CreateJob>(&job);
  const std::uint64_t charge = create == nullptr ? 1 : 1 + record_bytes(create->spec) / 1024;
  Result<void> charged = quota.charge(session.identity.uid, Resource::waits, charge);
  if (!charged) {
    reply(session, request, op, charged.error());
    return nullptr;
  }
  Waiter& waiter = add_work(session, request, op, std::move(job));
  waiter.charge = charge;
  ++session.waits_charged;
  waiter.deadline_ms = deadline_ms;
  if (deadline_ms != kNever) timers.insert({deadline_ms, TimerKind::wait, waiter.seq, 0});
  return &waiter;
}

void Registry::Impl::wait_on_name(Waiter& waiter, NameEntry& entry) {
  waiter.entry = &entry;
  entry.waiters.push_back(waiter);
}

// Takes a waiter out of everything without an answer.
void Registry::Impl::drop_waiter(Waiter& waiter) {
  if (waiter.home != nullptr) waiter.home->remove(waiter);
  stand_in_line(waiter, nullptr);
  if (waiter.entry != nullptr) mark(*waiter.entry, false);
  if (waiter.deadline_ms != kNever) {
    timers.erase({waiter.deadline_ms, TimerKind::wait, waiter.seq, 0});
  }
  if (const auto* job = std::get_if<AllocateJob>(&waiter.job)) {
    if (Array* array = arrays.find(job->id)) array->creation = nullptr;
  } else if (const auto* hard = std::get_if<HardSealJob>(&waiter.job)) {
    Array* array = arrays.find(hard->id);
    if (array != nullptr && array->hard_seal) array->hard_seal->waiter = nullptr;
  }
  if (std::holds_alternative<CreateJob>(waiter.job)) room = true;  // For who stood behind it.
  if (waiter.charge > 0) {
    quota.uncharge(waiter.session->identity.uid, Resource::waits, waiter.charge);
    --waiter.session->waits_charged;
  }
  waiters.erase(waiter.seq);
  waiter.session->waits.erase(waiter.request);
}

void Registry::Impl::answer(Waiter& waiter, decltype(Completion::result) result) {
  reply(*waiter.session, waiter.request, waiter.op, std::move(result));
  drop_waiter(waiter);
}

void Registry::Impl::answer_all(LinkedList<Waiter>& list, const Error& error) {
  while (!list.empty()) answer(*list.first(), error);
}

// Asks a waiter's question again after its name has changed.
void Registry::Impl::retry_on_name(Waiter& waiter, NameEntry& entry) {
  Session& session = *waiter.session;
  const QualifiedName name{entry.uid, std::string(entry.name)};
  if (const auto* job = std::get_if<AttachJob>(&waiter.job)) {
    Outcome outcome = try_attach(session, job->spec, waiter.seq);
    // It waited for a draft, and that is gone. (Waiting for newer_than outlives drafts.)
    if (entry.visible() == nullptr && job->spec.newer_than == 0 && !job->stood_in_line) {
      outcome = make_error(ErrorCode::aborted, "name: the draft of " + label(name) +
                                                   " was dropped before it was sealed");
    }
    const auto* wait = std::get_if<MustWait>(&outcome);
    if (wait == nullptr) return answer_attach(waiter, outcome);
    stand_in_line(waiter, wait->line);
  } else if (const auto* wait_job = std::get_if<NameJob>(&waiter.job)) {
    const Outcome outcome = try_wait(session, name, wait_job->newer_than);
    if (const auto* error = std::get_if<Error>(&outcome)) {
      answer(waiter, *error);
    } else if (Array* const* array = std::get_if<Array*>(&outcome)) {
      answer(waiter, Waited{(*array)->id, (*array)->version, (*array)->state});
    }
  } else {
    retry_cached(waiter, entry, name);
  }
}

// -- wait -----------------------------------------------------------------------------------------

Outcome Registry::Impl::try_wait(const Session& session, const QualifiedName& name,
                                 std::uint64_t newer_than) const {
  const NameEntry* entry = find_entry(name);
  Array* array = entry == nullptr ? nullptr : entry->visible();
  const bool stranger = foreign(session.identity, name.uid);
  if (array == nullptr) return stranger ? Outcome(denied(name)) : Outcome(MustWait{});
  const bool readable = may(session.identity, *array, Access::read);
  if (array->state == State::draft) {
    return stranger && !readable ? Outcome(denied(name)) : Outcome(MustWait{});
  }
  if (!readable) return denied(name);
  return array->version > newer_than ? Outcome(array) : Outcome(MustWait{});
}

void Registry::Impl::wait(Session& session, RequestId request, const QualifiedName& asked,
                          std::uint64_t newer_than, std::int64_t timeout_ms) {
  const QualifiedName name = resolve(session, asked);
  const Outcome outcome = try_wait(session, name, newer_than);
  constexpr auto kOp = protocol::Op::wait;
  if (const auto* error = std::get_if<Error>(&outcome)) {
    reply(session, request, kOp, *error);
  } else if (Array* const* array = std::get_if<Array*>(&outcome)) {
    reply(session, request, kOp, Waited{(*array)->id, (*array)->version, (*array)->state});
  } else if (timeout_ms == 0) {
    reply(session, request, kOp, timed_out(not_ready(name, newer_than)));
  } else if (Waiter* waiter =
                 add_waiter(session, request, kOp, deadline_of(timeout_ms), NameJob{newer_than})) {
    wait_on_name(*waiter, make_entry(name));
  }
}

// -- what is waited for --------------------------------------------------------------------------

// Of a name that was waited for in vain, for whom may read what is there.
std::string Registry::Impl::not_ready(const QualifiedName& name, std::uint64_t newer_than) const {
  const NameEntry* entry = find_entry(name);
  const Array* array = entry == nullptr ? nullptr : entry->visible();
  if (array != nullptr) return not_ready(*array, newer_than);
  if (entry == nullptr || entry->loader == nullptr) return "there is no " + label(name) + " yet";
  return label(name) + " is still being loaded by " + named(entry->loader->identity);
}

std::string Registry::Impl::not_ready(const Array& array, std::uint64_t newer_than) const {
  if (array.hard_seal) return being_sealed(array);
  if (array.state != State::draft) {
    const std::string version = std::to_string(array.version);
    return array.version > newer_than
               ? label(array) + " is " + std::string(to_string(array.state))
               : label(array) + " is at version " + version + ", no later one was published";
  }
  const Session* creator = find_session(array.creator);
  std::string text = label(array) + " is a draft that ";
  text += creator == nullptr ? "its creator" : named(creator->identity);
  const double age_s = std::max(0.0, now.wall_s - array.created_s);
  return text + " made " + std::to_string(static_cast<std::int64_t>(age_s)) +
         " s ago and has not sealed yet";
}

std::string Registry::Impl::not_ready(const Session& session, const AttachSpec& spec) const {
  const Array* array = arrays.find(spec.id);
  if (!spec.id.valid()) return not_ready(resolve(session, spec.name), spec.newer_than);
  return array == nullptr ? "the array is gone" : not_ready(*array, 0);
}

std::string Registry::Impl::still_missing(const Waiter& waiter) const {
  if (const auto* job = std::get_if<AttachJob>(&waiter.job)) {
    return not_ready(*waiter.session, job->spec);
  }
  if (waiter.entry == nullptr) return "while waiting";
  const auto* job = std::get_if<NameJob>(&waiter.job);
  return not_ready({waiter.entry->uid, std::string(waiter.entry->name)},
                   job == nullptr ? 0 : job->newer_than);
}

// -- cancel ---------------------------------------------------------------------------------------

void Registry::Impl::cancel(Session& session, RequestId request, RequestId target) {
  const auto found = session.waits.find(target);
  if (found != session.waits.end()) stop_waiting(*found->second);
  reply(session, request, protocol::Op::cancel, Done{});
}

// A create whose memory is under way takes its draft with it. A seal that the kernel is working on
// cannot be called back: its answer tells how it came out.
void Registry::Impl::stop_waiting(Waiter& waiter) {
  if (const auto* job = std::get_if<AllocateJob>(&waiter.job)) {
    Array& array = at(job->id);
    Session& session = *waiter.session;
    answer(waiter, make_error(ErrorCode::aborted, "cancelled"));
    drop_unready(session, array);
    return;
  }
  if (const auto* hard = std::get_if<HardSealJob>(&waiter.job)) {
    at(hard->id).hard_seal->cancelled = true;
    return;
  }
  answer(waiter, make_error(ErrorCode::aborted, "cancelled"));
}

Error Registry::Impl::timed_out(const std::string& what) {
  return make_error(ErrorCode::timed_out, "timeout: " + what);
}

}  // namespace shmstore::server
