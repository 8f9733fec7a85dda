#pragma once
/// Frames over one SEQPACKET socket, and the opening of a session. Nothing here knows what the
/// frames mean beyond their header.

#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "client/fork.hpp"
#include "shmstore/error.hpp"
#include "shmstore/protocol.hpp"

namespace shmstore::client_internal {

/// Longest sleep of any wait: between two of them the caller's `interrupted` is asked.
inline constexpr std::chrono::milliseconds kSlice{100};
/// How long past its own deadline the daemon may keep silent.
inline constexpr std::chrono::seconds kGuard{10};

/// The longest path of a socket: sun_path less its zero byte.
inline constexpr std::size_t kPathBytesMax = sizeof(sockaddr_un::sun_path) - 1;

using Interrupted = std::function<bool()>;
/// Asks; an exception of the callback counts as yes.
[[nodiscard]] bool is_interrupted(const Interrupted& interrupted) noexcept;
[[nodiscard]] Error interrupted_error();

/// Room for the largest frame.
class FrameBuffer {
 public:
  FrameBuffer() : bytes_(std::make_unique_for_overwrite<std::byte[]>(protocol::kFrameBytesMax)) {}
  [[nodiscard]] std::byte* data() noexcept { return bytes_.get(); }

 private:
  std::unique_ptr<std::byte[]> bytes_;
};

struct Frame {
  protocol::FrameHeader header;
  std::span<const std::byte> body;  ///< Within the FrameBuffer.
  UninheritedFd descriptor;
  bool descriptor_lost = false;  ///< It was sent, but this process had no room for it.
};

enum class Received : std::uint8_t {
  frame,
  nothing,  ///< Nothing is there, for a slice or now.
  signal,   ///< A signal came.
  closed,   ///< The daemon is gone or has closed.
  garbage,  ///< Not a frame of this protocol.
};
/// Waits a slice for one; with `or_room` only until the socket has room for another to send.
[[nodiscard]] Received wait_for_frame(int fd, bool or_room = false) noexcept;
/// Takes what is there; never waits.
[[nodiscard]] Received receive_frame(int fd, FrameBuffer& buffer, Frame& frame) noexcept;

enum class Sent : std::uint8_t {
  yes,
  full,    ///< No room in the socket; nothing was sent.
  closed,  ///< The daemon is gone; nothing was sent.
};
/// Never blocks, never raises SIGPIPE.
[[nodiscard]] Sent send_frame(int fd, std::span<const iovec> parts) noexcept;

/// What may stand at the other end (SO_PEERCRED), by how the path was found.
enum class Origin : std::uint8_t {
  given,   ///< By the caller or the environment: any user.
  system,  ///< Root, or the owner of the socket's folder.
  user,    ///< This process's own user.
};

struct Candidate {
  std::string path;
  Origin origin = Origin::given;
};

enum class OpenProblem : std::uint8_t {
  none,
  absent,   ///< Nothing at the path.
  refused,  ///< A socket nobody listens on.
  denied,   ///< The socket's mode.
  closed,   ///< The daemon closed before it answered: it is just stopping.
  other,
};

struct Opened {
  OpenProblem problem = OpenProblem::none;
  Error error;  ///< When there is a problem.
  UninheritedFd socket;
  protocol::HelloReply hello;
};

/// Connects, checks who listens and says hello.
[[nodiscard]] Opened open_session(const Candidate& candidate, const Interrupted& interrupted);

}  // namespace shmstore::client_internal
