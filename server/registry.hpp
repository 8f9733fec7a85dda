#pragma once
/// The model of the store: names, arrays, leases, waits, versions, rights, quotas. Pure C++: no
/// system call, no Asio, no JSON, no clock of its own; one thread. Everything the outside world
/// must do (answer a request, allocate or free memory, add a kernel seal, tell watchers) is
/// appended to the Effects that each call takes; the caller carries them out in order after the
/// call.
///
/// Every request ends in exactly one Completion: at once, or later (a draft gets sealed, capacity
/// comes free, the deadline passes, the request is cancelled, the session ends: then none is sent).

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "server/quota.hpp"
#include "shmstore/array.hpp"
#include "shmstore/dtype.hpp"
#include "shmstore/error.hpp"
#include "shmstore/protocol.hpp"

namespace shmstore::server {

using SessionId = std::uint64_t;
using SegmentId = std::uint64_t;  ///< 0: none (an array of no bytes).
using RequestId = std::uint64_t;

/// The time as the caller saw it; the registry never asks.
struct Now {
  std::int64_t boot_ms = 0;  ///< CLOCK_BOOTTIME: deadlines, ttl, grace.
  double wall_s = 0;         ///< Unix time, for people.
};

/// Who is at the other end of a session, frozen at accept.
struct Identity {
  std::int64_t pid = 0;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::vector<std::uint32_t> groups;
  std::string command;
};

struct CreateSpec {
  QualifiedName name;  ///< Empty name: anonymous. uid kOwn is resolved by the registry.
  Dtype dtype;
  std::vector<std::uint64_t> shape;
  Order order = Order::c;
  std::uint64_t bytes = 0;
  std::uint16_t perms = kPermsDefault;
  std::uint16_t options = 0;  ///< protocol::kCreate…
  std::uint64_t ttl_ms = 0;
  std::string attrs;  ///< Canonical JSON text of an object; validated by dispatch.
  std::int64_t timeout_ms = 0;
};

struct AttachSpec {
  ArrayId id;  ///< Invalid: by name.
  QualifiedName name;
  Access access = Access::read;
  std::uint64_t newer_than = 0;
  std::int64_t timeout_ms = 0;
  bool renew_handover = false;
  std::uint64_t handle = 0;  ///< By the handle of this number, which is for one receiver.
  bool repair = false;       ///< Exclusive access to a broken array, too.
};

/// Bytes of the daemon's own memory for an array beside its pages: its record, and what its name,
/// dtype and attrs take. Charged like its pages, for as long as there is an array.
[[nodiscard]] std::uint64_t record_bytes(const CreateSpec& spec);

/// Names an array for admin operations.
struct Target {
  ArrayId id;  ///< Invalid: by name.
  QualifiedName name;
};

/// A lease granted to (or confirmed for) the session that asked.
struct Grant {
  ArrayId id;
  Access access = Access::read;
  bool send_descriptor = false;  ///< This lease has not had it yet.
};
struct LoaderRole {};
struct Sealed {
  ArrayId id;
  std::uint64_t version = 0;
  Seal seal = Seal::none;
  State state = State::sealed;
};
struct Waited {
  ArrayId id;
  std::uint64_t version = 0;
  State state = State::sealed;
};
/// The number of a handle for one receiver; 0: it has become one for as many as come.
struct HandedOver {
  std::uint64_t number = 0;
};
struct Done {};

/// The one answer to a request.
struct Completion {
  SessionId session = 0;
  RequestId request = 0;
  protocol::Op op = protocol::Op::ping;
  std::variant<Error, Grant, LoaderRole, Sealed, Waited, HandedOver, Done> result;
};

/// Memory to get for a draft; answer with segment_ready().
struct AllocateSegment {
  ArrayId id;
  std::uint32_t uid = 0;
  std::uint64_t bytes = 0;
};
/// That memory is not wanted any more; it may come all the same.
struct CancelAllocation {
  ArrayId id;
};
/// F_SEAL_WRITE to add; answer with hard_sealed().
struct HardSealSegment {
  ArrayId id;
  SegmentId segment = 0;
};
/// Nobody has a lease any more: to be freed once the kernel says that nobody maps it; then
/// segment_freed(). Until then its bytes stay charged.
struct FreeSegment {
  SegmentId segment = 0;
};
/// For watchers.
struct EventRecord {
  std::string_view event;  ///< Static text: created, sealed, deleted, kept, broken …
  std::uint32_t ns_uid = 0;
  std::uint32_t owner_uid = 0;
  std::uint32_t owner_gid = 0;
  std::uint16_t perms = 0;
  std::string name;
  ArrayId id;
  std::uint64_t version = 0;
  State state = State::draft;
};
using Effect = std::variant<Completion, AllocateSegment, CancelAllocation, HardSealSegment,
                            FreeSegment, EventRecord>;
using Effects = std::vector<Effect>;

/// Who had exclusive access to a broken array, and when it went away.
struct BrokenBy {
  std::int64_t pid = 0;
  std::string command;
  double at_s = 0;
  bool gave_up = false;  ///< It said so, and lives on.
};

/// One array as seen from outside. Strings and spans live as long as the array.
struct ArrayView {
  ArrayId id;
  std::uint32_t ns_uid = 0;
  std::string_view name;  ///< Empty: anonymous (or the name has been taken away).
  std::string_view dtype;
  std::span<const std::uint64_t> shape;
  std::string_view attrs;
  Order order = Order::c;
  std::uint64_t bytes = 0;
  SegmentId segment = 0;
  State state = State::draft;
  Seal seal = Seal::none;
  std::uint64_t version = 0;
  std::uint16_t perms = 0;
  std::uint32_t uid = 0, gid = 0;
  std::uint64_t leases = 0;
  bool kept = false;
  bool hard = false;  ///< Every seal is a hard one, whatever the seal asks for.
  std::optional<std::int64_t> ttl_left_ms;
  double created_s = 0;
  std::optional<double> sealed_s;
  std::uint64_t in_flight = 0;  ///< Handles that were pickled and not opened yet.
  std::optional<BrokenBy> broken;
};

struct HolderView {
  std::int64_t pid = 0;  ///< 0: hand-over lease.
  std::string command;
  std::uint32_t uid = 0;
  Access access = Access::read;
  double since_s = 0;
  // Of a hand-over lease only.
  std::uint64_t in_flight = 0;  ///< Handles that were pickled and not opened yet.
  std::int64_t from_pid = 0;    ///< Who pickled the last one.
};

struct HolderPage {
  std::vector<HolderView> holders;
  std::uint64_t leases = 0;  ///< All that there are; those of handles count once a user.
};

struct ListPage {
  std::vector<ArrayView> arrays;
  std::optional<std::string> cursor;  ///< Opaque; nothing: that was the last page.
};

struct RegistryCounts {
  std::uint64_t arrays = 0, sessions = 0, leases = 0, waits = 0;
  std::uint64_t pinned_bytes = 0, pinned_segments = 0, segments = 0;
  std::uint64_t record_bytes = 0;  ///< Of the bytes that are charged, those that are no pages.
};

class Registry {
 public:
  explicit Registry(const Limits& limits);
  ~Registry();
  Registry(const Registry&) = delete;
  Registry& operator=(const Registry&) = delete;

