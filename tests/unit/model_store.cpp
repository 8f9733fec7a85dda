// What the model is asked about itself, and what happens after each operation.
#include "tests/unit/model_store.hpp"

#include <algorithm>

namespace shmstore::model {

using namespace shmstore::protocol;

// -- questions ------------------------------------------------------------------------------------

bool Store::may(Session session, const Array& array, Access access) const {
  const Who& who = sessions.at(session);
  if (who.uid == 0) return true;
  int shift = 0;
  if (who.groups.contains(array.owner) || who.uid == array.owner) shift = 3;  // gid == uid here.
  if (who.uid == array.owner) shift = 6;
  const int bits = (array.spec.perms >> shift) & 7;
  const bool readable = (bits & 4) != 0, writable = (bits & 2) != 0;
  return writes(access) ? readable && writable : readable;
}

// What may not be read is not there for who asks by id.
ErrorCode Store::denied(Session session, const Array& array, bool by_id) const {
  const bool hidden = by_id && !may(session, array, Access::read) && !owns(session, array);
  return hidden ? ErrorCode::not_found : ErrorCode::permission_denied;
}

bool Store::owns(Session session, const Array& array) const {
  const Uid uid = sessions.at(session).uid;
  return uid == 0 || uid == array.owner;
}

bool Store::foreign(Session session, const Name& name) const {
  const Uid uid = sessions.at(session).uid;
  return uid != 0 && uid != name.first;
}

Key Store::published(const Name& name) const {
  for (const auto& [key, array] : arrays) {
    if (array.named && name_of(array) == name && array.state != State::draft) return key;
  }
  return -1;
}

Key Store::visible(const Name& name) const {
  Key found = published(name);
  if (found >= 0) return found;
  for (const auto& [key, array] : arrays) {  // Keys grow: the last is the newest.
    if (array.named && name_of(array) == name) found = key;
  }
  return found;
}

Lease* Store::lease_of(Session session, Key array, Access access) {
  if (!arrays.contains(array)) return nullptr;
  for (Lease& lease : arrays.at(array).leases) {
    if (lease.session == session && lease.access == access) return &lease;
  }
  return nullptr;
}

bool Store::holds(Session session, Key array) const {
  const auto& leases = arrays.at(array).leases;
  return std::any_of(leases.begin(), leases.end(),
                     [&](const Lease& lease) { return lease.session == session; });
}

std::uint64_t Store::writers(const Array& array) const {
  std::uint64_t found = 0;
  for (const Lease& lease : array.leases) found += writes(lease.access) ? 1U : 0U;
  return found;
}

std::uint64_t Store::bytes(Uid uid) const {
  std::uint64_t sum = 0;
  for (const auto& [key, array] : arrays) {
    sum += array.payer == uid ? array.charged + server::record_bytes(array.spec) : 0;
  }
  for (const auto& [key, memory] : pinned) sum += memory.payer == uid ? memory.charged : 0;
  return sum;
}

std::uint64_t Store::records() const {
  std::uint64_t sum = 0;
  for (const auto& [key, array] : arrays) sum += server::record_bytes(array.spec);
  return sum;
}

std::uint64_t Store::segments(Uid uid) const {
  std::uint64_t found = 0;
  for (const auto& [key, array] : arrays) {
    found += array.payer == uid && (array.allocating || array.memory) ? 1U : 0U;
  }
  for (const auto& [key, memory] : pinned) found += memory.payer == uid ? 1U : 0U;
  return found;
}

std::uint64_t Store::count(Uid uid) const {
  std::uint64_t found = 0;
  for (const auto& [key, array] : arrays) found += array.payer == uid ? 1U : 0U;
  return found;
}

std::uint64_t Store::leases(Uid uid) const {
  std::uint64_t found = 0;
  for (const auto& [key, array] : arrays) {
    for (const Lease& lease : array.leases) found += lease.uid == uid ? 1U : 0U;
  }
  return found;
}

std::uint64_t Store::waiting(Uid uid) const {
  std::uint64_t found = 0;
  for (const Wait& wait : waits) {
    if (sessions.at(wait.session).uid != uid) continue;
    found += wait.on == Wait::On::create ? 1 + server::record_bytes(wait.spec) / 1024 : 1;
  }
  for (const auto& [name, loader] : loaders) {
    found += sessions.at(loader.session).uid == uid ? 1U : 0U;
  }
  return found;
}

std::uint64_t Store::segments() const {
  std::uint64_t found = pinned.size();
  for (const auto& [key, array] : arrays) found += array.allocating || array.memory ? 1U : 0U;
  return found;
}

std::uint64_t Store::requests_open() const {
  std::uint64_t found = waits.size();
  for (const auto& [key, array] : arrays) {
    found += array.creation != 0 ? 1U : 0U;
    found += array.asking_kernel && array.seal_request != 0 ? 1U : 0U;
  }
  return found;
}

std::optional<std::int64_t> Store::next_deadline() const {
  std::int64_t next = kNever;
  for (const Wait& wait : waits) next = std::min(next, wait.deadline);
  for (const auto& [key, array] : arrays) {
    next = std::min(next, array.ttl_at);
    for (const Lease& lease : array.leases) {
      if (lease.session == 0) next = std::min(next, lease.deadline);
    }
  }
  return next == kNever ? std::nullopt : std::optional(next);
}

std::int64_t Store::deadline(std::int64_t timeout_ms) const {
  return timeout_ms < 0 ? kNever : now + timeout_ms;
}

// -- settling -------------------------------------------------------------------------------------

bool Store::is_one(const Wait& wait, Which which) {
  switch (which) {
    case Which::in_line: return wait.in_line;
    case Which::on_names: return wait.array == -1 && wait.on != Wait::On::create;
    case Which::on_arrays: return wait.array != -1 && wait.on == Wait::On::attach;
    case Which::seals: return wait.on == Wait::On::seal;
  }
  return false;
}

bool Store::settle_waits(Which which) {
  for (std::size_t i = 0; i < waits.size(); ++i) {
    const Wait wait = waits[i];
    if (!is_one(wait, which)) continue;
    if (wait.on == Wait::On::seal && arrays.at(wait.array).seals_sleep) continue;
    Verdict verdict = attempt(wait);
    const bool lost_draft = wait.on == Wait::On::attach && wait.array == -1 &&
                            wait.newer_than == 0 && !wait.stood && visible(wait.name) < 0;
    if (lost_draft) verdict = fails(ErrorCode::aborted);
    waits[i].in_line = verdict.turn;
    waits[i].stood = waits[i].stood || verdict.turn;
    if (verdict.is == Verdict::Is::wait) continue;
    waits.erase(waits.begin() + static_cast<std::ptrdiff_t>(i));
    if (verdict.is == Verdict::Is::error) {
      fail(wait.request, verdict.code);
    } else {
      perform(wait, verdict.array);
    }
    return true;
  }
  return false;
}

bool Store::settle_arrays() {
  for (const auto& [key, array] : arrays) {
    const bool kept = array.kept && array.state != State::dying;
    if (!array.leases.empty() || array.allocating || kept) continue;
    if (array.state != State::dying) die(key);
    if (array.memory) {
      pinned[key] = {array.payer, array.charged, array.last_foreign};
      frees.push_back(key);
    }
    room_ = true;
    arrays.erase(key);
    return true;
  }
  return false;
}

bool Store::settle_creates() {
  if (!room_) return false;
  room_ = false;
  std::vector<Wait> queue;  // A copy: making one array may end waits for others.
  for (const Wait& wait : waits) {
    if (wait.on == Wait::On::create) queue.push_back(wait);
  }
  std::set<Uid> blocked;
  bool changed = false;
  for (const Wait& wait : queue) {
    const Uid uid = sessions.at(wait.session).uid;
    if (blocked.contains(uid)) continue;
    const std::optional<ErrorCode> refused = refuse_create(wait.session, wait.spec);
    if (!refused && no_room(uid, wait.spec)) {
      blocked.insert(uid);
      continue;
    }
    std::erase_if(waits, [&](const Wait& one) { return one.request == wait.request; });
    changed = room_ = true;
    if (refused) {
      fail(wait.request, *refused);
    } else {
      make(wait.session, wait.request, wait.spec);
    }
  }
  return changed;
}

// A line goes by arrival. Then who waits for names comes first, then for arrays; then memory that
// nobody holds goes, then seals are tried again, then creates.
void Store::settle() {
  while (settle_waits(Which::in_line) || settle_waits(Which::on_names) ||
         settle_waits(Which::on_arrays) || settle_arrays() || settle_waits(Which::seals) ||
         settle_creates()) {
  }
}

void Store::reclaimed(Key key) {
  pinned.erase(key);
  room_ = true;
  settle();
}

// The owner is not to pay for what another may keep.
void Store::held(Key key) {
  Pinned& memory = pinned.at(key);
  if (!memory.last_foreign) return;
  memory.payer = *memory.last_foreign;
  memory.last_foreign.reset();
  room_ = true;
  settle();
}

void Store::expire(std::size_t index) {
  const Wait wait = waits[index];
  waits.erase(waits.begin() + static_cast<std::ptrdiff_t>(index));
  fail(wait.request, wait.on == Wait::On::seal ? ErrorCode::busy : ErrorCode::timed_out);
}

void Store::tick(std::int64_t at) {
  now = at;
  room_ = true;
  while (true) {
    const std::optional<std::int64_t> due = next_deadline();
    if (!due || *due > now) break;
    bool fired = false;
    for (std::size_t i = 0; i < waits.size() && !fired; ++i) {
      if (waits[i].deadline != *due) continue;
      expire(i);
      fired = true;
    }
    for (auto at_array = arrays.begin(); at_array != arrays.end() && !fired; ++at_array) {
      if (at_array->second.ttl_at != *due) continue;
      die(at_array->first);
      fired = true;
    }
    for (auto at_array = arrays.begin(); at_array != arrays.end() && !fired; ++at_array) {
      auto& leases = at_array->second.leases;
      for (std::size_t i = 0; i < leases.size() && !fired; ++i) {
        if (leases[i].session != 0 || leases[i].deadline != *due) continue;
        end_lease(at_array->first, i);
        fired = true;
      }
    }
  }
  for (auto& [key, array] : arrays) {
    while (!array.seal_retries.empty() && *array.seal_retries.begin() <= now) {
      array.seal_retries.erase(array.seal_retries.begin());
      array.seals_sleep = false;
    }
  }
  settle();
}

}  // namespace shmstore::model
