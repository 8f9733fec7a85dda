#include "client/wire.hpp"

#include <poll.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <new>
#include <string_view>

#include "client/kill_points.hpp"

namespace shmstore::client_internal {

static_assert(std::endian::native == std::endian::little, "frames are little-endian structs");

namespace {

using protocol::FrameHeader;
using protocol::Op;

std::string errno_text(int number) {
  return strerrordesc_np(number);
}

Opened failed(OpenProblem problem, ErrorCode code, std::string text) {
  Opened opened;
  opened.problem = problem;
  opened.error = make_error(code, std::move(text));
  return opened;
}

Opened connect_failed(const std::string& path, int number) {
  const std::string text = "socket " + path + ": " + errno_text(number);
  switch (number) {
    case ENOENT:
    case ENOTDIR: return failed(OpenProblem::absent, ErrorCode::disconnected, text);
    case ECONNREFUSED: return failed(OpenProblem::refused, ErrorCode::disconnected, text);
    case EACCES:
    case EPERM: return failed(OpenProblem::denied, ErrorCode::permission_denied, text);
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case ENOBUFS: return failed(OpenProblem::other, ErrorCode::no_capacity, text);
    default: return failed(OpenProblem::other, ErrorCode::disconnected, text);
  }
}

/// connect() returns after a slice, so that its waits can look around.
bool set_timeout(int fd) noexcept {
  timeval slice{};
  slice.tv_usec = std::chrono::microseconds(kSlice).count();
  return setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &slice, sizeof slice) == 0;
}

/// No child is forked between the making of the socket and its listing. Throws std::bad_alloc.
UninheritedFd make_socket() {
  const ForkGuard guard;
  const int fd = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  return fd < 0 ? UninheritedFd() : UninheritedFd(fd, guard);
}

std::uint32_t folder_owner(const std::string& path) noexcept {
  struct stat status {};
  const std::string folder = path.substr(0, path.rfind('/'));
  return stat(folder.c_str(), &status) == 0 ? status.st_uid : 0;
}

/// The socket's folder decides who may listen there; a stranger who got in is not believed.
Result<void> check_peer(int fd, const Candidate& candidate) {
  if (candidate.origin == Origin::given) return {};
  ucred peer{};
  socklen_t size = sizeof peer;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return make_error(ErrorCode::disconnected, "socket " + candidate.path + ": no credentials");
  }
  const bool trusted = candidate.origin == Origin::user
                           ? peer.uid == geteuid()
                           : peer.uid == 0 || peer.uid == folder_owner(candidate.path);
  if (trusted) return {};
  return make_error(ErrorCode::permission_denied,
                    "socket " + candidate.path + ": its daemon runs as user " +
                        std::to_string(peer.uid) + ", which is not to be trusted there");
}

/// connect(2), in slices: it blocks while the daemon's backlog is full.
int connect_in_slices(int fd, const sockaddr_un& address, const Interrupted& interrupted) {
  const auto deadline = std::chrono::steady_clock::now() + kGuard;
  for (;;) {
    if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return 0;
    const int number = errno;
    if (number == EISCONN) return 0;
    if (number != EINTR && number != EAGAIN) return number;
    if (is_interrupted(interrupted)) return EINTR;
    if (std::chrono::steady_clock::now() > deadline) return ETIMEDOUT;
  }
}

Received await_hello(int fd, FrameBuffer& buffer, Frame& frame, const Interrupted& interrupted) {
  const auto deadline = std::chrono::steady_clock::now() + kGuard;
  for (;;) {
    Received received = wait_for_frame(fd);
    if (received == Received::frame) received = receive_frame(fd, buffer, frame);
    if (received != Received::nothing && received != Received::signal) return received;
    if (is_interrupted(interrupted)) return Received::signal;
    if (std::chrono::steady_clock::now() > deadline) return Received::nothing;
  }
}

Opened check_hello(const Frame& frame, const std::string& path) {
  if (frame.header.status != 0) {
    const auto* text = reinterpret_cast<const char*>(frame.body.data());
    const auto code = error_code_of(frame.header.status).value_or(ErrorCode::protocol_error);
    return failed(OpenProblem::other, code, std::string(text, frame.body.size()));
  }
  Opened opened;
  if (frame.header.op != static_cast<std::uint16_t>(Op::hello) ||
      frame.body.size() != sizeof opened.hello) {
    return failed(OpenProblem::other, ErrorCode::protocol_error,
                  "socket " + path + ": the answer to hello is not one of this protocol");
  }
  std::memcpy(&opened.hello, frame.body.data(), sizeof opened.hello);
  if (opened.hello.magic != protocol::kMagic || opened.hello.major != protocol::kMajor) {
    return failed(OpenProblem::other, ErrorCode::protocol_error,
                  "version: the daemon speaks protocol " + std::to_string(opened.hello.major) +
                      "." + std::to_string(opened.hello.minor) + ", this client " +
                      std::to_string(protocol::kMajor) + "." + std::to_string(protocol::kMinor));
  }
  return opened;
}

