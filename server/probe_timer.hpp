#pragma once
/// Nobody tells when the last mapping of a released segment goes: the kernel is asked again with
/// back-off, which begins anew when there are more of them.

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <utility>

#include "server/dispatch.hpp"

namespace shmstore::server {

class ProbeTimer {
 public:
  using milliseconds = std::chrono::milliseconds;
  /// All outlive this. `after_work`: after the kernel has been asked.
  ProbeTimer(boost::asio::io_context& io, Dispatcher& dispatcher, const SegmentStore& store,
             std::function<void()> after_work)
      : timer_(io), dispatcher_(dispatcher), store_(store), after_work_(std::move(after_work)) {}

  /// To be called when there may be more to ask about.
  void set() {
    const std::uint64_t pinned = store_.pinned_segments();
    const bool more = pinned > pinned_seen_;
    pinned_seen_ = pinned;
    if (pinned == 0 || (after_.count() != 0 && !more)) return;
    ask_after(kFirst);
  }

 private:
  static constexpr milliseconds kFirst{10};
  static constexpr milliseconds kAgain{1};  // after a success: there are probably more
  static constexpr milliseconds kLast{1000};

  void ask_after(milliseconds delay) {
    after_ = delay;
    timer_.expires_after(delay);
    timer_.async_wait([this](const boost::system::error_code& error) {
      if (error) return;
      const std::uint64_t freed = dispatcher_.probe_released();
      const milliseconds next = freed != 0 ? kAgain : std::min(after_ * 2, kLast);
      after_ = milliseconds(0);
      if (store_.pinned_segments() != 0) ask_after(next);
      after_work_();
    });
  }

  boost::asio::steady_timer timer_;
  Dispatcher& dispatcher_;
  const SegmentStore& store_;
  const std::function<void()> after_work_;
  milliseconds after_{0};  // 0: the timer is not set
  std::uint64_t pinned_seen_ = 0;
};

}  // namespace shmstore::server
