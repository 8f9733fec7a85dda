#pragma once
/// One connected client, as the event loop sees it (to the registry a session is a number and what
/// it holds): its socket, its process, its outgoing queue.
///
/// Turns: an event (readable, writable, the end of the process) only asks for a turn; everything
/// that takes time is done in one, until the turn is over or nothing is left. So who floods, or has
/// many sessions, takes from the turns of his own user only. Reading: frames go to the dispatcher
/// as they come. While the outgoing queue holds anything no frame is read: who does not take
/// replies gets no further. Writing: straight to the socket; what does not fit waits in the queue,
/// in order. A frame with a descriptor also waits while an earlier one is unread (descriptors on
/// their way count against the daemon's limit). A queue over its limit ends the session. The end:
/// EOF, a protocol violation, or the connecting process's end, whichever is seen first.

#include <boost/asio/generic/seq_packet_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "server/dispatch.hpp"
#include "server/outbox.hpp"
#include "server/unique_fd.hpp"
#include "server/writable_poll.hpp"

namespace shmstore::server {

class ClientSession;

/// What all sessions share; outlives them.
struct SessionContext {
  boost::asio::io_context& io;
  Dispatcher& dispatcher;
  SegmentStore& store;
  WritablePoll& writable;
  /// Ends a session: takes it from the table, closes it, tells the dispatcher.
  std::function<void(SessionId, std::string_view reason)> end;
  /// Puts a session in line for a turn.
  std::function<void(std::uint32_t uid, std::shared_ptr<ClientSession>)> want_turn;
  /// Bytes that wait in the queues of a user's sessions: what a user who does not read can make the
  /// daemon hold is bounded, however many connections he has.
  std::unordered_map<std::uint32_t, std::size_t> queued_bytes = {};
  /// One message is handled at a time, so one buffer serves all.
  std::vector<std::byte> buffer = std::vector<std::byte>(protocol::kFrameBytesMax);
};

/// Whether the turn is over.
using TurnOver = std::function<bool()>;

class ClientSession : public std::enable_shared_from_this<ClientSession> {
 public:
  /// `process`: a pidfd, or none. `refusal`: what to answer to the first frame before closing.
  ClientSession(SessionContext& context, SessionId id, std::uint32_t uid, UniqueFd socket,
                UniqueFd process, std::optional<Error> refusal);

  void start();
  void send(Bytes frame, DescriptorRef descriptor);
  /// False: not taken, the queue is too long.
  bool offer(Bytes frame);
  /// The peer has read something.
  void on_writable();
  /// Does what there is to do until the turn is over; asks for another one when something is left.
  void take_turn(const TurnOver& over);
  /// Twice is fine.
  void close();

  [[nodiscard]] SessionId id() const noexcept { return state_.id; }
  [[nodiscard]] bool refused() const noexcept { return refusal_.has_value(); }
  [[nodiscard]] bool greeted() const noexcept { return state_.greeted; }

 private:
  enum class Sent {
    yes,
    not_now,
    never
  };
  struct Queued {
    std::vector<std::byte> frame;
    DescriptorRef descriptor;
  };

  void want_turn();
  void wait_readable();
  void read_some(const TurnOver& over);
  /// False: there was none, or it ended the session.
  bool take_one();
  void client_gone(std::string_view reason);
  void finish_some(const TurnOver& over);
  void violate(std::string_view reason);
  Sent try_send(Bytes frame, DescriptorRef descriptor);
  Sent send_message(Bytes frame, int descriptor);
  [[nodiscard]] bool descriptor_unread();
  void enqueue(Bytes frame, DescriptorRef descriptor);
  [[nodiscard]] bool has_queue_room(std::size_t bytes, std::size_t session_max) const;
  void charge_queue(std::size_t bytes);
  void uncharge_queue(std::size_t bytes);
  void clear_queue();
  void flush_some(const TurnOver& over);
  void send_queued(const TurnOver& over);
  void fail(std::string_view reason);

  SessionContext& context_;
  SessionState state_;
  const std::uint32_t uid_;
  const std::optional<Error> refusal_;
  boost::asio::generic::seq_packet_protocol::socket socket_;
  boost::asio::posix::stream_descriptor process_;
  std::deque<Queued> queue_;
  std::size_t queue_bytes_ = 0;
  bool descriptor_sent_ = false;  // may still be unread
  bool watched_ = false;          // by the WritablePoll
  bool flushing_ = false;
  bool flush_due_ = false;  // the peer has read something
  bool readable_ = false;   // nothing waits for the socket: there may be frames
  bool in_line_ = false;    // for a turn
  bool events_missed_ = false;
  bool failed_ = false;  // its end is on the way
  bool gone_ = false;    // the client has closed its end, or is no more
  bool closed_ = false;
  int last_frames_ = 0;  // taken since the client is gone
  std::string_view end_reason_;
};

}  // namespace shmstore::server
