#pragma once
/// The process: event loop, listener, signals, timers. Everything else is told when to act.

#include <memory>

#include "server/options.hpp"
#include "shmstore/error.hpp"

namespace shmstore::server {

class Daemon {
 public:
  /// Opens the socket and gets everything ready; clients that connect from now on wait for run().
  /// `flags`: as parsed; the config file that they name is read here and at every SIGHUP.
  /// `autostarted`: a client started this daemon for its user.
  /// Errors: those of with_config(), of Listener::open() and of Listener::adopt(): aborted means
  /// that another daemon serves this socket's clients, and nothing is wrong.
  static Result<std::unique_ptr<Daemon>> start(const Options& flags, bool autostarted);
  virtual ~Daemon() = default;

  /// Serves until SIGTERM, SIGINT or --idle-exit. Returns the exit code.
  virtual int run() = 0;
};

}  // namespace shmstore::server
