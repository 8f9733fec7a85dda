#pragma once
/// Inside the registry. Objects point at each other in both directions:
///
///   Session ─owns─▶ Lease ◀─lists─ Array ◀─owned by slot─ SlotTable
///      │                             ▲ ▼
///      └─owns─▶ Waiter ◀─lists─ Array | NameEntry | create queue of a uid
///
/// A call changes state first and only marks what others may now be waiting for; settle(), at the
/// end of each public call, wakes waiters, frees arrays without leases and retries creates, until
/// nothing is marked. So no function has to expect that an object it holds goes away under it:
/// arrays, names and their entries are only ever freed in settle().

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <variant>
#include <vector>

#include "server/registry.hpp"
#include "server/registry_table.hpp"

namespace shmstore::server {

struct Array;
struct Lease;
struct NameEntry;
struct Session;
struct Waiter;

/// What keeps an array alive: one per (session, array, access); or, with a timeout and no session,
/// one per (array, uid) for handles that may be opened by many, and one per handle that is for one
/// receiver. The number of leases is the reference count.
struct Lease {
  Session* session = nullptr;
  Array* array = nullptr;
  Access access = Access::read;
  std::uint32_t uid = 0;  ///< Whose lease quota pays.
  std::uint64_t grants = 0;
  bool descriptor_sent = false;
  bool blocks = false;  ///< It maps, and its user may write: nobody gets exclusive access.
  double since_s = 0;
  // Of a hand-over only.
  std::int64_t grace_ms = 0;
  std::int64_t deadline_ms = 0;
  std::uint64_t pickled = 0, opened = 0;
  std::uint64_t handle = 0;    ///< The number of a handle for one receiver; 0: for many.
  std::int64_t from_pid = 0;   ///< Who pickled last,
  SessionId sender = 0;        ///< in which session,
  std::uint64_t sent_seq = 0;  ///< and when.
  bool several_senders = false;
  Lease *prev = nullptr, *next = nullptr;
  LinkedList<Lease>* home = nullptr;
};

struct LeaseKey {
  std::uint64_t id = 0;
  Access access = Access::read;
  friend auto operator<=>(const LeaseKey&, const LeaseKey&) = default;
};

// -- requests that wait: one job each ---------------------------------------------------------
struct AttachJob {
  AttachSpec spec;  ///< By name, uid resolved; or by id.
  bool stood_in_line = false;
};
struct NameJob {
  std::uint64_t newer_than = 0;
};
struct CachedJob {};
struct CreateJob {
  CreateSpec spec;
  std::string refusal;  ///< Why there was no room at the first try.
};
struct SealJob {
  ArrayId id;
  bool hard = false;
};
struct AllocateJob {
  ArrayId id;
};  ///< A create whose memory is under way.
struct HardSealJob {
  ArrayId id;
};  ///< A seal that waits for the kernel's answer.

struct Waiter {
  Session* session = nullptr;
  RequestId request = 0;
  protocol::Op op = protocol::Op::ping;
  std::uint64_t seq = 0;         ///< Order of arrival.
  std::int64_t deadline_ms = 0;  ///< kNever: none.
  std::uint64_t charge = 0;      ///< Waits of its user that it counts for; 0: the daemon works.
  NameEntry* entry = nullptr;    ///< Waits on this name.
  Array* line = nullptr;         ///< Waits for its turn at this array, too.
  std::variant<AttachJob, NameJob, CachedJob, CreateJob, SealJob, AllocateJob, HardSealJob> job;
  Waiter *prev = nullptr, *next = nullptr;
  LinkedList<Waiter>* home = nullptr;
};

inline constexpr std::int64_t kNever = INT64_MAX;
inline constexpr std::uint64_t kLastInLine = UINT64_MAX;  ///< Whoever asks for the first time.

/// A seal that the kernel is asked about; the array takes no new writer meanwhile.
struct HardSeal {
  SessionId session = 0;
  Waiter* waiter = nullptr;  ///< Null: its session ended. The answer still counts.
  bool hard = false;
  std::int64_t deadline_ms = 0;
  bool cancelled = false;  ///< Is told how it came out, but does not ask again.
  bool given_up = false;   ///< Who had the array alone has left it half-written.
};

struct Array {
  ArrayId id;
  CreateSpec spec;             ///< As asked for, namespace resolved. perms and ttl_ms change later.
  NameEntry* entry = nullptr;  ///< Null: anonymous, or the name has been taken away.
  std::uint64_t draft_seq = 0;  ///< Order of creation; key among the drafts of a name.
  std::uint32_t uid = 0, gid = 0;
  SessionId creator = 0;
  State state = State::draft;
  Seal seal = Seal::none;
  bool allocating = false;  ///< Its memory is not there yet.
  bool announced = false;   ///< Watchers know of it.
  bool aborted = false;     ///< Dying, and was a draft: its holders are told `aborted`.
  bool kept = false;
  std::uint64_t version = 0;
  SegmentId segment = 0;
  Waiter* creation = nullptr;  ///< The create that is answered when the memory is there.
  std::optional<HardSeal> hard_seal;
  bool frozen = false;  ///< The kernel lets nobody write it any more, yet it is not sealed.
  /// Other users may open it, or could once, or one has had it writable: who knows what they still
  /// map. Never taken back; each seal has to be a hard one.
  bool exposed = false;
  std::int64_t ttl_deadline_ms = kNever;
  double created_s = 0;
  std::optional<double> sealed_s;

