// Names, versions and the end of arrays. The state of an array changes in few functions only:
// publish() and finish_seal() (draft → sealed or mutable, mutable or broken → sealed),
// break_array() and mend() (mutable ⇄ broken), make_dying() and free_array().
//
// Versions: a name's first is above the namespace's floor, each next one above the last. Deleting
// raises the floor, so that a waiter for "newer than v" is never fooled by a name made anew.
#include <algorithm>
#include <cassert>

#include "server/registry_impl.hpp"

namespace shmstore::server {

NameEntry* Registry::Impl::find_entry(const QualifiedName& name) {
  const auto home = namespaces.find(name.uid);
  if (home == namespaces.end()) return nullptr;
  const auto entry = home->second.names.find(name.name);
  return entry == home->second.names.end() ? nullptr : &entry->second;
}

const NameEntry* Registry::Impl::find_entry(const QualifiedName& name) const {
  const auto home = namespaces.find(name.uid);
  if (home == namespaces.end()) return nullptr;
  const auto entry = home->second.names.find(name.name);
  return entry == home->second.names.end() ? nullptr : &entry->second;
}

// The caller puts something into the entry, or marks it.
NameEntry& Registry::Impl::make_entry(const QualifiedName& name) {
  Namespace& home = namespaces[name.uid];
  const auto [place, fresh] = home.names.try_emplace(name.name);
  NameEntry& entry = place->second;
  if (fresh) {
    entry.uid = name.uid;
    entry.home = &home;
    entry.name = place->first;
  }
  return entry;
}

// -- what settle() will look at -------------------------------------------------------------------

void Registry::Impl::mark(NameEntry& entry, bool wake) {
  entry.wake = entry.wake || wake;
  if (entry.marked) return;
  entry.marked = true;
  marked_names.push_back(&entry);
}

void Registry::Impl::mark(Array& array) {
  if (array.marked) return;
  array.marked = true;
  marked_arrays.push_back(array.id);
}

void Registry::Impl::settle_name(NameEntry& entry) {
  entry.marked = false;
  // A line goes by arrival, whoever asked by name and whoever by id.
  Array* array = entry.visible();
  if (array != nullptr && std::exchange(array->wake_line, false)) settle_line(*array);
  if (std::exchange(entry.wake, false)) {
    for (Waiter* waiter = entry.waiters.first(); waiter != nullptr;) {
      Waiter* next = waiter->next;  // The retry may take `waiter` out, and touches no other.
      retry_on_name(*waiter, entry);
      waiter = next;
    }
  }
  if (!entry.marked && entry.unused()) entry.home->names.erase(entry.home->names.find(entry.name));
}

void Registry::Impl::settle_array(Array& array) {
  array.marked = false;
  if (std::exchange(array.wake_attach, false)) {
    for (Waiter* waiter = array.attach_waiters.first(); waiter != nullptr;) {
      Waiter* next = waiter->next;
      const AttachSpec& spec = std::get<AttachJob>(waiter->job).spec;
      const Outcome outcome = try_attach(*waiter->session, spec, waiter->seq);
      if (const auto* wait = std::get_if<MustWait>(&outcome)) {
        stand_in_line(*waiter, wait->line);
      } else {
        answer_attach(*waiter, outcome);
      }
      waiter = next;
    }
  }
  if (std::exchange(array.wake_line, false)) settle_line(array);
  if (std::exchange(array.wake_seal, false)) {
    for (Waiter* waiter = array.seal_waiters.first(); waiter != nullptr; waiter = waiter->next) {
      marked_seals.insert(waiter->seq);
    }
  }
  const bool named_for_good = array.kept && array.state != State::dying;
  if (array.lease_count > 0 || array.allocating || named_for_good) return;
  if (array.state != State::dying) make_dying(array);
  free_array(array);
}

// -- publishing -----------------------------------------------------------------------------------

// Replacing needs the right to delete what is replaced; it is asked again at the seal, because
// another array may have taken the name since the draft was made.
std::optional<Error> Registry::Impl::check_publish(const Array& array) const {
  const Array* old = array.entry == nullptr ? nullptr : array.entry->published;
  if (old == nullptr || old == &array || array.uid == 0 || array.uid == old->uid ||
      is_left_over(*old)) {
    return std::nullopt;
  }
  return denied(*old, "replace");
}

// REQUIRES: the array is a draft whose memory is there; check_publish() found nothing.
void Registry::Impl::publish(Array& array, State state) {
  assert(array.state == State::draft && !array.allocating);
  array.state = state;
  array.version = 1;
  if (NameEntry* entry = array.entry) {
    Array* old = std::exchange(entry->published, &array);
    entry->drafts.erase(array.draft_seq);
    array.version = old == nullptr ? entry->home->floor + 1 : old->version + 1;
    if (old != nullptr) {
      old->entry = nullptr;  // The name lives on: no event, no new floor.
      anonymous[old->uid].insert(old->id.raw);
      make_dying(*old);
    }
    if (entry->loader_draft == array.id) end_loader(*entry);
    mark(*entry, true);
    array.kept = array.has_option(protocol::kCreateKeep);
    if (array.kept) set_ttl(array, array.spec.ttl_ms);
  }
  array.wake_attach = true;
  mark(array);
}

// -- the end --------------------------------------------------------------------------------------

void Registry::Impl::unname(Array& array) {
  NameEntry* entry = std::exchange(array.entry, nullptr);
  if (entry == nullptr) return;
  if (entry->published == &array) {
    entry->published = nullptr;
    entry->home->floor = std::max(entry->home->floor, array.version);
  } else {
    entry->drafts.erase(array.draft_seq);
  }
  if (entry->loader_draft == array.id) end_loader(*entry);
  anonymous[array.uid].insert(array.id.raw);
  mark(*entry, true);
  if (array.announced) emit_event("deleted", array, *entry);
}

// No name and no new attach from here on; the memory waits for its holders. A hand-over lease
// holds nothing any more, because nobody could attach through it.
void Registry::Impl::make_dying(Array& array) {
  assert(array.state != State::dying);
  array.aborted = array.state == State::draft;
  const bool unmade = array.aborted && array.has_option(protocol::kCreateMutable);
  const Error error =
      array.aborted ? make_error(ErrorCode::aborted, "id: the draft of " + label(array) +
                                                         " was dropped before it was " +
                                                         (unmade ? "made" : "sealed"))
                    : make_error(ErrorCode::not_found, "id: " + label(array) + " was deleted");
  unname(array);
  clear_ttl(array);
  array.kept = false;
  while (!array.handovers.empty()) end_handover(array, array.handovers.back()->uid);
  while (!array.handles.empty()) end_handle(array, array.handles.begin()->first);
  array.state = State::dying;
  array.broken.reset();
  answer_all(array.attach_waiters, error);
  answer_all(array.seal_waiters, error);
  disband_line(array);
  if (array.creation != nullptr) {  // Its creator never heard of it, and cannot release it.
    Session& creator = *array.creation->session;
    answer(*array.creation, error);
    if (Lease* lease = find_lease(creator, array.id, Access::write)) end_lease(*lease);
  }
  if (array.hard_seal && array.hard_seal->waiter != nullptr) {
    answer(*array.hard_seal->waiter, error);
  }
  array.hard_seal.reset();
  if (array.allocating) out->emplace_back(CancelAllocation{array.id});
  settle_charge(array);
  mark(array);
}

// REQUIRES: dying, without leases, its memory not under way.
void Registry::Impl::free_array(Array& array) {
  assert(array.state == State::dying && array.lease_count == 0 && !array.allocating);
  if (array.segment != 0) {
    pinned.emplace(array.segment,
                   PinnedSegment{array.charge_uid, array.charged, array.last_foreign});
    pinned_bytes += array.charged;
    out->emplace_back(FreeSegment{array.segment});
  }
  quota.uncharge(array.charge_uid, Holding{array.record, 1, 0});
  record_total -= array.record;
  const auto own = anonymous.find(array.uid);
  own->second.erase(array.id.raw);
  if (own->second.empty()) anonymous.erase(own);
  room = true;
  arrays.erase(array.id);
}

void Registry::Impl::set_ttl(Array& array, std::uint64_t ttl_ms) {
  clear_ttl(array);
  if (ttl_ms == 0) return;
  array.ttl_deadline_ms = deadline_of(static_cast<std::int64_t>(
      std::min(ttl_ms, static_cast<std::uint64_t>(protocol::kTimeoutMsMax))));
  timers.insert({array.ttl_deadline_ms, TimerKind::ttl, array.id.raw, 0});
}

void Registry::Impl::clear_ttl(Array& array) {
  if (array.ttl_deadline_ms == kNever) return;
  timers.erase({array.ttl_deadline_ms, TimerKind::ttl, array.id.raw, 0});
  array.ttl_deadline_ms = kNever;
}

}  // namespace shmstore::server
