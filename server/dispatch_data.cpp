/// The data plane: each handler parses its body, checks the values that no state is needed for, and
/// calls the registry; what the registry answers goes out as effects.

#include <sys/random.h>

#include <algorithm>
#include <utility>

#include "server/dispatch.hpp"
#include "server/dispatch_admin.hpp"

namespace shmstore::server {
namespace {

using namespace protocol;

Error invalid(std::string text) {
  return make_error(ErrorCode::invalid_argument, std::move(text));
}

Result<void> check_timeout(std::int64_t timeout_ms) {
  if (timeout_ms == kForever || (timeout_ms >= 0 && timeout_ms <= kTimeoutMsMax)) return {};
  return invalid("timeout: must be -1 (for ever) or from 0 to 2^52 milliseconds");
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

// Sorted by op, for the eye only.
const std::array<Dispatcher::Entry, 17> Dispatcher::kTable = {{
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
    {Op::received, "received", true, &Dispatcher::on_received},
    {Op::publish, "publish", true, &Dispatcher::on_publish},
}};

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
  if (Result<void> room = store_.admit_record(record_bytes(*spec)); !room) return room;
  const Identity* identity = registry_.identity(request.session.id);
  // What never fits is refused at once, and nothing is freed for it.
  if (identity != nullptr && !registry_.never_fits(identity->uid, *spec)) {
    make_room(identity->uid, *spec);
    if (spec->timeout_ms == 0 && may_hope(identity->uid, *spec) && may_park(identity->uid)) {
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
  const bool once = (fixed.options & kAttachOnce) != 0;
  spec.newer_than = once ? 0 : fixed.newer_than;
  spec.handle = once ? fixed.newer_than : 0;
  spec.timeout_ms = fixed.timeout_ms;
  spec.renew_handover = (fixed.options & kAttachHandover) != 0;
  spec.repair = (fixed.options & kAttachRepair) != 0;
  registry_.attach(request.session.id, request.header.request, spec, read_clock(), effects_);
  run_effects();
  check_after_request();
  return {};
}

Result<void> Dispatcher::on_segment(const Request& request) {
  const Result<SegmentRequest> segment = parse_fixed<SegmentRequest>(request.body);
  if (!segment) return segment.error();
  registry_.segment(request.session.id, request.header.request, ArrayId{segment->id},
                    static_cast<Access>(segment->access), read_clock(), effects_);
  run_effects();
  check_after_request();
  return {};
}

Result<void> Dispatcher::on_release(const Request& request) {
  const Result<ReleaseRequest> release = parse_fixed<ReleaseRequest>(request.body);
  if (!release) return release.error();
  registry_.release(request.session.id, request.header.request, ArrayId{release->id},
                    static_cast<Access>(release->access), release->grants, read_clock(), effects_);
  run_effects();
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
                     handover->grace_ms == 0 ? kGraceMsDefault : handover->grace_ms,
                     (handover->options & kHandoverOnce) != 0, read_clock(), effects_);
  run_effects();
  check_after_request();
  return {};
}

Result<void> Dispatcher::on_received(const Request& request) {
  const Result<ReceivedRequest> received = parse_fixed<ReceivedRequest>(request.body);
  if (!received) return received.error();
  registry_.received(request.session.id, request.header.request, ArrayId{received->id},
                     received->handle, read_clock(), effects_);
  run_effects();
  check_after_request();
  return {};
}

Result<void> Dispatcher::on_publish(const Request& request) {
  const Result<PublishRequest> publish = parse_fixed<PublishRequest>(request.body);
  if (!publish) return publish.error();
  registry_.publish(request.session.id, request.header.request, ArrayId{publish->id}, read_clock(),
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

}  // namespace shmstore::server