  LinkedList<Lease> leases;  ///< Writers first.
  std::uint64_t lease_count = 0;
  std::uint64_t writer_count = 0;
  std::uint64_t block_count = 0;  ///< Leases that keep others from exclusive access.
  Lease* exclusive = nullptr;
  // Hand-over leases, also in `leases`: at most one per uid, and those of handles for one receiver.
  std::vector<std::unique_ptr<Lease>> handovers;
  std::map<std::uint64_t, std::unique_ptr<Lease>> handles;  ///< By number.
  std::map<std::uint32_t, std::uint64_t> handles_of;        ///< How many, by uid; none of 0.
  std::uint64_t last_handle = 0;                            ///< No number is given out twice.
  std::uint64_t charged = 0;                  ///< Bytes of pages; with a segment iff not 0.
  std::uint64_t record = 0;                   ///< Bytes of the daemon's own memory.
  std::uint32_t charge_uid = 0;               ///< Who pays for all of that.
  std::optional<std::uint32_t> last_foreign;  ///< Other than the owner, the last to let go.
  std::uint64_t charge_leases = 0;            ///< Leases of charge_uid.

  LinkedList<Waiter> attach_waiters;
  LinkedList<Waiter> seal_waiters;
  std::map<std::uint64_t, Waiter*> line;      ///< Who waits for a turn, by order of arrival.
  std::set<std::uint64_t> exclusive_in_line;  ///< Those of them who want it alone.
  std::optional<BrokenBy> broken;             ///< Iff the state is broken.
  bool marked = false, wake_attach = false, wake_seal = false, wake_line = false;

  [[nodiscard]] bool has_option(std::uint16_t option) const { return (spec.options & option) != 0; }
  [[nodiscard]] Holding holding() const { return {charged + record, 1, charged > 0 ? 1U : 0U}; }
};

struct Namespace {
  std::uint64_t floor = 0;  ///< Above every version ever deleted here.
  std::map<std::string, NameEntry, std::less<>> names;
};

/// A name: at most one published array, any number of drafts made with `replace` (or exactly one
/// without, which reserves the name), at most one loader, and who waits for it.
struct NameEntry {
  std::uint32_t uid = 0;
  Namespace* home = nullptr;
  std::string_view name;  ///< The key in `home`.
  Array* published = nullptr;
  std::map<std::uint64_t, Array*> drafts;  ///< By draft_seq.
  Session* loader = nullptr;
  ArrayId loader_draft;
  LinkedList<Waiter> waiters;
  bool marked = false, wake = false;

