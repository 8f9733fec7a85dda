#pragma once
/// What a Client and its copies share: options, and the way to the connection of this process,
/// which is made anew when the daemon went away and in forked children.

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "client/connection.hpp"
#include "client/lookup.hpp"
#include "shmstore/client.hpp"

namespace shmstore::client_internal {

class State {
 public:
  /// Finds the daemon, or starts one.
  [[nodiscard]] static Result<std::shared_ptr<State>> open(const ConnectOptions& options);
  explicit State(const ConnectOptions& options);
  ~State();
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  /// Makes the call on this process's connection, once: it is repeated on a new connection only if
  /// it never reached the daemon. Returns the connection that carried it.
  [[nodiscard]] Result<std::shared_ptr<Connection>> call(Call& call);

  /// The same on this connection only: for what belongs to an array granted by it.
  [[nodiscard]] Result<void> call_on(Connection& connection, Call& call);

  /// A session of its own at the place where this client's daemon is.
  [[nodiscard]] Result<Found> open_another();

  [[nodiscard]] const ConnectOptions& options() const noexcept { return options_; }
  [[nodiscard]] std::uint64_t store_id() const noexcept {
    return store_id_.load(std::memory_order_relaxed);
  }
  [[nodiscard]] const std::string& socket_path() const noexcept;

 private:
  struct Slot;  // The connection of one process.
  struct Place;

  [[nodiscard]] Result<std::shared_ptr<Connection>> connection();
  Result<void> call_patiently(Connection& connection, Call& call);
  Slot& slot();
  Result<std::shared_ptr<Connection>> connect_anew();
  Result<Found> find_again();
  Result<Found> find_daemon();
  void remember(const Candidate& candidate);
  void note_another_store();
  /// not_found, with what is known of stores in which the array may be.
  [[nodiscard]] Error explained(Error error) const;

  const ConnectOptions options_;
  const bool notices_;  ///< A long wait says so.
  const Places places_;
  std::atomic<Slot*> slot_{nullptr};
  std::atomic<Place*> place_{nullptr};  ///< Where the daemon was found last; earlier ones behind.
  std::atomic<std::uint64_t> store_id_{0};
  std::atomic<bool> another_store_{false};  ///< store_id_ is not the first one.
};

}  // namespace shmstore::client_internal
