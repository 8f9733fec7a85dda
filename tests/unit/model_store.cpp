#include "tests/unit/model_store.hpp"

#include <algorithm>

namespace shmstore::model {
namespace {

using namespace shmstore::protocol;

bool has(const server::CreateSpec& spec, std::uint16_t option) {
  return (spec.options & option) != 0;
}

Name name_of(const Array& array) {
  return {array.spec.name.uid, array.spec.name.name};
}

}  // namespace

// -- questions ------------------------------------------------------------------------------------

bool Store::may(Session session, const Array& array, Access access) const {
  const Who& who = sessions.at(session);
  if (who.uid == 0) return true;
  int shift = 0;
  if (who.groups.contains(array.owner) || who.uid == array.owner) shift = 3;  // gid == uid here.
  if (who.uid == array.owner) shift = 6;
  const int bits = (array.spec.perms >> shift) & 7;
  const bool readable = (bits & 4) != 0, writable = (bits & 2) != 0;
  return access == Access::write ? readable && writable : readable;
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
  for (const Lease& lease : array.leases) found += lease.access == Access::write ? 1U : 0U;
  return found;
}

std::uint64_t Store::bytes(Uid uid) const {
  std::uint64_t sum = 0;
  for (const auto& [key, array] : arrays) sum += array.payer == uid ? array.charged : 0;
  for (const auto& [key, memory] : pinned) sum += memory.first == uid ? memory.second : 0;
  return sum;
}

std::uint64_t Store::count(Uid uid) const {
  std::uint64_t found = 0;
  for (const auto& [key, array] : arrays) found += array.owner == uid ? 1U : 0U;
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
  for (const Wait& wait : waits) found += sessions.at(wait.session).uid == uid ? 1U : 0U;
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
  if (!may(wait.session, array, wait.access)) return fails(ErrorCode::permission_denied);
  if (wait.newer_than > 0 && array.version <= wait.newer_than) return must_wait();
  if (array.aborted && holds(wait.session, key)) return fails(ErrorCode::aborted);
  const bool writes = wait.access == Access::write;
  if (array.state == State::dying) return fails(ErrorCode::not_found);
  if (array.state == State::sealed) {
    return writes ? fails(ErrorCode::invalid_argument) : goes(key);
  }
  if (writes && (array.allocating || array.asking_kernel)) return must_wait();
  return writes || array.state == State::mutable_ ? goes(key) : must_wait();
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
    return array.state == State::draft ? must_wait() : goes(key);
  }
  if (foreign(wait.session, wait.name)) return fails(ErrorCode::permission_denied);
  return loaders.contains(wait.name) ? must_wait() : goes(-1);
}

Store::Verdict Store::try_seal(const Wait& wait) {
  if (!arrays.contains(wait.array)) return fails(ErrorCode::not_found);
  const Array& array = arrays.at(wait.array);
  if (!owns(wait.session, array)) return fails(ErrorCode::permission_denied);
  if (array.aborted && holds(wait.session, wait.array)) return fails(ErrorCode::aborted);
  if (array.state == State::dying) return fails(ErrorCode::not_found);
  if (array.asking_kernel) return must_wait();
  if (array.state == State::sealed) return goes(wait.array);
  if (array.allocating || lease_of(wait.session, wait.array, Access::write) == nullptr) {
    return fails(ErrorCode::invalid_argument);
  }
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
  const std::uint64_t pages = server::charge_of(spec.bytes);
  return pages > limits_.capacity || pages > user_limit();
}