  [[nodiscard]] Array* visible() const {
    if (published != nullptr || drafts.empty()) return published;
    return drafts.rbegin()->second;
  }
  [[nodiscard]] bool unused() const {
    return published == nullptr && drafts.empty() && loader == nullptr && waiters.empty();
  }
};

struct Session {
  SessionId id = 0;
  Identity identity;
  /// A tree: a hash table of a million would be built anew within somebody's request.
  std::map<LeaseKey, std::unique_ptr<Lease>> leases;
  std::map<RequestId, std::unique_ptr<Waiter>> waits;
  std::uint64_t waits_charged = 0;
  std::set<NameEntry*> loading;
  bool gone = false;  ///< It has ended; only leases are left, uncharged, to be taken away.
};

/// Memory that nobody has a lease on and the kernel has not taken back yet.
struct PinnedSegment {
  std::uint32_t uid = 0;  ///< Who pays.
  std::uint64_t bytes = 0;
  std::optional<std::uint32_t> last_foreign;  ///< Who pays when the kernel says that it is held.
};

enum class TimerKind : std::uint8_t {
  wait,
  ttl,
  handover,
  handle,
  seal_retry
};
struct Timer {
  std::int64_t at_ms = 0;
  TimerKind kind = TimerKind::wait;
  std::uint64_t key = 0;   ///< wait: seq; else the array's raw id.
  std::uint64_t more = 0;  ///< handover: uid; handle: its number.
  friend bool operator<(const Timer& a, const Timer& b) {
    return std::tie(a.at_ms, a.kind, a.key, a.more) < std::tie(b.at_ms, b.kind, b.key, b.more);
  }
};

/// What a request on a name or array comes to at this moment.
struct MustWait {
  Array* line = nullptr;  ///< For a turn at this array; null: for something else.
};
using Outcome = std::variant<Error, Array*, MustWait>;

struct Registry::Impl {
  explicit Impl(const Limits& limits) : quota(limits) {}

  // registry.cpp: a call's frame, sessions, rights
  void begin(Now at, Effects& effects);
  void settle();
  void settle_marked();
  /// `about`: the array or name that the request is for.
  template <class About, class F>
  void run(SessionId session, RequestId request, protocol::Op op, Now at, Effects& effects,
           const About& about, F&& f);
  Session* find_session(SessionId id);  ///< Null also when it has ended.
  const Session* find_session(SessionId id) const;
  Array& at(ArrayId id);  ///< REQUIRES: it is there.
  void reply(const Session& session, RequestId request, protocol::Op op,
             decltype(Completion::result) result);
  void emit_event(std::string_view event, const Array& array, const NameEntry& entry);
  ArrayView view(const Array& array, std::int64_t boot_ms) const;

  // registry_end.cpp: the end of sessions
  template <class F>
  void each_gone_lease(const Array& array, F&& f) const;
  void leave(Session& session);
  bool end_session(Session& session, std::size_t limit);
  void end_gone_lease(Lease& lease);
  bool forget_gone(Array& array);
  bool forget_gone(const QualifiedName& name);
  void catch_up(const Session& session, ArrayId id);
  void catch_up(const Session& session, const QualifiedName& asked);
  void catch_up(const Session& session, const Target& target);
  void catch_up(const Session& session, const AttachSpec& spec);
  bool is_left_over(const Array& array) const;
  std::size_t gone_looks(const Array& array) const;
  std::optional<ArrayView> view_without_gone(const Array& array, Now at) const;

