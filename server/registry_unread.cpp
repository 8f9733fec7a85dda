// Hand-overs that nobody has opened and whose sender has ended: a run that was broken off leaves
// what it had sent, and each of them holds its array until its grace is over. They are named where
// room is lacking, ended when their user asks for it (gc), and given up for a create of the same
// user when nobody can send or receive them any more: when there was a moment, after they were
// sent, in which that user had no session at all. As long as one of those who were there then goes
// on, it may have the pickle in its hands.
#include <algorithm>

#include "server/registry_impl.hpp"

namespace shmstore::server {
namespace {

// One request looks at so many timers; what is beyond them goes with the next one.
constexpr std::size_t kLooks = 4'096;

}  // namespace

// Was there a moment after it was sent in which its user had no session at all?
bool Registry::Impl::absent_since(const Lease& lease) const {
  const auto absent = last_absent.find(lease.uid);
  return absent != last_absent.end() && lease.sent_seq < absent->second;
}

// Of several senders only the last is known: all have ended for sure when nobody was there.
bool Registry::Impl::sender_ended(const Lease& lease) const {
  if (lease.several_senders) return absent_since(lease);
  const auto sender = sessions.find(lease.sender);
  return sender == sessions.end() || sender->second->gone;
}

// REQUIRES: of a hand-over. Null: the array has none such any more.
Lease* Registry::Impl::handover_of(const Timer& timer) const {
  Array* array = arrays.find(ArrayId{timer.key});
  if (array == nullptr) return nullptr;
  if (timer.kind == TimerKind::handle) {
    const auto found = array->handles.find(timer.more);
    return found == array->handles.end() ? nullptr : found->second.get();
  }
  for (const auto& lease : array->handovers) {
    if (lease->uid == timer.more) return lease.get();
  }
  return nullptr;
}

template <class F>
void Registry::Impl::each_unread(std::optional<std::uint32_t> uid, F&& f) const {
  std::size_t looks = 0;
  for (auto at = timers.begin(); at != timers.end() && looks < kLooks; ++at, ++looks) {
    if (at->kind != TimerKind::handover && at->kind != TimerKind::handle) continue;
    const Lease* lease = handover_of(*at);
    if (lease == nullptr || (uid && lease->uid != *uid) || !sender_ended(*lease)) continue;
    f(*at, *lease);
  }
}

// "; …" for the answer to a create that lacks room, whose refusal so far is `refusal`; empty when
// there is nothing to tell. Looked for when the client is told, not at each try: it reads timers.
std::string Registry::Impl::held_unread(std::uint32_t uid, std::string_view refusal) const {
  if (!refusal.starts_with("bytes:") && !refusal.starts_with("segments:")) return {};
  std::set<const Array*> counted;
  std::uint64_t bytes = 0;
  std::int64_t pid = 0, last_ms = 0;
  each_unread(uid, [&](const Timer& timer, const Lease& lease) {
    const Array& array = *lease.array;
    // Kept, or held by somebody who goes on: its hand-overs' end would free nothing.
    const bool held =
        array.kept || array.lease_count > array.handovers.size() + array.handles.size();
    if (held) return;
    if (counted.insert(&array).second) bytes += array.holding().bytes;
    pid = lease.from_pid;
    last_ms = std::max(last_ms, timer.at_ms);
  });
  if (counted.empty()) return {};
  const std::int64_t left_s = (std::max<std::int64_t>(last_ms - now.boot_ms, 0) + 999) / 1000;
  return "; " + std::to_string(bytes) + " bytes are held by hand-overs of ended pid " +
         std::to_string(pid) + ", free in " + std::to_string(left_s) +
         " s at the latest, or at once by `shmctl gc`";
}

std::uint64_t Registry::Impl::end_unread(std::optional<std::uint32_t> uid, bool given_up_only) {
  std::vector<Timer> ended;
  each_unread(uid, [&](const Timer& timer, const Lease& lease) {
    if (!given_up_only || absent_since(lease)) ended.push_back(timer);
  });
  for (const Timer& timer : ended) {
    if (handover_of(timer) == nullptr) continue;  // It went with its array.
    Array& array = at(ArrayId{timer.key});
    if (timer.kind == TimerKind::handle) {
      end_handle(array, timer.more);
    } else {
      end_handover(array, static_cast<std::uint32_t>(timer.more));
    }
  }
  return ended.size();
}

std::uint64_t Registry::end_unread(std::optional<std::uint32_t> uid, bool given_up_only, Now now,
                                   Effects& effects) {
  impl_->begin(now, effects);
  const std::uint64_t ended = impl_->end_unread(uid, given_up_only);
  impl_->settle();
  return ended;
}

}  // namespace shmstore::server
