// The frame of every call, sessions, and looking without side effects. The public functions run one
// operation of Impl each, then settle(); the operations themselves live one per file.
#include "server/registry.hpp"

#include <algorithm>
#include <cassert>

#include "server/registry_impl.hpp"

namespace shmstore::server {

Registry::Registry(const Limits& limits) : impl_(std::make_unique<Impl>(limits)) {}
Registry::~Registry() = default;

// -- frame ----------------------------------------------------------------------------------------

void Registry::Impl::begin(Now at, Effects& effects) {
  now = at;
  out = &effects;
}

void Registry::Impl::settle() {
  settle_marked();
  out = nullptr;
}

// Names come first: whoever waits for an array by name is answered before its memory may go.
void Registry::Impl::settle_marked() {
  while (true) {
    if (!marked_names.empty()) {
      NameEntry* entry = marked_names.back();
      marked_names.pop_back();
      settle_name(*entry);
    } else if (!marked_arrays.empty()) {
      const ArrayId id = marked_arrays.back();
      marked_arrays.pop_back();
      if (Array* array = arrays.find(id)) settle_array(*array);
    } else if (!marked_seals.empty()) {
      const auto found = waiters.find(*marked_seals.begin());
      marked_seals.erase(marked_seals.begin());
      if (found != waiters.end()) retry_seal(*found->second);
    } else if (room) {
      room = false;
      retry_creates();
    } else {
      break;
    }
  }
}

Session* Registry::Impl::find_session(SessionId id) {
  const auto found = sessions.find(id);
  return found == sessions.end() || found->second->gone ? nullptr : found->second.get();
}

const Session* Registry::Impl::find_session(SessionId id) const {
  const auto found = sessions.find(id);
  return found == sessions.end() || found->second->gone ? nullptr : found->second.get();
}

Array& Registry::Impl::at(ArrayId id) {
  Array* array = arrays.find(id);
  assert(array != nullptr);
  return *array;
}

void Registry::Impl::reply(const Session& session, RequestId request, protocol::Op op,
                           decltype(Completion::result) result) {
  out->emplace_back(Completion{session.id, request, op, std::move(result)});
}

void Registry::Impl::emit_event(std::string_view event, const Array& array,
                                const NameEntry& entry) {
  out->emplace_back(EventRecord{event, entry.uid, array.uid, array.gid, array.spec.perms,
                                std::string(entry.name), array.id, array.version, array.state});
}

// -- sessions -------------------------------------------------------------------------------------

Result<void> Registry::open_session(SessionId session, Identity identity) {
  Result<void> charged = impl_->quota.charge(identity.uid, Resource::connections, 1);
  if (!charged) return charged;
  auto opened = std::make_unique<Session>();
  opened->id = session;
  opened->identity = std::move(identity);
  impl_->sessions.insert_or_assign(session, std::move(opened));
  return {};
}

// -- requests -------------------------------------------------------------------------------------

void Registry::create(SessionId session, RequestId request, CreateSpec spec, Now now,
                      Effects& effects) {
  impl_->run(session, request, protocol::Op::create, now, effects, spec.name,
             [&](Session& caller) { impl_->create(caller, request, std::move(spec)); });
}

void Registry::publish(SessionId session, RequestId request, ArrayId id, Now now,
                       Effects& effects) {
  impl_->run(session, request, protocol::Op::publish, now, effects, id,
             [&](Session& caller) { impl_->publish(caller, request, id); });
}

void Registry::seal(SessionId session, RequestId request, ArrayId id, bool hard,
                    std::int64_t wait_ms, Now now, Effects& effects) {
  impl_->run(session, request, protocol::Op::seal, now, effects, id,
             [&](Session& caller) { impl_->seal(caller, request, id, hard, wait_ms); });
}

void Registry::attach(SessionId session, RequestId request, const AttachSpec& spec, Now now,
                      Effects& effects) {
  impl_->run(session, request, protocol::Op::attach, now, effects, spec,
             [&](Session& caller) { impl_->attach(caller, request, spec); });
}

void Registry::segment(SessionId session, RequestId request, ArrayId id, Access access, Now now,
                       Effects& effects) {
  impl_->run(session, request, protocol::Op::segment, now, effects, id,
             [&](Session& caller) { impl_->segment(caller, request, id, access); });
}

void Registry::release(SessionId session, RequestId request, ArrayId id, Access access,
                       std::uint32_t grants, Now now, Effects& effects) {
  impl_->run(session, request, protocol::Op::release, now, effects, id,
             [&](Session& caller) { impl_->release(caller, request, id, access, grants); });
}

void Registry::cached(SessionId session, RequestId request, const QualifiedName& name,
                      std::int64_t timeout_ms, Now now, Effects& effects) {
  impl_->run(session, request, protocol::Op::cached, now, effects, name,
             [&](Session& caller) { impl_->cached(caller, request, name, timeout_ms); });
}

void Registry::wait(SessionId session, RequestId request, const QualifiedName& name,
                    std::uint64_t newer_than, std::int64_t timeout_ms, Now now, Effects& effects) {
  impl_->run(session, request, protocol::Op::wait, now, effects, name,
             [&](Session& caller) { impl_->wait(caller, request, name, newer_than, timeout_ms); });
}

void Registry::cancel(SessionId session, RequestId request, RequestId target, Now now,
                      Effects& effects) {
  impl_->run(session, request, protocol::Op::cancel, now, effects, ArrayId{},
             [&](Session& caller) { impl_->cancel(caller, request, target); });
}

void Registry::abort(SessionId session, RequestId request, const Target& target, Now now,
                     Effects& effects) {
  impl_->run(session, request, protocol::Op::abort, now, effects, target,
             [&](Session& caller) { impl_->abort(caller, request, target); });
}

void Registry::handover(SessionId session, RequestId request, ArrayId id, std::uint64_t grace_ms,
                        bool once, Now now, Effects& effects) {
  impl_->run(session, request, protocol::Op::handover, now, effects, id,
             [&](Session& caller) { impl_->handover(caller, request, id, grace_ms, once); });
}

void Registry::received(SessionId session, RequestId request, ArrayId id, std::uint64_t handle,
                        Now now, Effects& effects) {
  impl_->run(session, request, protocol::Op::received, now, effects, id,
             [&](Session& caller) { impl_->received(caller, request, id, handle); });
}

// -- answers to effects, time ---------------------------------------------------------------------

void Registry::segment_ready(ArrayId id, Result<SegmentId> segment, Now now, Effects& effects) {
  impl_->begin(now, effects);
  impl_->segment_ready(id, std::move(segment));
  impl_->settle();
}

void Registry::hard_sealed(ArrayId id, const Result<void>& result, Now now, Effects& effects) {
  impl_->begin(now, effects);
  impl_->hard_sealed(id, result);
  impl_->settle();
}

void Registry::segment_freed(SegmentId segment, Now now, Effects& effects) {
  impl_->begin(now, effects);
  impl_->segment_freed(segment);
  impl_->settle();
}

void Registry::segment_pinned(SegmentId segment, Now now, Effects& effects) {
  impl_->begin(now, effects);
  impl_->segment_pinned(segment);
  impl_->settle();
}

void Registry::tick(Now now, Effects& effects) {
  impl_->begin(now, effects);
  impl_->tick();
  impl_->settle();
}

std::optional<std::int64_t> Registry::next_deadline_ms() const {
  if (impl_->creates_left_over) return 0;
  if (impl_->timers.empty()) return std::nullopt;
  return impl_->timers.begin()->at_ms;
}

// -- looking --------------------------------------------------------------------------------------

ArrayView Registry::Impl::view(const Array& array, std::int64_t boot_ms) const {
  ArrayView view;
  view.id = array.id;
  view.ns_uid = array.spec.name.uid;
  if (array.entry != nullptr) view.name = array.entry->name;
  view.dtype = array.spec.dtype.text();
  view.shape = array.spec.shape;
  view.attrs = array.spec.attrs;
  view.order = array.spec.order;
  view.bytes = array.spec.bytes;
  view.segment = array.segment;
  view.state = array.state;
  view.seal = array.seal;
  view.version = array.version;
  view.perms = array.spec.perms;
  view.uid = array.uid;
  view.gid = array.gid;
  view.leases = array.lease_count;
  view.kept = array.kept;
  view.hard = needs_hard(array, false);
  if (array.ttl_deadline_ms != kNever) {
    view.ttl_left_ms = std::max<std::int64_t>(0, array.ttl_deadline_ms - boot_ms);
  }
  view.created_s = array.created_s;
  view.sealed_s = array.sealed_s;
  view.in_flight = array.handles.size();
  for (const auto& lease : array.handovers) view.in_flight += in_flight(*lease);
  view.broken = array.broken;
  return view;
}

std::optional<ArrayView> Registry::find(ArrayId id) const {
  const Array* array = impl_->arrays.find(id);
  if (array == nullptr) return std::nullopt;
  return impl_->view(*array, impl_->now.boot_ms);
}

const Identity* Registry::identity(SessionId session) const {
  const Session* found = impl_->find_session(session);
  return found == nullptr ? nullptr : &found->identity;
}

RegistryCounts Registry::counts() const {
  return {impl_->arrays.size(),         impl_->sessions.size() - impl_->gone.size(),
          impl_->lease_total,           impl_->waiters.size(),
          impl_->pinned_bytes,          impl_->pinned.size(),
          impl_->quota.segments_used(), impl_->record_total};
}

Quota& Registry::quota() {
  return impl_->quota;
}
const Quota& Registry::quota() const {
  return impl_->quota;
}
std::vector<std::string> Registry::selfcheck() const {
  return impl_->selfcheck();
}

}  // namespace shmstore::server
