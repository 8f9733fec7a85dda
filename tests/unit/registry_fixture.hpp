#pragma once
/// A registry with people in it: sessions of several users, memory that comes at once or when the
/// test says so, and the answer to each request. After every call the registry must be clean.

#include <doctest/doctest.h>

#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "server/registry.hpp"
#include "server/registry_table.hpp"

namespace shmstore::server {

inline Limits test_limits() {
  Limits limits;
  limits.capacity = std::uint64_t{1} << 30;
  limits.segments_max = 1'000;
  return limits;
}

inline constexpr std::uint32_t kAlice = 1000, kBob = 1001, kRoot = 0;
inline constexpr std::uint32_t kStaff = 50;  ///< Alice's and Carol's common group.
inline constexpr std::uint32_t kCarol = 1002;

class Store {
 public:
  explicit Store(const Limits& limits = test_limits()) : registry(limits) {}

  /// A session of a user; its pid is 10000 + its number.
  SessionId join(std::uint32_t uid, std::vector<std::uint32_t> groups = {}) {
    const SessionId session = next_session_++;
    Identity who{static_cast<std::int64_t>(10'000 + session), uid, uid, std::move(groups), "test"};
    const Result<void> opened = registry.open_session(session, std::move(who));
    REQUIRE(opened.has_value());
    return session;
  }

  void leave(SessionId session) {
    call([&](Effects& effects) { registry.end_session(session, now, effects); });
  }

  /// True when it is over.
  bool leave_some(SessionId session, std::size_t limit) {
    return call([&](Effects& fx) { return registry.end_session(session, now, fx, limit); });
  }

  // -- requests: each returns its id; result() tells what became of it ---------------------------
  RequestId create(SessionId session, CreateSpec spec) {
    return ask(
        [&](RequestId id, Effects& fx) { registry.create(session, id, std::move(spec), now, fx); });
  }
  RequestId publish(SessionId session, ArrayId array) {
    return ask([&](RequestId id, Effects& fx) { registry.publish(session, id, array, now, fx); });
  }
  RequestId seal(SessionId session, ArrayId array, bool hard = false, std::int64_t wait_ms = 0) {
    return ask([&](RequestId id, Effects& fx) {
      registry.seal(session, id, array, hard, wait_ms, now, fx);
    });
  }
  RequestId attach(SessionId session, const AttachSpec& spec) {
    return ask([&](RequestId id, Effects& fx) { registry.attach(session, id, spec, now, fx); });
  }
  RequestId segment(SessionId session, ArrayId array, Access access) {
    return ask(
        [&](RequestId id, Effects& fx) { registry.segment(session, id, array, access, now, fx); });
  }
  RequestId release(SessionId session, ArrayId array, Access access, std::uint32_t grants = 1) {
    return ask([&](RequestId id, Effects& fx) {
      registry.release(session, id, array, access, grants, now, fx);
    });
  }
  RequestId cached(SessionId session, const QualifiedName& name, std::int64_t timeout_ms = -1) {
    return ask([&](RequestId id, Effects& fx) {
      registry.cached(session, id, name, timeout_ms, now, fx);
    });
  }
  RequestId wait(SessionId session, const QualifiedName& name, std::uint64_t newer_than,
                 std::int64_t timeout_ms) {
    return ask([&](RequestId id, Effects& fx) {
      registry.wait(session, id, name, newer_than, timeout_ms, now, fx);
    });
  }
  RequestId cancel(SessionId session, RequestId target) {
    return ask([&](RequestId id, Effects& fx) { registry.cancel(session, id, target, now, fx); });
  }
  RequestId abort(SessionId session, const Target& target) {
    return ask([&](RequestId id, Effects& fx) { registry.abort(session, id, target, now, fx); });
  }
  RequestId handover(SessionId session, ArrayId array, std::uint64_t grace_ms = 0,
                     bool once = false) {
    return ask([&](RequestId id, Effects& fx) {
      registry.handover(session, id, array, grace_ms, once, now, fx);
    });
  }
  RequestId received(SessionId session, ArrayId array, std::uint64_t handle) {
    return ask(
        [&](RequestId id, Effects& fx) { registry.received(session, id, array, handle, now, fx); });
  }

  // -- admin and answers -------------------------------------------------------------------------
  Result<ArrayView> info(SessionId session, const Target& target) {
    return call([&](Effects& fx) { return registry.info(session, target, now, fx); });
  }
  Result<std::vector<HolderView>> holders(SessionId session, const Target& target,
                                          std::size_t limit = 1'000) {
    Result<HolderPage> page =
        call([&](Effects& fx) { return registry.holders(session, target, now, limit, fx); });
    if (!page) return page.error();
    CHECK(page->leases >= page->holders.size());
    return std::move(page->holders);
  }
  Result<ArrayView> keep(SessionId session, const Target& target,
                         std::optional<std::uint64_t> ttl_ms = {}) {
    return call([&](Effects& fx) { return registry.keep(session, target, ttl_ms, now, fx); });
  }
  Result<void> unkeep(SessionId session, const Target& target) {
    return call([&](Effects& fx) { return registry.unkeep(session, target, now, fx); });
  }
  Result<void> remove(SessionId session, const Target& target) {
    return call([&](Effects& fx) { return registry.remove(session, target, now, fx); });
  }
  Result<ArrayView> chmod(SessionId session, const Target& target, std::uint16_t perms) {
    return call([&](Effects& fx) { return registry.chmod(session, target, perms, now, fx); });
  }
  void tick(std::int64_t passed_ms) {
    now.boot_ms += passed_ms;
    now.wall_s += static_cast<double>(passed_ms) / 1000.0;
    call([&](Effects& fx) { registry.tick(now, fx); });
  }
  /// Memory for the oldest draft that waits for it (automatic unless hold_memory).
  ArrayId give_memory() {
    REQUIRE(!allocations.empty());
    const ArrayId id = take_front(allocations).id;
    call([&](Effects& fx) { registry.segment_ready(id, next_segment_++, now, fx); });
    return id;
  }
  void refuse_memory() {
    REQUIRE(!allocations.empty());
    const ArrayId id = take_front(allocations).id;
    const Error error = make_error(ErrorCode::no_capacity, "memory: the kernel has none");
    call([&](Effects& fx) { registry.segment_ready(id, error, now, fx); });
  }
  /// The kernel takes the oldest freed segment back (automatic unless hold_freed).
  void reclaim() {
    REQUIRE(!freed.empty());
    const SegmentId segment = take_front(freed);
    call([&](Effects& fx) { registry.segment_freed(segment, now, fx); });
  }
  /// The kernel says that somebody has the oldest freed segment still.
  void still_held() {
    REQUIRE(!freed.empty());
    call([&](Effects& fx) { registry.segment_pinned(freed.front(), now, fx); });
  }
  /// The kernel's word on the oldest hard seal (yes, at once, unless hold_seals).
  void answer_seal(Result<void> result) {
    REQUIRE(!hard_seals.empty());
    const ArrayId id = take_front(hard_seals).id;
    call([&](Effects& fx) { registry.hard_sealed(id, std::move(result), now, fx); });
  }

  std::uint64_t end_unread(std::optional<std::uint32_t> uid, bool given_up_only) {
    return call([&](Effects& fx) { return registry.end_unread(uid, given_up_only, now, fx); });
  }

  // -- what happened ------------------------------------------------------------------------------
  [[nodiscard]] bool open(RequestId request) const { return !results_.contains(request); }
  const Completion& completion(RequestId request) const {
    REQUIRE_MESSAGE(results_.contains(request), "request " << request << " has no answer");
    return results_.at(request);
  }
  template <class T>
  const T& as(RequestId request) const {
    const auto& result = completion(request).result;
    if (const auto* error = std::get_if<Error>(&result)) {
      INFO(to_string(error->code), ": ", error->text);
      REQUIRE(std::holds_alternative<T>(result));
    }
    REQUIRE(std::holds_alternative<T>(result));
    return std::get<T>(result);
  }
  Error error(RequestId request) const {
    const auto& result = completion(request).result;
    const Error* error = std::get_if<Error>(&result);
    return error == nullptr ? Error{ErrorCode::internal, "no error"} : *error;
  }
  /// A hand-over that was granted, of either kind.
  void as_sent(RequestId request) const {
    REQUIRE_FALSE(std::holds_alternative<Error>(completion(request).result));
  }
  ErrorCode code(RequestId request) const { return error(request).code; }
  ArrayId granted(RequestId request) const { return as<Grant>(request).id; }

  // -- arrays in one line -------------------------------------------------------------------------
  static CreateSpec spec(std::string name, std::uint64_t bytes = 4096) {
    CreateSpec made;
    made.name.name = std::move(name);
    made.dtype = *Dtype::parse("|u1");
    made.shape = {bytes};
    made.bytes = bytes;
    made.attrs = "{}";
    return made;
  }
  ArrayId draft(SessionId session, std::string name, std::uint16_t options = 0) {
    CreateSpec made = spec(std::move(name));
    made.options = options;
    return granted(create(session, std::move(made)));
  }
  ArrayId put(SessionId session, std::string name, std::uint16_t options = 0) {
    const ArrayId id = draft(session, std::move(name), options);
    CHECK(as<Sealed>(seal(session, id)).state == State::sealed);
    return id;
  }
  [[nodiscard]] std::optional<State> state(ArrayId id) const {
    const std::optional<ArrayView> view = registry.find(id);
    return view ? std::optional(view->state) : std::nullopt;
  }

  Registry registry;
  Now now{1'000'000, 1.7e9};
  bool hold_memory = false, hold_freed = false, hold_seals = false;
  std::vector<AllocateSegment> allocations;
  std::vector<ArrayId> cancelled;
  std::vector<SegmentId> freed;
  std::vector<HardSealSegment> hard_seals;
  std::vector<EventRecord> events;
  std::vector<RequestId> order;  ///< Requests as they were answered.

 private:
  template <class T>
  static T take_front(std::vector<T>& items) {
    T item = items.front();
    items.erase(items.begin());
    return item;
  }

  template <class F>
  RequestId ask(F&& request) {
    const RequestId id = next_request_++;
    call([&](Effects& effects) { request(id, effects); });
    return id;
  }

  template <class F>
  std::invoke_result_t<F, Effects&> call(F&& operation) {
    Effects effects;
    if constexpr (std::is_void_v<std::invoke_result_t<F, Effects&>>) {
      operation(effects);
      carry_out(effects);
    } else {
      auto result = operation(effects);
      carry_out(effects);
      return result;
    }
  }

  void carry_out(const Effects& effects) {
    const std::vector<std::string> problems = registry.selfcheck();
    for (const std::string& problem : problems) MESSAGE(problem);
    REQUIRE(problems.empty());
    for (const Effect& effect : effects) {
      if (const auto* done = std::get_if<Completion>(&effect)) {
        REQUIRE_MESSAGE(!results_.contains(done->request), "answered twice");
        results_.emplace(done->request, *done);
        order.push_back(done->request);
      } else if (const auto* wanted = std::get_if<AllocateSegment>(&effect)) {
        allocations.push_back(*wanted);
      } else if (const auto* unwanted = std::get_if<CancelAllocation>(&effect)) {
        cancelled.push_back(unwanted->id);
      } else if (const auto* hard = std::get_if<HardSealSegment>(&effect)) {
        hard_seals.push_back(*hard);
      } else if (const auto* free = std::get_if<FreeSegment>(&effect)) {
        freed.push_back(free->segment);
      } else {
        events.push_back(std::get<EventRecord>(effect));
      }
    }
    while (!hold_memory && !allocations.empty()) give_memory();
    while (!hold_seals && !hard_seals.empty()) answer_seal({});
    while (!hold_freed && !freed.empty()) reclaim();
  }

  std::map<RequestId, Completion> results_;
  SessionId next_session_ = 1;
  RequestId next_request_ = 1;
  SegmentId next_segment_ = 1;
};

/// One array per state, all readable by everybody, held by Alice only.
struct OnePerState {
  OnePerState() {
    const auto make = [&](std::string name, std::uint16_t options) {
      CreateSpec made = Store::spec(std::move(name));
      made.perms = 0666;
      made.options = options;
      return store.granted(store.create(alice, std::move(made)));
    };
    draft = make("draft", 0);
    sealed = make("sealed", 0);
    store.seal(alice, sealed);
    mutable_ = make("mutable", protocol::kCreateMutable);
    dying = make("dying", protocol::kCreateMutable);
    REQUIRE(store.remove(alice, {.id = {}, .name = {kAlice, "dying"}}).has_value());
  }
  Store store;
  SessionId alice = store.join(kAlice);
  SessionId bob = store.join(kBob);
  ArrayId draft, sealed, mutable_, dying;
};

inline AttachSpec by_id(ArrayId id, Access access = Access::read, std::int64_t timeout_ms = 0) {
  AttachSpec spec;
  spec.id = id;
  spec.access = access;
  spec.timeout_ms = timeout_ms;
  return spec;
}

inline AttachSpec by_name(std::string name, std::int64_t timeout_ms = 0,
                          std::uint64_t newer_than = 0, std::uint32_t uid = QualifiedName::kOwn) {
  AttachSpec spec;
  spec.name = {uid, std::move(name)};
  spec.timeout_ms = timeout_ms;
  spec.newer_than = newer_than;
  return spec;
}

inline Target named(std::string name, std::uint32_t uid = QualifiedName::kOwn) {
  return {ArrayId{}, {uid, std::move(name)}};
}
inline Target with_id(ArrayId id) {
  return {id, {}};
}
inline QualifiedName own(std::string name) {
  return {QualifiedName::kOwn, std::move(name)};
}

}  // namespace shmstore::server