std::optional<ErrorCode> Store::no_room(Uid uid, const server::CreateSpec& spec) const {
  const std::uint64_t pages = server::charge_of(spec.bytes);
  if (spec.bytes > 0 && segments() >= limits_.segments_max) return ErrorCode::no_capacity;
  if (count(uid) >= limits_.user_arrays_max) return ErrorCode::quota_exceeded;
  std::uint64_t all = 0;
  for (const auto& [key, array] : arrays) all += array.charged;
  for (const auto& [key, memory] : pinned) all += memory.second;
  const bool own_limit = user_limit() < limits_.capacity;
  if (pages > 0 && own_limit && bytes(uid) + pages > user_limit()) {
    return ErrorCode::quota_exceeded;
  }
  if (pages > 0 && all + pages > limits_.capacity) return ErrorCode::no_capacity;
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

// -- doing ----------------------------------------------------------------------------------------

void Store::fail(Request request, ErrorCode code) {
  Answer answer;
  answer.kind = Kind::error;
  answer.code = code;
  say(request, answer);
}

void Store::event(std::string_view what, Key key) {
  const Array& array = arrays.at(key);
  events.emplace_back(std::string(what), array.spec.name.uid, array.spec.name.name, key,
                      array.version, array.state);
}

void Store::grant(Session session, Request request, Key key, Access access) {
  Array& array = arrays.at(key);
  Lease* lease = lease_of(session, key, access);
  if (lease == nullptr) {
    const Lease fresh{session, sessions.at(session).uid, access};
    const auto place = access == Access::write ? array.leases.begin() : array.leases.end();
    lease = &*array.leases.insert(place, fresh);
  }
  ++lease->grants;
  Answer answer;
  answer.kind = Kind::grant;
  answer.array = key;
  answer.access = access;
  answer.descriptor = !lease->sent && array.spec.bytes > 0;
  lease->sent = lease->sent || answer.descriptor;
  say(request, answer);
}

void Store::perform(const Wait& wait, Key key) {
  if (wait.on == Wait::On::attach) {
    if (wait.renew) {
      for (Lease& lease : arrays.at(key).leases) {
        if (lease.session == 0) lease.deadline = std::max(lease.deadline, now + lease.grace);
      }
    }
    grant(wait.session, wait.request, key, wait.access);
  } else if (wait.on == Wait::On::cached && key < 0) {
    loaders[wait.name] = {wait.session, -1};
    Answer answer;
    answer.kind = Kind::loader;
    say(wait.request, answer);
  } else if (wait.on == Wait::On::cached) {
    grant(wait.session, wait.request, key, Access::read);
  } else if (wait.on == Wait::On::wait) {
    Answer answer;
    answer.kind = Kind::waited;
    answer.array = key;
    answer.version = arrays.at(key).version;
    answer.state = arrays.at(key).state;
    say(wait.request, answer);
  } else {
    begin_seal(wait.session, wait.request, key, wait.hard, wait.deadline);
  }
}

void Store::request(const Wait& wait, std::int64_t timeout_ms, ErrorCode at_once) {
  const Verdict verdict = attempt(wait);
  if (verdict.is == Verdict::Is::error) {
    fail(wait.request, verdict.code);
  } else if (verdict.is == Verdict::Is::go) {
    perform(wait, verdict.array);
  } else if (timeout_ms == 0) {
    fail(wait.request, at_once);
  } else {
    waits.push_back(wait);
  }
  settle();
}

void Store::attach(Session session, Request id, Key array, Name name, Access access,
                   std::uint64_t newer_than, std::int64_t timeout_ms, bool renew) {
  if (access == Access::exclusive || (array != -1 && newer_than > 0)) {
    fail(id, ErrorCode::invalid_argument);
    return settle();
  }
  Wait wait{id, session, Wait::On::attach, deadline(timeout_ms), std::move(name), array, access};
  wait.newer_than = newer_than;
  wait.renew = renew;
  request(wait, timeout_ms, ErrorCode::timed_out);
}

void Store::wait(Session session, Request id, const Name& name, std::uint64_t newer_than,
                 std::int64_t timeout_ms) {
  Wait wait{id, session, Wait::On::wait, deadline(timeout_ms), name};
  wait.newer_than = newer_than;
  request(wait, timeout_ms, ErrorCode::timed_out);
}

void Store::cached(Session session, Request id, const Name& name, std::int64_t timeout_ms) {
  request({id, session, Wait::On::cached, deadline(timeout_ms), name}, timeout_ms,
          ErrorCode::timed_out);
}

void Store::seal(Session session, Request id, Key array, bool hard, std::int64_t wait_ms) {
  Wait wait{id, session, Wait::On::seal, deadline(wait_ms), {}, array};
  wait.hard = hard;
  request(wait, wait_ms, ErrorCode::busy);
}

// -- create ---------------------------------------------------------------------------------------

void Store::create(Session session, Request request, server::CreateSpec spec) {
  const Uid uid = sessions.at(session).uid;
  if (spec.name.name.empty() || spec.name.uid == QualifiedName::kOwn) spec.name.uid = uid;
  if (has(spec, kCreateCached)) spec.options |= kCreateKeep;
  if (const auto code = refuse_create(session, spec)) {
    fail(request, *code);
    return settle();
  }
  const bool may_wait = spec.timeout_ms != 0 && !never_fits(uid, spec);
  const bool queued = std::any_of(waits.begin(), waits.end(), [&](const Wait& wait) {
    return wait.on == Wait::On::create && sessions.at(wait.session).uid == uid;
  });
  const auto full = no_room(uid, spec);
  if (may_wait && (queued || full)) {
    Wait wait{request, session, Wait::On::create, deadline(spec.timeout_ms)};
    wait.spec = spec;
    waits.push_back(wait);
  } else if (full) {
    fail(request, *full);
  } else {
    make(session, request, spec);
  }
  settle();
}

void Store::make(Session session, Request request, const server::CreateSpec& spec) {
  const Key key = next_++;
  Array& array = arrays[key];
  array.spec = spec;
  array.owner = array.payer = sessions.at(session).uid;
  array.named = !spec.name.name.empty();
  array.creator = session;
  array.creation = request;
  array.charged = server::charge_of(spec.bytes);
  array.leases.push_back({session, array.owner, Access::write});
  if (has(spec, kCreateCached)) loaders.at(name_of(array)).draft = key;
  if (spec.bytes == 0) return ready(key);
  array.allocating = true;
  allocations.push_back(key);
}

bool Store::may_publish(const Array& array) const {
  const Key old = array.named ? published(name_of(array)) : -1;
  return old < 0 || array.owner == 0 || arrays.at(old).owner == array.owner;
}

void Store::ready(Key key) {
  Array& array = arrays.at(key);
  const Request request = array.creation;
  array.creation = 0;
  if (has(array.spec, kCreateMutable)) {
    if (!may_publish(array)) {
      fail(request, ErrorCode::permission_denied);
      return drop_unready(key);
    }
    publish(key, State::mutable_);
  }
  grant(array.creator, request, key, Access::write);
  array.announced = array.named;
  if (array.named) event("created", key);
}

void Store::drop_unready(Key key) {
  for (auto& [name, loader] : loaders) {
    if (loader.draft == key) loader.draft = -1;
  }
  end_lease(key, 0);
}

void Store::memory_came(Key key) {
  Array& array = arrays.at(key);
  array.allocating = false;
  array.memory = true;
  if (array.state != State::dying) ready(key);
  settle();
}

void Store::memory_refused(Key key) {
  Array& array = arrays.at(key);
  array.allocating = false;
  array.charged = 0;
  room_ = true;
  if (array.state != State::dying) {
    fail(array.creation, ErrorCode::no_capacity);
    array.creation = 0;
    drop_unready(key);
  }
  settle();
}

// -- publishing, dying ----------------------------------------------------------------------------

void Store::publish(Key key, State state) {
  Array& array = arrays.at(key);
  array.version = 1;
  if (array.named) {
    const Key old = published(name_of(array));
    array.version = old < 0 ? floors_[array.spec.name.uid] + 1 : arrays.at(old).version + 1;
    if (old >= 0) {
      arrays.at(old).named = false;
      die(old);
    }
    const auto loader = loaders.find(name_of(array));
    if (loader != loaders.end() && loader->second.draft == key) loaders.erase(loader);
    array.kept = has(array.spec, kCreateKeep);
    if (array.kept && array.spec.ttl_ms > 0) {
      array.ttl_at = now + static_cast<std::int64_t>(array.spec.ttl_ms);
    }
  }
  array.state = state;
}

void Store::unname(Key key) {
  Array& array = arrays.at(key);
  if (!array.named) return;
  if (array.announced) event("deleted", key);
  array.named = false;
  if (array.state != State::draft) {
    std::uint64_t& floor = floors_[array.spec.name.uid];
    floor = std::max(floor, array.version);
  }
  const auto loader = loaders.find(name_of(array));
  if (loader != loaders.end() && loader->second.draft == key) loaders.erase(loader);
}

void Store::die(Key key) {
  Array& array = arrays.at(key);
  unname(key);
  array.aborted = array.state == State::draft;
  array.state = State::dying;
  array.kept = false;
  array.ttl_at = kNever;
  const ErrorCode code = array.aborted ? ErrorCode::aborted : ErrorCode::not_found;
  for (std::size_t i = array.leases.size(); i-- > 0;) {
    if (array.leases[i].session == 0) end_lease(key, i);
  }
  for (std::size_t i = waits.size(); i-- > 0;) {
    if (waits[i].array != key) continue;
    fail(waits[i].request, code);
    waits.erase(waits.begin() + static_cast<std::ptrdiff_t>(i));
  }
  if (array.asking_kernel && array.seal_request != 0) fail(array.seal_request, code);
  array.asking_kernel = false;
  if (array.creation != 0) {
    fail(array.creation, code);
    array.creation = 0;
    for (std::size_t i = array.leases.size(); i-- > 0;) {
      if (array.leases[i].session == array.creator) end_lease(key, i);
    }
  }
  settle_payer(array);
}

void Store::end_lease(Key key, std::size_t index) {
  Array& array = arrays.at(key);
  const Lease lease = array.leases[index];
  array.leases.erase(array.leases.begin() + static_cast<std::ptrdiff_t>(index));
  room_ = true;
  if (lease.session != 0) array.seals_sleep = false;
  const bool creators = lease.access == Access::write && lease.session == array.creator;
  if (creators && array.state == State::draft) die(key);
  settle_payer(array);
}

void Store::settle_payer(Array& array) {
  if (array.state != State::dying || array.leases.empty()) return;
  for (const Lease& lease : array.leases) {
    if (lease.uid == array.payer) return;
  }
  array.payer = array.leases.front().uid;
  room_ = true;
}

void Store::leave(Session session) {
  std::erase_if(waits, [&](const Wait& wait) {
    room_ = room_ || (wait.session == session && wait.on == Wait::On::create);
    return wait.session == session;
  });
  std::erase_if(loaders, [&](const auto& item) { return item.second.session == session; });
  for (auto& [key, array] : arrays) {
    if (array.creator == session) array.creation = 0;
    if (array.asking_kernel && array.sealer == session) array.seal_request = 0;
  }
  for (auto& [key, array] : arrays) {
    for (std::size_t i = array.leases.size(); i-- > 0;) {
      if (i < array.leases.size() && array.leases[i].session == session) end_lease(key, i);
    }
  }
  sessions.erase(session);
  settle();
}

// -- seal -----------------------------------------------------------------------------------------

void Store::begin_seal(Session session, Request request, Key key, bool hard,
                       std::int64_t deadline_at) {
  Array& array = arrays.at(key);
  const bool sealed = array.state == State::sealed;
  const bool opens = (array.spec.perms & 077) != 0 || has(array.spec, kCreateHard);
  const Seal level = hard || opens ? Seal::hard : Seal::soft;
  if (!sealed && !may_publish(array)) return fail(request, ErrorCode::permission_denied);
  const bool upgrade = sealed && hard && array.seal == Seal::soft;
  if (level == Seal::hard && array.memory && (!sealed || upgrade)) {
    array.asking_kernel = true;
    array.sealer = session;
    array.seal_request = request;
    array.seal_hard = hard;
    array.seal_deadline = deadline_at;
    hard_seals.push_back(key);
    return;
  }
  if (!sealed || upgrade) finish_seal(key, session, level);
  Answer answer;
  answer.kind = Kind::sealed;
  answer.array = key;
  answer.version = array.version;
  answer.seal = array.seal;
  answer.state = array.state;
  say(request, answer);
}

void Store::finish_seal(Key key, Session session, Seal level) {
  Array& array = arrays.at(key);
  const bool first = array.state != State::sealed;
  if (array.state == State::draft) publish(key, State::sealed);
  array.state = State::sealed;
  array.seal = level;
  array.seals_sleep = false;
  if (Lease* writer = lease_of(session, key, Access::write)) {
    Lease moved = *writer;
    array.leases.erase(array.leases.begin() + (writer - array.leases.data()));
    if (Lease* reader = lease_of(session, key, Access::read)) {
      reader->grants += moved.grants;
      room_ = true;
    } else {
      moved.access = Access::read;
      moved.sent = false;
      array.leases.push_back(moved);
    }
  }
  if (first && array.named) event("sealed", key);
}

void Store::kernel_sealed(Key key) {
  const auto found = arrays.find(key);
  if (found != arrays.end() && found->second.asking_kernel) {
    Array& array = found->second;
    array.asking_kernel = false;
    finish_seal(key, array.sealer, Seal::hard);
    if (array.seal_request != 0) {
      Answer answer;
      answer.kind = Kind::sealed;
      answer.array = key;
      answer.version = array.version;
      answer.seal = array.seal;
      answer.state = array.state;
      say(array.seal_request, answer);
    }
  }
  settle();
}

void Store::kernel_busy(Key key) {
  const auto found = arrays.find(key);
  if (found != arrays.end() && found->second.asking_kernel) {
    Array& array = found->second;
    array.asking_kernel = false;
    array.seals_sleep = false;
    if (array.seal_request != 0 && array.seal_deadline > now) {
      Wait wait{array.seal_request, array.sealer, Wait::On::seal, array.seal_deadline, {}, key};
      wait.hard = array.seal_hard;
      waits.push_back(wait);
      array.seals_sleep = true;
      array.seal_retries.insert(now + kSealRetryMs);
    } else if (array.seal_request != 0) {
      fail(array.seal_request, ErrorCode::busy);
    }
  }
  settle();
}

// -- leases ---------------------------------------------------------------------------------------

void Store::segment(Session session, Request request, Key key, Access access) {
  Lease* lease = lease_of(session, key, access);
  if (lease == nullptr) {
    fail(request, ErrorCode::invalid_argument);
  } else if (arrays.at(key).aborted) {
    fail(request, ErrorCode::aborted);
  } else {
    Answer answer;
    answer.kind = Kind::grant;
    answer.array = key;
    answer.access = access;
    answer.descriptor = arrays.at(key).spec.bytes > 0;
    lease->sent = lease->sent || answer.descriptor;
    say(request, answer);
  }
  settle();
}

void Store::release(Session session, Request request, Key key, Access access,
                    std::uint32_t grants) {
  Lease* lease = lease_of(session, key, access);
  if (lease == nullptr || grants == 0 || grants > lease->grants) {
    fail(request, ErrorCode::invalid_argument);
    return settle();
  }
  lease->grants -= grants;
  if (lease->grants == 0) {
    end_lease(key, static_cast<std::size_t>(lease - arrays.at(key).leases.data()));
  }
  say(request, {});
  settle();
}

void Store::handover(Session session, Request request, Key key, std::uint64_t grace_ms) {
  const auto found = arrays.find(key);
  if (found == arrays.end() || !holds(session, key)) {
    fail(request, ErrorCode::invalid_argument);
    return settle();
  }
  Array& array = found->second;
  if (array.state == State::dying) {
    fail(request, array.aborted ? ErrorCode::aborted : ErrorCode::not_found);
    return settle();
  }
  const Uid uid = sessions.at(session).uid;
  auto lease = std::find_if(array.leases.begin(), array.leases.end(),
                            [&](const Lease& one) { return one.session == 0 && one.uid == uid; });
  if (lease == array.leases.end()) {
    lease = array.leases.insert(array.leases.end(), Lease{0, uid, Access::read});
  }
  const auto grace = static_cast<std::int64_t>(grace_ms == 0 ? kGraceMsDefault : grace_ms);
  lease->grace = std::max(lease->grace, grace);
  lease->deadline = std::max(lease->deadline, now + lease->grace);
  say(request, {});
  settle();
}

// -- cancel, abort --------------------------------------------------------------------------------

void Store::cancel(Session session, Request request, Request target) {
  for (std::size_t i = 0; i < waits.size(); ++i) {
    if (waits[i].session != session || waits[i].request != target) continue;
    room_ = room_ || waits[i].on == Wait::On::create;
    fail(target, ErrorCode::aborted);
    waits.erase(waits.begin() + static_cast<std::ptrdiff_t>(i));
    break;
  }
  for (auto& [key, array] : arrays) {
    if (array.creator == session && array.creation == target) {
      fail(target, ErrorCode::aborted);
      array.creation = 0;
      drop_unready(key);
    } else if (array.asking_kernel && array.sealer == session && array.seal_request == target) {
      fail(target, ErrorCode::aborted);
      array.seal_request = 0;
    }
  }
  say(request, {});
  settle();
}

void Store::abort(Session session, Request request, Key key, const Name& name) {
  if (key == -1) {
    const auto loader = loaders.find(name);
    if (loader == loaders.end() || loader->second.session != session) {
      fail(request, ErrorCode::invalid_argument);
      return settle();
    }
    key = loader->second.draft;
    loaders.erase(loader);
    if (key < 0) {
      say(request, {});
      return settle();
    }
  }
  const auto found = arrays.find(key);
  if (found == arrays.end()) {
    fail(request, ErrorCode::not_found);
  } else if (!owns(session, found->second)) {
    fail(request, ErrorCode::permission_denied);
  } else if (found->second.state == State::dying && !found->second.aborted) {
    fail(request, ErrorCode::not_found);
  } else if (found->second.state == State::sealed || found->second.state == State::mutable_) {
    fail(request, ErrorCode::invalid_argument);
  } else {
    if (found->second.state == State::draft) die(key);
    if (Lease* lease = lease_of(session, key, Access::write)) {
      end_lease(key, static_cast<std::size_t>(lease - found->second.leases.data()));
    }
    say(request, {});
  }
  settle();
}

// -- admin ----------------------------------------------------------------------------------------

std::optional<ErrorCode> Store::find_owned(Session session, Key& key, const Name& name) const {
  const bool by_name = key == -1;
  if (by_name) {
    key = visible(name);
    if (key < 0) {
      return foreign(session, name) ? ErrorCode::permission_denied : ErrorCode::not_found;
    }
  }
  if (!arrays.contains(key)) return ErrorCode::not_found;
  if (!owns(session, arrays.at(key))) return ErrorCode::permission_denied;
  if (arrays.at(key).state == State::dying) return ErrorCode::not_found;
  return std::nullopt;
}

std::optional<ErrorCode> Store::keep(Session session, Key key, const Name& name,
                                     std::uint64_t ttl) {
  auto code = find_owned(session, key, name);
  if (!code && arrays.at(key).state == State::draft) code = ErrorCode::not_sealed;
  if (!code && !arrays.at(key).named) code = ErrorCode::invalid_argument;
  if (!code) {
    arrays.at(key).kept = true;
    arrays.at(key).ttl_at = ttl == 0 ? kNever : now + static_cast<std::int64_t>(ttl);
    event("kept", key);
  }
  settle();
  return code;
}

std::optional<ErrorCode> Store::unkeep(Session session, Key key, const Name& name) {
  auto code = find_owned(session, key, name);
  if (!code && arrays.at(key).state == State::draft) code = ErrorCode::not_sealed;
  if (!code) {
    if (arrays.at(key).kept) event("unkept", key);
    arrays.at(key).kept = false;
    arrays.at(key).ttl_at = kNever;
  }
  settle();
  return code;
}

std::optional<ErrorCode> Store::remove(Session session, Key key, const Name& name) {
  const auto code = find_owned(session, key, name);
  if (!code) die(key);
  settle();
  return code;
}

std::optional<ErrorCode> Store::chmod(Session session, Key key, const Name& name,
                                      std::uint16_t perms) {
  auto code = find_owned(session, key, name);
  if (!code) {
    Array& array = arrays.at(key);
    const bool wider = (perms & 077 & ~array.spec.perms) != 0;
    if (wider && array.seal != Seal::hard && array.state != State::mutable_) {
      code = ErrorCode::invalid_argument;
    } else {
      array.spec.perms = perms;
    }
  }
  settle();
  return code;
}

std::optional<ErrorCode> Store::info(Session session, Key key, const Name& name) {
  if (key == -1) {
    key = visible(name);
    if (key < 0) {
      return foreign(session, name) ? ErrorCode::permission_denied : ErrorCode::not_found;
    }
  }
  if (!arrays.contains(key)) return ErrorCode::not_found;
  const bool readable = may(session, arrays.at(key), Access::read);
  return readable ? std::nullopt : std::optional(ErrorCode::permission_denied);
}

std::vector<std::tuple<Uid, std::string, std::uint64_t>> Store::list(Session session,
                                                                     const std::string& prefix) {
  const Uid own = sessions.at(session).uid;
  std::map<std::tuple<bool, Uid, std::string, bool, Key>, std::uint64_t> named;
  std::uint64_t anonymous = 0;
  for (const auto& [key, array] : arrays) {
    if (!may(session, array, Access::read)) continue;
    const auto& [uid, name] = name_of(array);
    if (array.named && name.starts_with(prefix)) {
      named[{uid != own, uid, name, array.state == State::draft, key}] = array.version;
    } else if (!array.named && array.owner == own && prefix.empty()) {
      ++anonymous;
    }
  }
  std::vector<std::tuple<Uid, std::string, std::uint64_t>> found;
  for (const auto& [place, version] : named) {
    found.emplace_back(std::get<1>(place), std::get<2>(place), version);
  }
  for (std::uint64_t i = 0; i < anonymous; ++i) found.emplace_back(own, "", 0);
  return found;
}

// -- settling -------------------------------------------------------------------------------------

bool Store::settle_waits(bool on_names, Wait::On only) {
  for (std::size_t i = 0; i < waits.size(); ++i) {
    const Wait wait = waits[i];
    if (wait.on == Wait::On::create || (wait.array == -1) != on_names) continue;
    if (!on_names && wait.on != only) continue;
    if (wait.on == Wait::On::seal && arrays.at(wait.array).seals_sleep) continue;
    Verdict verdict = attempt(wait);
    const bool lost_draft =
        wait.on == Wait::On::attach && on_names && wait.newer_than == 0 && visible(wait.name) < 0;
    if (lost_draft) verdict = fails(ErrorCode::aborted);
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
      pinned[key] = {array.payer, array.charged};
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

// Who waits for names comes first, then for arrays; then memory that nobody holds goes, then seals
// are tried again, then creates.
void Store::settle() {
  while (settle_waits(true, Wait::On::attach) || settle_waits(false, Wait::On::attach) ||
         settle_arrays() || settle_waits(false, Wait::On::seal) || settle_creates()) {
  }
}

void Store::reclaimed(Key key) {
  pinned.erase(key);
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
