// The slot of a process holds its connection. After fork() the child finds a slot of another epoch
// and leaves it as it is for ever: its lock may be held, its condition waited for, by threads that
// do not exist in the child.
#include "client/state.hpp"

#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <mutex>
#include <new>
#include <optional>
#include <utility>

#include "client/fork.hpp"

namespace shmstore::client_internal {

namespace {

constexpr std::chrono::milliseconds kReconnectDefault{10'000};
constexpr std::chrono::milliseconds kRetryFirst{5};
constexpr std::chrono::milliseconds kRetryMost{200};
constexpr std::chrono::seconds kNoticeAfter{5};

ConnectOptions with_environment(ConnectOptions options) {
  const char* text = secure_getenv("SHMSTORE_RECONNECT_MS");
  if (text == nullptr || options.reconnect_for != kReconnectDefault) return options;
  std::int64_t ms = 0;
  const auto [end, error] = std::from_chars(text, text + std::strlen(text), ms);
  if (error == std::errc{} && *end == '\0' && ms >= 0) {
    options.reconnect_for = std::chrono::milliseconds(ms);
  }
  return options;
}

bool wants_notice(std::optional<bool> option) {
  if (option) return *option;
  const char* text = secure_getenv("SHMSTORE_WAIT_NOTICE");
  return isatty(STDERR_FILENO) != 0 && (text == nullptr || std::string_view(text) != "0");
}

/// What a wait asks between its slices: whether it is interrupted. It also tells the people at a
/// terminal, once, what a program that seems to hang waits for.
class Patience {
 public:
  Patience(const Call& call, const Interrupted& interrupted)
      : subject_(call.waits_for), interrupted_(interrupted) {}

  bool operator()() {
    if (!told_ && std::chrono::steady_clock::now() - begun_ >= kNoticeAfter) tell();
    return interrupted_ && interrupted_();
  }

 private:
  void tell() {
    told_ = true;
    const std::string text = "shmstore: pid " + std::to_string(getpid()) + " has waited 5 s for " +
                             std::string(subject_) +
                             "; SHMSTORE_WAIT_NOTICE=0 turns this note off\n";
    static_cast<void>(!write(STDERR_FILENO, text.data(), text.size()));
  }

  std::string_view subject_;
  const Interrupted& interrupted_;
  std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();
  bool told_ = false;
};

Error raw_clone_error() {
  return make_error(ErrorCode::disconnected,
                    "this process was made by a raw clone(), in which the client cannot be used");
}

}  // namespace

struct State::Slot {
  explicit Slot(std::uint64_t of) : epoch(of) {}
  const std::uint64_t epoch;
  std::mutex mutex;  // Never held while waiting for the daemon.
  std::condition_variable changed;
  bool connecting = false;
  std::uint64_t attempts = 0;
  std::optional<Error> failure;  ///< Of the last attempt.
  std::shared_ptr<Connection> connection;
  Slot* inherited = nullptr;  ///< Those of the ancestors: kept, so that leak checkers see them.
};

struct State::Place {
  Candidate candidate;
  Place* earlier = nullptr;
};

State::State(const ConnectOptions& options)
    : options_(with_environment(options)),
      notices_(wants_notice(options_.wait_notice)),
      places_(find_places(options_.socket)) {}

State::~State() {
  Slot* slot = slot_.load(std::memory_order_relaxed);
  if (slot != nullptr && slot->epoch == process_epoch()) {
    Slot* inherited = slot->inherited;
    delete slot;
    slot = inherited;
  }
  if (slot != nullptr) {
    static std::atomic<Slot*> abandoned{nullptr};
    Slot* last = slot;
    while (last->inherited != nullptr) last = last->inherited;
    last->inherited = abandoned.load();
    while (!abandoned.compare_exchange_weak(last->inherited, slot)) {
    }
  }
  for (Place* place = place_.load(); place != nullptr;) {
    delete std::exchange(place, place->earlier);
  }
}

Result<std::shared_ptr<State>> State::open(const ConnectOptions& options) {
  if (!prepare_for_fork()) return make_error(ErrorCode::no_capacity, "out of memory");
  constexpr std::chrono::milliseconds kMost(protocol::kGraceMsMax);
  if (options.grace.count() < 0 || options.grace > kMost) {
    return make_error(ErrorCode::invalid_argument, "grace: must be from 0 to one hour");
  }
  auto state = std::make_shared<State>(options);
  Result<std::shared_ptr<Connection>> connection = state->connection();
  if (!connection) return connection.error();
  return state;
}

const std::string& State::socket_path() const noexcept {
  static const std::string none;
  const Place* place = place_.load(std::memory_order_acquire);
  return place == nullptr ? none : place->candidate.path;
}

void State::remember(const Candidate& candidate) {
  const Place* last = place_.load(std::memory_order_relaxed);
  if (last != nullptr && last->candidate.path == candidate.path) return;
  // References to paths are handed out, so each lives as long as the state.
  place_.store(new Place{candidate, place_.load()}, std::memory_order_release);
}

State::Slot& State::slot() {
  const std::uint64_t epoch = process_epoch();
  Slot* slot = slot_.load(std::memory_order_acquire);
  while (slot == nullptr || slot->epoch != epoch) {
    auto fresh = std::make_unique<Slot>(epoch);
    fresh->inherited = slot;
    if (slot_.compare_exchange_strong(slot, fresh.get(), std::memory_order_acq_rel)) {
      slot = fresh.release();
    }
  }
  return *slot;
}

Result<std::shared_ptr<Connection>> State::connection() {
  if (process_epoch() == 0) return raw_clone_error();
  Slot& slot = this->slot();
  std::unique_lock lock(slot.mutex);
  for (;;) {
    if (slot.connection && slot.connection->alive()) return slot.connection;
    if (!slot.connecting) break;
    const std::uint64_t attempt = slot.attempts;
    slot.changed.wait_for(lock, kSlice);
    if (slot.attempts != attempt && slot.failure) return *slot.failure;
    lock.unlock();
    if (is_interrupted(options_.interrupted)) return interrupted_error();
    lock.lock();
  }
  slot.connecting = true;
  lock.unlock();
  Result<std::shared_ptr<Connection>> made = connect_anew();
  lock.lock();
  slot.connecting = false;
  ++slot.attempts;
  slot.failure.reset();
  std::shared_ptr<Connection> earlier;  // Ends after the lock.
  if (made) {
    earlier = std::exchange(slot.connection, *made);
  } else {
    slot.failure = made.error();
  }
  slot.changed.notify_all();
  lock.unlock();
  return made;
}

Result<std::shared_ptr<Connection>> State::connect_anew() {
  try {
    Result<Found> found = find_daemon();
    if (!found) return found.error();
    remember(found->candidate);
    auto connection = std::make_shared<Connection>(std::move(found->socket), found->hello);
    const std::uint64_t before = store_id_.exchange(connection->store_id());
    if (before != 0 && before != connection->store_id()) note_another_store();
    return connection;
  } catch (const std::bad_alloc&) {
    return make_error(ErrorCode::no_capacity, "out of memory");
  } catch (const std::exception& error) {
    // Whatever it is, the threads that wait for this attempt have to hear of its end.
    return make_error(ErrorCode::internal, std::string("connecting: ") + error.what());
  }
}

/// The first time the places in order; later where the daemon was, for as long as it may take to
/// come back.
Result<Found> State::find_daemon() {
  if (place_.load() == nullptr) {
    return look_up(places_, may_autostart(options_.autostart), options_.interrupted);
  }
  const auto deadline = std::chrono::steady_clock::now() + options_.reconnect_for;
  for (auto pause = kRetryFirst;; pause = std::min(pause * 2, kRetryMost)) {
    Result<Found> found = find_again();
    if (found || found.error().code != ErrorCode::disconnected) return found;
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) return found;
    if (!pause_for(std::min(pause, left), options_.interrupted)) return interrupted_error();
  }
}

/// A client of a given or of the system's daemon stays with that one: what it shares is there. A
/// private one is started again.
Result<Found> State::find_again() {
  const Candidate& candidate = place_.load()->candidate;
  if (candidate.origin != Origin::user) return open_at(candidate, options_.interrupted);
  return look_up(places_, may_autostart(options_.autostart), options_.interrupted);
}

Result<Found> State::open_another() {
  Result<std::shared_ptr<Connection>> connected = connection();
  if (!connected) return connected.error();
  return open_at(place_.load()->candidate, options_.interrupted);
}

Result<std::shared_ptr<Connection>> State::call(Call& call) {
  for (int tries = 1;; ++tries) {
    Result<std::shared_ptr<Connection>> connected = connection();
    if (!connected) return connected;
    Result<void> done = call_patiently(**connected, call);
    if (done) return connected;
    const bool again = done.error().code == ErrorCode::disconnected && !call.delivered;
    if (!again || tries == 3) return explained(done.error());
  }
}

/// A program goes on with what it finds, and it may find nothing: it should not have to guess why.
void State::note_another_store() {
  another_store_.store(true, std::memory_order_relaxed);
  static std::atomic<std::uint64_t> said_in{0};  // A forked child meets a store of its own.
  if (said_in.exchange(process_epoch()) == process_epoch()) return;
  const std::string text = "shmstore: the store at " + socket_path() +
                           " is another one than this program used before; the arrays of the "
                           "earlier one are not in it\n";
  static_cast<void>(!write(STDERR_FILENO, text.data(), text.size()));
}

Error State::explained(Error error) const {
  if (error.code != ErrorCode::not_found) return error;
  error.text += "; asked was the store at " + socket_path();
  if (another_store_.load(std::memory_order_relaxed)) {
    error.text += "; the store is another one than this program used before";
  }
  for (const std::string& other : stores_beside(places_, socket_path())) {
    error.text += ", another of this user is at " + other;
  }
  return error;
}

Result<void> State::call_patiently(Connection& connection, Call& call) {
  if (!notices_ || call.waits_for.empty()) return connection.call(call, options_.interrupted);
  Patience patience(call, options_.interrupted);
  return connection.call(call, std::ref(patience));
}

Result<void> State::call_on(Connection& connection, Call& call) {
  if (process_epoch() == 0) return raw_clone_error();
  if (!connection.alive()) {
    return make_error(ErrorCode::disconnected,
                      "array: its handle is of an earlier connection, which has ended");
  }
  return call_patiently(connection, call);
}

}  // namespace shmstore::client_internal
