#pragma once
/// From a frame to the registry and back: parses, calls, and carries out the effects. Knows neither
/// sockets nor JSON. Everything here runs on the event loop's thread.

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "server/log.hpp"
#include "server/outbox.hpp"
#include "server/registry.hpp"
#include "server/segment_store.hpp"
#include "server/wire.hpp"

namespace shmstore::server {

class AdminPlane;

/// What the dispatcher has to know about one session, kept by the session.
struct SessionState {
  SessionId id = 0;
  std::uint64_t last_request = 0;
  bool greeted = false;
};

/// What a client may ask about the daemon.
struct DaemonFacts {
  std::uint64_t store_id = 0;
  std::int64_t pid = 0;
  std::uint32_t uid = 0;                       ///< May set quotas, as root may.
  double started_s = 0;                        ///< CLOCK_BOOTTIME.
  std::function<std::uint64_t()> descriptors;  ///< Open ones.
  std::uint64_t descriptors_max = 0;
  bool exact_probe = true;
  std::string note;  ///< Said with every not_found: what else an array may have met. Or empty.
};

/// How often the accounting is recomputed from scratch, to abort when it does not add up.
enum class Selfcheck {
  off,
  sometimes,
  always
};

/// Pages that are given back in one turn of the event loop. The kernel takes 0.25 ms a MiB, and
/// more on a busy machine.
inline constexpr std::uint64_t kFreedAtOnceBytes = std::uint64_t{512} << 10U;

[[nodiscard]] Now read_clock();

/// What is said to whoever asks while the daemon's own memory is short.
[[nodiscard]] Error no_memory();

class Dispatcher {
 public:
  Dispatcher(Registry& registry, SegmentStore& store, Outbox& outbox, DaemonFacts facts,
             Selfcheck selfcheck);
  ~Dispatcher();
  Dispatcher(const Dispatcher&) = delete;
  Dispatcher& operator=(const Dispatcher&) = delete;

  /// Error: quota_exceeded; the session is to be told so at its first frame and closed.
  Result<void> open_session(SessionId session, Identity identity);
  /// Takes one message of a client. False: the session has to go, once its queue is empty.
  /// `truncated`: the message was longer than a frame may be; `message` is its beginning.
  [[nodiscard]] bool handle(SessionState& session, Bytes message, bool truncated);
  /// Answers the first frame of a session that open_session() refused.
  void refuse(SessionId session, Bytes message, const Error& error);
  /// Ends what the session had; the one way out for every session that was opened. What it holds
  /// beyond a few arrays is left for end_some().
  void end_session(SessionId session);
  /// Takes about so many leases from sessions that have ended; to be called, with other events
  /// handled in between, while there are any.
  void end_some(std::uint64_t leases);
  [[nodiscard]] bool has_ending() const noexcept { return !ending_.empty(); }

  /// Asks the kernel about some of the released segments that a request wants to have freed; to be
  /// called, with other events handled in between, while there are any.
  void sweep_some();
  [[nodiscard]] bool has_sweep() const noexcept { return sweep_left_ > 0; }

  /// The frame to send instead of `frame`, whose descriptor could not be opened. Gives the grant
  /// back that the frame would have carried.
  [[nodiscard]] std::vector<std::byte> descriptor_failed(SessionId session, Bytes frame,
                                                         const Error& error);
  /// A session that missed events has room again.
  void resume_watch(SessionId session);

  /// Asks the kernel about some released segments; returns the bytes of those that are free.
  std::uint64_t probe_released();
  /// Deadlines that have passed.
  void tick();
  /// CLOCK_BOOTTIME; nothing: none.
  [[nodiscard]] std::optional<std::int64_t> next_deadline_ms() const;
  /// Registry and store against each other and against the kernel; empty when clean.
  [[nodiscard]] std::vector<std::string> selfcheck() const;

 private:
  friend class AdminPlane;
  struct Request {
    SessionState& session;
    protocol::FrameHeader header;
    Bytes body;
    Now now;
  };
  /// An error here is an answer; one with the code protocol_error also ends the session.
  using Handler = Result<void> (Dispatcher::*)(const Request&);
  struct Entry {
    protocol::Op op;
    const char* name;
    bool needs_hello;
    Handler handler;
  };
  static const std::array<Entry, 17> kTable;

