#pragma once
/// Keeps the daemon reachable: notices when its socket file is removed or replaced, listens anew
/// where that is possible, and ends a daemon that nobody can reach any more.

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>
#include <optional>
#include <string_view>

#include "server/listener.hpp"
#include "shmstore/error.hpp"

namespace shmstore::server {

class SocketKeeper {
 public:
  /// What the daemon is asked and told.
  struct Hooks {
    std::function<bool()> has_sessions;
    /// Whether nothing would be lost if the daemon ended.
    std::function<bool()> is_idle;
    /// Accepts what waits, calls Listener::rebind() and listens there.
    std::function<Result<void>()> listen_again;
    std::function<void(std::string_view reason)> stop;
  };
  /// `listener` has to outlive it. `gives_way`: an idle daemon whose socket has gone ends rather
  /// than taking the place again.
  SocketKeeper(boost::asio::io_context& io, const Listener& listener, bool gives_way, Hooks hooks);

  void start();

 private:
  void look();
  void look_later();
  void watch_file();
  void wait_event();

  const Listener& listener_;
  const bool gives_way_;
  const Hooks hooks_;
  boost::asio::posix::stream_descriptor events_;  // inotify; closed where the kernel has none left
  boost::asio::steady_timer timer_;
  std::optional<std::chrono::steady_clock::time_point> lost_since_;
};

}  // namespace shmstore::server