Opened say_hello(int fd, const std::string& path, const Interrupted& interrupted) {
  FrameHeader header;
  header.op = static_cast<std::uint16_t>(Op::hello);
  header.request = 1;
  protocol::HelloRequest request;
  const iovec parts[] = {{&header, sizeof header}, {&request, sizeof request}};
  pass_kill_point(Op::hello, Step::before_send);
  const std::string gone = "socket " + path + ": the daemon closed the connection";
  if (send_frame(fd, parts) != Sent::yes) {
    return failed(OpenProblem::closed, ErrorCode::disconnected, gone);
  }
  pass_kill_point(Op::hello, Step::after_send);
  FrameBuffer buffer;
  Frame frame;
  switch (await_hello(fd, buffer, frame, interrupted)) {
    case Received::frame: break;
    case Received::closed: return failed(OpenProblem::closed, ErrorCode::disconnected, gone);
    case Received::signal: return failed(OpenProblem::other, ErrorCode::aborted, "interrupted");
    case Received::nothing:
      return failed(OpenProblem::other, ErrorCode::timed_out,
                    "socket " + path + ": the daemon did not answer for 10 s");
    case Received::garbage:
      return failed(OpenProblem::other, ErrorCode::protocol_error,
                    "socket " + path + ": what answers there does not speak this protocol");
  }
  pass_kill_point(Op::hello, Step::after_reply);
  return check_hello(frame, path);
}

}  // namespace

bool is_interrupted(const Interrupted& interrupted) noexcept {
  if (!interrupted) return false;
  try {
    return interrupted();
  } catch (...) {
    return true;
  }
}

Error interrupted_error() {
  return make_error(ErrorCode::aborted, "interrupted");
}

namespace {

/// The descriptor of a message, if any. REQUIRES: the message was received under `guard`.
UninheritedFd descriptor_of(msghdr& message, const ForkGuard& guard) noexcept {
  UninheritedFd descriptor;
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
       part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    int received = -1;
    std::memcpy(&received, CMSG_DATA(part), sizeof received);
    try {
      descriptor = UninheritedFd(received, guard);
    } catch (const std::bad_alloc&) {  // It is closed, and counts as lost.
    }
  }
  return descriptor;
}

}  // namespace

Received wait_for_frame(int fd, bool or_room) noexcept {
  pollfd waiting{fd, static_cast<short>(or_room ? POLLIN | POLLOUT : POLLIN), 0};
  const int ready = poll(&waiting, 1, static_cast<int>(kSlice.count()));
  if (ready < 0) return errno == EINTR ? Received::signal : Received::closed;
  return ready == 0 || waiting.revents == POLLOUT ? Received::nothing : Received::frame;
}

Received receive_frame(int fd, FrameBuffer& buffer, Frame& frame) noexcept {
  frame.descriptor = UninheritedFd();
  const ForkGuard guard;
  iovec part{buffer.data(), protocol::kFrameBytesMax};
  alignas(cmsghdr) std::byte control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t got = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got < 0) {
    if (errno == EAGAIN) return Received::nothing;
    return errno == EINTR ? Received::signal : Received::closed;
  }
  frame.descriptor = descriptor_of(message, guard);
  if (got == 0) return Received::closed;
  const auto bytes = static_cast<std::size_t>(got);
  if (bytes < sizeof frame.header || (message.msg_flags & MSG_TRUNC) != 0) {
    return Received::garbage;
  }
  std::memcpy(&frame.header, buffer.data(), sizeof frame.header);
  frame.body = {buffer.data() + sizeof frame.header, bytes - sizeof frame.header};
  const bool announced = (frame.header.flags & protocol::kFlagDescriptor) != 0;
  frame.descriptor_lost = announced && !frame.descriptor.valid();
  return (frame.header.flags & protocol::kFlagReply) != 0 ? Received::frame : Received::garbage;
}

Sent send_frame(int fd, std::span<const iovec> parts) noexcept {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(parts.data());  // sendmsg only reads it.
  message.msg_iovlen = parts.size();
  for (;;) {
    if (sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return Sent::yes;
    if (errno == EINTR) continue;
    return errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM ? Sent::full : Sent::closed;
  }
}

Opened open_session(const Candidate& candidate, const Interrupted& interrupted) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (candidate.path.size() > kPathBytesMax) {
    return failed(OpenProblem::other, ErrorCode::invalid_argument,
                  "socket: the path has " + std::to_string(candidate.path.size()) +
                      " bytes, at most " + std::to_string(kPathBytesMax) +
                      " are allowed: " + candidate.path);
  }
  std::memcpy(address.sun_path, candidate.path.data(), candidate.path.size());
  UninheritedFd socket = make_socket();
  const int fd = socket.fd();
  if (!socket.valid() || !set_timeout(fd)) return connect_failed(candidate.path, errno);
  if (const int number = connect_in_slices(fd, address, interrupted); number != 0) {
    if (number == EINTR) return failed(OpenProblem::other, ErrorCode::aborted, "interrupted");
    return connect_failed(candidate.path, number);
  }
  if (Result<void> peer = check_peer(fd, candidate); !peer) {
    return failed(OpenProblem::other, peer.error().code, peer.error().text);
  }
  Opened opened = say_hello(fd, candidate.path, interrupted);
  if (opened.problem == OpenProblem::none) opened.socket = std::move(socket);
  return opened;
}

}  // namespace shmstore::client_internal
