// Leases: what a session holds, how often, and who pays. Write leases stand first in an array's
// list, so that "who still writes" looks at writers only.
#include <algorithm>
#include <cassert>

#include "server/registry_impl.hpp"

namespace shmstore::server {
namespace {

bool maps(const Lease& lease) {
  return lease.session != nullptr && lease.access != Access::hold;
}

}  // namespace

// Narrower rights may take a holder out of the owner's way, wider ones put none into it: somebody
// may have exclusive access by now.
void Registry::Impl::recount_blocks(Array& array) {
  for (Lease* lease = array.leases.first(); lease != nullptr; lease = lease->next) {
    if (!lease->blocks || writes(lease->access)) continue;
    if (may(lease->session->identity, array, Access::write)) continue;
    lease->blocks = false;
    --array.block_count;
  }
  array.wake_line = true;
}

Error no_lease(ArrayId id, Access access) {
  return make_error(ErrorCode::invalid_argument, "id: this session has no lease '" +
                                                     std::string(to_string(access)) +
                                                     "' on array " + std::to_string(id.raw));
}

Lease* Registry::Impl::find_lease(Session& session, ArrayId id, Access access) {
  const auto found = session.leases.find({id.raw, access});
  return found == session.leases.end() ? nullptr : found->second.get();
}

bool Registry::Impl::holds(const Session& session, ArrayId id) {
  return session.leases.contains({id.raw, Access::read}) ||
         session.leases.contains({id.raw, Access::write}) ||
         session.leases.contains({id.raw, Access::copy}) ||
         session.leases.contains({id.raw, Access::exclusive}) ||
         session.leases.contains({id.raw, Access::hold});
}

void Registry::Impl::link(Lease& lease) {
  Array& array = *lease.array;
  if (writes(lease.access)) {
    array.leases.push_front(lease);
    ++array.writer_count;
    array.exposed = array.exposed || lease.uid != array.uid;
  } else {
    array.leases.push_back(lease);
  }
  if (lease.access == Access::exclusive) array.exclusive = &lease;
  lease.blocks =
      maps(lease) && (writes(lease.access) || may(lease.session->identity, array, Access::write));
  if (lease.blocks) ++array.block_count;
  ++array.lease_count;
  ++lease_total;
  if (lease.uid == array.charge_uid) ++array.charge_leases;
}

void Registry::Impl::unlink(Lease& lease) {
  Array& array = *lease.array;
  array.leases.remove(lease);
  if (writes(lease.access)) --array.writer_count;
  if (lease.access == Access::exclusive) array.exclusive = nullptr;
  if (lease.blocks) {
    --array.block_count;
    array.wake_line = true;
    mark(array);
  }
  --array.lease_count;
  --lease_total;
  if (lease.uid == array.charge_uid) --array.charge_leases;
}

// The session's lease, made and paid for if it has none. Adds no grant.
Result<Lease*> Registry::Impl::take_lease(Session& session, Array& array, Access access) {
  if (Lease* lease = find_lease(session, array.id, access)) return lease;
  Result<void> charged = quota.charge(session.identity.uid, Resource::leases, 1);
  if (!charged) return charged.error();
  return &add_lease(session, array, access);
}

// REQUIRES: charged for.
Lease& Registry::Impl::add_lease(Session& session, Array& array, Access access) {
  auto lease = std::make_unique<Lease>();
  lease->session = &session;
  lease->array = &array;
  lease->access = access;
  lease->uid = session.identity.uid;
  lease->since_s = now.wall_s;
  link(*lease);
  Lease& added = *lease;
  session.leases.emplace(LeaseKey{array.id.raw, access}, std::move(lease));
  return added;
}

// Ends a session's lease with all its grants. The creator's write lease takes an unsealed draft
// with it.
void Registry::Impl::end_lease(Lease& lease) {
  Array& array = *lease.array;
  Session& session = *lease.session;
  const bool wrote = lease.access == Access::write;
  if (!session.gone) quota.uncharge(lease.uid, Resource::leases, 1);
  if (maps(lease) && lease.uid != array.uid) array.last_foreign = lease.uid;
  unlink(lease);
  session.leases.erase({array.id.raw, lease.access});
  room = true;
  if (wrote && array.state == State::draft && array.creator == session.id) make_dying(array);
  array.wake_seal = true;
  settle_charge(array);
  mark(array);
}

// A sealed array has no writers: the write lease goes on as the read lease. Its read-only
// descriptor has yet to be sent, unless the session read the array before.
void Registry::Impl::demote(Session& session, Array& array) {
  Lease* writer = find_lease(session, array.id, Access::write);
  if (writer == nullptr) writer = find_lease(session, array.id, Access::exclusive);
  if (writer == nullptr) return;
  if (Lease* reader = find_lease(session, array.id, Access::read)) {
    reader->grants += writer->grants;
    end_lease(*writer);
    return;
  }
  auto node = session.leases.extract({array.id.raw, writer->access});
  unlink(*writer);
  writer->access = Access::read;
  writer->descriptor_sent = false;
  link(*writer);
  node.key() = {array.id.raw, Access::read};
  session.leases.insert(std::move(node));
}

// Answers a request with a lease on the array, or with the quota that is in the way.
void Registry::Impl::grant(Session& session, RequestId request, protocol::Op op, Array& array,
                           Access access) {
  Result<Lease*> taken = take_lease(session, array, access);
  if (!taken) return reply(session, request, op, taken.error());
  Lease& lease = **taken;
  ++lease.grants;
  const bool send = !lease.descriptor_sent && array.spec.bytes > 0 && access != Access::hold;
  lease.descriptor_sent = lease.descriptor_sent || send;
  reply(session, request, op, Grant{array.id, access, send});
}

void Registry::Impl::segment(Session& session, RequestId request, ArrayId id, Access access) {
  Lease* lease = find_lease(session, id, access);
  if (lease == nullptr) return reply(session, request, protocol::Op::segment, no_lease(id, access));
  const Array& array = *lease->array;
  if (array.aborted) {
    return reply(session, request, protocol::Op::segment,
                 make_error(ErrorCode::aborted, "id: the draft was dropped by its creator"));
  }
  const bool send = array.spec.bytes > 0 && access != Access::hold;
  lease->descriptor_sent = lease->descriptor_sent || send;
  reply(session, request, protocol::Op::segment, Grant{id, access, send});
}

void Registry::Impl::release(Session& session, RequestId request, ArrayId id, Access access,
                             std::uint32_t grants) {
  Lease* lease = find_lease(session, id, access);
  if (lease == nullptr) return reply(session, request, protocol::Op::release, no_lease(id, access));
  if (grants == 0 || grants > lease->grants) {
    return reply(session, request, protocol::Op::release,
                 make_error(ErrorCode::invalid_argument,
                            "grants: " + std::to_string(grants) + " given back, " +
                                std::to_string(lease->grants) + " held"));
  }
  lease->grants -= grants;
  if (lease->grants == 0) {
    if (access == Access::exclusive) mend(*lease->array);
    end_lease(*lease);
  }
  reply(session, request, protocol::Op::release, Done{});
}

// What a dying array takes is paid by somebody who still holds it: its owner cannot get rid of
// what others keep. Looks through the holders only when the payer's last lease has gone.
void Registry::Impl::settle_charge(Array& array) {
  if (array.state != State::dying || array.charge_leases > 0 || array.lease_count == 0) return;
  const std::uint32_t heir = array.leases.first()->uid;
  quota.move(array.charge_uid, heir, array.holding());
  array.charge_uid = heir;
  for (const Lease* lease = array.leases.first(); lease != nullptr; lease = lease->next) {
    if (lease->uid == heir) ++array.charge_leases;
  }
  room = true;
}

}  // namespace shmstore::server
