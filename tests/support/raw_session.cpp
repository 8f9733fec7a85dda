#include "tests/support/raw_session.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <system_error>

namespace shmstore::testing {

using protocol::Op;

std::string frame(Op op, std::uint64_t request, std::string_view body) {
  protocol::FrameHeader header;
  header.op = static_cast<std::uint16_t>(op);
  header.request = request;
  return bytes_of(header).append(body);
}

std::string RawReply::outcome() const {
  if (closed) return "closed";
  if (hung) return "nothing came";
  if (header.status == 0) return "ok";
  const auto code = error_code_of(header.status);
  return code ? std::string(to_string(*code)) : "status " + std::to_string(header.status);
}

RawSession::RawSession(const std::string& socket_path)
    : fd_(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socket_path.copy(address.sun_path, sizeof address.sun_path - 1);
  if (::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    throw std::system_error(errno, std::generic_category(), "connect");
  }
}

bool RawSession::send(std::string_view bytes, std::span<const int> fds) {
  iovec part{const_cast<char*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 16)] = {};
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(rights), fds.data(), fds.size_bytes());
  }
  return ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
}

bool RawSession::readable() const {
  pollfd ready{fd_.get(), POLLIN, 0};
  return ::poll(&ready, 1, 0) > 0;
}

RawReply RawSession::receive() {
  RawReply reply;
  pollfd ready{fd_.get(), POLLIN, 0};
  int found = 0;
  do {
    found = ::poll(&ready, 1, watchdog_seconds() * 1000);
  } while (found < 0 && errno == EINTR);
  if (found <= 0) {
    reply.hung = true;
    return reply;
  }
  std::string bytes(protocol::kFrameBytesMax + 1, '\0');
  iovec part{bytes.data(), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 4)] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t size = ::recvmsg(fd_.get(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (size < static_cast<ssize_t>(sizeof(protocol::FrameHeader))) {
    reply.closed = true;
    return reply;
  }
  reply.lost_fds = (message.msg_flags & MSG_CTRUNC) != 0;
  for (cmsghdr* part_of = CMSG_FIRSTHDR(&message); part_of != nullptr;
       part_of = CMSG_NXTHDR(&message, part_of)) {
    if (part_of->cmsg_level != SOL_SOCKET || part_of->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (part_of->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part_of) + i * sizeof(int), sizeof fd);
      reply.fds.emplace_back(fd);
    }
  }
  bytes.resize(static_cast<std::size_t>(size));
  reply.header = struct_at<protocol::FrameHeader>(bytes);
  reply.body = bytes.substr(sizeof(protocol::FrameHeader));
  return reply;
}

RawReply RawSession::call(Op op, std::string_view body) {
  send(frame(op, ++request_, body));
  return receive();
}

RawReply RawSession::hello() {
  return call(Op::hello, bytes_of(protocol::HelloRequest{}));
}

std::string create_body(std::string_view name, std::uint64_t bytes, std::uint16_t options,
                        std::uint16_t perms) {
  constexpr std::string_view kDtype = "|u1";
  protocol::CreateRequest request;
  request.bytes = bytes;
  request.name_bytes = static_cast<std::uint16_t>(name.size());
  request.dtype_bytes = static_cast<std::uint16_t>(kDtype.size());
  request.perms = perms;
  request.options = options;
  request.ndim = 1;
  return bytes_of(request).append(bytes_of(bytes)).append(name).append(kDtype);
}

std::string attach_body(std::string_view name, Access access, std::int64_t timeout_ms) {
  protocol::AttachRequest request;
  request.timeout_ms = timeout_ms;
  request.name_bytes = static_cast<std::uint16_t>(name.size());
  request.access = static_cast<std::uint8_t>(access);
  return bytes_of(request).append(name);
}

RawReply RawSession::create(std::string_view name, std::uint64_t bytes, std::uint16_t options,
                            std::uint16_t perms) {
  return call(Op::create, create_body(name, bytes, options, perms));
}

RawReply RawSession::attach(std::string_view name, Access access, std::int64_t timeout_ms) {
  return call(Op::attach, attach_body(name, access, timeout_ms));
}

RawReply RawSession::seal(std::uint64_t id, bool hard) {
  protocol::SealRequest request;
  request.id = id;
  request.hard = hard ? 1 : 0;
  return call(Op::seal, bytes_of(request));
}

RawReply RawSession::release(std::uint64_t id, Access access, std::uint32_t grants) {
  protocol::ReleaseRequest request;
  request.id = id;
  request.grants = grants;
  request.access = static_cast<std::uint8_t>(access);
  return call(Op::release, bytes_of(request));
}

}  // namespace shmstore::testing
