// What requests do, and answers from the world outside.
#include "tests/unit/model_store.hpp"

#include <algorithm>

namespace shmstore::model {

using namespace shmstore::protocol;

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
    Lease fresh{session, sessions.at(session).uid, access};
    fresh.blocks = writes(access) || may(session, array, Access::write);
    const auto place = writes(access) ? array.leases.begin() : array.leases.end();
    lease = &*array.leases.insert(place, fresh);
    array.exposed = array.exposed || (writes(access) && fresh.uid != array.owner);
  }
  ++lease->grants;
  Answer answer;
  answer.kind = Kind::grant;
  answer.array = key;
  answer.access = access;
  answer.descriptor = !lease->sent && array.spec.bytes > 0 && access != Access::hold;
  lease->sent = lease->sent || answer.descriptor;
  say(request, answer);
}

void Store::open_handle(const Wait& wait, Key key) {
  const Uid uid = sessions.at(wait.session).uid;
  if (wait.handle == 0 && wait.renew) return open_common_handle(uid, key);
  for (Lease& lease : arrays.at(key).leases) {
    const bool it = wait.handle != 0 && lease.handle == wait.handle && lease.uid == uid;
    if (it) lease.deadline = std::max(lease.deadline, now + lease.grace);
  }
}

void Store::open_common_handle(Uid uid, Key key) {
  Lease* whose = nullptr;
  for (Lease& lease : arrays.at(key).leases) {
    if (lease.session != 0 || lease.handle != 0) continue;
    lease.deadline = std::max(lease.deadline, now + lease.grace);
    const bool better = whose == nullptr || whose->uid != uid;
    if (lease.on_the_way > 0 && better) whose = &lease;
  }
  if (whose != nullptr) --whose->on_the_way;
}

void Store::received(Session session, Request request, Key key, std::uint64_t handle) {
  if (!arrays.contains(key) || !holds(session, key)) {
    fail(request, ErrorCode::invalid_argument);
    return settle();
  }
  std::vector<Lease>& leases = arrays.at(key).leases;
  const auto found = std::find_if(leases.begin(), leases.end(), [&](const Lease& lease) {
    return handle != 0 && lease.handle == handle && lease.uid == sessions.at(session).uid;
  });
  if (found != leases.end()) end_lease(key, static_cast<std::size_t>(found - leases.begin()));
  say(request, {});
  settle();
}

void Store::perform(const Wait& wait, Key key) {
  if (wait.on == Wait::On::attach) {
    open_handle(wait, key);
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
    fail(wait.request, verdict.turn ? ErrorCode::busy : at_once);
  } else {
    waits.push_back(wait);
    waits.back().asked = true;
    waits.back().in_line = waits.back().stood = verdict.turn;
  }
  settle();
}

void Store::attach(Session session, Request id, Key array, Name name, Access access,
                   std::uint64_t newer_than, std::int64_t timeout_ms, bool renew, bool repair,
                   std::uint64_t handle) {
  if ((repair && access != Access::exclusive) || (array != -1 && newer_than > 0)) {
    fail(id, ErrorCode::invalid_argument);
    return settle();
  }
  Wait wait{id, session, Wait::On::attach, deadline(timeout_ms), std::move(name), array, access};
  wait.newer_than = newer_than;
  wait.renew = renew;
  wait.repair = repair;
  wait.handle = handle;
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
  array.exposed = (spec.perms & 077) != 0;
  array.creator = session;
  array.creation = request;
  array.charged = server::charge_of(spec.bytes);
  array.leases.push_back({session, array.owner, Access::write});
  array.leases.back().blocks = true;
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
  const bool unseen = has(array.spec, kCreateUnseen);
  if (has(array.spec, kCreateMutable) && !unseen) {
    if (!may_publish(array)) {
      fail(request, ErrorCode::permission_denied);
      return drop_unready(key);
    }
    publish(key, State::mutable_);
  }
  grant(array.creator, request, key, Access::write);
  if (!unseen) announce(key);
}

void Store::announce(Key key) {
  Array& array = arrays.at(key);
  array.announced = array.named;
  if (array.named) event("created", key);
}

