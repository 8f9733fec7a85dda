#include "client/lease.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "client/kill_points.hpp"
#include "client/write_file.hpp"

namespace shmstore::client_internal {

namespace {

using protocol::ArrayBody;
using protocol::Op;

/// What data() of an array without bytes points to: aligned, never read or written.
alignas(kAlignment) std::byte g_no_bytes[kAlignment];

Error bad_reply(std::string_view what) {
  return make_error(ErrorCode::protocol_error, "reply: " + std::string(what));
}

bool is_known(const ArrayBody& body) noexcept {
  const bool access = body.access >= 1 && body.access <= 5;
  const bool state = body.state >= 1 && body.state <= 6 && body.state != 5;
  return access && state && body.seal <= 2 && body.order <= 1 && body.ndim <= kNdimMax;
}

Error no_descriptor_error() {
  return make_error(ErrorCode::no_capacity,
                    "descriptors: this process has no room for one more (RLIMIT_NOFILE)");
}

}  // namespace

Result<std::int64_t> wire_timeout(Timeout timeout, std::string_view field) {
  if (!timeout) return protocol::kForever;
  if (timeout->count() < 0) {
    return make_error(ErrorCode::invalid_argument,
                      std::string(field) + ": must not be negative; none waits for ever");
  }
  return std::min<std::int64_t>(timeout->count(), protocol::kTimeoutMsMax);
}

/// Whether the end of the grant is an abort: of a draft, of a repair that could not begin, of what
/// is half-written.
bool Lease::is_dropped() const noexcept {
  const auto access = static_cast<std::uint8_t>(access_);
  const auto state = static_cast<std::uint8_t>(array_state_);
  if (is_draft_creator() || half_written_) return true;
  return data_ == nullptr && is_unrepaired(access, state);
}

Lease::~Lease() {
  const bool drops = is_dropped();
  const bool had = std::exchange(held_, false);
  if (!had) return;
  const Op op = drops ? Op::abort : Op::release;
  const Access granted = granted_access();
  spare_views(op);
  pass_kill_point(op, Step::before_unmap);
  forget_map();
  pass_kill_point(op, Step::after_unmap);
  if (inherited() || !connection_->alive()) return;
  if (drops) {
    connection_->abort(id_, granted);
  } else {
    connection_->release(id_, granted);
  }
}

/// A seal by another handle of this process has made the write lease a read lease.
Access Lease::granted_access() const noexcept {
  return writes(access_) && map_.is_sealed() ? Access::read : access_;
}

SegmentView Lease::view(Access access) const noexcept {
  return {store_id_, segment_, offset_, bytes_, segment_bytes_, access, false};
}

Result<void> Lease::adopt(std::shared_ptr<Connection> connection, Call& call,
                          std::span<const std::byte> content) {
  ArrayBody body;
  const std::span<const std::byte> bytes = call.body();
  if (bytes.size() < sizeof body) return bad_reply("it is too short");
  std::memcpy(&body, bytes.data(), sizeof body);
  connection_ = std::move(connection);
  epoch_ = process_epoch();
  id_ = ArrayId{body.id};
  access_ = static_cast<Access>(body.access);
  array_state_ = static_cast<shmstore::State>(body.state);
  creator_ = call.op() == Op::create;
  held_ = true;
  if (Result<void> described = describe(body, bytes.subspan(sizeof body)); !described) {
    return described;
  }
  if (!content.empty() && !call.descriptor_lost) return write(call, content);
  return map(call);
}

/// Through the descriptor rather than a map: a page that is written whole the kernel need not
/// clear, and none has to be faulted in. That takes half the time. And what is about to be sealed
/// is never mapped writable.
Result<void> Lease::write(Call& call, std::span<const std::byte> content) {
  if (!call.descriptor.valid()) return bad_reply("there is no descriptor with it");
  const UninheritedFd file = std::move(call.descriptor);
  if (may_write_file(offset_ + bytes_)) {
    if (Result<void> done = write_file(file.fd(), offset_, content); !done) return done;
  } else {
    SegmentView passing = view();
    passing.dont_fork = true;  // The kernel would refuse a hard seal while a child has it.
    const MapOutcome writable = MappingCache::instance().install(passing, file);
    if (writable.problem != MapProblem::none) return map_error(writable);
    std::memcpy(writable.ref.base() + offset_, content.data(), content.size());
  }
  const bool is_draft = array_state_ == shmstore::State::draft && !unseen_;
  pass_kill_point(call.op(), Step::before_map);
  call.map = is_draft ? MappingCache::instance().install_for_writer(view(Access::read), file)
                      : MappingCache::instance().install(view(), file);
  pass_kill_point(call.op(), Step::after_map);
  return map(call);
}

Result<void> Lease::describe(const ArrayBody& body, std::span<const std::byte> tail) {
  const std::size_t dims_bytes = std::size_t{body.ndim} * sizeof(std::uint64_t);
  if (!is_known(body)) return bad_reply("a field has an unknown value");
  if (tail.size() != dims_bytes + body.name_bytes + body.dtype_bytes) {
    return bad_reply("its length is wrong");
  }
  store_id_ = connection_->store_id();
  segment_ = body.segment;
  offset_ = body.offset;
  bytes_ = body.bytes;
  segment_bytes_ = body.segment_bytes;
  version_ = body.version;
  order_ = static_cast<Order>(body.order);
  seal_ = static_cast<Seal>(body.seal);
  hard_ = (body.options & protocol::kArrayHard) != 0;
  perms_ = body.perms;
  shape_.resize(body.ndim);
  if (dims_bytes > 0) std::memcpy(shape_.data(), tail.data(), dims_bytes);
  const auto* text = reinterpret_cast<const char*>(tail.data()) + dims_bytes;
  const std::string_view name(text, body.name_bytes);
  if (!name.empty() && body.ns_uid != connection_->uid()) {
    name_ = "~" + std::to_string(body.ns_uid) + "/";
  }
  name_ += name;
  Result<Dtype> dtype = Dtype::parse({text + body.name_bytes, body.dtype_bytes});
  if (!dtype) return bad_reply("its " + dtype.error().text);
  dtype_ = std::move(*dtype);
  const Result<std::uint64_t> expected = array_bytes(dtype_.itemsize(), shape_);
  if (!expected || *expected != bytes_) return bad_reply("its bytes do not fit its shape");
  return {};
}

/// Finds the bytes: the map that came with the reply, one that this process has already, or a new
/// one of a descriptor that is asked for again.
Result<void> Lease::map(Call& call) {
  if (access_ == Access::hold) return {};
  if (bytes_ == 0) {
    data_ = g_no_bytes;
    return {};
  }
  if (call.descriptor_lost) return no_descriptor_error();
  MapOutcome outcome = std::move(call.map);
  if (outcome.problem == MapProblem::none && !outcome.ref.valid()) {
    outcome.ref = MappingCache::instance().find(view());
  }
  if (outcome.problem == MapProblem::none && !outcome.ref.valid()) {
    Result<MapOutcome> fetched = fetch_segment();
    if (!fetched) return fetched.error();
    outcome = std::move(*fetched);
  }
  if (outcome.problem != MapProblem::none) return map_error(outcome);
  if (!outcome.ref.valid() || offset_ + bytes_ > outcome.ref.bytes()) {
    return bad_reply("there is no descriptor with it");
  }
  map_ = std::move(outcome.ref);
  data_ = map_.base() + offset_;
  return {};
}

Result<MapOutcome> Lease::fetch_segment() {
  protocol::SegmentRequest request;
  request.id = id_.raw;
  request.access = static_cast<std::uint8_t>(access_);
  Call call(Op::segment);
  call.add(request);
  if (Result<void> done = state_->call_on(*connection_, call); !done) return done.error();
  if (call.descriptor_lost) return no_descriptor_error();
  return std::move(call.map);
}

void Lease::forget_map() noexcept {
  data_ = nullptr;
  map_.reset();
  draft_map_.reset();
}

/// Views of handles that were let go of stay valid when the last handle with a lease goes, and must
/// not write what others may have from then on.
void Lease::spare_views(Op op) noexcept {
  if (!writes(granted_access()) || inherited() || !connection_->alive()) return;
  MappingCache& cache = MappingCache::instance();
  if (!cache.leaves_views(map_)) return;
  try {
    if (swap_map(map_, true, op)) return;
  } catch (const std::bad_alloc&) {
  }
  cache.forbid_writing(map_);
}

Result<void> Lease::release() {
  if (!held_) return {};
  const bool drops = is_dropped();
  held_ = false;
  const Op op = drops ? Op::abort : Op::release;
  const Access granted = granted_access();
  spare_views(op);
  pass_kill_point(op, Step::before_unmap);
  forget_map();
  pass_kill_point(op, Step::after_unmap);
  if (inherited() || !connection_->alive()) return {};
  return connection_->give_back(id_, granted, drops);
}

Result<std::uint64_t> Lease::handover(bool once) {
  if (!held_) return make_error(ErrorCode::invalid_argument, "array: the handle is empty");
  if (state_->options().grace.count() == 0) return std::uint64_t{0};
  if (inherited()) return handover_inherited(once);
  protocol::HandoverRequest request;
  request.id = id_.raw;
  request.grace_ms = static_cast<std::uint64_t>(state_->options().grace.count());
  if (once) request.options |= protocol::kHandoverOnce;
  Call call(Op::handover);
  call.add(request);
  if (Result<void> done = state_->call_on(*connection_, call); !done) return done.error();
  if (!once) return std::uint64_t{0};
  protocol::HandoverReply reply;
  if (call.body().size() != sizeof reply) return bad_reply("its length is wrong");
  std::memcpy(&reply, call.body().data(), sizeof reply);
  return std::uint64_t{reply.handle};
}

/// In a forked child the lease is the parent's. The child's own session attaches for a moment.
Result<std::uint64_t> Lease::handover_inherited(bool once) {
  protocol::AttachRequest request;
  request.id = id_.raw;
  request.store_id = store_id_;
  request.access = static_cast<std::uint8_t>(Access::hold);
  auto own = std::make_unique<Lease>(state_);
  Call call(Op::attach);
  call.add(request);
  Result<std::shared_ptr<Connection>> connection = state_->call(call);
  if (!connection) return connection.error();
  if (Result<void> adopted = own->adopt(std::move(*connection), call); !adopted) {
    return adopted.error();
  }
  return own->handover(once);
}

/// The daemon reads it before the release of this lease, and after the attach that granted it: the
/// array is held without a gap. Who is killed before has not received it.
void Lease::received(std::uint64_t handle) noexcept {
  if (held_ && !inherited() && connection_->alive()) connection_->received(id_, handle);
}

}  // namespace shmstore::client_internal
