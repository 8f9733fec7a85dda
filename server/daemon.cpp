/// One thread runs everything here but the memory worker; it never blocks but in epoll_wait.
/// Handlers of events are short: what takes time is done in turns (take_turn), and between two
/// turns the loop looks for new events, so that a signal, a timer or another user waits for one
/// turn at most. The order of the members of DaemonImpl is the order of dependence; only the
/// worker, whose jobs point into the store, is stopped before any of them goes. (over 600 lines
/// because every event of the loop has its handler here)

#include "server/daemon.hpp"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <csignal>
#include <cstdlib>
#include <deque>
#include <string>
#include <unordered_map>
#include <utility>

#include "server/admission.hpp"
#include "server/daemon_facts.hpp"
#include "server/descriptors.hpp"
#include "server/dispatch.hpp"
#include "server/environment.hpp"
#include "server/lease_probe.hpp"
#include "server/listener.hpp"
#include "server/log.hpp"
#include "server/memfd_store.hpp"
#include "server/memory_reserve.hpp"
#include "server/memory_worker.hpp"
#include "server/probe_timer.hpp"
#include "server/registry.hpp"
#include "server/service_manager.hpp"
#include "server/session.hpp"
#include "server/signals_held.hpp"
#include "server/socket_keeper.hpp"
#include "server/turns.hpp"
#include "server/watchdog_timer.hpp"
#include "shmstore/version.hpp"

namespace shmstore::server {
namespace {

namespace asio = boost::asio;
using Descriptor = asio::posix::stream_descriptor;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::uint32_t kNobody = 65534;
/// How long a user's turn is, and how long handlers may go on before there is one. What has begun
/// is finished.
constexpr std::chrono::microseconds kTurn{100};
/// Of sessions that have ended, before the time is looked at.
constexpr std::uint64_t kLeasesAtOnce = 32;
constexpr int kPostponedMax = 32;
/// Whose turn the daemon's own work has: nobody connects with this uid.
constexpr std::uint32_t kOwnWork = UINT32_MAX;
constexpr milliseconds kAcceptPause{100};
/// Connections that never said hello and are closed within one turn.
constexpr int kSilentAtOnce = 16;
/// Connections that are only told why they are not served: beside the others, and few, so that
/// those who are refused and stay take up nobody's place.
constexpr std::size_t kRefusedMax = 16;
constexpr seconds kHelloWithin{10};
/// A timer sleeps by CLOCK_MONOTONIC, deadlines are CLOCK_BOOTTIME: looking again now and then
/// catches up with the time that the machine was suspended.
constexpr std::int64_t kSleepMsMax = 60'000;

class DaemonImpl final : public Daemon, private Outbox {
 public:
  DaemonImpl(const Options& flags, const Options& options, bool autostarted, Listener listener);
  ~DaemonImpl() override;
  int run() override;

 private:
  // Outbox
  void send(SessionId session, Bytes frame, DescriptorRef descriptor) override;
  bool offer(SessionId session, Bytes frame) override;

  void serve();
  template <class F>
  void guarded(F&& work);
  void wait_accept();
  /// False: not now, for want of memory.
  bool accept_some(int most);
  void accept_one();
  void accept_later();
  Result<void> listen_again();
  void turn_away();
  void welcome(UniqueFd socket);
  void enrol(SessionId id, UniqueFd socket);
  std::optional<Error> admit(SessionId id, Peer& peer);
  [[nodiscard]] Limits limits() const;
  void share_out();
  void log_refusal(const std::string& text);
  void end_session(SessionId id, std::string_view reason);
  void close_silent_sessions();

  void wait_worker();
  void wait_writable();
  void wait_signal();
  void reload();
  void stop(std::string_view reason);

  void serve_events();
  void take_turn();
  void give_turn(ClientSession& session, const TurnOver& over);
  void after_work();
  void own_work();
  void set_deadline_timer();
  void set_idle_timer();
  [[nodiscard]] bool is_idle() const;

