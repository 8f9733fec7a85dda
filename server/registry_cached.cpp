// cached(key): the array, or the role of its loader, or a wait. A name has at most one loader, and
// the role is a session's: it ends when the loader's draft is sealed, when that draft or the role
// is given up, and when the session ends. Then the first of those who wait in `cached` gets it.
#include "server/registry_impl.hpp"

namespace shmstore::server {
namespace {

constexpr auto kOp = protocol::Op::cached;

}  // namespace

// An Array in the outcome: attach it; a null one: load it.
Outcome Registry::Impl::try_cached(const Session& session, const QualifiedName& name,
                                   std::uint64_t seq) const {
  const Identity& who = session.identity;
  const NameEntry* entry = find_entry(name);
  Array* array = entry == nullptr ? nullptr : entry->visible();
  if (array != nullptr && !may(who, *array, Access::read)) return denied(name);
  if (array != nullptr && array->state == State::broken) return broken(*array);
  if (array != nullptr && array->state == State::mutable_) {
    return by_turn(session, *array, Access::read, seq);
  }
  if (array != nullptr && array->state != State::draft) return array;
  if (array != nullptr) return MustWait{};
  if (foreign(who, name.uid)) return denied(name);
  if (entry != nullptr && entry->loader != nullptr) return MustWait{};
  return static_cast<Array*>(nullptr);
}

void Registry::Impl::cached(Session& session, RequestId request, const QualifiedName& asked,
                            std::int64_t timeout_ms) {
  const QualifiedName name = resolve(session, asked);
  const Outcome outcome = try_cached(session, name);
  if (const auto* error = std::get_if<Error>(&outcome)) {
    reply(session, request, kOp, *error);
  } else if (Array* const* array = std::get_if<Array*>(&outcome)) {
    if (*array != nullptr) return grant(session, request, kOp, **array, Access::read);
    if (std::optional<Error> many = take_role(session)) {
      return reply(session, request, kOp, *many);
    }
    become_loader(session, make_entry(name));
    reply(session, request, kOp, LoaderRole{});
  } else if (Array* line = std::get<MustWait>(outcome).line; timeout_ms == 0) {
    reply(session, request, kOp,
          line != nullptr ? held(*line, session) : timed_out(not_ready(name, 0)));
  } else if (Waiter* waiter =
                 add_waiter(session, request, kOp, deadline_of(timeout_ms), CachedJob{})) {
    stand_in_line(*waiter, line);
    wait_on_name(*waiter, make_entry(name));
  }
}

void Registry::Impl::retry_cached(Waiter& waiter, NameEntry& entry, const QualifiedName& name) {
  Session& session = *waiter.session;
  const Outcome outcome = try_cached(session, name, waiter.seq);
  if (const auto* wait = std::get_if<MustWait>(&outcome)) return stand_in_line(waiter, wait->line);
  if (const auto* error = std::get_if<Error>(&outcome)) return answer(waiter, *error);
  Array* array = std::get<Array*>(outcome);
  if (array == nullptr) {
    if (std::optional<Error> many = take_role(session)) return answer(waiter, *many);
    become_loader(session, entry);
    return answer(waiter, LoaderRole{});
  }
  const RequestId request = waiter.request;
  drop_waiter(waiter);
  grant(session, request, kOp, *array, Access::read);
}

// Pays for a role, which has a name that nothing else is charged for: like a wait. The caller calls
// become_loader().
std::optional<Error> Registry::Impl::take_role(Session& session) {
  if (session.loading.size() < protocol::kOpenRequestsMax) {
    const Result<void> charged = quota.charge(session.identity.uid, Resource::waits, 1);
    return charged ? std::nullopt : std::optional(charged.error());
  }
  return make_error(ErrorCode::quota_exceeded, "cached: this session is the loader of " +
                                                   std::to_string(session.loading.size()) +
                                                   " names already");
}

void Registry::Impl::become_loader(Session& session, NameEntry& entry) {
  entry.loader = &session;
  entry.loader_draft = ArrayId{};
  session.loading.insert(&entry);
}

// Leaves the draft, if there is one, to the caller.
void Registry::Impl::end_loader(NameEntry& entry) {
  if (entry.loader == nullptr) return;
  quota.uncharge(entry.loader->identity.uid, Resource::waits, 1);
  entry.loader->loading.erase(&entry);
  entry.loader = nullptr;
  entry.loader_draft = ArrayId{};
  mark(entry, true);
}

// May this create be the loader's?
std::optional<Error> Registry::Impl::check_loader(const Session& session,
                                                  const CreateSpec& spec) const {
  const NameEntry* entry = find_entry(spec.name);
  std::string problem;
  if (entry == nullptr || entry->loader != &session) {
    problem = "this session is not the loader of ";
  } else if (entry->loader_draft.valid()) {
    problem = "its loader has a draft already: ";
  } else if ((spec.options & protocol::kCreateMutable) != 0) {
    problem = "must not be mutable: ";
  } else {
    return std::nullopt;
  }
  return make_error(ErrorCode::invalid_argument, "cached: " + problem + label(spec.name));
}

std::optional<Error> Registry::Impl::abort_loader(Session& session, const QualifiedName& name) {
  NameEntry* entry = find_entry(name);
  if (entry == nullptr || entry->loader != &session) {
    return make_error(ErrorCode::invalid_argument,
                      "name: this session is not the loader of " + label(name));
  }
  const ArrayId draft = entry->loader_draft;
  end_loader(*entry);
  return draft.valid() ? abort_draft(session, draft) : std::nullopt;
}

}  // namespace shmstore::server
