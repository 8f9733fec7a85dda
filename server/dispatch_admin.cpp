/// A document goes: depth → parser → typed request → registry → reply within one frame. What could
/// be longer than a frame is paged (list) or cut with a count of what is left out (holders, users).

#include "server/dispatch_admin.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "server/admin_json.hpp"
#include "server/dispatch.hpp"
#include "server/metrics.hpp"
#include "shmstore/version.hpp"

namespace shmstore::server {
namespace {

using protocol::Op;

constexpr std::size_t kReplyBytesMax = protocol::kFrameBytesMax - sizeof(protocol::FrameHeader);
constexpr std::size_t kCursorBytesMax = 512;  // and what is around the rows of a page
/// Rows of one reply, 5 µs each and longer with long names: what a request may take of a turn.
constexpr std::size_t kRowsMax = 32;
constexpr std::size_t kHoldersMax = 128;
constexpr std::size_t kWatchesMax = 16;  // of one session
/// Of one user: each event of each array asks them all.
constexpr std::size_t kUserWatchesMax = 1024;
constexpr std::size_t kProblemsMax = 64;
/// A selfcheck that takes long is not repeated before so many times that long has passed: nobody
/// can keep the daemon busy by asking.
constexpr std::int64_t kSelfcheckShare = 20;

}  // namespace

class AdminPlane::Context {
 public:
  const Request& request;
  const Json& json;
  Effects& effects;
  const Identity& caller;
};

struct AdminPlane::Entry {
  Op op;
  const char* name;
  Result<std::string> (AdminPlane::*handler)(Context&);
};

AdminPlane::AdminPlane(Registry& registry, SegmentStore& store, Outbox& outbox,
                       const DaemonFacts& facts, Selfchecker selfcheck, Collector collect)
    : registry_(registry),
      store_(store),
      outbox_(outbox),
      facts_(facts),
      selfcheck_(std::move(selfcheck)),
      collect_(std::move(collect)) {}

const AdminPlane::Entry* AdminPlane::find(Op op) {
  static constexpr std::array<Entry, 13> kTable = {{
      {Op::list, "list", &AdminPlane::on_list},
      {Op::info, "info", &AdminPlane::on_info},
      {Op::holders, "holders", &AdminPlane::on_holders},
      {Op::status, "status", &AdminPlane::on_status},
      {Op::keep, "keep", &AdminPlane::on_keep},
      {Op::unkeep, "unkeep", &AdminPlane::on_unkeep},
      {Op::remove, "remove", &AdminPlane::on_remove},
      {Op::chmod, "chmod", &AdminPlane::on_chmod},
      {Op::metrics, "metrics", &AdminPlane::on_metrics},
      {Op::watch, "watch", &AdminPlane::on_watch},
      {Op::selfcheck, "selfcheck", &AdminPlane::on_selfcheck},
      {Op::gc, "gc", &AdminPlane::on_gc},
      {Op::quotas, "quotas", &AdminPlane::on_quotas},
  }};
  const auto* entry = std::find_if(kTable.begin(), kTable.end(),
                                   [op](const Entry& candidate) { return candidate.op == op; });
  return entry == kTable.end() ? nullptr : entry;
}

Result<std::string> AdminPlane::answer(const Request& request, Effects& effects) try {
  const Entry* entry = find(request.op);
  if (entry == nullptr) {
    return make_error(ErrorCode::protocol_error,
                      "op " + std::to_string(static_cast<unsigned>(request.op)) + " is unknown");
  }
  const Identity* caller = registry_.identity(request.session);
  if (caller == nullptr) return make_error(ErrorCode::internal, "no such session");
  const Result<Json> document = parse_document(request.body);
  if (!document) return document.error();
  Context context{request, *document, effects, *caller};
  return (this->*entry->handler)(context);
} catch (const Json::exception& error) {
  return make_error(ErrorCode::internal, error.what());
}

// -- arrays ---------------------------------------------------------------------------------------

Result<std::string> AdminPlane::on_list(Context& context) {
  const Result<ListRequest> list = list_request(context.json);
  if (!list) return list.error();
  // Names, dtypes and attrs may be long: of a page that does not fit, what fits is asked for again.
  for (std::size_t limit = std::min(list->limit, kRowsMax); limit > 0;) {
    const Result<ListPage> page =
        registry_.list(context.request.session, list->of.prefix, list->of.ns_uid, list->cursor,
                       limit, context.request.now);
    if (!page) return page.error();
    std::string reply = R"({"arrays":[)";
    std::size_t rows = 0;
    for (const ArrayView& array : page->arrays) {
      const std::string row = array_text(array, context.caller.uid);
      if (kCursorBytesMax + reply.size() + row.size() > kReplyBytesMax) break;
      if (rows++ > 0) reply += ',';
      reply += row;
    }
    limit = rows;
    if (limit < page->arrays.size()) continue;
    const Json cursor = page->cursor ? Json(*page->cursor) : Json();
    return reply + R"(],"cursor":)" + document_text(cursor) + '}';
  }
  return make_error(ErrorCode::internal, "one array does not fit into a frame");
}

Result<std::string> AdminPlane::on_info(Context& context) {
  const Result<TargetRequest> info = target_request(context.json, facts_.store_id);
  if (!info) return info.error();
  const Result<ArrayView> array =
      registry_.info(context.request.session, info->target, context.request.now, context.effects);
  if (!array) return array.error();
  return array_text(*array, context.caller.uid);
}

Result<std::string> AdminPlane::on_holders(Context& context) {
  const Result<TargetRequest> of = target_request(context.json, facts_.store_id);
  if (!of) return of.error();
  const Result<HolderPage> holders = registry_.holders(
      context.request.session, of->target, context.request.now, kHoldersMax, context.effects);
  if (!holders) return holders.error();
  Json reply;
  reply["holders"] = Json::array();
  std::size_t bytes = 64;
  for (const HolderView& holder : holders->holders) {
    Json row = to_json(holder);
    bytes += document_text(row).size() + 1;
    if (bytes > kReplyBytesMax) break;
    reply["holders"].push_back(std::move(row));
  }
  const std::uint64_t more = holders->leases - reply["holders"].size();
  if (more > 0) reply["more"] = more;
  return document_text(reply);
}

Result<std::string> AdminPlane::on_keep(Context& context) {
  const Result<KeepRequest> keep = keep_request(context.json, facts_.store_id);
  if (!keep) return keep.error();
  const Result<ArrayView> array = registry_.keep(
      context.request.session, keep->target, keep->ttl_ms, context.request.now, context.effects);
  if (!array) return array.error();
  return array_text(*array, context.caller.uid);
}

Result<std::string> AdminPlane::on_unkeep(Context& context) {
  const Result<TargetRequest> unkeep = target_request(context.json, facts_.store_id);
  if (!unkeep) return unkeep.error();
  const Result<void> done = registry_.unkeep(context.request.session, unkeep->target,
                                             context.request.now, context.effects);
  if (!done) return done.error();
  return std::string("{}");
}

Result<std::string> AdminPlane::on_remove(Context& context) {
  const Result<TargetRequest> remove = target_request(context.json, facts_.store_id);
  if (!remove) return remove.error();
  const Result<void> done = registry_.remove(context.request.session, remove->target,
                                             context.request.now, context.effects);
  if (!done) return done.error();
  return std::string("{}");
}

Result<std::string> AdminPlane::on_chmod(Context& context) {
  const Result<ChmodRequest> chmod = chmod_request(context.json, facts_.store_id);
  if (!chmod) return chmod.error();
  const Result<ArrayView> array = registry_.chmod(
      context.request.session, chmod->target, chmod->perms, context.request.now, context.effects);
  if (!array) return array.error();
  return array_text(*array, context.caller.uid);
}

// -- the store ------------------------------------------------------------------------------------

/// What only waits for the worker is not pinned by anybody.
std::uint64_t AdminPlane::pinned_bytes() const {
  const std::uint64_t released = registry_.counts().pinned_bytes;
  return released - std::min(released, store_.freeing_bytes());
}

/// What a user holds is its own business, and the operator's.
bool AdminPlane::may_see_use(const Context& context, std::uint32_t uid) const {
  return context.caller.uid == uid || context.caller.uid == 0 || context.caller.uid == facts_.uid;
}

Result<std::string> AdminPlane::on_status(Context& context) {
  if (Result<EmptyRequest> empty = empty_request(context.json); !empty) return empty.error();
  const RegistryCounts counts = registry_.counts();
  const Quota& quota = registry_.quota();
  Json reply;
  reply["capacity"] = quota.limits().capacity;
  reply["used"] = quota.bytes_used();
  reply["records"] = counts.record_bytes;
  reply["pooled"] = 0;
  reply["pinned"] = pinned_bytes();
  reply["freeing"] = store_.freeing_bytes();
  reply["arrays"] = counts.arrays;
  reply["sessions"] = counts.sessions;
  reply["leases"] = counts.leases;
  reply["segments"] = store_.segments();
  reply["segments_max"] = quota.limits().segments_max;
  reply["fds"] = facts_.descriptors();
  reply["fds_max"] = facts_.descriptors_max;
  reply["uptime_s"] = static_cast<double>(context.request.now.boot_ms) / 1000 - facts_.started_s;
  reply["version"] = SHMSTORE_VERSION_STRING;
  reply["pid"] = facts_.pid;
  reply["uid"] = facts_.uid;
  reply["store_id"] = std::to_string(facts_.store_id);
  reply["exact_probe"] = facts_.exact_probe;
  reply["uids"] = Json::array();
  std::size_t bytes = document_text(reply).size() + 64;
  for (const auto& [uid, ignored] : quota.users()) {
    if (!may_see_use(context, uid)) continue;
    Json row = to_json(uid, quota.usage(uid));
    bytes += document_text(row).size() + 1;
    if (bytes > kReplyBytesMax) {
      reply["more_uids"] = quota.users().size() - reply["uids"].size();
      break;
    }
    reply["uids"].push_back(std::move(row));
  }
  return document_text(reply);
}

Result<std::string> AdminPlane::on_metrics(Context& context) {
  if (Result<EmptyRequest> empty = empty_request(context.json); !empty) return empty.error();
  const RegistryCounts counts = registry_.counts();
  const Quota& quota = registry_.quota();
  MetricsInput input;
  input.capacity = quota.limits().capacity;
  input.used = quota.bytes_used();
  input.records = counts.record_bytes;
  input.pinned = pinned_bytes();
  input.freeing = store_.freeing_bytes();
  input.arrays = counts.arrays;
  input.sessions = counts.sessions;
  input.leases = counts.leases;
  input.waits = counts.waits;
  input.segments = store_.segments();
  input.segments_max = quota.limits().segments_max;
  input.pinned_segments = store_.pinned_segments();
  input.descriptors = facts_.descriptors();
  input.descriptors_max = facts_.descriptors_max;
  input.uptime_s = static_cast<double>(context.request.now.boot_ms) / 1000 - facts_.started_s;
  std::map<std::uint32_t, Usage> users = quota.users();
  std::erase_if(users, [&](const auto& user) { return !may_see_use(context, user.first); });
  input.users = &users;
  // Each line feed and quote takes two bytes in JSON.
  return document_text(Json{{"text", metrics_text(input, kReplyBytesMax / 2)}});
}

Result<std::string> AdminPlane::on_selfcheck(Context& context) {
  if (Result<EmptyRequest> empty = empty_request(context.json); !empty) return empty.error();
  std::vector<std::string> problems = checked(context.request.now);
  Json reply;
  reply["clean"] = problems.empty();
  if (problems.size() > kProblemsMax) {
    const std::size_t more = problems.size() - kProblemsMax;
    problems.resize(kProblemsMax);
    problems.push_back("and " + std::to_string(more) + " more");
  }
  for (std::string& problem : problems) problem.resize(std::min<std::size_t>(problem.size(), 512));
  reply["problems"] = problems;
  return document_text(reply);
}

/// What selfcheck finds, or found a moment ago.
std::vector<std::string> AdminPlane::checked(Now now) {
  if (now.boot_ms < selfcheck_again_ms_) return problems_;
  problems_ = selfcheck_();
  const Now after = read_clock();
  selfcheck_again_ms_ = after.boot_ms + kSelfcheckShare * (after.boot_ms - now.boot_ms);
  return problems_;
}

Result<std::string> AdminPlane::on_gc(Context& context) {
  if (Result<EmptyRequest> empty = empty_request(context.json); !empty) return empty.error();
  const std::uint64_t released = registry_.counts().pinned_bytes;
  const bool all = context.caller.uid == 0;
  Collected collected;
  collected.handovers = registry_.end_unread(all ? std::nullopt : std::optional(context.caller.uid),
                                             false, context.request.now, context.effects);
  collected.freed_bytes = registry_.counts().pinned_bytes - released;
  collect_(context.request.session, context.request.request, collected);
  return std::string();
}

std::string AdminPlane::gc_reply(const Collected& collected) const {
  return document_text({{"freed_bytes", collected.freed_bytes},
                        {"handovers_ended", collected.handovers},
                        {"pinned_bytes", pinned_bytes()}});
}

Result<std::string> AdminPlane::on_quotas(Context& context) {
  const Result<QuotasRequest> quotas = quotas_request(context.json);
  if (!quotas) return quotas.error();
  const std::uint32_t uid = quotas->uid.value_or(context.caller.uid);
  Quota& quota = registry_.quota();
  if (!may_see_use(context, uid)) {
    return make_error(ErrorCode::permission_denied,
                      "quotas: only root or the daemon's own user may see those of others");
  }
  if (quotas->bytes_max || quotas->arrays_max) {
    if (context.caller.uid != 0 && context.caller.uid != facts_.uid) {
      return make_error(ErrorCode::permission_denied,
                        "quotas: only root or the daemon's own user may set them");
    }
    quota.set_user_limits(uid, quotas->bytes_max, quotas->arrays_max);
    registry_.tick(context.request.now, context.effects);  // who waits for room may have it now
  }
  return document_text(to_json(uid, quota.usage(uid)));
}

// -- watching -------------------------------------------------------------------------------------

Result<std::string> AdminPlane::on_watch(Context& context) {
  Result<PrefixRequest> watch = prefix_request(context.json);
  if (!watch) return watch.error();
  const SessionId session = context.request.session;
  std::size_t of_session = 0, of_user = 0;
  for (const Watcher& watcher : watchers_) {
    of_session += watcher.session == session ? 1U : 0U;
    of_user += watcher.uid == context.caller.uid ? 1U : 0U;
  }
  if (of_session >= kWatchesMax || of_user >= kUserWatchesMax) {
    std::string text = "watch: one session has at most ";
    text += std::to_string(kWatchesMax);
    text += ", one user ";
    text += std::to_string(kUserWatchesMax);
    return make_error(ErrorCode::quota_exceeded, text);
  }
  watchers_.push_back({session, context.request.request, context.caller.uid,
                       std::move(watch->prefix), watch->ns_uid, false});
  return std::string("{}");
}

void AdminPlane::publish(const EventRecord& record) {
  std::map<std::uint32_t, std::string> texts;  // by reader: the same for all watchers of a user
  for (Watcher& watcher : watchers_) {
    const Identity* who = registry_.identity(watcher.session);
    if (watcher.lost || who == nullptr || !registry_.may_read(*who, record)) continue;
    if (watcher.ns_uid && *watcher.ns_uid != record.ns_uid) continue;
    if (std::string_view(record.name).substr(0, watcher.prefix.size()) != watcher.prefix) continue;
    FrameWriter writer;
    writer.begin(Op::event, watcher.request);
    std::string& text = texts[who->uid];
    if (text.empty()) text = document_text(to_json(record, who->uid));
    writer.put_text(text);
    watcher.lost = !outbox_.offer(watcher.session, writer.frame());
  }
}

void AdminPlane::resume(SessionId session) {
  for (Watcher& watcher : watchers_) {
    if (watcher.session != session || !watcher.lost) continue;
    FrameWriter writer;
    writer.begin(Op::event, watcher.request);
    writer.put_text(document_text(Json{{"event", "lost"}}));
    watcher.lost = !outbox_.offer(session, writer.frame());
  }
}

void AdminPlane::end_session(SessionId session) {
  std::erase_if(watchers_, [session](const Watcher& w) { return w.session == session; });
}

}  // namespace shmstore::server
