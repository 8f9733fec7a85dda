#pragma once
/// The C++ client of shmstore. Link with `shmstore::client`; no Boost is needed.
///
///   shmstore::Client client = shmstore::Client::connect().value();
///   auto draft = client.create<double>("grid", {3, 4}).value();
///   std::ranges::fill(draft.data(), 0.0);
///   shmstore::Array<const double> grid = draft.seal().value();
///
/// Errors: every call returns a Result; none throws, none ends the process. Common to all calls
/// and not repeated below: disconnected (no daemon, or it went away), protocol_error,
/// invalid_argument (text names field and limit), aborted ("interrupted", see ConnectOptions).
///
/// Blocking: a call is one round trip to the daemon unless it says that it waits for something.
/// Thread safety: a Client and its copies may be used from any thread; calls of several threads
/// overlap, and a call that waits does not hold up the others. One handle (AnyArray, Array, Draft)
/// belongs to one thread at a time; distinct handles of the same array are independent.
/// Lifetime: a handle keeps its memory mapped and its lease held until release() or destruction;
/// it may outlive every Client object. If the daemon dies, mapped arrays stay readable.
/// Fork: a child may read what it inherited and drop it; its first new call opens a session of its
/// own. Handles inherited from the parent release nothing in the child but the mapping.
/// Killed client: its leases end with the process; its drafts are aborted; the memory goes back
/// when no forked child maps it any more.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "shmstore/array.hpp"
#include "shmstore/dtype.hpp"
#include "shmstore/error.hpp"
#include "shmstore/version.hpp"

