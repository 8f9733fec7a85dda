#pragma once
/// A second, simple registry to compare the real one with: maps and vectors, everything looked up
/// by walking through all of it, nothing kept that could be computed. It predicts the answer to
/// each request, the events and the state of each array.

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "server/registry.hpp"

namespace shmstore::model {

using Key = int;  ///< Names an array here; its ArrayId is learned from the real registry.
using Uid = std::uint32_t;
using Session = std::uint64_t;
using Request = std::uint64_t;
using Name = std::pair<Uid, std::string>;

inline constexpr std::int64_t kNever = INT64_MAX;
inline constexpr std::int64_t kSealRetryMs = 20;

enum class Kind {
  error,
  grant,
  loader,
  sealed,
  waited,
  handed_over,
  done
};

struct Answer {
  Kind kind = Kind::done;
  ErrorCode code = ErrorCode::internal;
  Key array = -1;
  Access access = Access::read;
  bool descriptor = false;
  std::uint64_t version = 0;
  Seal seal = Seal::none;
  State state = State::draft;
  std::uint64_t handle = 0;
};

struct Lease {
  Session session = 0;  ///< 0: hand-over.
  Uid uid = 0;
  Access access = Access::read;
  std::uint64_t grants = 0;
  bool sent = false;
  bool blocks = false;  ///< Of those that map: its user may write.
  std::int64_t deadline = 0, grace = 0;
  std::uint64_t on_the_way = 0;  ///< Handles.
  std::uint64_t handle = 0;      ///< One that is for one receiver.
};

struct Array {
  server::CreateSpec spec;
  Uid owner = 0;
  bool named = false;
  State state = State::draft;
  Seal seal = Seal::none;
  std::uint64_t version = 0;
  Session creator = 0;
  Request creation = 0;  ///< The create that is not answered yet.
  bool allocating = false, memory = false, announced = false, aborted = false, kept = false;
  std::int64_t ttl_at = kNever;
  std::vector<Lease> leases;  ///< Writers first, the newest of them foremost.
  Uid payer = 0;
  std::uint64_t charged = 0;  ///< Pages.
  std::optional<Uid> last_foreign;

  bool asking_kernel = false;  ///< A hard seal is under way …
  Session sealer = 0;          ///< … for this session, …
  Request seal_request = 0;    ///< … and this request, if it still wants to know.
  bool seal_hard = false;
  std::int64_t seal_deadline = 0;
  bool seal_cancelled = false;  ///< It is told how it came out all the same.
  bool given_up = false;        ///< Left half-written meanwhile.
  bool frozen = false;          ///< Cannot be written any more, yet is not sealed.
  bool exposed = false;         ///< Other users could open it at some time, or wrote it.
  std::uint64_t last_handle = 0;
  bool seals_sleep = false;  ///< The kernel said busy; nothing has changed since.
  std::multiset<std::int64_t> seal_retries;
};

/// The memory of an array that is gone.
struct Pinned {
  Uid payer = 0;
  std::uint64_t charged = 0;
  std::optional<Uid> last_foreign;
};

inline bool has(const server::CreateSpec& spec, std::uint16_t option) {
  return (spec.options & option) != 0;
}
inline Name name_of(const Array& array) {
  return {array.spec.name.uid, array.spec.name.name};
}

struct Wait {
  enum class On {
    attach,
    wait,
    cached,
    create,
    seal
  };
  Request request = 0;
  Session session = 0;
  On on = On::wait;
  std::int64_t deadline = kNever;
  Name name{};
  Key array = -1;  ///< Attach by id, seal.
  Access access = Access::read;
  std::uint64_t newer_than = 0;
  bool renew = false, hard = false, repair = false;
  std::uint64_t handle = 0;
  bool asked = false;    ///< Not for the first time.
  bool in_line = false;  ///< For a turn at an array.
  bool stood = false;    ///< Was so once.
  server::CreateSpec spec{};
};

struct Loader {
  Session session = 0;
  Key draft = -1;
};

using Event = std::tuple<std::string, Uid, std::string, Key, std::uint64_t, State>;

class Store {
 public:
  explicit Store(const server::Limits& limits) : limits_(limits) {}

  void join(Session session, Uid uid, std::set<Uid> groups) {
    sessions[session] = {uid, std::move(groups)};
  }
  void leave(Session session);

  void create(Session session, Request request, server::CreateSpec spec);
  void publish(Session session, Request request, Key array);
  void seal(Session session, Request request, Key array, bool hard, std::int64_t wait_ms);
  void attach(Session session, Request request, Key array, Name name, Access access,
              std::uint64_t newer_than, std::int64_t timeout_ms, bool renew, bool repair,
              std::uint64_t handle = 0);
  void segment(Session session, Request request, Key array, Access access);
  void release(Session session, Request request, Key array, Access access, std::uint32_t grants);
  void cached(Session session, Request request, const Name& name, std::int64_t timeout_ms);
  void wait(Session session, Request request, const Name& name, std::uint64_t newer_than,
            std::int64_t timeout_ms);
  void cancel(Session session, Request request, Request target);
  void abort(Session session, Request request, Key array, const Name& name);
  void handover(Session session, Request request, Key array, std::uint64_t grace_ms, bool once);
  void received(Session session, Request request, Key array, std::uint64_t handle);

