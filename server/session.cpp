/// Events put a session in line for a turn of its user; take_turn() is where everything happens. A
/// session is in line at most once, and holds itself while it is. Whatever ends it, its client's
/// last words are read first (finish_some), also that in turns.

#include "server/session.hpp"

#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "server/log.hpp"

namespace shmstore::server {
namespace {

namespace asio = boost::asio;

constexpr std::size_t kQueueBytesMax = std::size_t{1} << 20U;
/// Of all sessions of one user.
constexpr std::size_t kUserQueueBytesMax = std::size_t{32} << 20U;
/// Events stop here, so that replies still have room.
constexpr std::size_t kEventQueueBytesMax = std::size_t{256} << 10U;
/// What is thrown away at most when a connection closes; bounded by the socket's own buffer.
constexpr int kDrainedFramesMax = 4096;
/// What is carried out at most for a client that is gone; more than a socket's buffer holds.
constexpr int kLastFramesMax = 1024;

/// What a client that is gone may still have meant for others: to let go of an array, to hand it
/// on, to say that it has it, to publish it, to call it whole or broken. Everything else was for
/// itself.
bool counts_after_the_end(Bytes frame) {
  protocol::FrameHeader header;
  if (!read_header(frame, header)) return false;
  using protocol::Op;
  const auto op = static_cast<Op>(header.op);
  return op == Op::release || op == Op::seal || op == Op::abort || op == Op::handover ||
         op == Op::received || op == Op::publish;
}

}  // namespace

ClientSession::ClientSession(SessionContext& context, SessionId id, std::uint32_t uid,
                             UniqueFd socket, UniqueFd process, std::optional<Error> refusal)
    : context_(context),
      state_{id, 0, false},
      uid_(uid),
      refusal_(std::move(refusal)),
      socket_(context.io, asio::generic::seq_packet_protocol(AF_UNIX, 0), socket.get()),
      process_(context.io) {
  (void)socket.release();
  if (!process.valid()) return;
  process_.assign(process.get());  // throws without taking it when the kernel has no room
  (void)process.release();
}

void ClientSession::start() {
  wait_readable();
  if (!process_.is_open()) return;
  process_.async_wait(asio::posix::stream_descriptor::wait_read,
                      [self = shared_from_this()](const boost::system::error_code& error) {
                        if (!error && !self->closed_) self->client_gone("process ended");
                      });
}

void ClientSession::close() {
  if (closed_) return;
  closed_ = true;
  if (watched_) context_.writable.remove(socket_.native_handle());
  // Unread requests in a socket that closes would turn the replies before them into ECONNRESET.
  (void)::shutdown(socket_.native_handle(), SHUT_RDWR);
  for (int n = 0; n < kDrainedFramesMax; ++n) {
    std::byte ignored{};
    if (::recv(socket_.native_handle(), &ignored, 1, MSG_DONTWAIT) <= 0) break;
  }
  boost::system::error_code ignored;
  socket_.close(ignored);
  process_.close(ignored);
  clear_queue();
}

// -- turns ----------------------------------------------------------------------------------------

void ClientSession::want_turn() {
  if (!std::exchange(in_line_, true)) context_.want_turn(uid_, shared_from_this());
}

void ClientSession::take_turn(const TurnOver& over) {
  in_line_ = false;
  if (closed_) return;
  if (failed_) {
    if (gone_) return finish_some(over);
    return context_.end(id(), end_reason_);
  }
  if (flush_due_) flush_some(over);
  if (closed_ || failed_) return;
  if (flush_due_) return want_turn();
  if (readable_ && queue_.empty()) read_some(over);
}

// -- reading --------------------------------------------------------------------------------------

void ClientSession::wait_readable() {
  socket_.async_wait(asio::socket_base::wait_read,
                     [self = shared_from_this()](const boost::system::error_code& error) {
                       if (error || self->closed_) return;
                       self->readable_ = true;
                       self->want_turn();
                     });
}

/// With an empty queue. Once that is not, reading goes on when it has been sent.
void ClientSession::read_some(const TurnOver& over) {
  do {
    const bool took = take_one();
    if (closed_ || failed_) return;
    if (!took) {
      readable_ = false;
      return wait_readable();
    }
    if (!queue_.empty()) return;
  } while (!over());
  want_turn();
}

void ClientSession::client_gone(std::string_view reason) {
  gone_ = true;
  if (!std::exchange(failed_, true)) end_reason_ = reason;
  clear_queue();
  want_turn();
}

/// The client is gone. What it had sent before is carried out, unanswered: a release among it was
/// meant, and an array that was let go in time is not broken by a death that came after.
void ClientSession::finish_some(const TurnOver& over) {
  for (; last_frames_ < kLastFramesMax && !closed_; ++last_frames_) {
    if (over()) return want_turn();
    if (!take_one()) break;
  }
  if (!closed_) context_.end(id(), end_reason_);
}

bool ClientSession::take_one() {
  iovec part{context_.buffer.data(), context_.buffer.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  // No room for control data: the kernel closes descriptors that come along and says MSG_CTRUNC.
  // ECONNRESET: it closed with replies unread. It comes once, and before what it sent last.
  ssize_t got = 0;
  do {
    got = ::recvmsg(socket_.native_handle(), &message, MSG_DONTWAIT);
  } while (got < 0 && (errno == EINTR || errno == ECONNRESET));
  if (got < 0 && errno == EAGAIN) return false;
  if (got <= 0) {
    context_.end(id(), got == 0 ? "closed" : std::strerror(errno));
    return false;
  }
  const Bytes bytes(context_.buffer.data(), static_cast<std::size_t>(got));
  if (failed_ && !counts_after_the_end(bytes)) return true;
  if (refusal_) {
    context_.dispatcher.refuse(id(), bytes, *refusal_);
    violate("refused");
    return false;
  }
  if ((message.msg_flags & MSG_CTRUNC) != 0) {
    context_.dispatcher.refuse(
        id(), bytes, make_error(ErrorCode::protocol_error, "clients must not send descriptors"));
    violate("sent a descriptor");
    return false;
  }
  if (!context_.dispatcher.handle(state_, bytes, (message.msg_flags & MSG_TRUNC) != 0)) {
    violate("protocol violation");
    return false;
  }
  return true;
}

/// Closes although the queue may not be empty: who breaks the protocol and does not read its error
/// either is owed nothing.
void ClientSession::violate(std::string_view reason) {
  context_.end(id(), reason);
}

// -- writing --------------------------------------------------------------------------------------

void ClientSession::send(Bytes frame, DescriptorRef descriptor) {
  if (closed_ || failed_) return;
  if (!queue_.empty() || flushing_) return enqueue(frame, descriptor);
  switch (try_send(frame, descriptor)) {
    case Sent::yes: break;
    case Sent::not_now: enqueue(frame, descriptor); break;
    case Sent::never: fail("cannot be written to"); break;
  }
}

bool ClientSession::offer(Bytes frame) {
  if (!has_queue_room(frame.size(), kEventQueueBytesMax)) {
    events_missed_ = true;
    return false;
  }
  send(frame, {});
  return true;
}

ClientSession::Sent ClientSession::try_send(Bytes frame, DescriptorRef descriptor) {
  if (descriptor.segment == 0) return send_message(frame, -1);
  if (descriptor_unread()) return Sent::not_now;
  Result<UniqueFd> opened = context_.store.open(descriptor.segment, descriptor.writable);
  if (!opened) {
    const auto instead = context_.dispatcher.descriptor_failed(id(), frame, opened.error());
    return send_message(instead, -1);
  }
  const Sent sent = send_message(frame, opened->get());
  if (sent == Sent::yes) descriptor_sent_ = true;
  return sent;
}

ClientSession::Sent ClientSession::send_message(Bytes frame, int descriptor) {
  iovec part{const_cast<std::byte*>(frame.data()), frame.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(int))> control{};
  if (descriptor >= 0) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof descriptor);
    std::memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
  }
  ssize_t sent = 0;
  do {
    sent = ::sendmsg(socket_.native_handle(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent >= 0) return Sent::yes;
  gone_ = gone_ || errno == EPIPE || errno == ECONNRESET;
  return errno == EAGAIN ? Sent::not_now : Sent::never;
}

/// Bytes that the peer has not read yet. While the kernel tells that the last message was taken it
/// still counts one.
bool ClientSession::descriptor_unread() {
  if (!descriptor_sent_) return false;
  int unread = 0;
  descriptor_sent_ = ::ioctl(socket_.native_handle(), SIOCOUTQ, &unread) == 0 && unread > 1;
  return descriptor_sent_;
}

void ClientSession::enqueue(Bytes frame, DescriptorRef descriptor) {
  if (!has_queue_room(frame.size(), kQueueBytesMax)) return fail("does not read its replies");
  queue_.push_back({{frame.begin(), frame.end()}, descriptor});
  charge_queue(frame.size());
  if (watched_) return;
  watched_ = context_.writable.add(socket_.native_handle(), id());
  if (!watched_) fail("cannot be watched");
}

bool ClientSession::has_queue_room(std::size_t bytes, std::size_t session_max) const {
  const auto of_user = context_.queued_bytes.find(uid_);
  const std::size_t queued = of_user == context_.queued_bytes.end() ? 0 : of_user->second;
  return queue_bytes_ + bytes <= session_max && queued + bytes <= kUserQueueBytesMax;
}

void ClientSession::charge_queue(std::size_t bytes) {
  queue_bytes_ += bytes;
  context_.queued_bytes[uid_] += bytes;
}

void ClientSession::uncharge_queue(std::size_t bytes) {
  if (bytes == 0) return;
  queue_bytes_ -= bytes;
  const auto of_user = context_.queued_bytes.find(uid_);
  of_user->second -= bytes;
  if (of_user->second == 0) context_.queued_bytes.erase(of_user);
}

void ClientSession::clear_queue() {
  queue_.clear();
  uncharge_queue(queue_bytes_);
}

void ClientSession::on_writable() {
  if (closed_ || failed_) return;
  flush_due_ = true;
  want_turn();
}

void ClientSession::flush_some(const TurnOver& over) {
  flush_due_ = false;
  send_queued(over);
  if (closed_ || failed_ || !queue_.empty()) return;
  context_.writable.remove(socket_.native_handle());
  watched_ = false;
  if (std::exchange(events_missed_, false)) context_.dispatcher.resume_watch(id());
}

void ClientSession::send_queued(const TurnOver& over) {
  flushing_ = true;
  while (!queue_.empty() && !failed_ && !closed_) {
    // Taken out first: sending may lead to more frames for this session.
    Queued next = std::move(queue_.front());
    queue_.pop_front();
    uncharge_queue(next.frame.size());
    const Sent sent = try_send(next.frame, next.descriptor);
    if (sent == Sent::never) fail("cannot be written to");
    if (sent == Sent::not_now) {
      charge_queue(next.frame.size());
      queue_.push_front(std::move(next));
    }
    flush_due_ = sent == Sent::yes && over();
    if (sent != Sent::yes || flush_due_) break;
  }
  flushing_ = false;
}

/// Not at once: this may come out of the middle of the effects of another session's request.
void ClientSession::fail(std::string_view reason) {
  if (std::exchange(failed_, true)) return;
  end_reason_ = reason;
  clear_queue();
  want_turn();
}

}  // namespace shmstore::server
