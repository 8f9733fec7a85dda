/// A frame goes: header checks → table → handler, which parses the body, checks the values that no
/// state is needed for, and calls the registry. The registry appends effects; run_effects() carries
/// them out one by one, in order, and those that they lead to behind them, until none is left. So
/// the registry is never called from inside one of its own calls.

#include "server/dispatch.hpp"

#include <sys/random.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "server/dispatch_admin.hpp"
#include "server/log.hpp"

namespace shmstore::server {
namespace {

using namespace protocol;

/// Released segments asked about before a create is refused, and when a session ends.
constexpr std::size_t kProbesPerRequest = 256;
/// Creates that may wait for memory on its way back. More are refused at once.
constexpr std::size_t kParkedMax = 1024;
/// Up to so many arrays a debug build checks its accounts after every request.
constexpr std::uint64_t kSelfcheckArraysMax = 256;

Error invalid(std::string text) {
  return make_error(ErrorCode::invalid_argument, std::move(text));
}

Result<void> check_timeout(std::int64_t timeout_ms) {
  if (timeout_ms == kForever || (timeout_ms >= 0 && timeout_ms <= kTimeoutMsMax)) return {};
  return invalid("timeout: must be -1 (for ever) or from 0 to 2^52 milliseconds");
}

Result<void> check_access(std::uint8_t access) {
  if (static_cast<Access>(access) != Access::exclusive) return {};
  return invalid("access: exclusive hand-over is not supported by this version");
}

/// `anonymous`: an empty name is fine.
Result<QualifiedName> qualified(std::uint32_t ns_uid, std::string_view name, bool anonymous) {
  if (!(anonymous && name.empty())) {
    if (Result<void> checked = check_name(name); !checked) return checked.error();
  }
  return QualifiedName{ns_uid, std::string(name)};
}

Result<CreateSpec> create_spec(const CreateFrame& frame) {
  const CreateRequest& fixed = frame.fixed;
  Result<QualifiedName> name = qualified(fixed.ns_uid, frame.name, true);
  if (!name) return name.error();
  if (!is_utf8(frame.dtype)) return invalid("dtype: is not UTF-8");
  Result<Dtype> dtype = Dtype::parse(frame.dtype);
  if (!dtype) return dtype.error();
  const std::span<const std::uint64_t> shape(frame.dims.data(), fixed.ndim);
  const Result<std::uint64_t> bytes = array_bytes(dtype->itemsize(), shape);
  if (!bytes) return bytes.error();
  if (*bytes != fixed.bytes) {
    return invalid("bytes: " + std::to_string(fixed.bytes) + " given, dtype and shape make " +
                   std::to_string(*bytes));
  }
  if ((fixed.perms & ~kPermsMax) != 0) return invalid("perms: only bits of 0666 are allowed");
  if (Result<void> timeout = check_timeout(fixed.timeout_ms); !timeout) return timeout.error();
  if (fixed.ttl_ms > static_cast<std::uint64_t>(kTimeoutMsMax)) {
    return invalid("ttl: at most 2^52 milliseconds are allowed");
  }
  if (fixed.ttl_ms != 0 && (fixed.options & (kCreateKeep | kCreateCached)) == 0) {
    return invalid("ttl: needs keep, an array that is not kept lives with its holders");
  }
  Result<std::string> attrs = canonical_attrs(frame.attrs);
  if (!attrs) return attrs.error();
  CreateSpec spec;
  spec.name = std::move(*name);
  spec.dtype = std::move(*dtype);
  spec.shape.assign(shape.begin(), shape.end());
  spec.order = static_cast<Order>(fixed.order);
  spec.bytes = *bytes;
  spec.perms = fixed.perms;
  spec.options = fixed.options;
  spec.ttl_ms = fixed.ttl_ms;
  spec.attrs = std::move(*attrs);
  spec.timeout_ms = fixed.timeout_ms;
  return spec;
}

Result<void> check_versions(const HelloRequest& hello) {
  const auto refuse = [](std::string text) {
    return make_error(ErrorCode::protocol_error, std::move(text));
  };
  if (hello.magic != kMagic) return refuse("this is not a client of shmstore: wrong first word");
  if (hello.major != kMajor) {
    return refuse("version: the client speaks protocol " + std::to_string(hello.major) + "." +
                  std::to_string(hello.minor) + ", the daemon " + std::to_string(kMajor) + "." +
                  std::to_string(kMinor));
  }
  if ((hello.features_required & ~kFeatures) != 0) {
    return refuse("features: the client requires " + std::to_string(hello.features_required) +
                  ", the daemon has " + std::to_string(kFeatures));
  }
  if (std::any_of(std::begin(hello.token), std::end(hello.token),
                  [](std::uint8_t byte) { return byte != 0; })) {
    return refuse("token: sessions cannot be resumed by this version");
  }
  return {};
}

}  // namespace

Now read_clock() {
  Now now;
  timespec at{};
  (void)::clock_gettime(CLOCK_BOOTTIME, &at);
  now.boot_ms = std::int64_t{at.tv_sec} * 1000 + at.tv_nsec / 1'000'000;
  (void)::clock_gettime(CLOCK_REALTIME, &at);
  now.wall_s = static_cast<double>(at.tv_sec) + static_cast<double>(at.tv_nsec) * 1e-9;
  return now;
}

// Sorted by op, for the eye only.
const std::array<Dispatcher::Entry, 15> Dispatcher::kTable = {{
    {Op::hello, "hello", false, &Dispatcher::on_hello},
    {Op::ping, "ping", true, &Dispatcher::on_ping},
    {Op::create, "create", true, &Dispatcher::on_create},
    {Op::seal, "seal", true, &Dispatcher::on_seal},
    {Op::attach, "attach", true, &Dispatcher::on_attach},
    {Op::segment, "segment", true, &Dispatcher::on_segment},
    {Op::release, "release", true, &Dispatcher::on_release},
    {Op::cached, "cached", true, &Dispatcher::on_cached},
    {Op::wait, "wait", true, &Dispatcher::on_wait},
    {Op::cancel, "cancel", true, &Dispatcher::on_cancel},
    {Op::abort, "abort", true, &Dispatcher::on_abort},
    {Op::handover, "handover", true, &Dispatcher::on_handover},
    {Op::fork, "fork", true, &Dispatcher::on_reserved},
    {Op::put_batch, "put_batch", true, &Dispatcher::on_reserved},
    {Op::attach_batch, "attach_batch", true, &Dispatcher::on_reserved},
}};

Dispatcher::Dispatcher(Registry& registry, SegmentStore& store, Outbox& outbox, DaemonFacts facts,
                       Selfcheck selfcheck)
    : registry_(registry),
      store_(store),
      outbox_(outbox),
      facts_(std::move(facts)),
      selfcheck_(selfcheck),
      admin_(std::make_unique<AdminPlane>(registry, store, outbox, facts_,
                                          [this] { return this->selfcheck(); })) {
  store_.set_on_freed([this](SegmentId segment) {
    registry_.segment_freed(segment, read_clock(), effects_);
    run_effects();
    retry_parked();
  });
}

Dispatcher::~Dispatcher() {
  store_.set_on_freed(nullptr);
}

// -- sessions -------------------------------------------------------------------------------------

Result<void> Dispatcher::open_session(SessionId session, Identity identity) {
  return registry_.open_session(session, std::move(identity));
}

void Dispatcher::refuse(SessionId session, Bytes message, const Error& error) {
  FrameHeader header;
  if (read_header(message, header)) send_error(session, header, error);
}

void Dispatcher::end_session(SessionId session) {
  admin_->end_session(session);
  std::erase_if(parked_, [session](const Parked& parked) { return parked.session == session; });
  registry_.end_session(session, read_clock(), effects_);
  run_effects();
  cancel_orphaned_growths();
  (void)store_.probe_released(kProbesPerRequest);
  check_after_request();
}

// -- frames ---------------------------------------------------------------------------------------

bool Dispatcher::handle(SessionState& session, Bytes message, bool truncated) {
  Result<Frame> frame = parse_frame(message);
  Result<void> outcome;
  if (truncated) {
    outcome = make_error(ErrorCode::protocol_error,
                         "a frame has at most " + std::to_string(kFrameBytesMax) + " bytes");
  } else if (!frame) {
    outcome = frame.error();
  } else {
    outcome = dispatch(session, *frame);
  }
  if (outcome) return true;
  FrameHeader header;
  if (read_header(message, header)) send_error(session.id, header, outcome.error());
  if (outcome.error().code != ErrorCode::protocol_error) return true;
  log(LogLevel::info, "protocol violation",
      {{"session", session.id}, {"op", header.op}, {"text", outcome.error().text}});
  return false;
}

Result<void> Dispatcher::dispatch(SessionState& session, const Frame& frame) {
  const FrameHeader& header = frame.header;
  if (header.request <= session.last_request) {
    return make_error(ErrorCode::protocol_error,
                      "request ids must increase: " + std::to_string(header.request) + " after " +
                          std::to_string(session.last_request));
  }
  session.last_request = header.request;
  ++requests_;
  const bool is_hello = header.op == static_cast<std::uint16_t>(Op::hello);
  if (is_hello == session.greeted) {
    return make_error(ErrorCode::protocol_error,
                      is_hello ? "hello: was said before" : "the first request must be hello");
  }
  const std::size_t at = std::size_t{header.op} - 1;
  if (header.op != 0 && at < kTable.size()) {
    const Request request{session, header, frame.body, {}};
    return (this->*kTable[at].handler)(request);
  }
  const auto* body = reinterpret_cast<const char*>(frame.body.data());
  Result<std::string> reply =
      admin_->answer({session.id, header.request, static_cast<Op>(header.op),
                      std::string_view(body, frame.body.size()), read_clock()},
                     effects_);
  if (reply) {
    writer_.begin(static_cast<Op>(header.op), header.request);
    writer_.put_text(*reply);
    send_reply(session.id);
  }
  run_effects();
  check_after_request();
  if (!reply) return reply.error();
  return {};
}

void Dispatcher::send_reply(SessionId session, DescriptorRef descriptor) {
  outbox_.send(session, writer_.frame(), descriptor);
}

void Dispatcher::send_error(SessionId session, const FrameHeader& header, const Error& error) {
  write_error(writer_, header, error);
  outbox_.send(session, writer_.frame(), {});
}

// -- data plane -----------------------------------------------------------------------------------

Result<void> Dispatcher::on_hello(const Request& request) {
  const Result<HelloRequest> hello = parse_fixed<HelloRequest>(request.body);
  if (!hello) return hello.error();
  if (Result<void> checked = check_versions(*hello); !checked) return checked;
  HelloReply reply;
  reply.features = hello->features_wanted & kFeatures;
  reply.store_id = facts_.store_id;
  if (::getrandom(reply.token, sizeof reply.token, 0) != ssize_t{sizeof reply.token}) {
    return make_error(ErrorCode::internal, "no random numbers for a session token");
  }
  const Identity* identity = registry_.identity(request.session.id);
  reply.uid = identity == nullptr ? 0 : identity->uid;
  reply.daemon_pid = static_cast<std::uint32_t>(facts_.pid);
  reply.grace_ms_default = static_cast<std::uint32_t>(kGraceMsDefault);
  request.session.greeted = true;
  writer_.begin(Op::hello, request.header.request);
  writer_.put(reply);
  send_reply(request.session.id);
  return {};
}

Result<void> Dispatcher::on_ping(const Request& request) {
  if (!request.body.empty()) {
    return make_error(ErrorCode::protocol_error, "ping has no body");
  }
  writer_.begin(Op::ping, request.header.request);
  send_reply(request.session.id);
  return {};
}

Result<void> Dispatcher::on_create(const Request& request) {
  const Result<CreateFrame> frame = parse_create(request.body);
  if (!frame) return frame.error();
  Result<CreateSpec> spec = create_spec(*frame);
  if (!spec) return spec.error();
  const Identity* identity = registry_.identity(request.session.id);
  if (identity != nullptr && lacks_room(identity->uid, spec->bytes)) {
    make_room(identity->uid, spec->bytes);
    if (spec->timeout_ms == 0 && store_.freeing_bytes() > 0 && parked_.size() < kParkedMax &&
        lacks_room(identity->uid, spec->bytes)) {
      parked_.push_back(
          {request.session.id, request.header.request, identity->uid, std::move(*spec)});
      return {};
    }
  }
  registry_.create(request.session.id, request.header.request, std::move(*spec), read_clock(),
                   effects_);
  run_effects();
  check_after_request();
  return {};
}

Result<void> Dispatcher::on_seal(const Request& request) {
  const Result<SealRequest> seal = parse_fixed<SealRequest>(request.body);
  if (!seal) return seal.error();
  if (Result<void> timeout = check_timeout(seal->wait_ms); !timeout) return timeout;
  registry_.seal(request.session.id, request.header.request, ArrayId{seal->id}, seal->hard != 0,
                 seal->wait_ms, read_clock(), effects_);
  run_effects();
  check_after_request();
  return {};
}

Result<void> Dispatcher::on_attach(const Request& request) {
  const Result<Named<AttachRequest>> attach = parse_named<AttachRequest>(request.body);
  if (!attach) return attach.error();
  const AttachRequest& fixed = attach->fixed;
  if (Result<void> access = check_access(fixed.access); !access) return access;
  if (Result<void> timeout = check_timeout(fixed.timeout_ms); !timeout) return timeout;
  AttachSpec spec;
  spec.id = ArrayId{fixed.id};
  if (!spec.id.valid()) {
    Result<QualifiedName> name = qualified(fixed.ns_uid, attach->name, false);
    if (!name) return name.error();
    spec.name = std::move(*name);
  } else if (fixed.store_id != 0 && fixed.store_id != facts_.store_id) {
    return make_error(ErrorCode::not_found, "id: this handle is of an earlier or another store");
  }
  spec.access = static_cast<Access>(fixed.access);
  spec.newer_than = fixed.newer_than;
  spec.timeout_ms = fixed.timeout_ms;
  spec.renew_handover = fixed.handover != 0;
  registry_.attach(request.session.id, request.header.request, spec, read_clock(), effects_);
  run_effects();
  check_after_request();
  return {};
}

Result<void> Dispatcher::on_segment(const Request& request) {
  const Result<SegmentRequest> segment = parse_fixed<SegmentRequest>(request.body);
  if (!segment) return segment.error();
  if (Result<void> access = check_access(segment->access); !access) return access;
  registry_.segment(request.session.id, request.header.request, ArrayId{segment->id},
                    static_cast<Access>(segment->access), effects_);
  run_effects();
  check_after_request();
  return {};
}

Result<void> Dispatcher::on_release(const Request& request) {
  const Result<ReleaseRequest> release = parse_fixed<ReleaseRequest>(request.body);
  if (!release) return release.error();
  if (Result<void> access = check_access(release->access); !access) return access;
  registry_.release(request.session.id, request.header.request, ArrayId{release->id},
                    static_cast<Access>(release->access), release->grants, read_clock(), effects_);
  run_effects();
  cancel_orphaned_growths();
  check_after_request();
  return {};
}

Result<void> Dispatcher::on_cached(const Request& request) {
  const Result<Named<CachedRequest>> cached = parse_named<CachedRequest>(request.body);
  if (!cached) return cached.error();
  if (Result<void> timeout = check_timeout(cached->fixed.timeout_ms); !timeout) return timeout;
  const Result<QualifiedName> name = qualified(cached->fixed.ns_uid, cached->name, false);
  if (!name) return name.error();
  registry_.cached(request.session.id, request.header.request, *name, cached->fixed.timeout_ms,
                   read_clock(), effects_);
  run_effects();
  check_after_request();
  return {};
}

Result<void> Dispatcher::on_wait(const Request& request) {
  const Result<Named<WaitRequest>> wait = parse_named<WaitRequest>(request.body);
  if (!wait) return wait.error();
  if (Result<void> timeout = check_timeout(wait->fixed.timeout_ms); !timeout) return timeout;
  const Result<QualifiedName> name = qualified(wait->fixed.ns_uid, wait->name, false);
  if (!name) return name.error();
  registry_.wait(request.session.id, request.header.request, *name, wait->fixed.newer_than,
                 wait->fixed.timeout_ms, read_clock(), effects_);
  run_effects();
  check_after_request();
  return {};
}

Result<void> Dispatcher::on_cancel(const Request& request) {
  const Result<CancelRequest> cancel = parse_fixed<CancelRequest>(request.body);
  if (!cancel) return cancel.error();
  const auto parked = std::find_if(parked_.begin(), parked_.end(), [&](const Parked& p) {
    return p.session == request.session.id && p.request == cancel->request;
  });
  if (parked != parked_.end()) {
    parked_.erase(parked);
    FrameHeader header;
    header.op = static_cast<std::uint16_t>(Op::create);
    header.request = cancel->request;
    send_error(request.session.id, header, make_error(ErrorCode::aborted, "cancelled"));
  }
  registry_.cancel(request.session.id, request.header.request, cancel->request, read_clock(),
                   effects_);
  run_effects();
  cancel_orphaned_growths();
  check_after_request();
  return {};
}

Result<void> Dispatcher::on_abort(const Request& request) {
  const Result<Named<AbortRequest>> abort = parse_named<AbortRequest>(request.body);
  if (!abort) return abort.error();
  Target target{ArrayId{abort->fixed.id}, {}};
  if (!target.id.valid()) {
    Result<QualifiedName> name = qualified(abort->fixed.ns_uid, abort->name, false);
    if (!name) return name.error();
    target.name = std::move(*name);
  }
  registry_.abort(request.session.id, request.header.request, target, read_clock(), effects_);
  run_effects();
  cancel_orphaned_growths();
  check_after_request();
  return {};
}

Result<void> Dispatcher::on_handover(const Request& request) {
  const Result<HandoverRequest> handover = parse_fixed<HandoverRequest>(request.body);
  if (!handover) return handover.error();
  if (handover->grace_ms > kGraceMsMax) {
    return invalid("grace: at most " + std::to_string(kGraceMsMax) + " milliseconds are allowed");
  }
  registry_.handover(request.session.id, request.header.request, ArrayId{handover->id},
                     handover->grace_ms == 0 ? kGraceMsDefault : handover->grace_ms, read_clock(),
                     effects_);
  run_effects();
  check_after_request();
  return {};
}

/// Numbered for the fast path. Refused without ending the session: a client may try.
Result<void> Dispatcher::on_reserved(const Request& request) {
  const char* name = kTable[std::size_t{request.header.op} - 1].name;
  send_error(request.session.id, request.header,
             make_error(ErrorCode::protocol_error,
                        std::string("op ") + name + " is not supported by this version"));
  return {};
}

// -- effects --------------------------------------------------------------------------------------

void Dispatcher::run_effects() {
  if (running_effects_) return;
  running_effects_ = true;
  // By index and moved out first: carrying one out may append more.
  for (std::size_t next = 0; next < effects_.size(); ++next) {
    Effect effect = std::move(effects_[next]);
    std::visit([this](auto&& one) { carry_out(std::move(one)); }, std::move(effect));
  }
  effects_.clear();
  running_effects_ = false;
}

void Dispatcher::carry_out(Completion completion) {
  std::visit([this, &completion](const auto& result) { answer(completion, result); },
             completion.result);
}

void Dispatcher::carry_out(const AllocateSegment& effect) {
  const std::uint64_t ticket = ++last_ticket_;
  growing_.emplace(ticket, effect.id);
  store_.allocate(ticket, effect.uid, effect.bytes,
                  [this, ticket, id = effect.id](Result<SegmentId> segment) {
                    growing_.erase(ticket);
                    registry_.segment_ready(id, std::move(segment), read_clock(), effects_);
                    run_effects();
                  });
}

void Dispatcher::carry_out(const HardSealSegment& effect) {
  store_.seal_hard(effect.segment, [this, id = effect.id](Result<void> sealed) {
    registry_.hard_sealed(id, std::move(sealed), read_clock(), effects_);
    run_effects();
  });
}

void Dispatcher::carry_out(const FreeSegment& effect) {
  store_.release(effect.segment);
}

void Dispatcher::carry_out(const EventRecord& effect) {
  admin_->publish(effect);
}

// -- replies --------------------------------------------------------------------------------------

void Dispatcher::begin_reply(const Completion& completion) {
  writer_.begin(completion.op, completion.request);
}

void Dispatcher::answer(const Completion& completion, const Error& error) {
  FrameHeader header;
  header.op = static_cast<std::uint16_t>(completion.op);
  header.request = completion.request;
  send_error(completion.session, header, error);
}

void Dispatcher::answer(const Completion& completion, const Grant& grant) {
  const std::optional<ArrayView> array = registry_.find(grant.id);
  if (!array) {
    return answer(completion, make_error(ErrorCode::internal, "a granted array is gone"));
  }
  ArrayBody body;
  body.id = array->id.raw;
  body.segment = array->segment;
  body.bytes = array->bytes;
  body.segment_bytes = array->segment == 0 ? 0 : store_.segment_bytes(array->segment);
  body.version = array->version;
  body.owner_uid = array->uid;
  body.ns_uid = array->ns_uid;
  body.name_bytes = static_cast<std::uint16_t>(array->name.size());
  body.dtype_bytes = static_cast<std::uint16_t>(array->dtype.size());
  body.perms = array->perms;
  body.options = array->kept ? kArrayKept : std::uint16_t{0};
  body.state = static_cast<std::uint8_t>(array->state);
  body.access = static_cast<std::uint8_t>(grant.access);
  body.order = static_cast<std::uint8_t>(array->order);
  body.ndim = static_cast<std::uint8_t>(array->shape.size());
  body.seal = static_cast<std::uint8_t>(array->seal);
  const bool descriptor = grant.send_descriptor && array->segment != 0;
  writer_.begin(completion.op, completion.request, 0,
                descriptor ? kFlagDescriptor : std::uint16_t{0});
  writer_.put(body);
  writer_.put_bytes(array->shape.data(), array->shape.size_bytes());
  writer_.put_text(array->name);
  writer_.put_text(array->dtype);
  send_reply(completion.session, descriptor
                                     ? DescriptorRef{array->segment, grant.access == Access::write}
                                     : DescriptorRef{});
}

void Dispatcher::answer(const Completion& completion, const LoaderRole&) {
  ArrayBody body;
  body.role = static_cast<std::uint8_t>(Role::loader);
  begin_reply(completion);
  writer_.put(body);
  send_reply(completion.session);
}

void Dispatcher::answer(const Completion& completion, const Sealed& sealed) {
  SealReply reply;
  reply.id = sealed.id.raw;
  reply.version = sealed.version;
  reply.state = static_cast<std::uint8_t>(sealed.state);
  reply.seal = static_cast<std::uint8_t>(sealed.seal);
  begin_reply(completion);
  writer_.put(reply);
  send_reply(completion.session);
}

void Dispatcher::answer(const Completion& completion, const Waited& waited) {
  WaitReply reply;
  reply.id = waited.id.raw;
  reply.version = waited.version;
  reply.state = static_cast<std::uint8_t>(waited.state);
  begin_reply(completion);
  writer_.put(reply);
  send_reply(completion.session);
}

void Dispatcher::answer(const Completion& completion, const Done&) {
  begin_reply(completion);
  send_reply(completion.session);
}

std::vector<std::byte> Dispatcher::descriptor_failed(SessionId session, Bytes frame,
                                                     const Error& error) {
  FrameHeader header;
  ArrayBody body;
  (void)read_header(frame, header);
  if (frame.size() >= sizeof header + sizeof body) {
    std::memcpy(&body, frame.data() + sizeof header, sizeof body);
  }
  log(LogLevel::warning, "descriptor not sent",
      {{"session", session}, {"id", body.id}, {"text", error.text}});
  // The answer to this release is ours, not the client's: an effects list of its own.
  if (header.op != static_cast<std::uint16_t>(Op::segment)) {
    Effects effects;
    registry_.release(session, header.request, ArrayId{body.id}, static_cast<Access>(body.access),
                      1, read_clock(), effects);
    std::erase_if(effects, [&](const Effect& effect) {
      const auto* completion = std::get_if<Completion>(&effect);
      return completion != nullptr && completion->op == Op::release &&
             completion->session == session && completion->request == header.request;
    });
    std::move(effects.begin(), effects.end(), std::back_inserter(effects_));
    run_effects();
  }
  FrameWriter writer;
  write_error(writer, header, error);
  const Bytes written = writer.frame();
  return {written.begin(), written.end()};
}

void Dispatcher::resume_watch(SessionId session) {
  admin_->resume(session);
}

// -- room -----------------------------------------------------------------------------------------

bool Dispatcher::lacks_room(std::uint32_t uid, std::uint64_t array_bytes) const {
  const std::uint64_t bytes = charge_of(array_bytes);
  const Quota& quota = registry_.quota();
  const Usage usage = quota.usage(uid);
  const Limits& limits = quota.limits();
  const bool store_full =
      quota.bytes_used() > limits.capacity || bytes > limits.capacity - quota.bytes_used();
  const bool user_full = usage.bytes > usage.bytes_max || bytes > usage.bytes_max - usage.bytes;
  return store_full || user_full || store_.segments() >= limits.segments_max;
}

/// Nothing is refused for want of memory that nobody maps any more.
void Dispatcher::make_room(std::uint32_t uid, std::uint64_t bytes) {
  std::uint64_t left = store_.pinned_segments();
  while (left > 0 && lacks_room(uid, bytes)) {
    const std::uint64_t asked = std::min<std::uint64_t>(left, kProbesPerRequest);
    (void)store_.probe_released(asked);
    left -= asked;
    if (asked == kProbesPerRequest) break;
  }
}

void Dispatcher::retry_parked() {
  if (running_effects_ || parked_.empty()) return;
  const bool last_chance = store_.freeing_bytes() == 0;
  std::vector<Parked> again;
  for (auto at = parked_.begin(); at != parked_.end();) {
    if (last_chance || !lacks_room(at->uid, at->spec.bytes)) {
      again.push_back(std::move(*at));
      at = parked_.erase(at);
    } else {
      ++at;
    }
  }
  for (Parked& parked : again) {
    registry_.create(parked.session, parked.request, std::move(parked.spec), read_clock(),
                     effects_);
    run_effects();
  }
}

/// An allocation whose draft is gone need not be finished.
void Dispatcher::cancel_orphaned_growths() {
  for (const auto& [ticket, id] : growing_) {
    const std::optional<ArrayView> array = registry_.find(id);
    if (!array || array->state == State::dying) store_.cancel(ticket);
  }
}

// -- time, checks ---------------------------------------------------------------------------------

void Dispatcher::tick() {
  registry_.tick(read_clock(), effects_);
  run_effects();
  cancel_orphaned_growths();
  check_after_request();
}

std::optional<std::int64_t> Dispatcher::next_deadline_ms() const {
  return registry_.next_deadline_ms();
}

std::vector<std::string> Dispatcher::selfcheck() const {
  std::vector<std::string> problems = registry_.selfcheck();
  const std::vector<std::string> of_store = store_.selfcheck();
  problems.insert(problems.end(), of_store.begin(), of_store.end());
  const std::uint64_t charged = registry_.quota().bytes_used();
  const std::uint64_t backed = store_.kernel_bytes();
  if (backed > charged + store_.slack_bytes()) {
    problems.push_back("bytes: the kernel backs " + std::to_string(backed) + ", charged are " +
                       std::to_string(charged));
  }
  return problems;
}

void Dispatcher::check_after_request() {
  if (selfcheck_ == Selfcheck::off || running_effects_) return;
  if (selfcheck_ == Selfcheck::sometimes && requests_ % 256 != 0 &&
      registry_.counts().arrays > kSelfcheckArraysMax) {
    return;
  }
  const std::vector<std::string> problems = selfcheck();
  for (const std::string& problem : problems) {
    log(LogLevel::error, "selfcheck", {{"problem", problem}});
  }
  if (!problems.empty()) std::abort();
}

}  // namespace shmstore::server
