// Create: checks, charges, memory. Everything that can be refused is refused before anything is
// changed; charges are taken all or none; the draft exists from then on, but its creator is
// answered when the memory is there.
//
// Creates that wait for room stand in one queue per user. Whenever something is given back, the
// heads are tried in order of arrival; a head that does not fit holds up its own user only.
#include <cassert>
#include <utility>

#include "server/registry_impl.hpp"

namespace shmstore::server {
namespace {

constexpr auto kOp = protocol::Op::create;
// Waiting creates that one event serves: the memory of each takes about 0.3 ms. The rest comes with
// the next tick, which is due at once.
constexpr int kCreatesAtOnce = 16;
// The objects of a named array with one lease, their places in tables and lists, and what malloc
// adds, as measured (tests/unit/registry_create.cpp).
constexpr std::uint64_t kRecordBytes = 2'048;

Error invalid(std::string text) {
  return make_error(ErrorCode::invalid_argument, std::move(text));
}

bool has(const CreateSpec& spec, std::uint16_t option) {
  return (spec.options & option) != 0;
}

// A text that grew while it was made has up to twice the room that it needs.
void give_up_spare_room(CreateSpec& spec) {
  Dtype exact = spec.dtype;
  spec.dtype = std::move(exact);
  spec.name.name.shrink_to_fit();
  spec.attrs.shrink_to_fit();
  spec.shape.shrink_to_fit();
}

}  // namespace

// -- what can be wrong ----------------------------------------------------------------------------

std::optional<Error> Registry::Impl::check_create(const Session& session,
                                                  const CreateSpec& spec) const {
  if ((spec.options & ~protocol::kCreateOptions) != 0) return invalid("options: unknown bits");
  if ((spec.perms & ~kPermsMax) != 0) return invalid("perms: only bits of 0666 are allowed");
  if (has(spec, protocol::kCreateUnseen) && !has(spec, protocol::kCreateMutable)) {
    return invalid("options: only a mutable array waits to be published");
  }
  if (spec.name.name.empty()) {
    if (has(spec, protocol::kCreateKeep)) return invalid("keep: an anonymous array has no name");
    if (has(spec, protocol::kCreateReplace)) return invalid("replace: needs a name");
    if (has(spec, protocol::kCreateCached)) return invalid("cached: needs a name");
    return std::nullopt;
  }
  if (foreign(session.identity, spec.name.uid)) return denied(spec.name);
  if (has(spec, protocol::kCreateCached)) {
    if (std::optional<Error> error = check_loader(session, spec)) return error;
  }
  return check_clash(session, spec);
}

// Is the name free, or may it be replaced?
std::optional<Error> Registry::Impl::check_clash(const Session& session,
                                                 const CreateSpec& spec) const {
  const NameEntry* entry = find_entry(spec.name);
  if (entry == nullptr) return std::nullopt;
  const Array* there = entry->visible();
  const bool replace = has(spec, protocol::kCreateReplace);
  if (!replace) {
    const bool loaded = entry->loader != nullptr && entry->loader != &session;
    if (there == nullptr && !loaded) return std::nullopt;
    std::string text = "name: " + label(spec.name) + " exists already";
    if (there == nullptr) {
      text = "name: " + label(spec.name) + " is being loaded by " + named(entry->loader->identity);
    } else if (there->state == State::draft) {
      text = "name: " + not_ready(*there, 0);
    } else {
      text += "; replace=True publishes a new version of it";
    }
    return make_error(ErrorCode::already_exists, std::move(text));
  }
  if (there == nullptr) return std::nullopt;
  if (!owns(session.identity, *there)) return denied(*there, "replace");
  if (there->state == State::draft && !there->has_option(protocol::kCreateReplace)) {
    return make_error(ErrorCode::not_sealed,
                      "name: " + label(spec.name) + " is a draft made without replace");
  }
  return std::nullopt;
}

// -- charges --------------------------------------------------------------------------------------

std::uint64_t record_bytes(const CreateSpec& spec) {
  return kRecordBytes + spec.dtype.text().size() + spec.attrs.size() + 2 * spec.name.name.size() +
         spec.shape.size() * sizeof(std::uint64_t);
}

// Waiting would be in vain.
bool Registry::Impl::never_fits(std::uint32_t uid, const CreateSpec& spec) const {
  const std::uint64_t bytes = charge_of(spec.bytes) + record_bytes(spec);
  return bytes > quota.limits().capacity || bytes > quota.limit(uid, Resource::bytes) ||
         quota.limit(uid, Resource::arrays) == 0 || quota.limit(uid, Resource::leases) == 0;
}

bool Registry::never_fits(std::uint32_t uid, const CreateSpec& spec) const {
  return impl_->never_fits(uid, spec);
}

Result<void> Registry::Impl::charge_create(std::uint32_t uid, const CreateSpec& spec) {
  if (arrays.full()) return make_error(ErrorCode::no_capacity, "arrays: all ids are in use");
  Result<void> charged = quota.charge(uid, Resource::leases, 1);
  if (!charged) return charged;
  const std::uint64_t record = record_bytes(spec);
  const Holding holding{charge_of(spec.bytes) + record, 1, spec.bytes > 0 ? 1U : 0U};
  charged = quota.charge(uid, holding);
  if (charged) return charged;
  quota.uncharge(uid, Resource::leases, 1);
  Error error = charged.error();
  if (error.text.starts_with("bytes:")) {
    error.text += " (" + std::to_string(record) + " of it for the record: name, dtype, attrs)";
  } else if (error.text.starts_with("segments:")) {
    error.text += " (freed arrays that a process still maps count)";
  }
  return error;
}

void Registry::Impl::create(Session& session, RequestId request, CreateSpec spec) {
  give_up_spare_room(spec);
  spec.name = spec.name.name.empty() ? QualifiedName{session.identity.uid, {}}
                                     : resolve(session, spec.name);
  if (has(spec, protocol::kCreateCached)) spec.options |= protocol::kCreateKeep;
  std::optional<Error> error = check_create(session, spec);
  if (!error) error = check_work(session);
  if (error) return reply(session, request, kOp, *error);
  const std::uint32_t uid = session.identity.uid;
  const bool may_wait = spec.timeout_ms != 0 && !never_fits(uid, spec);
  const auto queue = create_queues.find(uid);
  const bool queued = queue != create_queues.end() && !queue->second.empty();
  std::string refusal = "others of this user wait before it";
  if (!(may_wait && queued)) {
    Result<void> charged = charge_create(uid, spec);
    if (charged) return make_array(session, request, std::move(spec));
    if (!may_wait) {
      const std::string text = charged.error().text;
      return reply(session, request, kOp,
                   make_error(charged.error().code, text + held_unread(uid, text)));
    }
    refusal = charged.error().text;
  }
  const std::int64_t deadline_ms = deadline_of(spec.timeout_ms);
  CreateJob job{std::move(spec), std::move(refusal)};
  if (Waiter* waiter = add_waiter(session, request, kOp, deadline_ms, std::move(job))) {
    create_queues[uid].push_back(*waiter);
  }
}

// -- making ---------------------------------------------------------------------------------------

// REQUIRES: checked and charged.
void Registry::Impl::make_array(Session& session, RequestId request, CreateSpec spec) {
  auto made = std::make_unique<Array>();
  Array& array = *made;
  array.id = arrays.insert(std::move(made));
  array.spec = std::move(spec);
  array.draft_seq = next_seq++;
  array.uid = array.charge_uid = session.identity.uid;
  array.gid = session.identity.gid;
  array.exposed = opens_to_others(array.spec.perms);
  array.creator = session.id;
  array.created_s = now.wall_s;
  if (array.spec.name.name.empty()) {
    anonymous[array.uid].insert(array.id.raw);
  } else {
    NameEntry& entry = make_entry(array.spec.name);
    array.entry = &entry;
    entry.drafts.emplace(array.draft_seq, &array);
    mark(entry, true);  // It may hide an older draft from who waits.
    if (array.has_option(protocol::kCreateCached)) entry.loader_draft = array.id;
  }
  array.charged = charge_of(array.spec.bytes);
  array.record = record_bytes(array.spec);
  record_total += array.record;
  add_lease(session, array, Access::write);
  array.creation = &add_work(session, request, kOp, AllocateJob{array.id});
  if (array.spec.bytes == 0) return ready(array);
  array.allocating = true;
  out->emplace_back(AllocateSegment{array.id, array.uid, array.spec.bytes});
}

// The memory is there: answer the creator, and publish a mutable array.
void Registry::Impl::ready(Array& array) {
  Waiter* creation = array.creation;
  assert(creation != nullptr);
  Session& session = *creation->session;
  const bool unseen = array.has_option(protocol::kCreateUnseen);
  if (array.has_option(protocol::kCreateMutable) && !unseen) {
    if (std::optional<Error> error = check_publish(array)) {
      answer(*creation, *error);
      return drop_unready(session, array);
    }
    publish(array, State::mutable_);
  }
  const RequestId request = creation->request;
  drop_waiter(*creation);
  grant(session, request, kOp, array, Access::write);
  if (!unseen) announce(array);
}

void Registry::Impl::announce(Array& array) {
  if (array.entry != nullptr) {
    array.announced = true;
    emit_event("created", array, *array.entry);
    mark(*array.entry, true);
  }
  array.wake_attach = true;
  mark(array);
}

// -- publishing what its creator has mapped -------------------------------------------------------

// An Array in the outcome: it is there, or may be now.
Outcome Registry::Impl::judge_publish(Session& session, ArrayId id) {
  Array* array = arrays.find(id);
  if (array == nullptr || find_lease(session, id, Access::write) == nullptr) {
    return no_lease(id, Access::write);
  }
  if (array->aborted) {
    return make_error(ErrorCode::aborted, "id: the draft was dropped by its creator");
  }
  if (array->state == State::dying) return not_found(id);
  if (!array->has_option(protocol::kCreateUnseen) || array->creator != session.id) {
    return invalid("publish: " + label(*array) + " was not made to be published by this session");
  }
  return array;
}

void Registry::Impl::publish(Session& session, RequestId request, ArrayId id) {
  constexpr auto kPublish = protocol::Op::publish;
  const Outcome outcome = judge_publish(session, id);
  if (const auto* error = std::get_if<Error>(&outcome)) {
    return reply(session, request, kPublish, *error);
  }
  Array& array = *std::get<Array*>(outcome);
  if (array.allocating || array.hard_seal) {
    return reply(session, request, kPublish,
                 invalid("publish: " + label(array) + " is being made or sealed"));
  }
  if (array.state == State::draft) {
    if (std::optional<Error> error = check_publish(array)) {
      return reply(session, request, kPublish, *error);
    }
    publish(array, State::mutable_);
    announce(array);
  }
  reply(session, request, kPublish, Sealed{id, array.version, array.seal, array.state});
}

// A draft that its creator never saw. A loader keeps its role: it may try again, or give it up.
void Registry::Impl::drop_unready(Session& session, Array& array) {
  NameEntry* entry = array.entry;
  if (entry != nullptr && entry->loader_draft == array.id) entry->loader_draft = ArrayId{};
  if (Lease* lease = find_lease(session, array.id, Access::write)) end_lease(*lease);
}

void Registry::Impl::segment_ready(ArrayId id, Result<SegmentId> segment) {
  Array* array = arrays.find(id);
  if (array != nullptr) forget_gone(*array);
  if (array == nullptr || !array->allocating) {
    if (segment) out->emplace_back(FreeSegment{*segment});
    return;
  }
  array->allocating = false;
  mark(*array);
  if (segment) {
    array->segment = *segment;
    if (array->state != State::dying) ready(*array);
    return;
  }
  quota.uncharge(array->charge_uid, Holding{std::exchange(array->charged, 0), 0, 1});
  room = true;
  if (array->state == State::dying) return;
  Session& session = *array->creation->session;
  answer(*array->creation, segment.error());
  drop_unready(session, *array);
}

void Registry::Impl::segment_freed(SegmentId segment) {
  const auto found = pinned.find(segment);
  if (found == pinned.end()) return;
  quota.uncharge(found->second.uid, Holding{found->second.bytes, 0, 1});
  pinned_bytes -= found->second.bytes;
  pinned.erase(found);
  room = true;
}

// The kernel tells that somebody has it, not who. The owner cannot make others let go, and has no
// use for what he has freed; whoever opens another's array answers for it until it is gone.
void Registry::Impl::segment_pinned(SegmentId segment) {
  const auto found = pinned.find(segment);
  if (found == pinned.end() || !found->second.last_foreign) return;
  PinnedSegment& memory = found->second;
  quota.move(memory.uid, *memory.last_foreign, Holding{memory.bytes, 0, 1});
  memory.uid = *memory.last_foreign;
  memory.last_foreign.reset();
  room = true;
}

// -- waiting for room -----------------------------------------------------------------------------

void Registry::Impl::retry_creates() {
  if (creates_left_over) return;           // Until tick().
  std::map<std::uint64_t, Waiter*> heads;  // By arrival.
  for (auto queue = create_queues.begin(); queue != create_queues.end();) {
    Waiter* head = queue->second.first();
    if (head != nullptr) heads.emplace(head->seq, head);
    queue = head == nullptr ? create_queues.erase(queue) : std::next(queue);
  }
  for (int served = 0; !heads.empty(); ++served) {
    if (served == kCreatesAtOnce) {
      creates_left_over = true;
      return;
    }
    Waiter* head = heads.begin()->second;
    heads.erase(heads.begin());
    LinkedList<Waiter>& queue = *head->home;
    if (!retry_create(*head)) continue;
    if (Waiter* next = queue.first()) heads.emplace(next->seq, next);
  }
}

// False: still no room, the waiter stays.
bool Registry::Impl::retry_create(Waiter& waiter) {
  Session& session = *waiter.session;
  CreateJob& job = std::get<CreateJob>(waiter.job);
  // What a gone session left is in nobody's way: that is settled first, then it is asked again.
  if (!gone.empty() && forget_gone(job.spec.name)) {
    room = true;
    return false;
  }
  if (std::optional<Error> error = check_create(session, job.spec)) {
    answer(waiter, *error);
    return true;
  }
  Result<void> charged = charge_create(session.identity.uid, job.spec);
  if (!charged) {
    job.refusal = charged.error().text;
    return false;
  }
  CreateSpec spec = std::move(job.spec);
  const RequestId request = waiter.request;
  drop_waiter(waiter);
  make_array(session, request, std::move(spec));
  return true;
}

}  // namespace shmstore::server
