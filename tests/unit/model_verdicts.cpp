// What a request comes to at this moment: an error, a wait, or an array.
#include "tests/unit/model_store.hpp"

#include <algorithm>

namespace shmstore::model {

using namespace shmstore::protocol;

// -- verdicts -------------------------------------------------------------------------------------

Store::Verdict Store::try_attach(const Wait& wait) const {
  Key key = wait.array;
  if (key == -1) {
    key = visible(wait.name);
    if (key < 0) {
      if (foreign(wait.session, wait.name)) return fails(ErrorCode::permission_denied);
      return wait.newer_than > 0 ? must_wait() : fails(ErrorCode::not_found);
    }
  }
  if (!arrays.contains(key)) return fails(ErrorCode::not_found);
  const Array& array = arrays.at(key);
  if (!may(wait.session, array, wait.access)) {
    return fails(denied(wait.session, array, wait.array != -1));
  }
  if (wait.newer_than > 0 && array.version <= wait.newer_than) return must_wait();
  if (array.aborted && holds(wait.session, key)) return fails(ErrorCode::aborted);
  if (array.state == State::dying) return fails(ErrorCode::not_found);
  return wait.access == Access::hold ? goes(key) : try_access(wait, key);
}

// By an access that maps, to an array that is not dying.
Store::Verdict Store::try_access(const Wait& wait, Key key) const {
  const Array& array = arrays.at(key);
  const bool alone = wait.access == Access::exclusive, writer = wait.access == Access::write;
  switch (array.state) {
    case State::draft:
      if (alone || (writer && array.frozen)) return fails(ErrorCode::invalid_argument);
      if (has(array.spec, kCreateMutable)) return must_wait();
      return writer && !array.allocating && !array.asking_kernel ? goes(key) : must_wait();
    case State::sealed: return alone || writer ? fails(ErrorCode::invalid_argument) : goes(key);
    case State::broken:
      if (!alone || !wait.repair || array.frozen) return fails(ErrorCode::aborted);
      return array.asking_kernel ? waits_for_turn() : try_turn(wait, key);
    default: break;
  }
  if (array.asking_kernel && (alone || writer)) return waits_for_turn();
  return try_turn(wait, key);
}

// Would wait for a turn at this array if it cannot go.
bool Store::stands_in_line(const Wait& wait, Key key) const {
  if (wait.on != Wait::On::attach && wait.on != Wait::On::cached) return false;
  if ((wait.array == -1 ? visible(wait.name) : wait.array) != key) return false;
  return wait.newer_than == 0 || arrays.at(key).version > wait.newer_than;
}

Store::Verdict Store::try_turn(const Wait& wait, Key key) const {
  const Array& array = arrays.at(key);
  bool own = false, own_alone = false, others_alone = false, mapped = false;
  for (const Lease& lease : array.leases) {
    if (lease.session == 0 || lease.access == Access::hold) continue;
    mapped = mapped || lease.blocks;
    const bool is_own = lease.session == wait.session;
    if (lease.access == Access::exclusive) {
      (is_own ? own_alone : others_alone) = true;
    } else {
      own = own || is_own;
    }
  }
  bool anybody = false, writer = false;
  for (const Wait& before : waits) {
    if (before.request == wait.request) break;
    if (!stands_in_line(before, key)) continue;
    anybody = true;
    writer = writer || (before.on == Wait::On::attach && before.access == Access::exclusive);
  }
  if (wait.on == Wait::On::attach && wait.access == Access::exclusive) {
    if (own && !wait.asked) return fails(ErrorCode::busy);
    return mapped || anybody ? waits_for_turn() : goes(key);
  }
  if (own_alone && !wait.asked) return fails(ErrorCode::busy);
  if (own_alone || others_alone) return waits_for_turn();
  return writer && !own ? waits_for_turn() : goes(key);
}

Store::Verdict Store::try_wait(const Wait& wait) const {
  const Key key = visible(wait.name);
  const bool stranger = foreign(wait.session, wait.name);
  if (key < 0) return stranger ? fails(ErrorCode::permission_denied) : must_wait();
  const Array& array = arrays.at(key);
  const bool readable = may(wait.session, array, Access::read);
  const bool draft = array.state == State::draft;
  if (!readable && (stranger || !draft)) return fails(ErrorCode::permission_denied);
  return draft || array.version <= wait.newer_than ? must_wait() : goes(key);
}

// goes(-1): become the loader.
Store::Verdict Store::try_cached(const Wait& wait) const {
  const Key key = visible(wait.name);
  if (key >= 0) {
    const Array& array = arrays.at(key);
    if (!may(wait.session, array, Access::read)) return fails(ErrorCode::permission_denied);
    if (array.state == State::broken) return fails(ErrorCode::aborted);
    if (array.state == State::mutable_) return try_turn(wait, key);
    return array.state == State::draft ? must_wait() : goes(key);
  }
  if (foreign(wait.session, wait.name)) return fails(ErrorCode::permission_denied);
  return loaders.contains(wait.name) ? must_wait() : goes(-1);
}

Store::Verdict Store::try_seal(const Wait& wait) {
  if (!arrays.contains(wait.array)) return fails(ErrorCode::not_found);
  const Array& array = arrays.at(wait.array);
  if (!owns(wait.session, array)) return fails(denied(wait.session, array, true));
  if (array.aborted && holds(wait.session, wait.array)) return fails(ErrorCode::aborted);
  if (array.state == State::dying) return fails(ErrorCode::not_found);
  if (array.asking_kernel) return must_wait();
  if (array.state == State::sealed) return goes(wait.array);
  const bool alone = lease_of(wait.session, wait.array, Access::exclusive) != nullptr;
  const auto others = [](const Lease& lease) { return lease.access == Access::exclusive; };
  if (!alone && std::any_of(array.leases.begin(), array.leases.end(), others)) return must_wait();
  const bool writer = alone || lease_of(wait.session, wait.array, Access::write) != nullptr;
  if (array.allocating || !writer) return fails(ErrorCode::invalid_argument);
  return writers(array) > 1 ? must_wait() : goes(wait.array);
}

Store::Verdict Store::attempt(const Wait& wait) {
  switch (wait.on) {
    case Wait::On::attach: return try_attach(wait);
    case Wait::On::wait: return try_wait(wait);
    case Wait::On::cached: return try_cached(wait);
    case Wait::On::seal: return try_seal(wait);
    case Wait::On::create: break;
  }
  return must_wait();
}

std::optional<ErrorCode> Store::refuse_create(Session session,
                                              const server::CreateSpec& spec) const {
  if (has(spec, kCreateUnseen) && !has(spec, kCreateMutable)) return ErrorCode::invalid_argument;
  if (spec.name.name.empty()) {
    const bool odd = has(spec, kCreateKeep | kCreateReplace | kCreateCached);
    return odd ? std::optional(ErrorCode::invalid_argument) : std::nullopt;
  }
  const Name name{spec.name.uid, spec.name.name};
  if (foreign(session, name)) return ErrorCode::permission_denied;
  const auto loader = loaders.find(name);
  const bool loads = loader != loaders.end() && loader->second.session == session;
  if (has(spec, kCreateCached)) {
    if (!loads || loader->second.draft >= 0 || has(spec, kCreateMutable)) {
      return ErrorCode::invalid_argument;
    }
  }
  const Key there = visible(name);
  if (!has(spec, kCreateReplace)) {
    const bool taken = there >= 0 || (loader != loaders.end() && !loads);
    return taken ? std::optional(ErrorCode::already_exists) : std::nullopt;
  }
  if (there < 0) return std::nullopt;
  const Array& old = arrays.at(there);
  if (!owns(session, old)) return ErrorCode::permission_denied;
  const bool reserved = old.state == State::draft && !has(old.spec, kCreateReplace);
  return reserved ? std::optional(ErrorCode::not_sealed) : std::nullopt;
}

std::uint64_t Store::user_limit() const {
  return limits_.user_bytes_max != 0 ? limits_.user_bytes_max : limits_.capacity;
}

bool Store::never_fits(Uid, const server::CreateSpec& spec) const {
  const std::uint64_t wanted = server::charge_of(spec.bytes) + server::record_bytes(spec);
  return wanted > limits_.capacity || wanted > user_limit();
}

std::optional<ErrorCode> Store::no_room(Uid uid, const server::CreateSpec& spec) const {
  const std::uint64_t wanted = server::charge_of(spec.bytes) + server::record_bytes(spec);
  if (count(uid) >= limits_.user_arrays_max) return ErrorCode::quota_exceeded;
  if (spec.bytes > 0 && segments(uid) >= limits_.user_segments_max) {
    return ErrorCode::quota_exceeded;
  }
  if (spec.bytes > 0 && segments() >= limits_.segments_max) return ErrorCode::no_capacity;
  std::uint64_t all = records();
  for (const auto& [key, array] : arrays) all += array.charged;
  for (const auto& [key, memory] : pinned) all += memory.charged;
  const bool own_limit = user_limit() < limits_.capacity;
  if (own_limit && bytes(uid) + wanted > user_limit()) return ErrorCode::quota_exceeded;
  if (all + wanted > limits_.capacity) return ErrorCode::no_capacity;
  return std::nullopt;
}

bool Store::somebody_waits_in_vain() const {
  std::set<Uid> seen;
  for (const Wait& wait : waits) {
    if (wait.on != Wait::On::create) continue;
    const Uid uid = sessions.at(wait.session).uid;
    if (seen.insert(uid).second && !no_room(uid, wait.spec)) return true;
  }
  return false;
}

}  // namespace shmstore::model
