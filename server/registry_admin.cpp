// Admin requests on one array: answered by their result, at once.
#include "server/registry_impl.hpp"

namespace shmstore::server {
namespace {

Error unknown_session() {
  return make_error(ErrorCode::internal, "no such session");
}

Error not_sealed(const Array& array, std::string_view what) {
  return make_error(ErrorCode::not_sealed,
                    std::string(what) + ": " + label(array) + " is a draft, not sealed");
}

}  // namespace

// Looks at what is there once all sessions that are gone have ended.
Result<Array*> Registry::Impl::look_at(SessionId session, const Target& target, Now at,
                                       Effects& effects) {
  begin(at, effects);
  const Session* caller = find_session(session);
  if (caller != nullptr) catch_up(*caller, target);
  settle();
  if (caller == nullptr) return unknown_session();
  return find_target(*caller, target, Access::read);
}

Result<ArrayView> Registry::info(SessionId session, const Target& target, Now now,
                                 Effects& effects) {
  const Result<Array*> array = impl_->look_at(session, target, now, effects);
  if (!array) return array.error();
  return impl_->view(**array, now.boot_ms);
}

Result<HolderPage> Registry::holders(SessionId session, const Target& target, Now now,
                                     std::size_t limit, Effects& effects) {
  const Result<Array*> array = impl_->look_at(session, target, now, effects);
  if (!array) return array.error();
  HolderPage page;
  for (const Lease* lease = (*array)->leases.first(); lease != nullptr; lease = lease->next) {
    if (page.holders.size() >= limit) break;
    if (lease->session == nullptr) continue;
    HolderView holder;
    holder.pid = lease->session->identity.pid;
    holder.command = lease->session->identity.command;
    holder.uid = lease->uid;
    holder.access = lease->access;
    holder.since_s = lease->since_s;
    page.holders.push_back(std::move(holder));
  }
  page.leases = (*array)->lease_count - (*array)->handovers.size() - (*array)->handles.size();
  Impl::list_handovers(**array, limit, page);
  return page;
}

Result<Array*> Registry::Impl::find_mine(SessionId session, const Target& target,
                                         std::string_view what) {
  const Session* caller = find_session(session);
  if (caller == nullptr) return unknown_session();
  catch_up(*caller, target);
  return find_owned(*caller, target, what);
}

Result<Array*> Registry::Impl::find_published(SessionId session, const Target& target,
                                              std::string_view what) {
  Result<Array*> array = find_mine(session, target, what);
  if (array && (*array)->state == State::draft) return not_sealed(**array, what);
  return array;
}

Result<ArrayView> Registry::keep(SessionId session, const Target& target,
                                 std::optional<std::uint64_t> ttl_ms, Now now, Effects& effects) {
  impl_->begin(now, effects);
  const auto keep_it = [&]() -> Result<ArrayView> {
    Result<Array*> found = impl_->find_published(session, target, "keep");
    if (!found) return found.error();
    Array& array = **found;
    if (array.entry == nullptr) {
      return make_error(ErrorCode::invalid_argument, "keep: an anonymous array has no name");
    }
    array.kept = true;
    impl_->set_ttl(array, ttl_ms.value_or(0));
    impl_->emit_event("kept", array, *array.entry);
    return impl_->view(array, now.boot_ms);
  };
  Result<ArrayView> result = keep_it();
  impl_->settle();
  return result;
}

Result<void> Registry::unkeep(SessionId session, const Target& target, Now now, Effects& effects) {
  impl_->begin(now, effects);
  Result<Array*> found = impl_->find_published(session, target, "unkeep");
  if (found) {
    Array& array = **found;
    impl_->clear_ttl(array);
    if (array.kept) impl_->emit_event("unkept", array, *array.entry);
    array.kept = false;
    impl_->mark(array);
  }
  impl_->settle();
  return found ? Result<void>() : Result<void>(found.error());
}

Result<void> Registry::remove(SessionId session, const Target& target, Now now, Effects& effects) {
  impl_->begin(now, effects);
  Result<Array*> found = impl_->find_mine(session, target, "delete");
  if (found) impl_->make_dying(**found);
  impl_->settle();
  return found ? Result<void>() : Result<void>(found.error());
}

// Narrowing only takes away. Widening lets other users in, who must find memory that nobody can
// change behind their backs, or that everybody knows to change.
Result<ArrayView> Registry::chmod(SessionId session, const Target& target, std::uint16_t perms,
                                  Now now, Effects& effects) {
  impl_->begin(now, effects);
  const auto change = [&]() -> Result<ArrayView> {
    if ((perms & ~kPermsMax) != 0) {
      return make_error(ErrorCode::invalid_argument, "perms: only bits of 0666 are allowed");
    }
    Result<Array*> found = impl_->find_mine(session, target, "chmod");
    if (!found) return found.error();
    Array& array = **found;
    const bool wider = opens_to_others(perms & ~array.spec.perms);
    const bool safe = array.seal == Seal::hard || array.state == State::mutable_;
    if (wider && !safe) {
      return make_error(ErrorCode::invalid_argument,
                        "perms: only a hard-sealed or a mutable array can be opened to others, " +
                            label(array) + " is neither");
    }
    array.spec.perms = perms;
    array.exposed = array.exposed || opens_to_others(perms);
    array.wake_attach = true;  // Who waits may have lost the right to.
    impl_->recount_blocks(array);
    impl_->mark(array);
    if (array.entry != nullptr) impl_->mark(*array.entry, true);
    return impl_->view(array, now.boot_ms);
  };
  Result<ArrayView> result = change();
  impl_->settle();
  return result;
}

}  // namespace shmstore::server