namespace shmstore {

namespace client_internal {
class State;  // One per Client and its copies: connection, mapping cache, look-up of sockets.
class Lease;  // One per handle: the grant it gives back, the mapping it holds.
class WatchState;
}  // namespace client_internal

/// How long a call may wait: nullopt for ever, 0 not at all.
using Timeout = std::optional<std::chrono::milliseconds>;
inline constexpr Timeout kWaitForever = std::nullopt;
inline constexpr Timeout kDoNotWait = std::chrono::milliseconds(0);

struct ConnectOptions {
  /// Path of the daemon's socket. Empty: $SHMSTORE_SOCKET, else the look-up order of
  /// docs/ARCHITECTURE.md. A path given here or by the variable is final: no autostart.
  std::string socket;
  /// Start a private daemon when the look-up finds none. Default: yes unless
  /// $SHMSTORE_AUTOSTART is 0.
  std::optional<bool> autostart;
  /// Life of the hand-over lease that handover() takes. At most one hour.
  std::chrono::milliseconds grace{60'000};
  /// After losing the daemon, how long the next call tries to reach it again.
  std::chrono::milliseconds reconnect_for{10'000};
  /// Called, on the calling thread and with no lock held, when a waiting call was woken by a
  /// signal and at least every 100 ms. True ends the call: it leaves nothing behind and returns
  /// aborted with the text "interrupted". Must not call the client.
  std::function<bool()> interrupted;
  /// Whether a call that has waited for 5 s says so, once, on stderr. Default: if stderr is a
  /// terminal, unless $SHMSTORE_WAIT_NOTICE is 0.
  std::optional<bool> wait_notice;
};

struct CreateOptions {
  Order order = Order::c;
  bool is_mutable = false;                       ///< Shared read-write at once, no seal needed.
  bool keep = false;                             ///< The name pins the array when nobody holds it.
  std::optional<std::chrono::milliseconds> ttl;  ///< With keep: delete after this long.
  std::uint16_t perms = kPermsDefault;           ///< Bits of 0666; others' bits make the seal hard.
  std::string attrs;                             ///< A JSON object, at most 4096 bytes; empty: {}.
  bool replace = false;          ///< Publish over an older version at seal, atomically.
  bool hard = false;             ///< Seal hard: F_SEAL_WRITE, nobody can write any more.
  Timeout timeout = kDoNotWait;  ///< Wait for capacity or quota.
  bool late = false;             ///< Reserved for the fast path; no effect.
};

struct AttachOptions {
  Access access = Access::read;    ///< read, write ("r+"), copy ("c"), exclusive or hold.
  Timeout timeout = kWaitForever;  ///< Bounds the wait for a draft, for newer_than, for a turn.
  std::uint64_t newer_than = 0;    ///< Wait for a version above this one.
  bool repair = false;             ///< With exclusive: of a broken array, too.
};

struct SealOptions {
  bool hard = false;
  Timeout wait = kDoNotWait;  ///< Wait for other writers to let go; else busy names them.
};

struct CachedOptions {
  std::optional<std::chrono::milliseconds> ttl;
  std::uint16_t perms = kPermsDefault;
  std::string attrs;
  Order order = Order::c;
  Timeout timeout = kWaitForever;
};

/// One array as the admin plane describes it; `list`, `info`.
struct ArrayInfo {
  std::string id;
  std::string name;  ///< Full: `~uid/name` when it is not in the caller's namespace; "" anonymous.
  std::string dtype;
  std::vector<std::uint64_t> shape;
  std::string order;  ///< "C" or "F"
  std::uint64_t nbytes = 0;
  std::string state;   ///< "draft", "sealed", "mutable", "broken", "dying"
  std::string sealed;  ///< "soft", "hard" or ""
  std::uint64_t version = 0;
  std::string perms;  ///< "0600"
  std::uint32_t uid = 0;
  std::uint64_t leases = 0;
  bool kept = false;
  std::optional<double> ttl_s;  ///< Seconds left.
  double created = 0;           ///< Unix time, seconds.
  std::optional<double> sealed_at;
  std::string attrs;  ///< JSON object
  /// Handles that were pickled and not opened yet, as far as the store can tell.
  std::uint64_t in_flight = 0;
  struct Broken {
    std::int64_t pid = 0;  ///< Had exclusive access …
    std::string command;
    double at = 0;         ///< … and went away then. Unix time, seconds.
    bool gave_up = false;  ///< It lives on, but said that the array is half-written.
  };
  std::optional<Broken> broken;
};

struct Holder {
  std::int64_t pid = 0;  ///< 0 for a hand-over lease.
  std::string command;   ///< As /proc/pid/comm; "hand-over" for a hand-over lease.
  std::uint32_t uid = 0;
  std::string access;           ///< "r", "r+", "c", "x", "h"
  double since = 0;             ///< Unix time, seconds.
  std::uint64_t in_flight = 0;  ///< Of a hand-over lease: handles that were not opened yet.
  std::int64_t from_pid = 0;    ///< Likewise: who pickled the last one.
};

struct UserStatus {
  std::uint32_t uid = 0;
  std::uint64_t bytes = 0, bytes_max = 0;
  std::uint64_t arrays = 0, arrays_max = 0;
  std::uint64_t leases = 0;
  std::uint64_t connections = 0;
};

struct StoreStatus {
  std::uint64_t capacity = 0;  ///< Bytes.
  std::uint64_t used = 0;      ///< Bytes charged, pooled ones not counted.
  std::uint64_t pooled = 0;
  std::uint64_t pinned = 0;  ///< Part of used: freed arrays that some process still maps.
  std::uint64_t arrays = 0;
  std::uint64_t sessions = 0;
  std::uint64_t fds = 0, fds_max = 0;
  double uptime_s = 0;
  std::string version;
  std::int64_t pid = 0;
  std::uint64_t store_id = 0;
  std::vector<UserStatus> uids;
};

struct Event {
  std::string event;  ///< "created", "sealed", "deleted", "kept", "unkept", "broken", "repaired",
                      ///< "lost"
  std::string name;
  std::string id;
  std::uint64_t version = 0;
  std::string state;
  std::uint32_t uid = 0;
  std::string json;  ///< The event as it came.
};

/// An attached or created array of any dtype; move-only. The C++ templates and the Python package
/// are thin layers over this. A moved-from or released handle is empty: data() is null.
class AnyArray {
 public:
  AnyArray() noexcept;
  AnyArray(AnyArray&&) noexcept;
  AnyArray& operator=(AnyArray&&) noexcept;
  AnyArray(const AnyArray&) = delete;
  AnyArray& operator=(const AnyArray&) = delete;
  /// Releases, as release() without its error. A draft of its creator is aborted.
  ~AnyArray();

  [[nodiscard]] bool valid() const noexcept;
  /// The bytes; 64-byte aligned; null for an empty handle, not null for an array of 0 bytes.
  [[nodiscard]] const std::byte* data() const noexcept;
  /// The same bytes to write; null when access is read.
  [[nodiscard]] std::byte* writable_data() const noexcept;
  [[nodiscard]] std::uint64_t bytes() const noexcept;
  [[nodiscard]] const Dtype& dtype() const noexcept;
  [[nodiscard]] std::span<const std::uint64_t> shape() const noexcept;
  [[nodiscard]] Order order() const noexcept;
  [[nodiscard]] ArrayId id() const noexcept;
  [[nodiscard]] std::uint64_t store_id() const noexcept;
  /// "" for anonymous; `~uid/name` for a name outside the caller's namespace.
  [[nodiscard]] const std::string& name() const noexcept;
  [[nodiscard]] std::uint64_t version() const noexcept;
  [[nodiscard]] State state() const noexcept;  ///< As of the last call through this handle.
  [[nodiscard]] Seal sealed() const noexcept;
  [[nodiscard]] Access access() const noexcept;
  [[nodiscard]] std::uint16_t perms() const noexcept;
  /// True for the handle that create() returned, until it is sealed or moved to another process.
  [[nodiscard]] bool is_creator() const noexcept;
  /// True when this handle was inherited by fork from the process that made it.
  [[nodiscard]] bool inherited() const noexcept;

  /// Seals a draft or mutable array held `r+`. Access becomes read, and data() another pointer: to
  /// the same bytes, mapped read-only, so that a stray write ends the process instead of changing
  /// what others read. Pointers taken before stay valid until the handle ends; writing through them
  /// may still change the array, but after a hard seal stays in this process. Sealing what is
  /// sealed: success. Errors: busy (other writers, named), aborted (the draft's creator is gone),
  /// permission_denied, no_capacity (no room for the map).
  Result<void> seal(const SealOptions& options = {});
  /// Keeps the array alive for whoever gets its id by another way, for `grace` from now on. Each
  /// attach_id() that says `from_handle` begins the time anew.
  Result<void> handover();
  /// The same for one receiver of this user, who gets the returned number as well, for attach_id():
  /// when it has attached and mapped the array, that is kept for it no longer. A receiver that
  /// fails or dies half-way leaves it there for the next try. 0: too many are on their way, or the
  /// grace is 0; then it is as with handover().
  Result<std::uint64_t> handover_once();
  /// Says that this process, which has the array open, is the receiver of that number: what
  /// attach_id() says by itself. Does not wait.
  void received(std::uint64_t handle) noexcept;
  /// Ends the lease now, although pointers to the memory are left: a writable map is swapped for a
  /// private one at the same address (where another handle of this process writes through it, once
  /// the last such handle goes), and the destructor ends it. Through those pointers one may see
  /// what others write later; what is written there stays in this process. `half_written`: leaves
  /// an array that was held exclusively broken, as if this process had died. Twice is fine. Errors:
  /// invalid_argument (the creator's draft), no_capacity (no room for another map; the lease stays,
  /// and its end leaves the array broken if that was asked for).
  Result<void> let_go(bool half_written = false);
  /// Ends the lease now; a second call does nothing. The memory is unmapped: no pointer to it may
  /// be used any more. A draft of its creator is aborted.
  Result<void> release() noexcept;

 private:
  friend class Client;
  friend class client_internal::State;
  explicit AnyArray(std::unique_ptr<client_internal::Lease> lease) noexcept;
  std::unique_ptr<client_internal::Lease> lease_;
};

template <class T>
class Array;

/// A typed array being filled by this process. Destroyed unsealed, it is aborted.
template <class T>
class Draft {
 public:
  explicit Draft(AnyArray any) noexcept : any_(std::move(any)) {}
  [[nodiscard]] std::span<T> data() const noexcept {
    return {reinterpret_cast<T*>(any_.writable_data()), any_.bytes() / sizeof(T)};
  }
  [[nodiscard]] const AnyArray& any() const noexcept { return any_; }
  /// Publishes the array. On success this draft is empty, and the result's data() is another
  /// pointer, read-only: see AnyArray::seal. On an error (busy …) it stays as it was.
  Result<Array<const T>> seal(const SealOptions& options = {});

 private:
  AnyArray any_;
};

/// A typed attached array: Array<const T> to read, Array<T> to read and write.
template <class T>
class Array {
 public:
  explicit Array(AnyArray any) noexcept : any_(std::move(any)) {}
  [[nodiscard]] std::span<T> data() const noexcept {
    if constexpr (std::is_const_v<T>) {
      return {reinterpret_cast<T*>(any_.data()), any_.bytes() / sizeof(T)};
    } else {
      return {reinterpret_cast<T*>(any_.writable_data()), any_.bytes() / sizeof(T)};
    }
  }
  [[nodiscard]] std::span<const std::uint64_t> shape() const noexcept { return any_.shape(); }
  [[nodiscard]] AnyArray& any() noexcept { return any_; }
  [[nodiscard]] const AnyArray& any() const noexcept { return any_; }
  Result<void> release() noexcept { return any_.release(); }

 private:
  AnyArray any_;
};

template <class T>
Result<Array<const T>> Draft<T>::seal(const SealOptions& options) {
  if (Result<void> sealed = any_.seal(options); !sealed) return sealed.error();
  return Array<const T>(std::move(any_));
}

/// A stream of events; move-only; a connection of its own.
class Watch {
 public:
  Watch(Watch&&) noexcept;
  Watch& operator=(Watch&&) noexcept;
  ~Watch();
  /// The next event. Waits at most `timeout`; errors: timed_out, disconnected.
  Result<Event> next(Timeout timeout = kWaitForever);
  /// For poll(2): readable when an event may be there.
  [[nodiscard]] int native_handle() const noexcept;

 private:
  friend class Client;
  explicit Watch(std::unique_ptr<client_internal::WatchState> state) noexcept;
  std::unique_ptr<client_internal::WatchState> state_;
};

/// A connection to the store. Copies share it. Names: `name` lives in the caller's own namespace,
/// `~1000/name` and `~alice/name` in another's.
class Client {
 public:
  /// Finds the daemon, or starts a private one (ConnectOptions), and says hello.
  /// Errors: disconnected (text names the path tried), permission_denied (the socket's mode, or
  /// the daemon refuses this user), protocol_error (versions, both named).
  static Result<Client> connect(const ConnectOptions& options = {});

  /// Makes a draft (or a mutable array) mapped writable by this process, contents uninitialised.
  /// An empty `name` makes an anonymous array. Waits for the daemon to allocate the memory.
  /// Errors: already_exists, no_capacity, quota_exceeded, permission_denied.
  Result<AnyArray> create_any(std::string_view name, std::string_view dtype,
                              std::span<const std::uint64_t> shape,
                              const CreateOptions& options = {});
  /// create_any + one copy of `bytes` (in the array's order) + seal. Not for mutable arrays: others
  /// can attach to one while it is written. Errors: also invalid_argument (`bytes` has another
  /// length, or cannot be read), and nothing is left.
  Result<AnyArray> put_any(std::string_view name, std::string_view dtype,
                           std::span<const std::uint64_t> shape, std::span<const std::byte> bytes,
                           const CreateOptions& options = {});
  /// Attaches by name. A missing name is not_found at once; a draft is waited for (access read or
  /// copy) or joined as co-writer (access write). Access hold maps nothing: data() is null.
  ///
  /// Access exclusive, of mutable arrays: reads and writes while no other process maps the array.
  /// While others do, or one has it alone, an attach of any access waits for its turn, in order of
  /// arrival, or is busy (timeout 0; and at once when it would wait for this process itself). The
  /// release hands the array over with all that was written. If the process dies before that, the
  /// array is broken: attaches are aborted, until somebody attaches with `repair` and releases it.
  /// A forked child does not inherit the map of an exclusive handle.
  /// Errors: not_found, permission_denied, timed_out, invalid_argument (write to a sealed array),
  /// aborted (the draft waited for was dropped; the array is broken), busy.
  Result<AnyArray> attach_any(std::string_view name, const AttachOptions& options = {});
  /// Attaches by id; `store_id` 0 means this store. A handle of an earlier store is not_found.
  /// `from_handle` renews the array's hand-over lease, or ends that of the `handle` which
  /// handover_once() returned, when the array is mapped.
  Result<AnyArray> attach_id(ArrayId id, std::uint64_t store_id = 0,
                             const AttachOptions& options = {}, bool from_handle = false,
                             std::uint64_t handle = 0);

  /// The array under `key`; made by `loader` if there is none, exactly once over all processes.
  /// `loader` runs on the calling thread, calls `make(dtype, shape)` once for the draft, fills it
  /// and returns; the result is sealed and kept. While one process loads, the others wait; if it
  /// fails or dies the next waiter loads. An error of the loader is returned to its caller only.
  /// Errors also: invalid_argument when called for the same key inside its own loader.
  using MakeDraft =
      std::function<Result<AnyArray*>(std::string_view dtype, std::span<const std::uint64_t>)>;
  Result<AnyArray> cached_any(std::string_view key,
                              const std::function<Result<void>(const MakeDraft&)>& loader,
                              const CachedOptions& options = {});

  /// Waits until `name` exists, is sealed or mutable, and its version is above `newer_than`.
  /// Returns the version. Error: timed_out.
  Result<std::uint64_t> wait(std::string_view name, std::uint64_t newer_than = 0,
                             Timeout timeout = kWaitForever);
  [[nodiscard]] Result<bool> exists(std::string_view name);

  Result<void> remove(std::string_view name);  ///< `delete`. Errors: not_found, permission_denied.
  Result<void> keep(std::string_view name, std::optional<std::chrono::milliseconds> ttl = {});
  Result<void> unkeep(std::string_view name);
  Result<void> chmod(std::string_view name, std::uint16_t perms);
  Result<ArrayInfo> info(std::string_view name);
  Result<ArrayInfo> info(ArrayId id);  ///< Of an array that the caller may read, named or not.
  Result<std::vector<ArrayInfo>> list(std::string_view prefix = {});
  Result<std::vector<Holder>> holders(std::string_view name);
  Result<StoreStatus> status();
  Result<Watch> watch(std::string_view prefix = {});
  /// One admin operation by its protocol name ("list", "info", "status", "metrics", "gc" …; see
  /// protocol.hpp) and JSON text both ways. "list" returns the whole array, all pages joined.
  /// Names inside `request` must be as on the wire: `~1000/x`, no user names (see resolve_name).
  Result<std::string> admin(std::string_view op, std::string_view request = "{}");
  /// `~alice/x` → `~1000/x`; checks the name. Blocks on the name service for user names.
  static Result<std::string> resolve_name(std::string_view name);

  /// An empty round trip.
  Result<void> ping();
  [[nodiscard]] std::uint64_t store_id() const noexcept;
  [[nodiscard]] const std::string& socket_path() const noexcept;

  template <class T>
  Result<Draft<T>> create(std::string_view name, std::initializer_list<std::uint64_t> shape,
                          const CreateOptions& options = {}) {
    return create<T>(name, std::span<const std::uint64_t>(shape.begin(), shape.size()), options);
  }
  template <class T>
  Result<Draft<T>> create(std::string_view name, std::span<const std::uint64_t> shape,
                          const CreateOptions& options = {}) {
    Result<AnyArray> any = create_any(name, Dtype::of<T>().text(), shape, options);
    if (!any) return any.error();
    return Draft<T>(std::move(*any));
  }
  /// A mutable array, shared read-write at once.
  template <class T>
  Result<Array<T>> create_mutable(std::string_view name, std::span<const std::uint64_t> shape,
                                  CreateOptions options = {}) {
    options.is_mutable = true;
    Result<AnyArray> any = create_any(name, Dtype::of<T>().text(), shape, options);
    if (!any) return any.error();
    return Array<T>(std::move(*any));
  }
  template <class T>
  Result<Array<const T>> put(std::string_view name, std::span<const T> values,
                             const CreateOptions& options = {}) {
    const std::uint64_t dims[] = {values.size()};
    Result<AnyArray> any =
        put_any(name, Dtype::of<T>().text(), dims, std::as_bytes(values), options);
    if (!any) return any.error();
    return Array<const T>(std::move(*any));
  }
  /// Typed attach to read. A dtype other than T's is invalid_argument and leaves nothing held.
  template <class T>
  Result<Array<const T>> attach(std::string_view name, AttachOptions options = {}) {
    Result<AnyArray> any = attach_any(name, options);
    if (!any) return any.error();
    if (Result<void> same = check_dtype(*any, Dtype::of<T>()); !same) return same.error();
    return Array<const T>(std::move(*any));
  }
  /// Typed attach to write: access write, or copy when the options say so.
  template <class T>
  Result<Array<T>> attach_writable(std::string_view name, AttachOptions options = {}) {
    if (options.access == Access::read) options.access = Access::write;
    Result<AnyArray> any = attach_any(name, options);
    if (!any) return any.error();
    if (Result<void> same = check_dtype(*any, Dtype::of<T>()); !same) return same.error();
    return Array<T>(std::move(*any));
  }

 private:
  explicit Client(std::shared_ptr<client_internal::State> state) noexcept;
  static Result<void> check_dtype(const AnyArray& any, const Dtype& wanted);
  std::shared_ptr<client_internal::State> state_;
};

}  // namespace shmstore
