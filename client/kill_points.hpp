#pragma once
/// Named points of the client library at which a test kills the process, so that the daemon's
/// promise ("as if it had never been") is checked between any two steps that it could notice.
///
/// Compiled in with SHMSTORE_KILL_POINTS. SHMSTORE_KILL_AT=name[:n] sends SIGKILL to the process
/// itself at its n-th pass (default the first) of that point.
///
/// A point's name is `<op>.<where>`. Messages and maps of all operations go through shared code
/// (wire.cpp, connection.cpp, lease.cpp, seal.cpp), which passes the point of its operation.
/// before_map and after_map surround the mapping of an array's bytes (of seal, and of release and
/// abort of an exclusive lease: the swap of the writable map), before_unmap and after_unmap the end
/// of one.

#include <cstdint>
#include <string_view>

#include "shmstore/protocol.hpp"

namespace shmstore::client_internal {

inline constexpr std::string_view kKillPoints[] = {
    "hello.before_send",    "hello.after_send",     "hello.after_reply",    "ping.before_send",
    "ping.after_send",      "ping.after_reply",     "create.before_send",   "create.after_send",
    "create.after_reply",   "create.before_map",    "create.after_map",     "seal.before_send",
    "seal.after_send",      "seal.after_reply",     "seal.before_map",      "seal.after_map",
    "attach.before_send",   "attach.after_send",    "attach.after_reply",   "attach.before_map",
    "attach.after_map",     "segment.before_send",  "segment.after_send",   "segment.after_reply",
    "segment.before_map",   "segment.after_map",    "release.before_send",  "release.after_send",
    "release.after_reply",  "release.before_map",   "release.after_map",    "release.before_unmap",
    "release.after_unmap",  "cached.before_send",   "cached.after_send",    "cached.after_reply",
    "cached.before_map",    "cached.after_map",     "wait.before_send",     "wait.after_send",
    "wait.after_reply",     "cancel.before_send",   "cancel.after_send",    "cancel.after_reply",
    "abort.before_send",    "abort.after_send",     "abort.after_reply",    "abort.before_map",
    "abort.after_map",      "abort.before_unmap",   "abort.after_unmap",    "handover.before_send",
    "handover.after_send",  "handover.after_reply", "received.before_send", "received.after_send",
    "received.after_reply", "publish.before_send",  "publish.after_send",   "publish.after_reply",
};

/// Where in an operation.
enum class Step : std::uint8_t {
  before_send,
  after_send,
  after_reply,
  before_map,
  after_map,
  before_unmap,
  after_unmap,
};

#if defined(SHMSTORE_KILL_POINTS)
/// Kills the process when SHMSTORE_KILL_AT names this point and this is the pass it names.
void pass_kill_point(protocol::Op op, Step step) noexcept;
#else
inline void pass_kill_point(protocol::Op /*op*/, Step /*step*/) noexcept {}
#endif

}  // namespace shmstore::client_internal
