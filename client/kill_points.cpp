#include "client/kill_points.hpp"

#if defined(SHMSTORE_KILL_POINTS)

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <iterator>
#include <string>

namespace shmstore::client_internal {

namespace {

using protocol::Op;

struct Point {
  Op op;
  Step step;
  std::string_view name;
};

#define SHMSTORE_KILL_POINT(name, op, step) \
  Point {                                   \
    Op::op, Step::step, name                \
  }

constexpr Point kPoints[] = {
    SHMSTORE_KILL_POINT("hello.before_send", hello, before_send),
    SHMSTORE_KILL_POINT("hello.after_send", hello, after_send),
    SHMSTORE_KILL_POINT("hello.after_reply", hello, after_reply),
    SHMSTORE_KILL_POINT("ping.before_send", ping, before_send),
    SHMSTORE_KILL_POINT("ping.after_send", ping, after_send),
    SHMSTORE_KILL_POINT("ping.after_reply", ping, after_reply),
    SHMSTORE_KILL_POINT("create.before_send", create, before_send),
    SHMSTORE_KILL_POINT("create.after_send", create, after_send),
    SHMSTORE_KILL_POINT("create.after_reply", create, after_reply),
    SHMSTORE_KILL_POINT("create.before_map", create, before_map),
    SHMSTORE_KILL_POINT("create.after_map", create, after_map),
    SHMSTORE_KILL_POINT("seal.before_send", seal, before_send),
    SHMSTORE_KILL_POINT("seal.after_send", seal, after_send),
    SHMSTORE_KILL_POINT("seal.after_reply", seal, after_reply),
    SHMSTORE_KILL_POINT("seal.before_map", seal, before_map),
    SHMSTORE_KILL_POINT("seal.after_map", seal, after_map),
    SHMSTORE_KILL_POINT("attach.before_send", attach, before_send),
    SHMSTORE_KILL_POINT("attach.after_send", attach, after_send),
    SHMSTORE_KILL_POINT("attach.after_reply", attach, after_reply),
    SHMSTORE_KILL_POINT("attach.before_map", attach, before_map),
    SHMSTORE_KILL_POINT("attach.after_map", attach, after_map),
    SHMSTORE_KILL_POINT("segment.before_send", segment, before_send),
    SHMSTORE_KILL_POINT("segment.after_send", segment, after_send),
    SHMSTORE_KILL_POINT("segment.after_reply", segment, after_reply),
    SHMSTORE_KILL_POINT("segment.before_map", segment, before_map),
    SHMSTORE_KILL_POINT("segment.after_map", segment, after_map),
    SHMSTORE_KILL_POINT("release.before_send", release, before_send),
    SHMSTORE_KILL_POINT("release.after_send", release, after_send),
    SHMSTORE_KILL_POINT("release.after_reply", release, after_reply),
    SHMSTORE_KILL_POINT("release.before_map", release, before_map),
    SHMSTORE_KILL_POINT("release.after_map", release, after_map),
    SHMSTORE_KILL_POINT("release.before_unmap", release, before_unmap),
    SHMSTORE_KILL_POINT("release.after_unmap", release, after_unmap),
    SHMSTORE_KILL_POINT("cached.before_send", cached, before_send),
    SHMSTORE_KILL_POINT("cached.after_send", cached, after_send),
    SHMSTORE_KILL_POINT("cached.after_reply", cached, after_reply),
    SHMSTORE_KILL_POINT("cached.before_map", cached, before_map),
    SHMSTORE_KILL_POINT("cached.after_map", cached, after_map),
    SHMSTORE_KILL_POINT("wait.before_send", wait, before_send),
    SHMSTORE_KILL_POINT("wait.after_send", wait, after_send),
    SHMSTORE_KILL_POINT("wait.after_reply", wait, after_reply),
    SHMSTORE_KILL_POINT("cancel.before_send", cancel, before_send),
    SHMSTORE_KILL_POINT("cancel.after_send", cancel, after_send),
    SHMSTORE_KILL_POINT("cancel.after_reply", cancel, after_reply),
    SHMSTORE_KILL_POINT("abort.before_send", abort, before_send),
    SHMSTORE_KILL_POINT("abort.after_send", abort, after_send),
    SHMSTORE_KILL_POINT("abort.after_reply", abort, after_reply),
    SHMSTORE_KILL_POINT("abort.before_map", abort, before_map),
    SHMSTORE_KILL_POINT("abort.after_map", abort, after_map),
    SHMSTORE_KILL_POINT("abort.before_unmap", abort, before_unmap),
    SHMSTORE_KILL_POINT("abort.after_unmap", abort, after_unmap),
    SHMSTORE_KILL_POINT("handover.before_send", handover, before_send),
    SHMSTORE_KILL_POINT("handover.after_send", handover, after_send),
    SHMSTORE_KILL_POINT("handover.after_reply", handover, after_reply),
    SHMSTORE_KILL_POINT("received.before_send", received, before_send),
    SHMSTORE_KILL_POINT("received.after_send", received, after_send),
    SHMSTORE_KILL_POINT("received.after_reply", received, after_reply),
    SHMSTORE_KILL_POINT("publish.before_send", publish, before_send),
    SHMSTORE_KILL_POINT("publish.after_send", publish, after_send),
    SHMSTORE_KILL_POINT("publish.after_reply", publish, after_reply),
};
static_assert(std::ranges::equal(kPoints, kKillPoints, {}, &Point::name));

struct Target {
  const Point* point = nullptr;
  unsigned pass = 1;
};

Target read_target() {
  const char* text = secure_getenv("SHMSTORE_KILL_AT");
  if (text == nullptr) return {};
  std::string_view name = text;
  Target target;
  if (const auto colon = name.find(':'); colon != name.npos) {
    std::from_chars(name.data() + colon + 1, name.data() + name.size(), target.pass);
    name = name.substr(0, colon);
  }
  const Point* found = std::ranges::find(kPoints, name, &Point::name);
  target.point = found == std::end(kPoints) ? nullptr : found;
  return target;
}

}  // namespace

void pass_kill_point(protocol::Op op, Step step) noexcept {
  static const Target target = read_target();
  static std::atomic<unsigned> passes{0};
  if (target.point == nullptr || target.point->op != op || target.point->step != step) return;
  if (passes.fetch_add(1, std::memory_order_relaxed) + 1 == target.pass) kill(getpid(), SIGKILL);
}

}  // namespace shmstore::client_internal

#endif
