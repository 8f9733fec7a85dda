// The end of a session. Its role ends at once: nothing is granted to it any more, its waits and
// loader roles are dropped, its connection and its leases are no longer charged. All of that is
// bounded by protocol limits. The leases may be any number, and with them go drafts, names and
// exclusive access; they are taken away in slices, between which others are served.
//
// Nobody meets such a slice: a request first ends what gone sessions still have of the very array
// or name that it is about (catch_up), and `list` shows what it finds as if they had nothing. So
// whoever asks for something finds it as if the session had ended in one go, but for one thing: a
// name with thousands of drafts of gone sessions (kDraftsLookedThrough). Only sums show what is not
// given back yet. Its bytes and array numbers are still charged, its leases are not.
#include <algorithm>

#include "server/registry_impl.hpp"

namespace shmstore::server {
namespace {

// Of a name with more drafts than this that gone sessions left, one request ends only so many.
constexpr int kDraftsLookedThrough = 2'048;
// A session's tree of leases is looked up in the time that so many leases of a list take.
constexpr std::size_t kLeasesPerLookUp = 5;

}  // namespace

// Waits go first, so that nothing that follows answers them. A draft whose memory is under way goes
// with its create.
void Registry::Impl::leave(Session& session) {
  std::vector<ArrayId> unborn;
  while (!session.waits.empty()) {
    Waiter& waiter = *session.waits.begin()->second;
    if (const auto* job = std::get_if<AllocateJob>(&waiter.job)) unborn.push_back(job->id);
    drop_waiter(waiter);
  }
  for (const ArrayId id : unborn) {
    if (Lease* lease = find_lease(session, id, Access::write)) end_lease(*lease);
  }
  while (!session.loading.empty()) end_loader(**session.loading.begin());
  quota.uncharge(session.identity.uid, Resource::connections, 1);
  quota.uncharge(session.identity.uid, Resource::leases, session.leases.size());
  if (quota.usage(session.identity.uid).connections == 0) {
    last_absent[session.identity.uid] = next_seq++;
  }
  session.gone = true;
  gone.emplace(session.id, &session);
  room = room || !session.leases.empty();
}

// REQUIRES: the session has left.
void Registry::Impl::end_gone_lease(Lease& lease) {
  if (lease.access == Access::exclusive) {
    break_array(*lease.array, lease.session->identity, false);
  }
  end_lease(lease);
}

bool Registry::Impl::end_session(Session& session, std::size_t limit) {
  if (!session.gone) leave(session);
  for (; limit > 0 && !session.leases.empty(); --limit) {
    end_gone_lease(*session.leases.begin()->second);
  }
  if (!session.leases.empty()) return false;
  gone.erase(session.id);
  sessions.erase(session.id);
  return true;
}

// Whichever is shorter: the array's leases, or a look-up for each gone session.
template <class F>
void Registry::Impl::each_gone_lease(const Array& array, F&& f) const {
  if (kLeasesPerLookUp * gone.size() < array.lease_count) {
    for (const auto& [id, session] : gone) {
      auto at = session->leases.lower_bound({array.id.raw, Access{}});
      for (; at != session->leases.end() && at->first.id == array.id.raw; ++at) f(*at->second);
    }
    return;
  }
  if (gone.empty()) return;
  for (const Lease* lease = array.leases.first(); lease != nullptr; lease = lease->next) {
    if (lease->session != nullptr && lease->session->gone) f(*lease);
  }
}

// True when there was something.
bool Registry::Impl::forget_gone(Array& array) {
  if (gone.empty()) return false;
  // Noted down first: ending one may take others out of the list.
  std::vector<std::pair<Session*, Access>> left;
  each_gone_lease(array,
                  [&](const Lease& lease) { left.emplace_back(lease.session, lease.access); });
  for (const auto& [session, access] : left) {
    if (Lease* lease = find_lease(*session, array.id, access)) end_gone_lease(*lease);
  }
  return !left.empty();
}

// What the name shows, and what then comes to light behind it. A draft leaves its name at once; a
// published array only when it is settled, and then this is to be called again. Wakes nobody: that
// would be everybody who waits for the name, once for each draft.
bool Registry::Impl::forget_gone(const QualifiedName& name) {
  const NameEntry* entry = find_entry(name);
  bool some = false;
  for (int n = 0; entry != nullptr && n < kDraftsLookedThrough; ++n) {
    Array* array = entry->visible();
    if (array == nullptr || !forget_gone(*array)) break;
    some = true;
    if (array == entry->published) break;
  }
  return some;
}

// Its name as well: sealing looks at whom it would replace.
void Registry::Impl::catch_up(const Session& session, ArrayId id) {
  Array* array = gone.empty() ? nullptr : arrays.find(id);
  if (array == nullptr) return;
  const QualifiedName name = array->spec.name;
  if (forget_gone(*array)) settle_marked();
  if (!name.name.empty()) catch_up(session, name);
}

// Twice: the published array, then the drafts.
void Registry::Impl::catch_up(const Session& session, const QualifiedName& asked) {
  if (gone.empty()) return;
  const QualifiedName name = resolve(session, asked);
  for (int n = 0; n < 2 && forget_gone(name); ++n) settle_marked();
}

void Registry::Impl::catch_up(const Session& session, const Target& target) {
  if (target.id.valid()) return catch_up(session, target.id);
  catch_up(session, target.name);
}

void Registry::Impl::catch_up(const Session& session, const AttachSpec& spec) {
  if (spec.id.valid()) return catch_up(session, spec.id);
  catch_up(session, spec.name);
}

// Would it be gone, or at least its name, if all gone sessions had been ended?
bool Registry::Impl::is_left_over(const Array& array) const {
  if (gone.empty()) return false;
  if (array.state == State::draft) {
    const auto creator = sessions.find(array.creator);
    return creator == sessions.end() || creator->second->gone;
  }
  if (array.kept) return false;
  std::uint64_t left = 0;
  each_gone_lease(array, [&](const Lease&) { ++left; });
  return left > 0 && left == array.lease_count;
}

// What it costs to find out, in leases looked at.
std::size_t Registry::Impl::gone_looks(const Array& array) const {
  return std::min<std::size_t>(array.lease_count, kLeasesPerLookUp * gone.size());
}

// As it would look if all gone sessions had been ended; nothing: it would be gone.
std::optional<ArrayView> Registry::Impl::view_without_gone(const Array& array, Now at) const {
  ArrayView seen = view(array, at.boot_ms);
  if (gone.empty()) return seen;
  if (is_left_over(array)) return std::nullopt;
  each_gone_lease(array, [&](const Lease& lease) {
    --seen.leases;
    const bool shared = array.state == State::mutable_ || array.state == State::broken;
    if (lease.access != Access::exclusive || !shared) return;
    const Identity& holder = lease.session->identity;
    seen.state = State::broken;
    seen.broken = BrokenBy{holder.pid, holder.command, at.wall_s, false};
  });
  return seen;
}

bool Registry::end_session(SessionId session, Now now, Effects& effects, std::size_t limit) {
  impl_->begin(now, effects);
  const auto found = impl_->sessions.find(session);
  const bool ended = found == impl_->sessions.end() || impl_->end_session(*found->second, limit);
  impl_->settle();
  return ended;
}

}  // namespace shmstore::server