  // registry_rights.cpp
  static bool may(const Identity& who, const Array& array, Access access);
  static bool owns(const Identity& who, const Array& array);
  static bool foreign(const Identity& who, std::uint32_t ns_uid);
  QualifiedName resolve(const Session& session, const QualifiedName& name) const;
  static Error denied(const QualifiedName& name);
  static Error denied(const Array& array, std::string_view what);
  static Error denied_by_id(const Identity& who, const Array& array, std::string_view what);
  static Error denied_by_id(const Identity& who, const Array& array);
  static Error not_found(const QualifiedName& name);
  static Error not_found(ArrayId id);
  Result<Array*> find_target(const Session& session, const Target& target, Access access) const;
  Result<Array*> find_owned(const Session& session, const Target& target,
                            std::string_view what) const;

  // registry_names.cpp
  NameEntry* find_entry(const QualifiedName& name);
  const NameEntry* find_entry(const QualifiedName& name) const;
  NameEntry& make_entry(const QualifiedName& name);
  void mark(NameEntry& entry, bool wake);
  void mark(Array& array);
  void settle_name(NameEntry& entry);
  void settle_array(Array& array);
  std::optional<Error> check_publish(const Array& array) const;
  void publish(Array& array, State state);
  void unname(Array& array);
  void make_dying(Array& array);
  void free_array(Array& array);
  void set_ttl(Array& array, std::uint64_t ttl_ms);
  void clear_ttl(Array& array);

  // registry_lease.cpp
  Lease* find_lease(Session& session, ArrayId id, Access access);
  static bool holds(const Session& session, ArrayId id);
  Result<Lease*> take_lease(Session& session, Array& array, Access access);
  Lease& add_lease(Session& session, Array& array, Access access);
  void link(Lease& lease);
  void unlink(Lease& lease);
  void end_lease(Lease& lease);
  void demote(Session& session, Array& array);
  void recount_blocks(Array& array);
  void grant(Session& session, RequestId request, protocol::Op op, Array& array, Access access);
  void segment(Session& session, RequestId request, ArrayId id, Access access);
  void release(Session& session, RequestId request, ArrayId id, Access access,
               std::uint32_t grants);
  void settle_charge(Array& array);

  // registry_handover.cpp
  void handover(Session& session, RequestId request, ArrayId id, std::uint64_t grace_ms, bool once);
  std::optional<Error> check_handover(const Session& session, ArrayId id,
                                      std::uint64_t grace_ms) const;
  Result<Lease*> take_handover(Array& array, std::uint32_t uid);
  Lease* take_handle(Array& array, std::uint32_t uid);
  std::unique_ptr<Lease> make_handover(Array& array, std::uint32_t uid);
  void extend_handover(Lease& lease, std::int64_t grace_ms);
  static Timer timer_of(const Lease& lease);
  void opened(Session& session, Array& array, const AttachSpec& spec);
  static void count_opened(Array& array, std::uint32_t uid);
  static std::uint64_t in_flight(const Lease& lease);
  void received(Session& session, RequestId request, ArrayId id, std::uint64_t handle);
  void end_handover(Array& array, std::uint32_t uid);
  void end_handle(Array& array, std::uint64_t number);
  void forget_handover(Array& array, Lease& lease);
  static void list_handovers(const Array& array, std::size_t limit, HolderPage& page);

  // registry_unread.cpp
  bool sender_ended(const Lease& lease) const;
  bool absent_since(const Lease& lease) const;
  Lease* handover_of(const Timer& timer) const;
  template <class F>
  void each_unread(std::optional<std::uint32_t> uid, F&& f) const;
  std::string held_unread(std::uint32_t uid, std::string_view refusal) const;
  std::uint64_t end_unread(std::optional<std::uint32_t> uid, bool given_up_only);

