// selfcheck: recomputes from the objects alone what the registry keeps as sums and indices, and
// compares. Reads everything; for debug builds, tests and the admin op of that name.
#include <algorithm>

#include "server/registry_impl.hpp"

namespace shmstore::server {
namespace {

/// "array 3: held by nobody", in two parts: they are put together for a problem only, because a
/// debug build asks some twenty such questions of each array after every request.
struct About {
  About(const char* text) : what(text) {}  // NOLINT(google-explicit-constructor)
  About(const std::string& object, const char* text) : who(object), what(text) {}
  [[nodiscard]] std::string text() const { return std::string(who) + what; }
  std::string_view who;
  const char* what;
};

/// Whom the next questions are about.
class Subject {
 public:
  Subject(const char* kind, const std::string& name) : text_(std::string(kind) + name + ": ") {}
  friend About operator+(const Subject& subject, const char* what) { return {subject.text_, what}; }

 private:
  std::string text_;
};

class Checker {
 public:
  explicit Checker(std::vector<std::string>& problems) : problems_(problems) {}
  void expect(bool holds, const About& about) {
    if (!holds) problems_.push_back(about.text());
  }
  void same(std::uint64_t is, std::uint64_t should, const About& about) {
    if (is == should) return;
    problems_.push_back(about.text() + ": " + std::to_string(is) + " instead of " +
                        std::to_string(should));
  }

