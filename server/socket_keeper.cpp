/// The kernel tells when the socket's own file changes (inotify); a slow timer sees the rest: a
/// folder that was moved, a file system mounted over it, no inotify instance left. Both lead to
/// look(), which asks where the file is and nothing else, so that a missed or doubled event does no
/// harm.
///
/// A daemon out of place tries each second to listen there again: its arrays stay reachable. Where
/// it cannot (another daemon has the lock, the folder is gone for good, the socket is a service
/// manager's), it serves the sessions that it has; when there are none, nobody will ever reach what
/// it keeps, and it ends.

#include "server/socket_keeper.hpp"

#include <sys/inotify.h>
#include <unistd.h>

#include <array>

#include "server/log.hpp"

namespace shmstore::server {
namespace {

using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr seconds kLookUsually{30};
constexpr seconds kLookUnwatched{2};
constexpr seconds kLookLost{1};
/// Without sessions and out of place: a client that found the socket before may still come.
constexpr seconds kForgottenAfter{5};

}  // namespace

SocketKeeper::SocketKeeper(boost::asio::io_context& io, const Listener& listener, bool gives_way,
                           Hooks hooks)
    : listener_(listener),
      gives_way_(gives_way),
      hooks_(std::move(hooks)),
      events_(io),
      timer_(io) {}

void SocketKeeper::start() {
  watch_file();
  look_later();
}

/// A new instance each time: the watches of the old one, on a file that is gone, go with it.
void SocketKeeper::watch_file() {
  boost::system::error_code error;
  events_.close(error);
  UniqueFd fd(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  // An unlink shows as a change of the link count: the socket itself lives on.
  const std::uint32_t events = IN_ATTRIB | IN_MOVE_SELF | IN_DELETE_SELF | IN_DONT_FOLLOW;
  if (!fd.valid() || ::inotify_add_watch(fd.get(), listener_.path().c_str(), events) < 0) return;
  events_.assign(fd.get(), error);
  if (error) return;
  (void)fd.release();
  wait_event();
}

void SocketKeeper::wait_event() {
  events_.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                     [this](const boost::system::error_code& error) {
                       if (error) return;
                       std::array<char, 4096> text{};
                       while (::read(events_.native_handle(), text.data(), text.size()) > 0) {
                       }
                       wait_event();
                       look();
                     });
}

void SocketKeeper::look_later() {
  const seconds usual = events_.is_open() ? kLookUsually : kLookUnwatched;
  timer_.expires_after(lost_since_ ? kLookLost : usual);
  timer_.async_wait([this](const boost::system::error_code& error) {
    if (!error) look();
  });
}

void SocketKeeper::look() {
  if (listener_.in_place()) {
    lost_since_.reset();
    return look_later();
  }
  const auto now = steady_clock::now();
  const bool first = !lost_since_;
  if (first) lost_since_ = now;
  if (gives_way_ && hooks_.is_idle()) return hooks_.stop("its socket was removed");
  const Result<void> bound =
      listener_.adopted()
          ? make_error(ErrorCode::busy, "it is the service manager's: restart the socket unit")
          : hooks_.listen_again();
  if (bound) {
    lost_since_.reset();
    log(LogLevel::warning, "listening again",
        {{"socket", listener_.path()}, {"text", "the socket had been removed or replaced"}});
    watch_file();
    return look_later();
  }
  if (first) {
    log(LogLevel::error, "socket lost",
        {{"socket", listener_.path()}, {"text", bound.error().text}});
  }
  if (!hooks_.has_sessions() && now - *lost_since_ >= kForgottenAfter) {
    return hooks_.stop("its socket was removed, and it has no session");
  }
  look_later();
}

}  // namespace shmstore::server
