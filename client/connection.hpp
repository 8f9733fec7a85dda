#pragma once
/// One session with the daemon, used by many threads at once.
///
/// There is no thread of the library's own: of the threads that wait for a reply, one reads the
/// socket (the leader), the others sleep. The leader hands every reply to its request, mapping a
/// descriptor that came with it first, in the order of the socket; when its own reply is there it
/// passes the lead on.
///
/// Requests without a waiter (releases by destructors, cancel) are sent and forgotten; whoever
/// reads next consumes their replies. Those that cannot be sent at once are queued (chores): the
/// leader sends them, or the thread whose call ends.
///
/// A call that waits without a limit asks the daemon now and then whether it is there (ping).

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/mapping_cache.hpp"
#include "client/wire.hpp"
#include "shmstore/client.hpp"

namespace shmstore::client_internal {

/// Body of a reply: short ones without an allocation.
class ReplyBody {
 public:
  /// False when there is no memory.
  [[nodiscard]] bool assign(std::span<const std::byte> bytes) noexcept;
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept;
  [[nodiscard]] std::string_view text() const noexcept;

 private:
  std::size_t size_ = 0;
  std::unique_ptr<std::byte[]> large_;
  std::array<std::byte, 512> small_;
};

/// One request and its reply; lives on the stack of the thread that calls. Not to be reused.
class Call {
 public:
  explicit Call(protocol::Op op) noexcept;
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  /// Appends a part of the request; the bytes must live until the call is over.
  template <class T>
  Call& add(const T& fixed) noexcept {
    static_assert(std::is_trivially_copyable_v<T>);
    return add_bytes(&fixed, sizeof fixed);
  }
  Call& add_text(std::string_view text) noexcept { return add_bytes(text.data(), text.size()); }
  Call& add_bytes(const void* data, std::size_t bytes) noexcept;

  // Set before the call.
  std::optional<std::chrono::milliseconds> server_wait{0};  ///< The daemon's deadline; none: never.
  bool interruptible = true;
  std::string_view waits_for;            ///< What the user may wonder about when it takes long.
  bool keep_descriptor = false;          ///< Hand the descriptor over unmapped.
  QualifiedName const* loads = nullptr;  ///< `cached`: the key, to give up an unwanted role.

  // Valid after a successful call.
  [[nodiscard]] std::span<const std::byte> body() const noexcept { return body_.bytes(); }
  [[nodiscard]] std::string_view text() const noexcept { return body_.text(); }
  MapOutcome map;            ///< What came with the reply, mapped.
  UninheritedFd descriptor;  ///< With keep_descriptor.
  bool descriptor_lost = false;
  /// False: the request never reached the daemon; it may be made again on another connection.
  bool delivered = false;

  [[nodiscard]] protocol::Op op() const noexcept { return op_; }
  /// True when the daemon carried it out, even if the caller is told otherwise (interrupted).
  [[nodiscard]] bool replied() const noexcept { return outcome_ == Outcome::reply && status_ == 0; }

 private:
  friend class Connection;
  friend class CallList;
  protocol::Op op_;
  protocol::FrameHeader header_;
  std::array<iovec, 6> parts_;
  std::size_t part_count_ = 1;
  std::size_t request_bytes_ = sizeof(protocol::FrameHeader);
  ReplyBody body_;

  // Guarded by the connection's mutex once sent.
  enum class Outcome : std::uint8_t {
    none,
    reply,
    no_memory,
    lost,
    silent
  };
  Outcome outcome_ = Outcome::none;
  std::uint32_t status_ = 0;
  bool parked_ = false;
  bool cancelled_ = false;
  Call* next_ = nullptr;
  Call* previous_ = nullptr;
  std::condition_variable wake_;
  std::optional<std::chrono::steady_clock::time_point> silent_after_;
  std::optional<std::chrono::steady_clock::time_point> look_at_;  ///< Of a parked call.
};

/// Calls that wait for a reply, oldest first. Links within the calls: nothing is allocated.
class CallList {
 public:
  void append(Call& call) noexcept;
  void remove(Call& call) noexcept;
  [[nodiscard]] Call* find(std::uint64_t request) const noexcept;
  [[nodiscard]] Call* first() const noexcept { return first_; }
  [[nodiscard]] static Call* after(const Call& call) noexcept { return call.next_; }

 private:
  Call* first_ = nullptr;
  Call* last_ = nullptr;
};

/// Exclusive access to an array that is still broken: its release says that it is whole again.
[[nodiscard]] constexpr bool is_unrepaired(std::uint8_t access, std::uint8_t state) noexcept {
  return access == static_cast<std::uint8_t>(Access::exclusive) &&
         state == static_cast<std::uint8_t>(shmstore::State::broken);
}

class Connection {
 public:
  Connection(UninheritedFd socket, const protocol::HelloReply& hello);
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  [[nodiscard]] std::uint64_t store_id() const noexcept { return hello_.store_id; }
  [[nodiscard]] std::uint32_t uid() const noexcept { return hello_.uid; }
  /// False once the daemon is gone, and in every process but the one that opened it.
  [[nodiscard]] bool alive() const noexcept {
    return socket_.own() && !broken_.load(std::memory_order_relaxed);
  }