  struct Impl;  ///< Opaque: server/registry_impl.hpp, for the registry's own files.

  // -- sessions ---------------------------------------------------------------------------------
  /// Error: quota_exceeded (connections).
  Result<void> open_session(SessionId session, Identity identity);
  /// The one function that ends a session: waits dropped and loaders handed over at once, leases
  /// dropped and drafts aborted, at most `limit` of them now. False: some are left; to be called
  /// again until it is true, and others may be served in between, who do not find what is left.
  /// Unknown session: nothing.
  bool end_session(SessionId session, Now now, Effects& effects,
                   std::size_t limit = std::size_t(-1));

  // -- requests; each ends in one Completion ----------------------------------------------------
  void create(SessionId, RequestId, CreateSpec spec, Now, Effects&);
  /// Of a mutable draft made with kCreateUnseen, by its creator.
  void publish(SessionId, RequestId, ArrayId, Now, Effects&);
  void seal(SessionId, RequestId, ArrayId, bool hard, std::int64_t wait_ms, Now, Effects&);
  void attach(SessionId, RequestId, const AttachSpec&, Now, Effects&);
  void segment(SessionId, RequestId, ArrayId, Access, Now, Effects&);
  void release(SessionId, RequestId, ArrayId, Access, std::uint32_t grants, Now, Effects&);
  void cached(SessionId, RequestId, const QualifiedName&, std::int64_t timeout_ms, Now, Effects&);
  void wait(SessionId, RequestId, const QualifiedName&, std::uint64_t newer_than,
            std::int64_t timeout_ms, Now, Effects&);
  void cancel(SessionId, RequestId, RequestId target, Now, Effects&);
  void abort(SessionId, RequestId, const Target&, Now, Effects&);
  /// `once`: the handle goes to one receiver. Its lease ends when that one has the array.
  void handover(SessionId, RequestId, ArrayId, std::uint64_t grace_ms, bool once, Now, Effects&);
  /// The session has the array of a handle for one receiver, and holds it.
  void received(SessionId, RequestId, ArrayId, std::uint64_t handle, Now, Effects&);

