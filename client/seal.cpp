// After a seal the handle shows a read-only map, so that nothing that this process does with the
// array by mistake reaches those who read it. What was mapped writable before stays, hidden: old
// pointers stay valid. No new handle gets it.
// Soft seal: the daemon publishes; writing through an old pointer still changes the array.
// Hard seal: the kernel refuses F_SEAL_WRITE while a map exists that could write, so the writable
// map is first swapped for a private one at the same address. If the daemon then says no (busy), it
// is swapped back, so that the draft can go on. What other threads write in between is lost; a
// handle belongs to one thread at a time. A lease that writes is let go the same way while pointers
// are left.
#include <cstring>
#include <utility>

#include "client/kill_points.hpp"
#include "client/lease.hpp"

namespace shmstore::client_internal {

namespace {

using protocol::Op;

Error empty_error() {
  return make_error(ErrorCode::invalid_argument, "array: the handle is empty");
}

}  // namespace

Result<void> Lease::seal(const SealOptions& options) {
  if (!held_) return empty_error();
  if (array_state_ == shmstore::State::sealed && (!options.hard || seal_ == Seal::hard)) return {};
  if (inherited()) {
    return make_error(ErrorCode::invalid_argument,
                      "seal: only the process that made or attached the array can seal it");
  }
  if (writes(access_) && map_.is_sealed()) {  // By another handle: only its details are missing.
    Result<void> told = send_seal(false, {});
    if (told) told = follow_seal();
    if (!told || !options.hard || seal_ == Seal::hard) return told;
  }
  if (array_state_ == shmstore::State::sealed) return harden(options);
  if (!writes(access_)) {
    return make_error(ErrorCode::permission_denied, "seal: the array is not held with access r+");
  }
  if (damaged_) {
    return make_error(ErrorCode::aborted,
                      "seal: an earlier hard seal failed half-way; the draft is lost");
  }
  const bool hard = options.hard || hard_ || (perms_ & 077U) != 0;
  if (!map_.writes_through()) {  // It has no bytes, or was put.
    Result<void> sealed = send_seal(hard, options);
    if (!sealed || array_state_ == shmstore::State::sealed) return sealed;
    return send_seal(true, options);
  }
  if (hard) return seal_hard(options);
  Result<void> sealed = seal_soft(options);
  if (!sealed || array_state_ == shmstore::State::sealed) return sealed;
  hard_ = true;  // Others could open it meanwhile, or one of them wrote it: the daemon knows.
  return seal_hard(options);
}

/// The map to read is made first: an array that could not be read here is not published.
Result<void> Lease::seal_soft(const SealOptions& options) {
  MapOutcome reader = MappingCache::instance().make_reader(map_, view(Access::read));
  if (reader.problem != MapProblem::none) return map_error(reader);
  Result<void> sealed = send_seal(false, options);
  if (array_state_ == shmstore::State::sealed) read_through(std::move(reader.ref));
  return sealed;
}

Result<void> Lease::seal_hard(const SealOptions& options) {
  const Result<UninheritedFd> descriptor = fetch_descriptor();
  if (!descriptor) return descriptor.error();
  MapOutcome reader = MappingCache::instance().install_for_writer(view(Access::read), *descriptor);
  if (reader.problem != MapProblem::none) return map_error(reader);
  if (Result<void> swapped = swap_map(map_, *descriptor, true, Op::seal); !swapped) return swapped;
  Result<void> sealed = send_seal(true, options);
  if (array_state_ == shmstore::State::sealed) {
    read_through(std::move(reader.ref));
  } else if (connection_->alive()) {
    damaged_ = !swap_map(map_, false, Op::seal).has_value();
  }
  return sealed;
}

/// Another handle has sealed the array.
Result<void> Lease::follow_seal() {
  if (bytes_ == 0) return {};
  MapOutcome reader;
  if (map_.writes_through()) {
    reader = MappingCache::instance().make_reader(map_, view());
  } else {
    reader.ref = MappingCache::instance().find(view());
  }
  if (reader.problem == MapProblem::none && !reader.ref.valid()) {
    Result<MapOutcome> fetched = fetch_segment();
    if (!fetched) return fetched.error();
    reader = std::move(*fetched);
  }
  if (reader.problem != MapProblem::none) return map_error(reader);
  read_through(std::move(reader.ref));
  return {};
}

/// From here on the handle shows the read-only map. The writable one stays, hidden, for as long as
/// the handle, because pointers to it may be left; it is hardly used any more.
void Lease::read_through(MapRef reader) noexcept {
  MappingCache& cache = MappingCache::instance();
  map_.mark_sealed();
  cache.hide(map_);
  cache.drop_pages(map_);
  draft_map_ = std::exchange(map_, std::move(reader));
  data_ = map_.base() + offset_;
}

/// Soft to hard. The private maps may stay if the daemon says no: nobody writes the array any more.
Result<void> Lease::harden(const SealOptions& options) {
  for (MapRef* map : {&draft_map_, &map_}) {
    if (!map->hinders_hard_seal()) continue;
    if (Result<void> swapped = swap_map(*map, true, Op::seal); !swapped) return swapped;
  }
  return send_seal(true, options);
}

Result<void> Lease::let_go(bool half_written) {
  if (is_draft_creator()) {
    return make_error(ErrorCode::invalid_argument, "array: a draft is sealed or released");
  }
  if (!held_) return {};
  const Access granted = granted_access();
  half_written_ = half_written_ || (half_written && granted == Access::exclusive);
  if (inherited() || !connection_->alive()) {
    held_ = false;
    return {};
  }
  const Op op = half_written_ ? Op::abort : Op::release;
  // Before anybody else is told that it is free: no pointer here may write it any more. Where
  // another handle goes on with the map, that one sees to it when it goes. Looking and hiding are
  // one step, or a thread that attaches meanwhile would be given a map that becomes private.
  if (bytes_ > 0 && writes(granted)) {
    const bool last = granted == Access::exclusive || MappingCache::instance().let_go(map_);
    Result<void> swapped = last ? swap_map(map_, true, op) : Result<void>();
    if (!swapped && granted == Access::exclusive) return swapped;
    if (!swapped) MappingCache::instance().forbid_writing(map_);
  }
  held_ = false;
  return connection_->give_back(id_, granted, half_written_);
}

Result<void> Lease::send_seal(bool hard, const SealOptions& options) {
  Result<std::int64_t> wait_ms = wire_timeout(options.wait, "wait");
  if (!wait_ms) return wait_ms.error();
  protocol::SealRequest request;
  request.id = id_.raw;
  request.wait_ms = *wait_ms;
  request.hard = hard ? 1 : 0;
  Call call(Op::seal);
  call.add(request);
  call.server_wait = options.wait;
  call.waits_for = "others to let go of what is to be sealed";
  Result<void> done = state_->call_on(*connection_, call);
  protocol::SealReply reply;
  // An interrupted call may have come through all the same.
  if (!call.replied() || call.body().size() != sizeof reply) {
    if (!done) return done;
    return make_error(ErrorCode::protocol_error, "reply: its length is wrong");
  }
  std::memcpy(&reply, call.body().data(), sizeof reply);
  if (static_cast<shmstore::State>(reply.state) != shmstore::State::sealed) {
    if (done && hard) return make_error(ErrorCode::protocol_error, "reply: it is not sealed");
    return done;
  }
  version_ = reply.version;
  seal_ = static_cast<Seal>(reply.seal);
  array_state_ = shmstore::State::sealed;
  access_ = Access::read;
  creator_ = false;
  return done;
}

/// Killed before it is sent, or with it refused: as if the array had never been, and what it was to
/// replace is there.
Result<void> Lease::publish() {
  protocol::PublishRequest request{id_.raw};
  Call call(Op::publish);
  call.add(request);
  call.interruptible = false;
  if (Result<void> done = state_->call_on(*connection_, call); !done) return done;
  protocol::SealReply reply;
  if (call.body().size() != sizeof reply) {
    return make_error(ErrorCode::protocol_error, "reply: its length is wrong");
  }
  std::memcpy(&reply, call.body().data(), sizeof reply);
  version_ = reply.version;
  array_state_ = static_cast<shmstore::State>(reply.state);
  return {};
}

Result<void> Lease::swap_map(MapRef& map, bool to_private, Op op) {
  const Result<UninheritedFd> descriptor = fetch_descriptor();
  if (!descriptor) return descriptor.error();
  return swap_map(map, *descriptor, to_private, op);
}

Result<void> Lease::swap_map(MapRef& map, const UninheritedFd& descriptor, bool to_private, Op op) {
  MappingCache& cache = MappingCache::instance();
  const bool writable = map.writes_through() || !to_private;
  if (writable && to_private) cache.hide(map);  // It must not become anybody else's.
  pass_kill_point(op, Step::before_map);
  const MapOutcome outcome = cache.swap(map, view(), descriptor, to_private);
  pass_kill_point(op, Step::after_map);
  const bool shared = to_private == (outcome.problem != MapProblem::none);
  if (writable && shared && !map.is_sealed()) cache.show(map);
  if (outcome.problem != MapProblem::none) return map_error(outcome);
  return {};
}

Result<UninheritedFd> Lease::fetch_descriptor() {
  protocol::SegmentRequest request;
  request.id = id_.raw;
  request.access = static_cast<std::uint8_t>(access_);
  Call call(Op::segment);
  call.add(request);
  call.keep_descriptor = true;
  if (Result<void> done = state_->call_on(*connection_, call); !done) return done.error();
  if (!call.descriptor.valid()) {
    return make_error(ErrorCode::no_capacity,
                      "descriptors: this process has no room for one more (RLIMIT_NOFILE)");
  }
  return std::move(call.descriptor);
}

}  // namespace shmstore::client_internal