void Store::publish(Session session, Request request, Key key) {
  const auto refused = [&]() -> std::optional<ErrorCode> {
    if (lease_of(session, key, Access::write) == nullptr) return ErrorCode::invalid_argument;
    const Array& array = arrays.at(key);
    if (array.aborted) return ErrorCode::aborted;
    if (array.state == State::dying) return ErrorCode::not_found;
    const bool own = has(array.spec, kCreateUnseen) && array.creator == session;
    if (!own || array.allocating || array.asking_kernel) return ErrorCode::invalid_argument;
    const bool denied = array.state == State::draft && !may_publish(array);
    return denied ? std::optional(ErrorCode::permission_denied) : std::nullopt;
  }();
  if (refused) {
    fail(request, *refused);
    return settle();
  }
  Array& array = arrays.at(key);
  if (array.state == State::draft) {
    publish(key, State::mutable_);
    announce(key);
  }
  Answer answer;
  answer.kind = Kind::sealed;
  answer.array = key;
  answer.version = array.version;
  answer.seal = array.seal;
  answer.state = array.state;
  say(request, answer);
  settle();
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
    answer.descriptor = arrays.at(key).spec.bytes > 0 && access != Access::hold;
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
    Array& array = arrays.at(key);
    if (access == Access::exclusive && array.state == State::broken) {
      array.state = State::mutable_;
      if (array.named) event("repaired", key);
    }
    end_lease(key, static_cast<std::size_t>(lease - arrays.at(key).leases.data()));
  }
  say(request, {});
  settle();
}

void Store::handover(Session session, Request request, Key key, std::uint64_t grace_ms, bool once) {
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
  auto lease = std::find_if(array.leases.begin(), array.leases.end(), [&](const Lease& one) {
    return !once && one.session == 0 && one.uid == uid && one.handle == 0;
  });
  if (lease == array.leases.end()) {
    lease = array.leases.insert(array.leases.end(), Lease{0, uid, Access::read});
    if (once) lease->handle = ++array.last_handle;
  }
  const auto grace = static_cast<std::int64_t>(grace_ms == 0 ? kGraceMsDefault : grace_ms);
  lease->grace = std::max(lease->grace, grace);
  lease->deadline = std::max(lease->deadline, now + lease->grace);
  ++lease->on_the_way;
  Answer answer;
  if (once) answer.kind = Kind::handed_over;
  answer.handle = lease->handle;
  say(request, answer);
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
      array.seal_cancelled = true;
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
  if (Lease* alone = lease_of(session, key, Access::exclusive)) {
    found->second.given_up = true;
    break_array(key);
    end_lease(key, static_cast<std::size_t>(alone - found->second.leases.data()));
    say(request, {});
    return settle();
  }
  const auto refused = [&]() -> std::optional<ErrorCode> {
    if (found == arrays.end()) return ErrorCode::not_found;
    const Array& array = found->second;
    if (!owns(session, array)) return denied(session, array, true);
    if (array.state == State::dying && !array.aborted) return ErrorCode::not_found;
    // A maker that did not hear of the publishing lets go.
    const bool made_here = has(array.spec, kCreateUnseen) && array.creator == session;
    if (made_here && array.state == State::mutable_) return std::nullopt;
    const bool complete = array.state != State::draft && array.state != State::dying;
    return complete ? std::optional(ErrorCode::invalid_argument) : std::nullopt;
  }();
  if (refused) {
    fail(request, *refused);
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
  if (!owns(session, arrays.at(key))) return denied(session, arrays.at(key), !by_name);
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
      array.exposed = array.exposed || (perms & 077) != 0;
      for (Lease& lease : array.leases) {
        if (lease.session == 0 || writes(lease.access)) continue;
        lease.blocks = lease.blocks && may(lease.session, array, Access::write);
      }
    }
  }
  settle();
  return code;
}

std::optional<ErrorCode> Store::info(Session session, Key key, const Name& name) {
  const bool by_name = key == -1;
  if (by_name) {
    key = visible(name);
    if (key < 0) {
      return foreign(session, name) ? ErrorCode::permission_denied : ErrorCode::not_found;
    }
  }
  if (!arrays.contains(key)) return ErrorCode::not_found;
  const bool readable = may(session, arrays.at(key), Access::read);
  return readable ? std::nullopt : std::optional(denied(session, arrays.at(key), !by_name));
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

}  // namespace shmstore::model