  // registry_wait.cpp
  std::int64_t deadline_of(std::int64_t timeout_ms) const;
  /// Null, and the request answered, when the user has too many waits or the time is up already.
  Waiter* add_waiter(Session& session, RequestId request, protocol::Op op, std::int64_t deadline_ms,
                     decltype(Waiter::job) job);
  static std::optional<Error> check_work(const Session& session);
  Waiter& add_work(Session& session, RequestId request, protocol::Op op, decltype(Waiter::job) job);
  void wait_on_name(Waiter& waiter, NameEntry& entry);
  void drop_waiter(Waiter& waiter);
  void answer(Waiter& waiter, decltype(Completion::result) result);
  void answer_all(LinkedList<Waiter>& waiters, const Error& error);
  void retry_on_name(Waiter& waiter, NameEntry& entry);
  void wait(Session& session, RequestId request, const QualifiedName& asked,
            std::uint64_t newer_than, std::int64_t timeout_ms);
  Outcome try_wait(const Session& session, const QualifiedName& name,
                   std::uint64_t newer_than) const;
  void cancel(Session& session, RequestId request, RequestId target);
  void stop_waiting(Waiter& waiter);
  static Error timed_out(const std::string& what);
  std::string not_ready(const QualifiedName& name, std::uint64_t newer_than) const;
  std::string not_ready(const Array& array, std::uint64_t newer_than) const;
  std::string not_ready(const Session& session, const AttachSpec& spec) const;
  std::string still_missing(const Waiter& waiter) const;

  // registry_create.cpp
  void create(Session& session, RequestId request, CreateSpec spec);
  std::optional<Error> check_create(const Session& session, const CreateSpec& spec) const;
  std::optional<Error> check_clash(const Session& session, const CreateSpec& spec) const;
  bool never_fits(std::uint32_t uid, const CreateSpec& spec) const;
  Result<void> charge_create(std::uint32_t uid, const CreateSpec& spec);
  void make_array(Session& session, RequestId request, CreateSpec spec);
  void ready(Array& array);
  void announce(Array& array);
  void publish(Session& session, RequestId request, ArrayId id);
  Outcome judge_publish(Session& session, ArrayId id);
  void drop_unready(Session& session, Array& array);
  void segment_ready(ArrayId id, Result<SegmentId> segment);
  void segment_freed(SegmentId segment);
  void segment_pinned(SegmentId segment);
  void retry_creates();
  bool retry_create(Waiter& waiter);

  // registry_attach.cpp
  void attach(Session& session, RequestId request, AttachSpec spec);
  /// `seq`: the waiter's, whose place in a line counts.
  Outcome try_attach(Session& session, const AttachSpec& spec, std::uint64_t seq = kLastInLine);
  static Outcome by_state(Array& array, const AttachSpec& spec);
  void wait_to_attach(Session& session, RequestId request, const AttachSpec& spec, Array* line);
  void grant_attach(Session& session, RequestId request, Array& array, const AttachSpec& spec);
  void answer_attach(Waiter& waiter, const Outcome& outcome);

  // registry_exclusive.cpp
  static Outcome may_be_exclusive(Array& array, bool repair);
  Outcome by_turn(const Session& session, Array& array, Access access, std::uint64_t seq) const;
  void stand_in_line(Waiter& waiter, Array* array);
  void settle_line(Array& array);
  void disband_line(Array& array);
  void break_array(Array& array, const Identity& holder, bool gave_up);
  void mend(Array& array);
  Error held(const Array& array, const Session& asking) const;
  static Error broken(const Array& array);

  // registry_seal.cpp
  void seal(Session& session, RequestId request, ArrayId id, bool hard, std::int64_t wait_ms);
  Outcome judge_seal(Session& session, const SealJob& job);
  void act_seal(Session& session, RequestId request, Array& array, bool hard,
                std::int64_t deadline_ms);
  void finish_seal(Array& array, SessionId session, Seal level);
  void retry_seal(Waiter& waiter);
  void hard_sealed(ArrayId id, const Result<void>& result);
  std::optional<Error> check_hard_sealed(const Array& array, const HardSeal& job) const;
  void refused_by_kernel(Array& array, const HardSeal& job, const Error& error);
  std::string being_sealed(const Array& array) const;
  Error busy(const Array& array, const Session* except) const;
  static bool needs_hard(const Array& array, bool hard);
  void abort(Session& session, RequestId request, const Target& target);
  std::optional<Error> abort_draft(Session& session, ArrayId id);

