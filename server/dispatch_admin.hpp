#pragma once
/// The admin plane: JSON documents in, JSON documents out. No JSON type shows here.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/outbox.hpp"
#include "server/registry.hpp"
#include "server/segment_store.hpp"

namespace shmstore::server {

struct DaemonFacts;

/// Checks an array's attrs: a JSON object within the limits. Returns its canonical text; "{}" for
/// an empty text. Error: invalid_argument, text begins with "attrs:".
[[nodiscard]] Result<std::string> canonical_attrs(std::string_view text);

class AdminPlane {
 public:
  using Selfchecker = std::function<std::vector<std::string>()>;
  /// What a `gc` has come to.
  struct Collected {
    std::uint64_t handovers = 0;    ///< Leases of handles that nobody can open any more.
    std::uint64_t freed_bytes = 0;  ///< So far.
  };
  /// Frees what can be freed besides, in turns, and then answers the request with gc_reply().
  using Collector = std::function<void(SessionId, RequestId, const Collected&)>;
  /// All outlive this.
  AdminPlane(Registry& registry, SegmentStore& store, Outbox& outbox, const DaemonFacts& facts,
             Selfchecker selfcheck, Collector collect);

  struct Request {
    SessionId session = 0;
    RequestId request = 0;
    protocol::Op op = protocol::Op::list;
    std::string_view body;
    Now now;
  };
  /// The JSON text of the reply; empty: it follows later. An error with the code protocol_error (no
  /// JSON, no such operation) also ends the session; any other is an answer.
  [[nodiscard]] Result<std::string> answer(const Request& request, Effects& effects);

  [[nodiscard]] std::string gc_reply(const Collected& collected) const;

  /// Tells the sessions that watch and may read it.
  void publish(const EventRecord& record);
  /// A watching session that missed events has room again.
  void resume(SessionId session);
  void end_session(SessionId session);

 private:
  struct Watcher {
    SessionId session = 0;
    RequestId request = 0;
    std::uint32_t uid = 0;
    std::string prefix;
    std::optional<std::uint32_t> ns_uid;
    bool lost = false;
  };
  struct Entry;
  static const Entry* find(protocol::Op op);

  class Context;
  Result<std::string> on_list(Context& context);
  Result<std::string> on_info(Context& context);
  Result<std::string> on_holders(Context& context);
  [[nodiscard]] bool may_see_use(const Context& context, std::uint32_t uid) const;
  Result<std::string> on_status(Context& context);
  Result<std::string> on_keep(Context& context);
  Result<std::string> on_unkeep(Context& context);
  Result<std::string> on_remove(Context& context);
  Result<std::string> on_chmod(Context& context);
  Result<std::string> on_metrics(Context& context);
  Result<std::string> on_watch(Context& context);
  Result<std::string> on_selfcheck(Context& context);
  Result<std::string> on_gc(Context& context);
  Result<std::string> on_quotas(Context& context);
  [[nodiscard]] std::uint64_t pinned_bytes() const;
  std::vector<std::string> checked(Now now);

  Registry& registry_;
  SegmentStore& store_;
  Outbox& outbox_;
  const DaemonFacts& facts_;
  const Selfchecker selfcheck_;
  const Collector collect_;
  std::vector<Watcher> watchers_;
  std::vector<std::string> problems_;    // of the last selfcheck
  std::int64_t selfcheck_again_ms_ = 0;  // CLOCK_BOOTTIME
};

}  // namespace shmstore::server