  /// Sends and waits for the reply. Errors: what the daemon said; disconnected; timed_out when it
  /// keeps silent; aborted ("interrupted"), having given back what the call was granted after all.
  Result<void> call(Call& call, const Interrupted& interrupted);

  /// Gives back one grant; waits only if many are unread already.
  void release(ArrayId id, Access access) noexcept;
  /// Drops a draft, or what is half-written, held with `access`; likewise.
  void abort(ArrayId id, Access access) noexcept;
  /// Says that this process has what a handle for one receiver named; likewise.
  void received(ArrayId id, std::uint64_t handle) noexcept;
  /// Gives up the role of loader, likewise.
  void give_up_loading(const QualifiedName& key) noexcept;
  /// The same as release() or abort() (`drops`), but says what came of it.
  Result<void> give_back(ArrayId id, Access access, bool drops);

 private:
  /// A request without a waiter: what to do about an error reply to it.
  struct Unread {
    std::uint64_t request = 0;
    protocol::Op op = protocol::Op::ping;
    ArrayId id;
    Access access = Access::read;
  };
  /// Something to send that came up while reading.
  struct Chore {
    protocol::Op op = protocol::Op::ping;
    ArrayId id;
    Access access = Access::read;
    std::uint64_t number = 0;  ///< With op cancel the request, with op received the handle.
    QualifiedName name;        ///< With op abort and no id: the key.
  };
  /// A call whose owner has gone away without a reply: what it may still be granted goes back.
  struct Orphan {
    std::uint64_t request = 0;
    QualifiedName loads;
  };
  enum class Posted : std::uint8_t {
    yes,
    full,
    closed
  };

  Result<void> send(Call& call, const Interrupted& interrupted);
  Sent try_send(Call& call) noexcept;
  Result<void> wait_for_room(Call& call, const Interrupted& interrupted);
  void await(Call& call, const Interrupted& interrupted);
  bool park(Call& call, std::unique_lock<std::mutex>& lock, bool has_callback);
  bool read_one(std::unique_lock<std::mutex>& lock, bool waits = true);
  void take_in(Frame& frame, std::unique_lock<std::mutex>& lock);
  MapOutcome map_descriptor(const Frame& frame) const noexcept;
  void deliver(Call& call, Frame& frame, MapOutcome& map, UninheritedFd& kept) noexcept;
  void take_stray(const Frame& frame);
  void promote() noexcept;
  void look_around(Call& call, const Interrupted& interrupted);
  bool is_silent(std::chrono::steady_clock::time_point now) noexcept;
  void give_up(Call& call) noexcept;
  void fail_all() noexcept;
  Result<void> conclude(Call& call);
  void return_grant(Call& call);
  static Chore undo(protocol::Op op, const protocol::ArrayBody& body, const QualifiedName& loads);
  static std::size_t write_chore(const Chore& chore, void* target) noexcept;
  void add_chore(const Chore& chore) noexcept;
  Posted post(const Chore& chore, std::size_t unread_max) noexcept;
  void post_or_queue(const Chore& chore) noexcept;
  void post_or_call(const Chore& chore) noexcept;
  void do_chores() noexcept;
  void finish_chores() noexcept;

  // Constant.
  UninheritedFd socket_;
  protocol::HelloReply hello_;

  // Order of locks: send_mutex_, mutex_, then ForkGuard. Neither is held while waiting.
  std::mutex send_mutex_;           ///< Request ids grow in the order of the socket.
  std::uint64_t last_request_ = 1;  ///< Guarded by send_mutex_. 1 was hello.

  mutable std::mutex mutex_;
  std::atomic<bool> broken_{false};  ///< Set under mutex_.
  bool reading_ = false;             ///< Somebody is the leader.
  std::chrono::steady_clock::time_point heard_at_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point asked_at_;  ///< When the last ping was sent.
  CallList waiting_;
  static constexpr std::size_t kUnreadMax = 32;
  std::array<Unread, 2 * kUnreadMax> unread_;
  std::size_t unread_count_ = 0;
  std::vector<Orphan> orphans_;
  std::vector<Chore> chores_;
  std::atomic<bool> has_chores_{false};
  bool chores_want_room_ = false;  ///< The socket was full for some of them.

  FrameBuffer buffer_;  ///< The leader's.
};

}  // namespace shmstore::client_internal
