#pragma once
/// The dispatcher with a store that has no memory and sessions that are lists of frames.

#include <doctest/doctest.h>

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "server/dispatch.hpp"
#include "tests/unit/memory_store.hpp"

namespace shmstore::server {

using namespace shmstore::protocol;

inline constexpr std::uint64_t kStoreId = 4711;
inline constexpr std::uint32_t kRoot = 0, kDaemon = 77, kAlice = 1000, kBob = 1001;

struct Reply {
  FrameHeader header;
  std::string body;
  DescriptorRef descriptor;

  template <class T>
  [[nodiscard]] T fixed() const {
    T value;
    REQUIRE(body.size() >= sizeof value);
    std::memcpy(&value, body.data(), sizeof value);
    return value;
  }
  [[nodiscard]] bool is(ErrorCode code) const {
    return header.status == static_cast<std::uint32_t>(code);
  }
};

class Mailbox final : public Outbox {
 public:
  std::map<SessionId, std::vector<Reply>> replies;
  bool full = false;

  void send(SessionId session, Bytes frame, DescriptorRef descriptor) override {
    Reply reply;
    REQUIRE(read_header(frame, reply.header));
    const Bytes body = frame.subspan(sizeof reply.header);
    reply.body.assign(reinterpret_cast<const char*>(body.data()), body.size());
    reply.descriptor = descriptor;
    replies[session].push_back(std::move(reply));
  }
  bool offer(SessionId session, Bytes frame) override {
    if (!full) send(session, frame, {});
    return !full;
  }
};

/// A daemon without sockets.
class Bench {
 public:
  explicit Bench(const Limits& limits = default_limits())
      : registry_(limits), dispatcher(registry_, store, mail, facts(), Selfcheck::always) {
    set_log_level(LogLevel::error);  // what these tests provoke fills the screen
  }

  /// A session that has said hello.
  SessionState& join(std::uint32_t uid) {
    SessionState& session = connect(uid);
    HelloRequest hello;
    CHECK_FALSE(ask(session, Op::hello, text_of(hello)).header.status);
    return session;
  }
  SessionState& connect(std::uint32_t uid) {
    const SessionId id = ++last_session_;
    SessionState& session = sessions_[id];
    session.id = id;
    Identity who{static_cast<std::int64_t>(100 + id), uid, uid, {}, "test"};
    REQUIRE(dispatcher.open_session(id, std::move(who)).has_value());
    return session;
  }

  /// Sends a request and returns whether the session may stay.
  bool send(SessionState& session, Op op, const std::string& body, std::uint64_t request = 0) {
    const FrameHeader header{static_cast<std::uint16_t>(op), 0, 0,
                             request != 0 ? request : session.last_request + 1};
    return send_raw(session, text_of(header) + body);
  }
  bool send_raw(SessionState& session, const std::string& text, bool truncated = false) {
    return dispatcher.handle(session, std::as_bytes(std::span(text)), truncated);
  }
  Reply ask(SessionState& session, Op op, const std::string& body = {}) {
    mail.replies[session.id].clear();
    kept_ = send(session, op, body);
    REQUIRE(mail.replies[session.id].size() >= 1);
    Reply reply = mail.replies[session.id].front();
    CHECK(reply.header.op == static_cast<std::uint16_t>(op));
    CHECK(reply.header.request == session.last_request);
    return reply;
  }
  /// Whether the last asked request left the session open.
  [[nodiscard]] bool kept() const { return kept_; }

  Reply create(SessionState& session, const std::string& name, std::uint64_t bytes,
               std::uint16_t options = 0, std::int64_t timeout_ms = 0,
               const std::string& attrs = {}) {
    return ask(session, Op::create, create_text(name, bytes, options, timeout_ms, attrs));
  }
  static std::string create_text(const std::string& name, std::uint64_t bytes,
                                 std::uint16_t options = 0, std::int64_t timeout_ms = 0,
                                 const std::string& attrs = {}) {
    CreateRequest request;
    request.bytes = bytes;
    request.timeout_ms = timeout_ms;
    request.name_bytes = static_cast<std::uint16_t>(name.size());
    request.dtype_bytes = 3;
    request.attrs_bytes = static_cast<std::uint16_t>(attrs.size());
    request.options = options;
    request.ndim = 1;
    return text_of(request) + text_of(bytes) + name + "|u1" + attrs;
  }
  Reply seal(SessionState& session, std::uint64_t id) {
    SealRequest request;
    request.id = id;
    return ask(session, Op::seal, text_of(request));
  }
  Reply release(SessionState& session, std::uint64_t id, Access access) {
    ReleaseRequest request;
    request.id = id;
    request.grants = 1;
    request.access = static_cast<std::uint8_t>(access);
    return ask(session, Op::release, text_of(request));
  }
  static std::string attach_text(const std::string& name, Access access = Access::read,
                                 std::int64_t timeout_ms = 0) {
    AttachRequest request;
    request.timeout_ms = timeout_ms;
    request.name_bytes = static_cast<std::uint16_t>(name.size());
    request.access = static_cast<std::uint8_t>(access);
    return text_of(request) + name;
  }
  /// A sealed array of one page.
  std::uint64_t put(SessionState& session, const std::string& name, const std::string& attrs = {}) {
    const auto body = create(session, name, 4096, 0, 0, attrs).fixed<ArrayBody>();
    CHECK_FALSE(seal(session, body.id).header.status);
    return body.id;
  }

  template <class T>
  static std::string text_of(const T& value) {
    return {reinterpret_cast<const char*>(&value), sizeof value};
  }
  static Limits default_limits() {
    Limits limits;
    limits.capacity = 1 << 24;
    return limits;
  }

  MemoryStore store;
  Mailbox mail;

 private:
  static DaemonFacts facts() {
    DaemonFacts facts;
    facts.store_id = kStoreId;
    facts.pid = 1;
    facts.uid = kDaemon;
    facts.descriptors = [] { return std::uint64_t{3}; };
    facts.descriptors_max = 100;
    return facts;
  }
  Registry registry_;
  std::map<SessionId, SessionState> sessions_;
  SessionId last_session_ = 0;
  bool kept_ = true;

 public:
  Dispatcher dispatcher;
};

inline bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace shmstore::server