  /// Admin: the error, or nothing. By key, or by name where the key is -1; kNoArray is an id that
  /// was never given out.
  std::optional<ErrorCode> keep(Session session, Key array, const Name& name, std::uint64_t ttl);
  std::optional<ErrorCode> unkeep(Session session, Key array, const Name& name);
  std::optional<ErrorCode> remove(Session session, Key array, const Name& name);
  std::optional<ErrorCode> chmod(Session session, Key array, const Name& name, std::uint16_t perms);
  std::optional<ErrorCode> info(Session session, Key array, const Name& name);
  /// (namespace, name, version) in the order of list; anonymous ones last.
  std::vector<std::tuple<Uid, std::string, std::uint64_t>> list(Session session,
                                                                const std::string& prefix);

  void memory_came(Key array);
  void memory_refused(Key array);
  void kernel_sealed(Key array);
  void kernel_busy(Key array);
  void reclaimed(Key array);  ///< The memory of an array that is gone.
  void held(Key array);       ///< It is not: somebody still maps it.
  void tick(std::int64_t now);

  static constexpr Key kNoArray = -2;

  [[nodiscard]] std::uint64_t bytes(Uid uid) const;
  [[nodiscard]] std::uint64_t count(Uid uid) const;
  [[nodiscard]] std::uint64_t leases(Uid uid) const;
  [[nodiscard]] std::uint64_t waiting(Uid uid) const;
  [[nodiscard]] std::uint64_t segments() const;
  [[nodiscard]] std::uint64_t segments(Uid uid) const;
  [[nodiscard]] std::uint64_t records() const;
  [[nodiscard]] std::uint64_t requests_open() const;
  [[nodiscard]] std::optional<std::int64_t> next_deadline() const;
  /// A create that waits although there is room for it.
  [[nodiscard]] bool somebody_waits_in_vain() const;

  struct Who {
    Uid uid = 0;
    std::set<Uid> groups;
  };
  std::map<Session, Who> sessions;
  std::map<Key, Array> arrays;
  std::map<Key, Pinned> pinned;
  std::vector<Wait> waits;  ///< In order of arrival.
  std::map<Name, Loader> loaders;
  std::int64_t now = 0;

  // What the last call did; the caller clears them.
  std::map<Request, Answer> answers;
  std::vector<Event> events;
  std::vector<Key> allocations;  ///< New arrays that wait for memory.
  std::vector<Key> frees;
  std::vector<Key> hard_seals;

 private:
  struct Verdict {
    enum class Is {
      wait,
      error,
      go
    };
    Is is = Is::wait;
    ErrorCode code = ErrorCode::internal;
    Key array = -1;
    bool turn = false;  ///< Waits for those who hold the array.
  };
  static Verdict must_wait() { return {}; }
  static Verdict waits_for_turn() { return {Verdict::Is::wait, ErrorCode::internal, -1, true}; }
  static Verdict fails(ErrorCode code) { return {Verdict::Is::error, code, -1}; }
  static Verdict goes(Key array) { return {Verdict::Is::go, ErrorCode::internal, array}; }

  bool may(Session session, const Array& array, Access access) const;
  ErrorCode denied(Session session, const Array& array, bool by_id) const;
  bool owns(Session session, const Array& array) const;
  bool foreign(Session session, const Name& name) const;
  Key published(const Name& name) const;
  Key visible(const Name& name) const;
  Lease* lease_of(Session session, Key array, Access access);
  bool holds(Session session, Key array) const;
  std::uint64_t writers(const Array& array) const;

  Verdict try_attach(const Wait& wait) const;
  Verdict try_access(const Wait& wait, Key key) const;
  Verdict try_turn(const Wait& wait, Key key) const;
  bool stands_in_line(const Wait& wait, Key key) const;
  void break_array(Key array);
  Verdict try_wait(const Wait& wait) const;
  Verdict try_cached(const Wait& wait) const;
  Verdict try_seal(const Wait& wait);
  Verdict attempt(const Wait& wait);
  std::optional<ErrorCode> refuse_create(Session session, const server::CreateSpec& spec) const;
  std::optional<ErrorCode> no_room(Uid uid, const server::CreateSpec& spec) const;
  bool never_fits(Uid uid, const server::CreateSpec& spec) const;
  std::uint64_t user_limit() const;

  void request(const Wait& wait, std::int64_t timeout_ms, ErrorCode at_once);
  void open_handle(const Wait& wait, Key array);
  void open_common_handle(Uid uid, Key array);
  void perform(const Wait& wait, Key array);
  void say(Request request, Answer answer) { answers[request] = answer; }
  void fail(Request request, ErrorCode code);
  void grant(Session session, Request request, Key array, Access access);
  void make(Session session, Request request, const server::CreateSpec& spec);
  void ready(Key array);
  void announce(Key array);
  bool may_publish(const Array& array) const;
  void publish(Key array, State state);
  void begin_seal(Session session, Request request, Key array, bool hard, std::int64_t deadline);
  void finish_seal(Key array, Session session, Seal level);
  void unname(Key array);
  void die(Key array);
  void drop_unready(Key array);
  void end_lease(Key array, std::size_t index);
  void settle_payer(Array& array);
  void end_loader(const Name& name) { loaders.erase(name); }
  void event(std::string_view what, Key array);
  std::int64_t deadline(std::int64_t timeout_ms) const;
  std::optional<ErrorCode> find_owned(Session session, Key& array, const Name& name) const;

  void settle();
  enum class Which {
    in_line,
    on_names,
    on_arrays,
    seals
  };
  bool settle_waits(Which which);
  static bool is_one(const Wait& wait, Which which);
  bool settle_arrays();
  bool settle_creates();
  void expire(std::size_t index);

  server::Limits limits_;
  Key next_ = 0;
  std::map<Uid, std::uint64_t> floors_;
  bool room_ = false;
};

}  // namespace shmstore::model