  [[nodiscard]] bool refuse_for_memory(SessionId session, Bytes message) noexcept;
  [[nodiscard]] Result<void> dispatch(SessionState& session, const Frame& frame);
  void log_violation(SessionId session, const protocol::FrameHeader& header, const Error& error);
  Result<void> on_hello(const Request& request);
  Result<void> on_ping(const Request& request);
  Result<void> on_create(const Request& request);
  Result<void> on_seal(const Request& request);
  Result<void> on_attach(const Request& request);
  Result<void> on_segment(const Request& request);
  Result<void> on_release(const Request& request);
  Result<void> on_cached(const Request& request);
  Result<void> on_wait(const Request& request);
  Result<void> on_cancel(const Request& request);
  Result<void> on_abort(const Request& request);
  Result<void> on_handover(const Request& request);
  Result<void> on_received(const Request& request);
  Result<void> on_publish(const Request& request);
  Result<void> on_reserved(const Request& request);

  /// Carries out what the registry asked for, also what that leads to.
  void run_effects();
  void carry_out(const Completion& completion);
  void carry_out(const AllocateSegment& effect);
  void carry_out(const CancelAllocation& effect);
  void carry_out(const HardSealSegment& effect);
  void carry_out(const FreeSegment& effect);
  void carry_out(const EventRecord& effect);
  void answer(const Completion& completion, const Error& error);
  void answer(const Completion& completion, const Grant& grant);
  void answer(const Completion& completion, const LoaderRole& role);
  void answer(const Completion& completion, const Sealed& sealed);
  void answer(const Completion& completion, const Waited& waited);
  void answer(const Completion& completion, const HandedOver& handle);
  void answer(const Completion& completion, const Done& done);
  void begin_reply(const Completion& completion);
  void send_reply(SessionId session, DescriptorRef descriptor = {});
  void send_error(SessionId session, const protocol::FrameHeader& header, const Error& error);

  /// A `gc` that is answered once the sweep is over.
  struct Gc {
    SessionId session = 0;
    RequestId request = 0;
    std::uint64_t handovers = 0;
    std::uint64_t freed_bytes = 0;
  };

  void make_room(std::uint32_t uid, const CreateSpec& spec);
  void begin_sweep();
  void begin_gc(Gc gc);
  void answer_gcs();
  [[nodiscard]] bool lacks_memory(std::uint32_t uid, const CreateSpec& spec) const;
  [[nodiscard]] bool lacks_arrays(std::uint32_t uid) const;
  [[nodiscard]] bool more_to_come() const;
  [[nodiscard]] bool may_hope(std::uint32_t uid, const CreateSpec& spec) const;
  [[nodiscard]] bool may_park(std::uint32_t uid) const;
  void retry_parked();
  void check_after_request();

  /// A create that lacks room while memory is on its way back: tried again when that has come.
  struct Parked {
    SessionId session = 0;
    RequestId request = 0;
    std::uint32_t uid = 0;
    CreateSpec spec;
  };

  Registry& registry_;
  SegmentStore& store_;
  Outbox& outbox_;
  const DaemonFacts facts_;
  const Selfcheck selfcheck_;
  std::unique_ptr<AdminPlane> admin_;
  FrameWriter writer_;
  Effects effects_;  // appended to by every registry call, emptied by run_effects()
  bool running_effects_ = false;
  std::size_t freed_in_run_ = 0;  // FreeSegment effects of this run
  std::uint64_t freed_bytes_in_run_ = 0;
  std::vector<Parked> parked_;    // first come, first served
  std::deque<SessionId> ending_;  // ended, with leases left
  std::uint64_t leases_after_turn_ = 0;
  std::uint64_t sweep_left_ = 0;  // released segments that the kernel is still to be asked about
  std::vector<Gc> gcs_;
  std::uint64_t requests_ = 0;
  LogLimit violations_{20};
};

}  // namespace shmstore::server
