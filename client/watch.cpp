#include <poll.h>
#include <sys/uio.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <utility>

#include "client/admin.hpp"
#include "client/guarded.hpp"
#include "client/state.hpp"

namespace shmstore {

namespace client_internal {

using protocol::Op;
using Clock = std::chrono::steady_clock;

/// A session that only receives. It has no followers: one thread uses it at a time.
class WatchState {
 public:
  WatchState(std::shared_ptr<State> state, UninheritedFd socket)
      : state_(std::move(state)), socket_(std::move(socket)) {}

  Result<void> subscribe(std::string_view prefix) {
    Result<std::string> request = watch_request(prefix);
    if (!request) return request.error();
    protocol::FrameHeader header;
    header.op = static_cast<std::uint16_t>(Op::watch);
    header.request = 2;  // 1 was hello.
    const iovec parts[] = {{&header, sizeof header}, {request->data(), request->size()}};
    if (send_frame(socket_.fd(), parts) != Sent::yes) return gone();
    Frame frame;
    if (Result<void> got = receive(frame, kGuard); !got) return got;
    if (frame.header.status == 0) return {};
    const auto code = error_code_of(frame.header.status).value_or(ErrorCode::protocol_error);
    return make_error(code, text_of(frame));
  }

  Result<Event> next(Timeout timeout) {
    Frame frame;
    if (Result<void> got = receive(frame, timeout); !got) return got.error();
    if (frame.header.op != static_cast<std::uint16_t>(Op::event)) {
      return make_error(ErrorCode::protocol_error, "watch: a frame that is no event");
    }
    return parse_event(text_of(frame));
  }

  [[nodiscard]] int fd() const noexcept { return socket_.own() ? socket_.fd() : -1; }

 private:
  static Error gone() { return make_error(ErrorCode::disconnected, "watch: the daemon went away"); }
  static std::string text_of(const Frame& frame) {
    return {reinterpret_cast<const char*>(frame.body.data()), frame.body.size()};
  }

  Result<void> receive(Frame& frame, Timeout timeout) {
    if (!socket_.own()) {
      return make_error(ErrorCode::disconnected, "watch: it belongs to the parent process");
    }
    const auto start = Clock::now();
    for (;;) {
      switch (receive_frame(socket_.fd(), buffer_, frame)) {
        case Received::frame: return {};
        case Received::closed:
        case Received::garbage: return gone();
        case Received::nothing:
        case Received::signal: break;
      }
      auto slice = kSlice;
      if (timeout) {
        const auto past = std::chrono::floor<std::chrono::milliseconds>(Clock::now() - start);
        if (past >= *timeout) return make_error(ErrorCode::timed_out, "watch: no event in time");
        slice = std::min(slice, *timeout - past);
      }
      pollfd waiting{socket_.fd(), POLLIN, 0};
      static_cast<void>(poll(&waiting, 1, static_cast<int>(slice.count())));
      if (is_interrupted(state_->options().interrupted)) return interrupted_error();
    }
  }

  std::shared_ptr<State> state_;
  UninheritedFd socket_;
  FrameBuffer buffer_;
};

}  // namespace client_internal

using client_internal::guarded;

Watch::Watch(Watch&&) noexcept = default;
Watch& Watch::operator=(Watch&&) noexcept = default;
Watch::~Watch() = default;
Watch::Watch(std::unique_ptr<client_internal::WatchState> state) noexcept
    : state_(std::move(state)) {}

Result<Event> Watch::next(Timeout timeout) {
  return guarded([&]() -> Result<Event> {
    if (state_) return state_->next(timeout);
    return make_error(ErrorCode::invalid_argument, "watch: it was moved from");
  });
}

int Watch::native_handle() const noexcept {
  return state_ ? state_->fd() : -1;
}

Result<Watch> Client::watch(std::string_view prefix) {
  return guarded([&]() -> Result<Watch> {
    Result<client_internal::Found> found = state_->open_another();
    if (!found) return found.error();
    auto state = std::make_unique<client_internal::WatchState>(state_, std::move(found->socket));
    if (Result<void> subscribed = state->subscribe(prefix); !subscribed) return subscribed.error();
    return Watch(std::move(state));
  });
}

}  // namespace shmstore
