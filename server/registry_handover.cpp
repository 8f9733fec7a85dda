// Hand-over leases: what keeps an array alive between the pickling of its handle and the opening,
// when perhaps nobody holds it. Of two kinds:
//
// * For as many receivers as come, one per user and array: nobody can know how often a pickle is
//   opened, so each opening begins the grace anew, and only time ends it. How many were pickled and
//   opened is counted for people to look at; nothing is decided by it.
// * For one receiver, one per handle, which has a number: it ends when a session of the same user
//   says that it has the array, which it says after it has mapped it. Openings by other handles, by
//   other users or by none leave it alone, so nobody can use up what is meant for somebody else. A
//   receiver that fails half-way finds it still there.
//
// A user has at most kHandlesMax of the second kind on an array, each charged as a lease. Further
// handles become ones for many, which only costs time.
#include <algorithm>

#include "server/registry_impl.hpp"

namespace shmstore::server {
namespace {

constexpr auto kOp = protocol::Op::handover;
// All of them may end in one go, when the array is deleted.
constexpr std::uint64_t kHandlesMax = 1'024;

}  // namespace

std::optional<Error> Registry::Impl::check_handover(const Session& session, ArrayId id,
                                                    std::uint64_t grace_ms) const {
  if (grace_ms > protocol::kGraceMsMax) {
    return make_error(ErrorCode::invalid_argument,
                      "grace: " + std::to_string(grace_ms) + " ms, at most " +
                          std::to_string(protocol::kGraceMsMax) + " are allowed");
  }
  if (!holds(session, id)) return no_lease(id, Access::read);
  const Array& array = *arrays.find(id);
  if (array.aborted) {
    return make_error(ErrorCode::aborted, "id: the draft was dropped by its creator");
  }
  if (array.state == State::dying) return not_found(id);
  return std::nullopt;
}

void Registry::Impl::handover(Session& session, RequestId request, ArrayId id,
                              std::uint64_t grace_ms, bool once) {
  if (std::optional<Error> error = check_handover(session, id, grace_ms)) {
    return reply(session, request, kOp, *error);
  }
  Array& array = at(id);
  const std::uint32_t uid = session.identity.uid;
  Lease* lease = once ? take_handle(array, uid) : nullptr;
  if (lease == nullptr) {
    Result<Lease*> taken = take_handover(array, uid);
    if (!taken) return reply(session, request, kOp, taken.error());
    lease = *taken;
  }
  const std::uint64_t grace = grace_ms == 0 ? protocol::kGraceMsDefault : grace_ms;
  extend_handover(*lease, static_cast<std::int64_t>(grace));
  ++lease->pickled;
  lease->from_pid = session.identity.pid;
  lease->several_senders |= lease->sender != 0 && lease->sender != session.id;
  lease->sender = session.id;
  lease->sent_seq = next_seq++;
  if (once) return reply(session, request, kOp, HandedOver{lease->handle});
  reply(session, request, kOp, Done{});
}

// REQUIRES: charged for.
std::unique_ptr<Lease> Registry::Impl::make_handover(Array& array, std::uint32_t uid) {
  auto lease = std::make_unique<Lease>();
  lease->array = &array;
  lease->uid = uid;
  lease->since_s = now.wall_s;
  link(*lease);
  return lease;
}

// The lease of the user's handles that are for many.
Result<Lease*> Registry::Impl::take_handover(Array& array, std::uint32_t uid) {
  for (const auto& lease : array.handovers) {
    if (lease->uid == uid) return lease.get();
  }
  Result<void> charged = quota.charge(uid, Resource::leases, 1);
  if (!charged) return charged.error();
  array.handovers.push_back(make_handover(array, uid));
  return array.handovers.back().get();
}

// A lease for one more handle that is for one receiver; null: there are too many.
Lease* Registry::Impl::take_handle(Array& array, std::uint32_t uid) {
  const auto has = array.handles_of.find(uid);
  if (has != array.handles_of.end() && has->second >= kHandlesMax) return nullptr;
  if (!quota.charge(uid, Resource::leases, 1)) return nullptr;
  const std::uint64_t number = ++array.last_handle;
  Lease& lease = *array.handles.emplace(number, make_handover(array, uid)).first->second;
  lease.handle = number;
  ++array.handles_of[uid];
  return &lease;
}

Timer Registry::Impl::timer_of(const Lease& lease) {
  const bool of_handle = lease.handle != 0;
  return {lease.deadline_ms, of_handle ? TimerKind::handle : TimerKind::handover,
          lease.array->id.raw, of_handle ? lease.handle : lease.uid};
}

// Never shortens: the grace only grows, and time does not run backwards.
void Registry::Impl::extend_handover(Lease& lease, std::int64_t grace_ms) {
  lease.grace_ms = std::max(lease.grace_ms, grace_ms);
  timers.erase(timer_of(lease));
  lease.deadline_ms = now.boot_ms + lease.grace_ms;
  timers.insert(timer_of(lease));
}

// -- opened, received -----------------------------------------------------------------------------

// A handle that is used lives on. One for many speaks for all of them.
void Registry::Impl::opened(Session& session, Array& array, const AttachSpec& spec) {
  const std::uint32_t uid = session.identity.uid;
  if (spec.handle != 0) {
    const auto found = array.handles.find(spec.handle);
    if (found == array.handles.end() || found->second->uid != uid) return;
    return extend_handover(*found->second, found->second->grace_ms);
  }
  if (!spec.renew_handover) return;
  for (auto& lease : array.handovers) extend_handover(*lease, lease->grace_ms);
  count_opened(array, uid);
}

std::uint64_t Registry::Impl::in_flight(const Lease& lease) {
  return lease.pickled > lease.opened ? lease.pickled - lease.opened : 0;
}

// A handle for many was opened: most likely one that the same user had pickled.
void Registry::Impl::count_opened(Array& array, std::uint32_t uid) {
  Lease* other = nullptr;
  for (const auto& lease : array.handovers) {
    if (in_flight(*lease) == 0) continue;
    other = lease.get();
    if (lease->uid == uid) break;
  }
  if (other != nullptr) ++other->opened;
}

void Registry::Impl::received(Session& session, RequestId request, ArrayId id,
                              std::uint64_t handle) {
  if (!holds(session, id)) {
    return reply(session, request, protocol::Op::received, no_lease(id, Access::read));
  }
  Array& array = at(id);
  const auto found = array.handles.find(handle);
  const bool own = found != array.handles.end() && found->second->uid == session.identity.uid;
  if (own) end_handle(array, handle);
  reply(session, request, protocol::Op::received, Done{});
}

// -- the end --------------------------------------------------------------------------------------

// REQUIRES: there is one of this user.
void Registry::Impl::end_handover(Array& array, std::uint32_t uid) {
  const auto found = std::find_if(array.handovers.begin(), array.handovers.end(),
                                  [uid](const auto& lease) { return lease->uid == uid; });
  forget_handover(array, **found);
  array.handovers.erase(found);
  settle_charge(array);
}

// REQUIRES: there is one of this number.
void Registry::Impl::end_handle(Array& array, std::uint64_t number) {
  const auto found = array.handles.find(number);
  const auto count = array.handles_of.find(found->second->uid);
  if (--count->second == 0) array.handles_of.erase(count);
  forget_handover(array, *found->second);
  array.handles.erase(found);
  settle_charge(array);
}

void Registry::Impl::forget_handover(Array& array, Lease& lease) {
  timers.erase(timer_of(lease));
  quota.uncharge(lease.uid, Resource::leases, 1);
  unlink(lease);
  room = true;
  mark(array);
}

// -- looking --------------------------------------------------------------------------------------

// One row a user.
void Registry::Impl::list_handovers(const Array& array, std::size_t limit, HolderPage& page) {
  std::map<std::uint32_t, HolderView> rows;
  const auto add = [&](const Lease& lease) {
    const auto [at, fresh] = rows.try_emplace(lease.uid);
    HolderView& row = at->second;
    row.since_s = fresh ? lease.since_s : std::min(row.since_s, lease.since_s);
    row.uid = lease.uid;
    row.access = lease.access;
    row.in_flight += in_flight(lease);
    row.from_pid = lease.from_pid;
  };
  for (const auto& lease : array.handovers) add(*lease);
  for (const auto& [number, lease] : array.handles) add(*lease);
  page.leases += rows.size();
  for (auto& [uid, row] : rows) {
    if (page.holders.size() >= limit) break;
    page.holders.push_back(std::move(row));
  }
}

}  // namespace shmstore::server