  // registry_cached.cpp
  void cached(Session& session, RequestId request, const QualifiedName& asked,
              std::int64_t timeout_ms);
  void retry_cached(Waiter& waiter, NameEntry& entry, const QualifiedName& name);
  Outcome try_cached(const Session& session, const QualifiedName& name,
                     std::uint64_t seq = kLastInLine) const;
  std::optional<Error> take_role(Session& session);
  void become_loader(Session& session, NameEntry& entry);
  void end_loader(NameEntry& entry);
  std::optional<Error> check_loader(const Session& session, const CreateSpec& spec) const;
  std::optional<Error> abort_loader(Session& session, const QualifiedName& name);

  // registry_admin.cpp
  Result<Array*> look_at(SessionId session, const Target& target, Now at, Effects& effects);
  Result<Array*> find_mine(SessionId session, const Target& target, std::string_view what);
  Result<Array*> find_published(SessionId session, const Target& target, std::string_view what);

  // registry_time.cpp
  void tick();
  std::size_t handles_of(const Timer& timer) const;
  void fire(const Timer& timer);
  void expire(Waiter& waiter);

  // registry_check.cpp
  std::vector<std::string> selfcheck() const;

  // Constant during a call.
  Now now;
  Effects* out = nullptr;

  // Owned objects.
  Quota quota;
  std::unordered_map<SessionId, std::unique_ptr<Session>> sessions;
  std::map<SessionId, Session*> gone;  ///< Of these, those that have ended and still have leases.
  SlotTable<Array> arrays;
  std::map<std::uint32_t, Namespace> namespaces;
  std::map<std::uint32_t, std::set<std::uint64_t>> anonymous;  ///< Arrays without a name, by owner.
  std::unordered_map<SegmentId, PinnedSegment> pinned;

  /// When a user was last without any session, by next_seq.
  std::map<std::uint32_t, std::uint64_t> last_absent;

  // Indices.
  std::set<Timer> timers;
  std::unordered_map<std::uint64_t, Waiter*> waiters;  ///< By seq.
  std::map<std::uint32_t, LinkedList<Waiter>> create_queues;

  // Marked for settle().
  std::vector<NameEntry*> marked_names;
  std::vector<ArrayId> marked_arrays;
  std::set<std::uint64_t> marked_seals;  ///< Waiters by seq: versions go by order of arrival.
  bool room = false;                     ///< Something was given back: waiting creates may fit.
  bool creates_left_over = false;        ///< They were not all asked again; tick() goes on.

  // Sums, recomputed by selfcheck().
  std::uint64_t next_seq = 1;
  std::uint64_t lease_total = 0;
  std::uint64_t pinned_bytes = 0;
  std::uint64_t record_total = 0;
};

/// Do these mode bits let users in who are not the owner?
[[nodiscard]] constexpr bool opens_to_others(unsigned perms) {
  return (perms & 077U) != 0;
}

/// "'name'", "'~1000/name'" or "array 123", for error texts.
std::string label(const QualifiedName& name);
std::string label(const Array& array);
/// "this session has no lease …".
Error no_lease(ArrayId id, Access access);
/// "pid 12 (python)".
std::string named(const Identity& who);

template <class About, class F>
void Registry::Impl::run(SessionId session, RequestId request, protocol::Op op, Now at,
                         Effects& effects, const About& about, F&& f) {
  begin(at, effects);
  Session* found = find_session(session);
  if (found == nullptr) {
    const Error error = make_error(ErrorCode::internal, "no such session");
    effects.emplace_back(Completion{session, request, op, error});
  } else if (found->waits.contains(request)) {
    reply(*found, request, op,
          make_error(ErrorCode::protocol_error, "request: this id is still waiting"));
  } else {
    catch_up(*found, about);
    f(*found);
  }
  settle();
}

}  // namespace shmstore::server
