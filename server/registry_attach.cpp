// Attach: by name or by id, at once or when the draft is sealed, a newer version appears, or those
// who hold a mutable array let go.
#include "server/registry_impl.hpp"

namespace shmstore::server {

// What an attach comes to once rights are settled. Co-writers join a draft as soon as there is
// memory to write to; while the kernel hard-seals an array nobody may become a writer of it.
Outcome Registry::Impl::by_state(Array& array, const AttachSpec& spec) {
  if (spec.access == Access::exclusive) return may_be_exclusive(array, spec.repair);
  if (spec.access == Access::hold && array.state != State::dying) return &array;
  const bool writer = spec.access == Access::write;
  switch (array.state) {
    case State::draft:
      if (writer && array.frozen) {
        return make_error(ErrorCode::invalid_argument,
                          "access: " + label(array) + " was being sealed, so nobody can write it");
      }
      // A mutable one has no co-writers before it is published.
      if (writer && !array.allocating && !array.hard_seal &&
          !array.has_option(protocol::kCreateMutable)) {
        return &array;
      }
      return MustWait{};
    case State::mutable_:
      if (writer && array.hard_seal) return MustWait{&array};
      return &array;
    case State::sealed:
      if (!writer) return &array;
      return make_error(ErrorCode::invalid_argument,
                        "access: " + label(array) + " is sealed; use mode c");
    case State::broken: return broken(array);
    case State::dying:
    case State::gone: break;
  }
  return not_found(array.id);
}

Outcome Registry::Impl::try_attach(Session& session, const AttachSpec& spec, std::uint64_t seq) {
  const Identity& who = session.identity;
  const auto judge = [&](Array& array) {
    Outcome outcome = by_state(array, spec);
    const bool shared = array.state == State::mutable_ || array.state == State::broken;
    if (!std::holds_alternative<Array*>(outcome) || !shared || spec.access == Access::hold) {
      return outcome;
    }
    return by_turn(session, array, spec.access, seq);
  };
  if (spec.id.valid()) {
    Array* array = arrays.find(spec.id);
    if (array == nullptr) return not_found(spec.id);
    if (!may(who, *array, spec.access)) return denied_by_id(who, *array);
    if (array->aborted && holds(session, spec.id)) {
      return make_error(ErrorCode::aborted, "id: the draft was dropped by its creator");
    }
    return judge(*array);
  }
  const NameEntry* entry = find_entry(spec.name);
  Array* array = entry == nullptr ? nullptr : entry->visible();
  if (array == nullptr) {
    if (foreign(who, spec.name.uid)) return denied(spec.name);
    return spec.newer_than > 0 ? Outcome(MustWait{}) : Outcome(not_found(spec.name));
  }
  if (!may(who, *array, spec.access)) return denied(spec.name);
  if (spec.newer_than > 0 && array->version <= spec.newer_than) return MustWait{};
  return judge(*array);
}

void Registry::Impl::attach(Session& session, RequestId request, AttachSpec spec) {
  constexpr auto kOp = protocol::Op::attach;
  if (spec.repair && spec.access != Access::exclusive) {
    return reply(session, request, kOp,
                 make_error(ErrorCode::invalid_argument, "repair: only with exclusive access"));
  }
  if (spec.id.valid() && spec.newer_than > 0) {
    return reply(session, request, kOp,
                 make_error(ErrorCode::invalid_argument, "newer_than: only with a name"));
  }
  spec.name = resolve(session, spec.name);
  const Outcome outcome = try_attach(session, spec);
  if (const auto* error = std::get_if<Error>(&outcome)) {
    reply(session, request, kOp, *error);
  } else if (Array* const* array = std::get_if<Array*>(&outcome)) {
    grant_attach(session, request, **array, spec);
  } else if (Array* line = std::get<MustWait>(outcome).line; spec.timeout_ms != 0) {
    wait_to_attach(session, request, spec, line);
  } else if (line != nullptr) {
    reply(session, request, kOp, held(*line, session));
  } else {
    reply(session, request, kOp, timed_out(not_ready(session, spec)));
  }
}

void Registry::Impl::wait_to_attach(Session& session, RequestId request, const AttachSpec& spec,
                                    Array* line) {
  const std::int64_t deadline_ms = deadline_of(spec.timeout_ms);
  Waiter* waiter =
      add_waiter(session, request, protocol::Op::attach, deadline_ms, AttachJob{spec, false});
  if (waiter == nullptr) return;
  stand_in_line(*waiter, line);
  if (spec.id.valid()) {
    at(spec.id).attach_waiters.push_back(*waiter);
  } else {
    wait_on_name(*waiter, make_entry(spec.name));
  }
}

void Registry::Impl::grant_attach(Session& session, RequestId request, Array& array,
                                  const AttachSpec& spec) {
  opened(session, array, spec);
  grant(session, request, protocol::Op::attach, array, spec.access);
}

// REQUIRES: the outcome is no MustWait.
void Registry::Impl::answer_attach(Waiter& waiter, const Outcome& outcome) {
  if (const auto* error = std::get_if<Error>(&outcome)) return answer(waiter, *error);
  Session& session = *waiter.session;
  const RequestId request = waiter.request;
  const AttachSpec spec = std::get<AttachJob>(waiter.job).spec;
  drop_waiter(waiter);
  grant_attach(session, request, *std::get<Array*>(outcome), spec);
}

}  // namespace shmstore::server
