// How arrays live in the model: published, sealed, dying.
#include "tests/unit/model_store.hpp"

#include <algorithm>

namespace shmstore::model {

using namespace shmstore::protocol;

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
  for (std::size_t i = array.leases.size(); i-- > 0;) {
    if (array.leases[i].session == 0) end_lease(key, i);
  }
  array.state = State::dying;
  array.kept = false;
  array.ttl_at = kNever;
  const ErrorCode code = array.aborted ? ErrorCode::aborted : ErrorCode::not_found;
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
      const Lease& lease = array.leases[i];
      if (lease.session == array.creator && lease.access == Access::write) end_lease(key, i);
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
  const bool mapped = lease.session != 0 && lease.access != Access::hold;
  if (mapped && lease.uid != array.owner) array.last_foreign = lease.uid;
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
      if (i >= array.leases.size() || array.leases[i].session != session) continue;
      if (array.leases[i].access == Access::exclusive) break_array(key);
      end_lease(key, i);
    }
  }
  sessions.erase(session);
  settle();
}

// Its exclusive holder went away.
void Store::break_array(Key key) {
  Array& array = arrays.at(key);
  if (array.state != State::mutable_ && array.state != State::broken) return;
  array.state = State::broken;
  if (array.named) event("broken", key);
}

// -- seal -----------------------------------------------------------------------------------------

void Store::begin_seal(Session session, Request request, Key key, bool hard,
                       std::int64_t deadline_at) {
  Array& array = arrays.at(key);
  const bool sealed = array.state == State::sealed;
  const bool opens = array.exposed || has(array.spec, kCreateHard);
  const Seal level = hard || opens ? Seal::hard : Seal::soft;
  if (!sealed && !may_publish(array)) return fail(request, ErrorCode::permission_denied);
  const bool upgrade = sealed && hard && array.seal == Seal::soft;
  if (level == Seal::hard && array.memory && (!sealed || upgrade)) {
    array.asking_kernel = true;
    array.sealer = session;
    array.seal_request = request;
    array.seal_hard = hard;
    array.seal_deadline = deadline_at;
    array.seal_cancelled = array.given_up = false;
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
  array.seals_sleep = array.frozen = false;
  Lease* writer = lease_of(session, key, Access::write);
  if (writer == nullptr) writer = lease_of(session, key, Access::exclusive);
  if (writer != nullptr) {
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
    const bool taken = array.state == State::draft && !may_publish(array);
    array.frozen = array.given_up || taken;
    if (!array.frozen) finish_seal(key, array.sealer, Seal::hard);
    if (array.frozen && array.seal_request != 0) {
      fail(array.seal_request, array.given_up ? ErrorCode::aborted : ErrorCode::permission_denied);
    } else if (array.seal_request != 0) {
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
    if (array.seal_request != 0 && array.seal_cancelled) {
      fail(array.seal_request, ErrorCode::aborted);
    } else if (array.seal_request != 0 && !array.seal_hard) {
      Answer answer;
      answer.kind = Kind::sealed;
      answer.array = key;
      answer.version = array.version;
      answer.seal = Seal::hard;
      answer.state = array.state;
      say(array.seal_request, answer);
    } else if (array.seal_request != 0 && array.seal_deadline > now) {
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

}  // namespace shmstore::model