  // -- admin requests; answered by their result -------------------------------------------------
  Result<ArrayView> info(SessionId, const Target&, Now, Effects&);
  /// At most `limit` of them, writers first.
  Result<HolderPage> holders(SessionId, const Target&, Now, std::size_t limit, Effects&);
  /// Arrays the caller may read whose full name begins with `prefix`, by (namespace, name), then
  /// anonymous ones of the caller by id. ns_uid: only that namespace; nothing: own first, then all.
  Result<ListPage> list(SessionId, std::string_view prefix, std::optional<std::uint32_t> ns_uid,
                        std::string_view cursor, std::size_t limit, Now) const;
  Result<ArrayView> keep(SessionId, const Target&, std::optional<std::uint64_t> ttl_ms, Now,
                         Effects&);
  Result<void> unkeep(SessionId, const Target&, Now, Effects&);
  Result<void> remove(SessionId, const Target&, Now, Effects&);
  Result<ArrayView> chmod(SessionId, const Target&, std::uint16_t perms, Now, Effects&);

  // -- answers to effects -----------------------------------------------------------------------
  /// The memory for a draft is there, or could not be had. If the draft is gone meanwhile, the
  /// segment comes back as a FreeSegment effect.
  void segment_ready(ArrayId, Result<SegmentId>, Now, Effects&);
  void hard_sealed(ArrayId, const Result<void>&, Now, Effects&);
  /// The kernel took a segment back: its charge ends, and creates that wait for room are retried.
  void segment_freed(SegmentId, Now, Effects&);
  /// The kernel was asked about a freed segment, and somebody still has it: if ever another user
  /// than the owner did, he pays for it from here on.
  void segment_pinned(SegmentId, Now, Effects&);

  /// Ends hand-overs that were not opened and whose sender has ended: of one user, or of all; with
  /// `given_up_only` those for which nobody is left who could open them. Returns how many; there
  /// may be more than one call ends.
  std::uint64_t end_unread(std::optional<std::uint32_t> uid, bool given_up_only, Now, Effects&);

  // -- time -------------------------------------------------------------------------------------
  /// Ends waits whose deadline passed, arrays whose ttl passed, hand-over leases: a bounded number
  /// of them. If there are more, next_deadline_ms() lies in the past.
  void tick(Now, Effects&);
  /// When tick() has something to do; nothing: never.
  [[nodiscard]] std::optional<std::int64_t> next_deadline_ms() const;

  // -- looking ----------------------------------------------------------------------------------
  [[nodiscard]] std::optional<ArrayView> find(ArrayId) const;  ///< Without rights.
  [[nodiscard]] const Identity* identity(SessionId) const;
  [[nodiscard]] bool may_read(const Identity&, const EventRecord&) const;
  /// A create that no waiting helps: it is larger than the store or than what its user may have.
  [[nodiscard]] bool never_fits(std::uint32_t uid, const CreateSpec&) const;
  [[nodiscard]] RegistryCounts counts() const;
  [[nodiscard]] Quota& quota();
  [[nodiscard]] const Quota& quota() const;
  /// Recomputes all accounting from scratch; one line per contradiction, empty when clean.
  [[nodiscard]] std::vector<std::string> selfcheck() const;

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace shmstore::server
