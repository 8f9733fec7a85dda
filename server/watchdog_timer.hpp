#pragma once
/// Tells the service manager that the event loop still turns: WATCHDOG=1 twice per interval. A
/// handler between two turns like any other, so it comes in time exactly as long as everybody is
/// served.

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>

#include "server/service_manager.hpp"

namespace shmstore::server {

class WatchdogTimer {
 public:
  explicit WatchdogTimer(boost::asio::io_context& io) : timer_(io) {}

  /// Nothing when the service manager does not watch.
  void start() {
    if (const auto interval = watchdog_interval_us()) ping(std::chrono::microseconds(*interval));
  }

 private:
  void ping(std::chrono::microseconds interval) {
    notify_manager("WATCHDOG=1");
    timer_.expires_after(interval);
    timer_.async_wait([this, interval](const boost::system::error_code& error) {
      if (!error) ping(interval);
    });
  }

  boost::asio::steady_timer timer_;
};

}  // namespace shmstore::server