  const Options flags_;
  Options options_;  // flags and config file
  const bool autostarted_;
  const DescriptorBudget budget_;
  asio::io_context io_{BOOST_ASIO_CONCURRENCY_HINT_UNSAFE};
  Listener listener_;
  UniqueFd spare_;  // given up for a moment to turn somebody away when descriptors run out
  Admission admission_;
  LeaseProbe probe_;
  MemoryWorker worker_;
  bool one_user_;  // Nobody else can connect, and nobody has.
  Registry registry_;
  MemfdStore store_;
  Dispatcher dispatcher_;
  WritablePoll writable_;
  SessionContext context_;
  Turns<std::shared_ptr<ClientSession>> turns_;  // null: the daemon's own work
  Descriptor accepting_;
  SocketKeeper keeper_;
  Descriptor completions_;
  Descriptor writable_events_;
  asio::signal_set signals_;
  asio::steady_timer deadline_timer_;
  ProbeTimer probe_timer_;
  asio::steady_timer idle_timer_;
  asio::steady_timer hello_timer_;
  asio::steady_timer accept_timer_;
  WatchdogTimer watchdog_timer_;
  std::optional<std::int64_t> deadline_set_;
  std::size_t refused_ = 0;  // of the sessions, those that are told why and closed
  bool idle_set_ = false;
  bool own_work_in_line_ = false;
  bool accept_due_ = false;
  int accept_postponed_ = 0;
  LogLimit refusals_{20};
  SessionId last_session_ = 0;
  std::unordered_map<SessionId, std::shared_ptr<ClientSession>> sessions_;
  std::deque<std::pair<std::chrono::steady_clock::time_point, SessionId>> silent_;
};

UniqueFd open_spare() {
  return UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
}

DaemonImpl::DaemonImpl(const Options& flags, const Options& options, bool autostarted,
                       Listener listener)
    : flags_(flags),
      options_(options),
      autostarted_(autostarted),
      budget_(raise_descriptor_limit()),
      listener_(std::move(listener)),
      spare_(open_spare()),
      one_user_(!listener_.open_to_others()),
      registry_(limits()),
      store_(worker_, admission_, probe_, budget_.segments_max),
      dispatcher_(registry_, store_, *this, facts_of(budget_, probe_.exact(), listener_.note()),
                  selfcheck_wanted()),
      context_{io_,
               dispatcher_,
               store_,
               writable_,
               [this](SessionId id, std::string_view reason) { end_session(id, reason); },
               [this](std::uint32_t uid, std::shared_ptr<ClientSession> session) {
                 turns_.add(uid, std::move(session));
               }},
      accepting_(io_, listener_.native_handle()),
      keeper_(
          io_, listener_, autostarted,
          {[this] { return !sessions_.empty(); }, [this] { return is_idle(); },
           [this] { return listen_again(); }, [this](std::string_view reason) { stop(reason); }}),
      completions_(io_, worker_.completion_fd()),
      writable_events_(io_, writable_.native_handle()),
      signals_(io_, SIGTERM, SIGINT, SIGHUP),
      deadline_timer_(io_),
      probe_timer_(io_, dispatcher_, store_, [this] { after_work(); }),
      idle_timer_(io_),
      hello_timer_(io_),
      accept_timer_(io_),
      watchdog_timer_(io_) {}

DaemonImpl::~DaemonImpl() {
  worker_.stop();
  for (auto& [id, session] : sessions_) session->close();
  sessions_.clear();
  turns_ = {};
  // These were only borrowed.
  (void)accepting_.release();
  (void)completions_.release();
  (void)writable_events_.release();
}

int DaemonImpl::run() {
  wait_accept();
  wait_worker();
  wait_writable();
  wait_signal();
  keeper_.start();
  const Limits& limits = registry_.quota().limits();
  log(LogLevel::info, "listening",
      {{"socket", listener_.path()},
       {"pid", ::getpid()},
       {"version", SHMSTORE_VERSION_STRING},
       {"capacity", limits.capacity},
       {"segments_max", limits.segments_max}});
  if (!probe_.exact()) {
    log(LogLevel::warning, "degraded",
        {{"text",
          "file leases do not work on memory files here; a program that tampers with the "
          "locks on its descriptors can escape its charge"}});
  }
  notify_manager("READY=1");
  watchdog_timer_.start();
  after_work();
  // Nothing that is thrown in there says that the others cannot be served any more.
  while (!io_.stopped()) guarded([this] { serve(); });
  return 0;
}

void DaemonImpl::serve() {
  if (turns_.empty()) {
    io_.run_one();
  } else {
    serve_events();
  }
  if (!turns_.empty()) take_turn();
}

/// For the handlers of what all clients share, which have to wait for the next event whatever
/// became of this one.
template <class F>
void DaemonImpl::guarded(F&& work) {
  try {
    work();
  } catch (const std::exception& error) {
    log(LogLevel::error, "an event was not handled", {{"text", error.what()}});
  }
}

// -- turns ----------------------------------------------------------------------------------------

/// What has happened, without waiting. Mostly sessions join the line here.
void DaemonImpl::serve_events() {
  const auto until = std::chrono::steady_clock::now() + kTurn;
  while (io_.poll_one() != 0 && std::chrono::steady_clock::now() < until) {
  }
}

/// What goes wrong in a session's turn is that session's loss.
void DaemonImpl::give_turn(ClientSession& session, const TurnOver& over) {
  try {
    session.take_turn(over);
  } catch (const std::exception& error) {
    end_session(session.id(), error.what());
  }
}

void DaemonImpl::take_turn() {
  const TurnOver over = [until = std::chrono::steady_clock::now() + kTurn] {
    return std::chrono::steady_clock::now() >= until;
  };
  turns_.give_one(
      [this, &over](const std::shared_ptr<ClientSession>& session) {
        if (session != nullptr) return give_turn(*session, over);
        own_work_in_line_ = false;
        accept_one();
        if (dispatcher_.has_sweep()) dispatcher_.sweep_some();
        while (dispatcher_.has_ending() && !over()) dispatcher_.end_some(kLeasesAtOnce);
      },
      over);
  after_work();
}

// -- sessions -------------------------------------------------------------------------------------

void DaemonImpl::wait_accept() {
  accepting_.async_wait(Descriptor::wait_read, [this](const boost::system::error_code& error) {
    if (error) return;
    accept_due_ = true;
    after_work();
  });
}

/// One in a turn: between two of them others are served, and who has hung up gives up its place.
/// When all places are taken, somebody in line may be about to do so.
void DaemonImpl::accept_one() {
  if (!accept_due_) return;
  const bool full = sessions_.size() - refused_ >= budget_.connections_max;
  if (full && !turns_.empty() && ++accept_postponed_ < kPostponedMax) return;
  accept_postponed_ = 0;
  accept_due_ = false;
  bool again = false;
  guarded([&] { again = accept_some(1); });
  again ? wait_accept() : accept_later();
}

/// Without memory for a socket the connection stays in the backlog: asked again at once, the loop
/// would spin on it.
void DaemonImpl::accept_later() {
  accept_timer_.expires_after(kAcceptPause);
  accept_timer_.async_wait([this](const boost::system::error_code& error) {
    if (error) return;
    boost::system::error_code failed;
    if (!accepting_.is_open()) accepting_.assign(listener_.native_handle(), failed);
    failed ? accept_later() : wait_accept();
  });
}

bool DaemonImpl::accept_some(int most) {
  for (int n = 0; n < most; ++n) {
    UniqueFd socket(
        ::accept4(listener_.native_handle(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (socket.valid()) {
      welcome(std::move(socket));
      continue;
    }
    if (errno == EMFILE || errno == ENFILE) turn_away();
    if (errno == EINTR || errno == ECONNABORTED) continue;
    return errno == EAGAIN;
  }
  return true;
}

/// On a new socket: who has connected to the old one is served first.
Result<void> DaemonImpl::listen_again() {
  accept_due_ = false;
  (void)accept_some(SOMAXCONN);
  (void)accepting_.release();
  Result<void> bound = listener_.rebind();
  boost::system::error_code error;
  accepting_.assign(listener_.native_handle(), error);
  error ? accept_later() : wait_accept();
  after_work();
  return bound;
}

/// Out of descriptors the connection would stay in the backlog, and the loop would spin on it.
void DaemonImpl::turn_away() {
  spare_.reset();
  const UniqueFd socket(::accept4(listener_.native_handle(), nullptr, nullptr, SOCK_CLOEXEC));
  log_refusal("no descriptor left");
  spare_ = open_spare();
  errno = EINTR;
}

/// What the kernel refuses for a newcomer (a place in the epoll, memory) is that newcomer's loss.
void DaemonImpl::welcome(UniqueFd socket) {
  const SessionId id = ++last_session_;
  try {
    enrol(id, std::move(socket));
  } catch (const std::exception& error) {
    log_refusal(error.what());
    end_session(id, "cannot be served");
    dispatcher_.end_session(id);  // In case that it was not in the table yet.
  }
}

void DaemonImpl::enrol(SessionId id, UniqueFd socket) {
  refuse_descriptors(socket.get());
  Result<Peer> peer = peer_of(socket.get());
  if (!peer) {
    log(LogLevel::info, "connection dropped", {{"text", peer.error().text}});
    return;
  }
  const std::uint32_t uid = peer->identity.uid;
  std::optional<Error> refusal = admit(id, *peer);
  if (refusal) {
    if (refused_ >= kRefusedMax) return;
    peer->process.reset();  // whoever is refused is gone in a moment
  }
  const bool refused = refusal.has_value();
  auto session = std::make_shared<ClientSession>(context_, id, uid, std::move(socket),
                                                 std::move(peer->process), std::move(refusal));
  sessions_.emplace(id, session);
  refused_ += refused ? 1U : 0U;
  session->start();
  silent_.emplace_back(std::chrono::steady_clock::now() + kHelloWithin, id);
  if (silent_.size() == 1) close_silent_sessions();
}

std::optional<Error> DaemonImpl::admit(SessionId id, Peer& peer) {
  const std::int64_t pid = peer.identity.pid;
  const std::uint32_t uid = peer.identity.uid;
  std::optional<Error> refusal;
  if (one_user_ && uid != 0 && uid != kNobody && uid != ::geteuid()) share_out();
  if (uid == kNobody) {
    refusal = make_error(ErrorCode::permission_denied,
                         "uid 65534 (nobody, or a user that this namespace does not know) is not "
                         "served");
  } else if (sessions_.size() - refused_ >= budget_.connections_max) {
    refusal = make_error(ErrorCode::no_capacity,
                         "connections: all " + std::to_string(budget_.connections_max) +
                             " of this daemon are in use (its limit of open files sets how many)");
  } else if (memory_is_short()) {
    refusal = no_memory();
  } else if (Result<void> opened = dispatcher_.open_session(id, std::move(peer.identity));
             !opened) {
    refusal = opened.error();
  }
  if (refusal) {
    log_refusal("pid " + std::to_string(pid) + " of uid " + std::to_string(uid) + ": " +
                refusal->text);
  } else {
    log(LogLevel::debug, "session", {{"session", id}, {"pid", pid}, {"uid", uid}});
  }
  return refusal;
}

Limits DaemonImpl::limits() const {
  return limits_of(
      options_, autostarted_,
      {admission_.total_bytes(), budget_.connections_max, budget_.segments_max, one_user_});
}

/// Whatever the socket's mode was at the start: somebody else is here, so nobody may have all.
void DaemonImpl::share_out() {
  one_user_ = false;
  registry_.quota().set_limits(limits());
  log(LogLevel::info, "shared among users",
      {{"user_bytes_max", registry_.quota().limits().user_bytes_max},
       {"user_segments_max", registry_.quota().limits().user_segments_max},
       {"user_connections_max", registry_.quota().limits().user_connections_max}});
}

void DaemonImpl::log_refusal(const std::string& text) {
  if (!refusals_.allow(read_clock().boot_ms)) return;
  if (const std::uint64_t lines = refusals_.take_left_out(); lines != 0) {
    log(LogLevel::warning, "refusals not logged", {{"lines", lines}});
  }
  log(LogLevel::warning, "connection refused", {{"text", text}});
}

void DaemonImpl::end_session(SessionId id, std::string_view reason) {
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return;
  const std::shared_ptr<ClientSession> session = std::move(found->second);
  sessions_.erase(found);
  if (session->refused()) --refused_;
  session->close();
  log(LogLevel::debug, "session ended", {{"session", id}, {"reason", reason}});
  dispatcher_.end_session(id);
}

/// Who connects and says nothing only takes up room.
void DaemonImpl::close_silent_sessions() {
  const auto now = std::chrono::steady_clock::now();
  for (int n = 0; n < kSilentAtOnce && !silent_.empty(); ++n) {
    const auto [deadline, id] = silent_.front();
    const auto found = sessions_.find(id);
    const bool waits = found != sessions_.end() && !found->second->greeted();
    if (waits && deadline > now) break;
    silent_.pop_front();
    if (waits) end_session(id, "no hello");
  }
  if (silent_.empty()) return;
  hello_timer_.expires_at(silent_.front().first);
  hello_timer_.async_wait([this](const boost::system::error_code& error) {
    if (error) return;
    close_silent_sessions();
    after_work();
  });
}

void DaemonImpl::send(SessionId session, Bytes frame, DescriptorRef descriptor) {
  const auto found = sessions_.find(session);
  if (found != sessions_.end()) found->second->send(frame, descriptor);
}

bool DaemonImpl::offer(SessionId session, Bytes frame) {
  const auto found = sessions_.find(session);
  return found == sessions_.end() || found->second->offer(frame);
}

// -- other events ---------------------------------------------------------------------------------

void DaemonImpl::wait_worker() {
  completions_.async_wait(Descriptor::wait_read, [this](const boost::system::error_code& error) {
    if (error) return;
    guarded([this] {
      worker_.run_completions();
      after_work();
    });
    wait_worker();
  });
}

void DaemonImpl::wait_writable() {
  writable_events_.async_wait(Descriptor::wait_read,
                              [this](const boost::system::error_code& error) {
                                if (error) return;
                                guarded([this] {
                                  writable_.take([this](SessionId id) {
                                    const auto found = sessions_.find(id);
                                    if (found == sessions_.end()) return;
                                    const std::shared_ptr<ClientSession> session = found->second;
                                    session->on_writable();
                                  });
                                  after_work();
                                });
                                wait_writable();
                              });
}

void DaemonImpl::wait_signal() {
  signals_.async_wait([this](const boost::system::error_code& error, int signal) {
    if (error) return;
    if (signal != SIGHUP) return stop(signal == SIGINT ? "SIGINT" : "SIGTERM");
    guarded([this] { reload(); });
    wait_signal();
  });
}

/// Flags keep winning; a file that is wrong changes nothing.
void DaemonImpl::reload() {
  if (flags_.config.empty()) {
    log(LogLevel::info, "SIGHUP ignored", {{"text", "there is no config file"}});
    return;
  }
  Result<Options> changed = with_config(flags_);
  if (!changed) {
    log(LogLevel::error, "config not read", {{"text", changed.error().text}});
    return;
  }
  options_ = std::move(*changed);
  set_log_level(options_.log_level);
  registry_.quota().set_limits(limits());
  log(LogLevel::info, "config read again",
      {{"config", flags_.config}, {"capacity", registry_.quota().limits().capacity}});
  dispatcher_.tick();  // who waits for room may have it now
  idle_timer_.cancel();
  idle_set_ = false;
  after_work();
}

void DaemonImpl::stop(std::string_view reason) {
  log(LogLevel::info, "stopping",
      {{"reason", reason}, {"sessions", sessions_.size()}, {"arrays", registry_.counts().arrays}});
  notify_manager("STOPPING=1");
  io_.stop();
}

// -- timers ---------------------------------------------------------------------------------------

/// After everything that may have changed what the timers are for.
void DaemonImpl::after_work() {
  own_work();
  set_deadline_timer();
  probe_timer_.set();
  set_idle_timer();
}

/// What is left to do of what nobody waits for.
void DaemonImpl::own_work() {
  const bool some = accept_due_ || dispatcher_.has_ending() || dispatcher_.has_sweep();
  if (some && !std::exchange(own_work_in_line_, true)) turns_.add(kOwnWork, nullptr);
}

void DaemonImpl::set_deadline_timer() {
  const std::optional<std::int64_t> next = dispatcher_.next_deadline_ms();
  if (next == deadline_set_) return;
  deadline_set_ = next;
  if (!next) {
    deadline_timer_.cancel();
    return;
  }
  const std::int64_t sleep_ms =
      std::clamp<std::int64_t>(*next - read_clock().boot_ms, 0, kSleepMsMax);
  deadline_timer_.expires_after(milliseconds(sleep_ms));
  deadline_timer_.async_wait([this](const boost::system::error_code& error) {
    if (error) return;
    deadline_set_.reset();
    dispatcher_.tick();
    after_work();
  });
}

bool DaemonImpl::is_idle() const {
  return sessions_.empty() && registry_.counts().arrays == 0 && store_.segments() == 0;
}

void DaemonImpl::set_idle_timer() {
  if (options_.idle_exit == 0 || is_idle() == idle_set_) return;
  idle_set_ = !idle_set_;
  if (!idle_set_) {
    idle_timer_.cancel();
    return;
  }
  idle_timer_.expires_after(seconds(options_.idle_exit));
  idle_timer_.async_wait([this](const boost::system::error_code& error) {
    if (!error && is_idle()) stop("idle");
  });
}

}  // namespace

Result<std::unique_ptr<Daemon>> Daemon::start(const Options& flags, bool autostarted) try {
  const Result<Options> options = with_config(flags);
  if (!options) return options.error();
  hold_memory_reserve();
  const bool by_share = options->capacity.percent != 0;
  Result<void> fit = check_environment(raise_descriptor_limit(), by_share);
  if (!fit) return fit.error();
  const SignalsHeld held;
  std::vector<UniqueFd> handed_over = take_listen_fds();
  if (handed_over.size() > 1) {
    return make_error(ErrorCode::invalid_argument,
                      "socket: " + std::to_string(handed_over.size()) +
                          " sockets were handed over, one is expected");
  }
  const std::string path = options->socket.empty() ? default_socket_path() : options->socket;
  Result<Listener> listener =
      handed_over.empty() ? Listener::open(path) : Listener::adopt(std::move(handed_over.front()));
  if (!listener) return listener.error();
  return std::unique_ptr<Daemon>(
      std::make_unique<DaemonImpl>(flags, *options, autostarted, std::move(*listener)));
} catch (const std::exception& error) {
  return make_error(ErrorCode::internal, error.what());
}

}  // namespace shmstore::server