 private:
  std::vector<std::string>& problems_;
};

template <class T>
std::uint64_t length(const LinkedList<T>& list) {
  std::uint64_t items = 0;
  for (const T* item = list.first(); item != nullptr; item = item->next) {
    if (item->home != &list) return UINT64_MAX;
    ++items;
  }
  return items;
}

/// What the objects add up to.
struct Sums {
  std::map<std::uint32_t, Usage> users;
  std::uint64_t bytes = 0, records = 0, leases = 0, segments = 0, waits = 0, timers = 0;
  std::uint64_t listed_waiters = 0, anonymous = 0, gone = 0;
};

void check_state(const Array& array, const Subject& who, Checker& check) {
  const bool live = array.state == State::draft || array.state == State::sealed ||
                    array.state == State::mutable_ || array.state == State::broken;
  check.expect((array.state == State::broken) == array.broken.has_value(), who + "broken by whom");
  check.expect(live || array.state == State::dying, who + "impossible state");
  check.expect(live || array.entry == nullptr, who + "dying, yet named");
  check.expect((array.seal != Seal::none) == array.sealed_s.has_value(), who + "seal and its time");
  check.expect(array.state != State::sealed || array.writer_count == 0,
               who + "sealed, yet written");
  check.expect((array.version == 0) == (array.state == State::draft || array.aborted),
               who + "version in this state");
  check.expect(!array.kept || (array.entry != nullptr && array.version > 0), who + "kept");
  check.expect(array.exposed || !opens_to_others(array.spec.perms), who + "open, yet not exposed");
  check.expect(array.seal != Seal::soft || !array.exposed, who + "exposed, yet sealed soft");
  check.expect(array.ttl_deadline_ms == kNever || array.kept, who + "ttl, yet not kept");
  check.expect(array.lease_count > 0 || array.kept || array.allocating, who + "held by nobody");
  check.expect(!array.marked && !array.wake_attach && !array.wake_seal && !array.wake_line,
               who + "unsettled");
  check.expect(!array.allocating || array.creation != nullptr || array.state == State::dying,
               who + "allocated for nobody");
  check.expect(
      (array.segment != 0) == (array.spec.bytes > 0 && !array.allocating && array.charged > 0),
      who + "segment");
}

void check_leases(const Array& array, const Subject& who, Sums& sums, Checker& check) {
  std::uint64_t count = 0, writers = 0, payers = 0, handovers = 0, maps = 0, alone = 0;
  bool past_writers = false;
  for (const Lease* lease = array.leases.first(); lease != nullptr; lease = lease->next) {
    ++count;
    const bool writer = writes(lease->access);
    const bool may_block = lease->session != nullptr && lease->access != Access::hold;
    check.expect(may_block || !lease->blocks, who + "in the way without a map");
    check.expect(!may_block || !writer || lease->blocks, who + "a writer in nobody's way");
    maps += lease->blocks ? 1 : 0;
    alone += lease->access == Access::exclusive ? 1 : 0;
    check.expect((lease->access == Access::exclusive) == (array.exclusive == lease),
                 who + "exclusive lease");
    writers += writer ? 1 : 0;
    check.expect(!(writer && past_writers), who + "a writer behind readers");
    past_writers = !writer;
    payers += lease->uid == array.charge_uid ? 1 : 0;
    handovers += lease->session == nullptr ? 1 : 0;
    check.expect(lease->array == &array && lease->home == &array.leases, who + "lease's array");
    check.expect(lease->grants > 0 || lease->session == nullptr || array.creation != nullptr ||
                     array.allocating,
                 who + "lease without a grant");
    if (lease->session != nullptr) {
      const auto own = lease->session->leases.find({array.id.raw, lease->access});
      check.expect(own != lease->session->leases.end() && own->second.get() == lease,
                   who + "lease unknown to its session");
    }
    // What a gone session has left is not charged any more.
    if (lease->session == nullptr || !lease->session->gone) ++sums.users[lease->uid].leases;
  }
  check.same(array.lease_count, count, who + "leases");
  check.same(array.writer_count, writers, who + "writers");
  check.same(array.block_count, maps, who + "leases in the way of exclusive access");
  check.expect(alone == 0 || maps == 1, who + "exclusive, yet shared");
  check.expect(alone == 1 || array.exclusive == nullptr, who + "exclusive to nobody");
  check.same(array.charge_leases, payers, who + "leases of the payer");
  check.same(array.handovers.size() + array.handles.size(), handovers, who + "hand-over leases");
  std::map<std::uint32_t, std::uint64_t> handles_of;
  for (const auto& [number, lease] : array.handles) {
    check.expect(lease->handle == number && number <= array.last_handle, who + "a handle's number");
    ++handles_of[lease->uid];
  }
  check.expect(handles_of == array.handles_of, who + "handles by user");
  sums.leases += count;
  sums.timers += handovers;
}

/// Who stands in line waits for something else as well, in a list of its own.
void check_line(const Array& array, const Subject& who, Checker& check) {
  const bool shared = array.state == State::mutable_ || array.state == State::broken;
  check.expect(shared || array.line.empty(), who + "a line, yet not to be had");
  std::uint64_t alone = 0;
  for (const auto& [seq, waiter] : array.line) {
    check.expect(waiter->seq == seq && waiter->line == &array && waiter->home != nullptr,
                 who + "in line, yet not waiting");
    const auto* job = std::get_if<AttachJob>(&waiter->job);
    if (job == nullptr || job->spec.access != Access::exclusive) continue;
    ++alone;
    check.expect(array.exclusive_in_line.contains(seq), who + "a writer in line unknown");
  }
  check.same(array.exclusive_in_line.size(), alone, who + "writers in line");
  check.expect(array.line.empty() || array.block_count > 0 || array.hard_seal,
               who + "waited for in vain");
}

void check_array(const Registry::Impl& impl, const Array& array, Sums& sums, Checker& check) {
  const Subject who("array ", std::to_string(array.id.raw));
  check.expect(impl.arrays.find(array.id) == &array, who + "not under its id");
  check_state(array, who, check);
  check_leases(array, who, sums, check);
  check_line(array, who, check);
  if (array.entry != nullptr) {
    const NameEntry* entry = impl.find_entry(array.spec.name);
    const bool draft = array.state == State::draft;
    const bool there = entry == array.entry && (draft ? entry->drafts.contains(array.draft_seq)
                                                      : entry->published == &array);
    check.expect(there, who + "not under its name");
  } else {
    const auto own = impl.anonymous.find(array.uid);
    check.expect(own != impl.anonymous.end() && own->second.contains(array.id.raw),
                 who + "not among the anonymous");
    ++sums.anonymous;
  }
  check.same(array.record, record_bytes(array.spec), who + "bytes of its record");
  const std::uint64_t segments = array.segment != 0 || array.allocating ? 1 : 0;
  Usage& payer = sums.users[array.charge_uid];
  ++payer.arrays;
  payer.bytes += array.charged + array.record;
  payer.segments += segments;
  sums.bytes += array.charged + array.record;
  sums.records += array.record;
  sums.segments += segments;
  sums.timers += array.ttl_deadline_ms != kNever ? 1 : 0;
  sums.listed_waiters += length(array.attach_waiters) + length(array.seal_waiters);
}

void check_entry(const NameEntry& entry, Sums& sums, Checker& check) {
  const Subject who("name ", label({entry.uid, std::string(entry.name)}));
  check.expect(!entry.unused(), who + "empty");
  check.expect(!entry.marked && !entry.wake, who + "unsettled");
  for (const auto& [seq, draft] : entry.drafts) {
    check.expect(draft->entry == &entry && draft->state == State::draft, who + "draft");
    const bool reserves = !draft->has_option(protocol::kCreateReplace);
    check.expect(!reserves || (entry.drafts.size() == 1 && entry.published == nullptr),
                 who + "reserved, yet shared");
  }
  if (entry.published != nullptr) {
    check.expect(entry.published->entry == &entry, who + "published elsewhere");
  }
  if (entry.loader != nullptr) {
    const auto& own = entry.loader->loading;
    const bool known =
        std::any_of(own.begin(), own.end(), [&](const NameEntry* one) { return one == &entry; });
    check.expect(known, who + "loader does not know");
  }
  check.expect(entry.loader != nullptr || !entry.loader_draft.valid(), who + "loader's draft");
  for (const Waiter* waiter = entry.waiters.first(); waiter != nullptr; waiter = waiter->next) {
    check.expect(waiter->entry == &entry, who + "waiter of another name");
  }
  sums.listed_waiters += length(entry.waiters);
}

void check_session(const Registry::Impl& impl, const Session& session, Sums& sums, Checker& check) {
  const Subject who("session ", std::to_string(session.id));
  std::uint64_t charged = 0;
  for (const auto& [request, waiter] : session.waits) {
    check.expect(waiter->session == &session && waiter->request == request, who + "wait");
    const auto indexed = impl.waiters.find(waiter->seq);
    check.expect(indexed != impl.waiters.end() && indexed->second == waiter.get(),
                 who + "wait not in the index");
    check.expect((waiter->charge > 0) == (waiter->home != nullptr), who + "wait in no list");
    charged += waiter->charge > 0 ? 1U : 0U;
    sums.users[session.identity.uid].waits += waiter->charge;
    check.expect(waiter->line == nullptr || waiter->line->line.contains(waiter->seq),
                 who + "wait in no line");
    sums.timers += waiter->deadline_ms != kNever ? 1U : 0U;
  }
  for (const auto& [key, lease] : session.leases) {
    check.expect(lease->session == &session && impl.arrays.find(ArrayId{key.id}) == lease->array,
                 who + "lease on what is gone");
  }
  for (const NameEntry* entry : session.loading) {
    check.expect(entry->loader == &session, who + "loader of what another loads");
  }
  check.same(session.waits_charged, charged, who + "waits charged");
  sums.waits += session.waits.size();
  sums.users[session.identity.uid].waits += session.loading.size();
  if (!session.gone) {
    ++sums.users[session.identity.uid].connections;
    return;
  }
  ++sums.gone;
  check.expect(impl.gone.contains(session.id), who + "gone, yet not among the gone");
  check.expect(session.waits.empty() && session.loading.empty(), who + "gone, yet waiting");
}

void check_users(const Quota& quota, Sums& sums, Checker& check) {
  for (const auto& [uid, usage] : quota.users()) sums.users.try_emplace(uid);
  for (const auto& [uid, sum] : sums.users) {
    const Usage usage = quota.usage(uid);
    const Subject who("uid ", std::to_string(uid));
    check.same(usage.bytes, sum.bytes, who + "bytes");
    check.same(usage.arrays, sum.arrays, who + "arrays");
    check.same(usage.segments, sum.segments, who + "segments");
    check.same(usage.leases, sum.leases, who + "leases");
    check.same(usage.connections, sum.connections, who + "connections");
    check.same(usage.waits, sum.waits, who + "waits");
  }
  check.same(quota.bytes_used(), sums.bytes, "bytes used");
}

}  // namespace

std::vector<std::string> Registry::Impl::selfcheck() const {
  std::vector<std::string> problems;
  Checker check(problems);
  Sums sums;
  arrays.for_each([&](const Array& array) { check_array(*this, array, sums, check); });
  for (const auto& [uid, home] : namespaces) {
    for (const auto& [name, entry] : home.names) check_entry(entry, sums, check);
  }
  for (const auto& [id, session] : sessions) check_session(*this, *session, sums, check);
  std::uint64_t pinned_sum = 0;
  for (const auto& [segment, memory] : pinned) {
    pinned_sum += memory.bytes;
    sums.users[memory.uid].bytes += memory.bytes;
    ++sums.users[memory.uid].segments;
  }
  sums.bytes += pinned_sum;
  sums.segments += pinned.size();
  for (const auto& [uid, queue] : create_queues) sums.listed_waiters += length(queue);
  std::uint64_t named_nothing = 0, retries = 0, at_work = 0;
  for (const auto& [uid, ids] : anonymous) named_nothing += ids.size();
  for (const Timer& timer : timers) retries += timer.kind == TimerKind::seal_retry ? 1 : 0;
  for (const auto& [seq, waiter] : waiters) at_work += waiter->charge > 0 ? 0 : 1;
  check.same(named_nothing, sums.anonymous, "arrays without a name");
  check.same(timers.size() - retries, sums.timers, "timers");
  check.same(waiters.size(), sums.waits, "waits");
  check.same(sums.listed_waiters + at_work, sums.waits, "waits in lists");
  check.same(lease_total, sums.leases, "leases");
  check.same(gone.size(), sums.gone, "sessions that are gone");
  check.same(quota.segments_used(), sums.segments, "segments");
  check.same(record_total, sums.records, "bytes of records");
  check.same(pinned_bytes, pinned_sum, "pinned bytes");
  check.expect(marked_names.empty() && marked_arrays.empty(), "unsettled marks");
  check_users(quota, sums, check);
  return problems;
}

}  // namespace shmstore::server
