#pragma once
/// The process: event loop, listener, signals, timers. Everything else is told when to act.

#include <memory>

#include "server/options.hpp"
#include "shmstore/error.hpp"

namespace shmstore::server {

class Daemon {
 public:
  /// Opens the socket and gets everything ready; clients that connect from now on wait for run().
  /// `autostarted`: a client started this daemon for its user. Errors: see Listener::open.
  static Result<std::unique_ptr<Daemon>> start(const Options& options, bool autostarted);
  virtual ~Daemon() = default;

  /// Serves until SIGTERM, SIGINT or --idle-exit. Returns the exit code.
  virtual int run() = 0;
};

}  // namespace shmstore::server
