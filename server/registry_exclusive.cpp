// Exclusive access: a reader-writer lock made of leases. Who maps a mutable array holds it: any
// number of sessions with r, r+ and c, or one session with x and nobody else. That is a lock among
// those who may write the array. A user who may only read it waits for them at its attach, but
// holds up none of them afterwards: it could do so for ever, with the array's owner having no say.
// It sees then what a writer is doing, as every reader of a mutable array does. Who has to wait
// stands in the array's line, by order of arrival, whether it asked by name or by id:
//
// * x goes when it is the first in line and nobody who may write maps the array;
// * r, r+ and c go when nobody has x and no x stands before them, so that readers who come and go
//   never keep a writer out. A session that maps the array already does not wait for those in
//   line: they wait for it, and neither would move.
//
// A session never waits for itself at its first question (its other thread may change that, but
// mostly there is none): it is told at once. Only x after x waits, for threads that take turns.
//
// A session that ends while it has x leaves the array broken: nobody knows what is half-written.
// Then only x with `repair` goes; its normal release makes the array mutable again.
#include <ctime>

#include "server/registry_impl.hpp"

namespace shmstore::server {
namespace {

constexpr std::size_t kHoldersNamed = 16;

std::string utc(double wall_s) {
  const auto seconds = static_cast<std::time_t>(wall_s);
  std::tm parts{};
  char text[32] = "";
  if (gmtime_r(&seconds, &parts) != nullptr) {
    (void)std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &parts);
  }
  return text;
}

}  // namespace

// What exclusive access comes to, before anybody else is looked at.
Outcome Registry::Impl::may_be_exclusive(Array& array, bool repair) {
  switch (array.state) {
    case State::mutable_:
      if (array.hard_seal) return MustWait{&array};
      return &array;
    case State::broken:
      if (!repair || array.frozen) return broken(array);
      if (array.hard_seal) return MustWait{&array};
      return &array;
    case State::draft:
    case State::sealed:
      return make_error(ErrorCode::invalid_argument,
                        "access: " + label(array) + " is " +
                            (array.state == State::draft ? "a draft" : "sealed") +
                            "; exclusive access is for mutable arrays");
    case State::dying:
    case State::gone: break;
  }
  return not_found(array.id);
}

// REQUIRES: the access maps, and the state allows it.
Outcome Registry::Impl::by_turn(const Session& session, Array& array, Access access,
                                std::uint64_t seq) const {
  bool maps = false;
  for (Access shared : {Access::read, Access::write, Access::copy}) {
    maps = maps || session.leases.contains({array.id.raw, shared});
  }
  const bool asks_first = seq == kLastInLine;
  if (access == Access::exclusive) {
    if (maps && asks_first) return held(array, session);
    const bool first = array.line.empty() || array.line.begin()->first >= seq;
    return first && array.block_count == 0 ? Outcome(&array) : Outcome(MustWait{&array});
  }
  if (array.exclusive != nullptr) {
    if (array.exclusive->session == &session && asks_first) return held(array, session);
    return MustWait{&array};
  }
  const std::set<std::uint64_t>& writers = array.exclusive_in_line;
  const bool overtakes = !writers.empty() && *writers.begin() < seq;
  return overtakes && !maps ? Outcome(MustWait{&array}) : Outcome(&array);
}

// -- the line -------------------------------------------------------------------------------------

// In this array's line, or in none. Who leaves one makes room for those behind.
void Registry::Impl::stand_in_line(Waiter& waiter, Array* array) {
  if (waiter.line == array) return;
  if (Array* left = std::exchange(waiter.line, array)) {
    left->line.erase(waiter.seq);
    left->exclusive_in_line.erase(waiter.seq);
    left->wake_line = true;
    mark(*left);
  }
  if (array == nullptr) return;
  array->line.emplace(waiter.seq, &waiter);
  auto* job = std::get_if<AttachJob>(&waiter.job);
  if (job == nullptr) return;
  job->stood_in_line = true;
  if (job->spec.access == Access::exclusive) array->exclusive_in_line.insert(waiter.seq);
}

// Everybody is asked, not only the first: who joins the first of them may go as well.
void Registry::Impl::settle_line(Array& array) {
  for (auto at = array.line.begin(); at != array.line.end();) {
    Waiter& waiter = *(at++)->second;  // The retry takes out no other.
    if (waiter.entry != nullptr) {
      retry_on_name(waiter, *waiter.entry);
      continue;
    }
    const AttachSpec& spec = std::get<AttachJob>(waiter.job).spec;
    const Outcome outcome = try_attach(*waiter.session, spec, waiter.seq);
    if (const auto* wait = std::get_if<MustWait>(&outcome)) {
      stand_in_line(waiter, wait->line);
    } else {
      answer_attach(waiter, outcome);
    }
  }
}

// For an array that nobody gets any more. Who asked by name is asked again by its name.
void Registry::Impl::disband_line(Array& array) {
  while (!array.line.empty()) stand_in_line(*array.line.begin()->second, nullptr);
}

// -- broken ---------------------------------------------------------------------------------------

// REQUIRES: the holder has x. The caller ends that lease.
void Registry::Impl::break_array(Array& array, const Identity& holder, bool gave_up) {
  if (array.state != State::mutable_ && array.state != State::broken) return;
  array.state = State::broken;
  array.broken = BrokenBy{holder.pid, holder.command, now.wall_s, gave_up};
  array.wake_attach = array.wake_line = true;
  mark(array);
  if (array.entry == nullptr) return;
  mark(*array.entry, true);
  emit_event("broken", array, *array.entry);
}

void Registry::Impl::mend(Array& array) {
  if (array.state != State::broken) return;
  array.state = State::mutable_;
  array.broken.reset();
  array.wake_attach = array.wake_line = true;
  mark(array);
  if (array.entry == nullptr) return;
  mark(*array.entry, true);
  emit_event("repaired", array, *array.entry);
}

// -- texts ----------------------------------------------------------------------------------------

Error Registry::Impl::held(const Array& array, const Session& asking) const {
  if (array.hard_seal) return make_error(ErrorCode::busy, "access: " + being_sealed(array));
  std::string text;
  std::set<std::int64_t> pids;
  std::size_t more = 0;
  for (const Lease* lease = array.leases.first(); lease != nullptr; lease = lease->next) {
    if (!lease->blocks) continue;
    if (pids.size() >= kHoldersNamed) {
      ++more;
      continue;
    }
    if (!pids.insert(lease->session->identity.pid).second) continue;
    text += text.empty() ? "" : ", ";
    if (lease->session == &asking) text += "this process, ";
    text += named(lease->session->identity) + " with " + std::string(to_string(lease->access));
  }
  if (more > 0) text += " and " + std::to_string(more) + " more";
  text = "access: " + label(array) + (text.empty() ? " is waited for by others" : " is held by ") +
         text;
  return make_error(ErrorCode::busy, std::move(text));
}

Error Registry::Impl::broken(const Array& array) {
  const BrokenBy& by = *array.broken;
  std::string text = "access: " + label(array) + " is broken: ";
  text += named({by.pid, 0, 0, {}, by.command}) + (by.gave_up ? " gave it up" : " ended") + " at " +
          utc(by.at_s) + " while it had exclusive access; ";
  if (array.frozen) {
    text += "it was being sealed, so nobody can write it any more: replace it or delete it";
  } else if (array.exclusive != nullptr) {
    text += named(array.exclusive->session->identity) + " is repairing it";
  } else {
    text += "repair it (attach with exclusive and repair), replace it or delete it";
  }
  return make_error(ErrorCode::aborted, std::move(text));
}

}  // namespace shmstore::server
