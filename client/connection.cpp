// Invariants, under mutex_: a call is in waiting_ iff it has no outcome; at most one thread reads
// (reading_); if nobody reads, either no thread is parked or one of them has been notified; once
// broken_, waiting_ is empty and stays so.
#include "client/connection.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "client/kill_points.hpp"

namespace shmstore::client_internal {

namespace {

using protocol::ArrayBody;
using protocol::Op;

/// Deadlines beyond this are none; keeps sums within the clock's range.
constexpr std::chrono::hours kLongest{24 * 365 * 10};
/// How long nothing may come from the daemon before it is asked whether it is there.
constexpr std::chrono::seconds kAskAfter{5};
/// How long the daemon may take to answer after its caller has been interrupted.
constexpr std::chrono::seconds kCancelGuard{2};
/// Sleep of a parked call that nobody can interrupt.
constexpr std::chrono::milliseconds kLongSlice{1000};

bool read_array_body(std::span<const std::byte> bytes, ArrayBody& body) noexcept {
  if (bytes.size() < sizeof body) return false;
  std::memcpy(&body, bytes.data(), sizeof body);
  return true;
}

bool grants(Op op) noexcept {
  return op == Op::create || op == Op::attach || op == Op::cached;
}

/// What the refusal of a release or of a draft's abort comes from: a seal through another handle
/// of this session has made the write lease a read lease, which holds the grant now.
bool was_sealed_meanwhile(Op op, ArrayId id, Access access) noexcept {
  if (op == Op::abort) return id.valid() && access == Access::write;
  return op == Op::release && writes(access);
}

Op op_of(const protocol::FrameHeader& header) noexcept {
  return static_cast<Op>(header.op);
}

Error gone_error() {
  return make_error(ErrorCode::disconnected, "the daemon went away");
}

}  // namespace

// -- ReplyBody, Call, CallList
// ---------------------------------------------------------------------

bool ReplyBody::assign(std::span<const std::byte> bytes) noexcept {
  std::byte* target = small_.data();
  bool whole = true;
  if (bytes.size() > small_.size()) {
    large_.reset(new (std::nothrow) std::byte[bytes.size()]);
    whole = large_ != nullptr;
    if (whole) target = large_.get();
    // The beginning still says what was granted.
    if (!whole) bytes = bytes.first(small_.size());
  }
  if (!bytes.empty()) std::memcpy(target, bytes.data(), bytes.size());
  size_ = bytes.size();
  return whole;
}

std::span<const std::byte> ReplyBody::bytes() const noexcept {
  return {large_ == nullptr ? small_.data() : large_.get(), size_};
}

std::string_view ReplyBody::text() const noexcept {
  return {reinterpret_cast<const char*>(bytes().data()), size_};
}

Call::Call(Op op) noexcept : op_(op) {
  header_.op = static_cast<std::uint16_t>(op);
  parts_[0] = {&header_, sizeof header_};
}

Call& Call::add_bytes(const void* data, std::size_t bytes) noexcept {
  if (bytes == 0) return *this;
  parts_[part_count_++] = {const_cast<void*>(data), bytes};  // sendmsg only reads it.
  request_bytes_ += bytes;
  return *this;
}

void CallList::append(Call& call) noexcept {
  call.previous_ = last_;
  call.next_ = nullptr;
  (last_ == nullptr ? first_ : last_->next_) = &call;
  last_ = &call;
}

void CallList::remove(Call& call) noexcept {
  (call.previous_ == nullptr ? first_ : call.previous_->next_) = call.next_;
  (call.next_ == nullptr ? last_ : call.next_->previous_) = call.previous_;
}

Call* CallList::find(std::uint64_t request) const noexcept {
  for (Call* call = first_; call != nullptr; call = call->next_) {
    if (call->header_.request == request) return call;
  }
  return nullptr;
}

// -- Connection: sending --------------------------------------------------------------------------

Connection::Connection(UninheritedFd socket, const protocol::HelloReply& hello)
    : socket_(std::move(socket)), hello_(hello) {}

Result<void> Connection::call(Call& call, const Interrupted& interrupted) {
  if (Result<void> sent = send(call, interrupted); !sent) {
    do_chores();  // Waiting for room may have made some.
    return sent;
  }
  await(call, interrupted);
  return conclude(call);
}

Result<void> Connection::send(Call& call, const Interrupted& interrupted) {
  if (call.request_bytes_ > protocol::kFrameBytesMax) {
    return make_error(ErrorCode::invalid_argument, "request: has " +
                                                       std::to_string(call.request_bytes_) +
                                                       " bytes, at most 65536 fit into a message");
  }
  do_chores();
  for (;;) {
    switch (try_send(call)) {
      case Sent::yes: call.silent_after_.reset(); return {};
      case Sent::closed: return gone_error();
      case Sent::full: break;
    }
    if (Result<void> room = wait_for_room(call, interrupted); !room) return room;
  }
}

Sent Connection::try_send(Call& call) noexcept {
  const std::lock_guard order(send_mutex_);
  call.header_.request = ++last_request_;
  {
    const std::lock_guard lock(mutex_);
    if (broken_) return Sent::closed;
    call.outcome_ = Call::Outcome::none;
    waiting_.append(call);
  }
  pass_kill_point(call.op_, Step::before_send);
  const Sent sent = send_frame(socket_.fd(), {call.parts_.data(), call.part_count_});
  if (sent == Sent::yes) {
    call.delivered = true;
    pass_kill_point(call.op_, Step::after_send);
    return sent;
  }
  const std::lock_guard lock(mutex_);
  if (call.outcome_ == Call::Outcome::none) waiting_.remove(call);
  if (call.outcome_ != Call::Outcome::none) return Sent::closed;
  if (sent == Sent::closed) fail_all();
  return sent;
}

/// The socket is full: the daemon is slow, or waits for us to read what it has sent.
Result<void> Connection::wait_for_room(Call& call, const Interrupted& interrupted) {
  pollfd waiting{socket_.fd(), POLLIN | POLLOUT, 0};
  static_cast<void>(poll(&waiting, 1, static_cast<int>(kSlice.count())));
  if ((waiting.revents & POLLIN) != 0) {
    std::unique_lock lock(mutex_);
    if (!reading_ && !broken_) {
      read_one(lock, false);
      promote();
    }
  }
  if (call.interruptible && is_interrupted(interrupted)) return interrupted_error();
  const auto now = std::chrono::steady_clock::now();
  if (!call.silent_after_) call.silent_after_ = now + kGuard;
  if (now < *call.silent_after_) return {};
  call.delivered = true;  // Not to be tried again elsewhere: the daemon lives, but does not read.
  return make_error(ErrorCode::timed_out, "the daemon has not taken requests for 10 s");
}

// -- Connection: waiting --------------------------------------------------------------------------

void Connection::await(Call& call, const Interrupted& interrupted) {
  std::unique_lock lock(mutex_);
  while (call.outcome_ == Call::Outcome::none) {
    const bool progress =
        reading_ ? park(call, lock, static_cast<bool>(interrupted)) : read_one(lock);
    // The reader sends what is queued: other threads may not come here again for hours.
    if (!reading_ && has_chores_.load(std::memory_order_relaxed)) {
      lock.unlock();
      do_chores();
      lock.lock();
    }
    if (progress || call.outcome_ != Call::Outcome::none) continue;
    if (!reading_) promote();
    lock.unlock();
    look_around(call, interrupted);
    call.look_at_.reset();
    lock.lock();
  }
  if (!reading_) promote();
  lock.unlock();
  finish_chores();
}

/// Sleeps until the leader has something for this call, or leaves. False when a slice has passed
/// since this call looked around; a leader that keeps the lead wakes the others in vain.
bool Connection::park(Call& call, std::unique_lock<std::mutex>& lock, bool has_callback) {
  if (!call.look_at_) {
    call.look_at_ = std::chrono::steady_clock::now() + (has_callback ? kSlice : kLongSlice);
  }
  call.parked_ = true;
  const std::cv_status status = call.wake_.wait_until(lock, *call.look_at_);
  call.parked_ = false;
  return status == std::cv_status::no_timeout;
}

/// Reads and hands on one frame as the leader. False when a slice passed, a signal came, or there
/// is room to send what is queued.
bool Connection::read_one(std::unique_lock<std::mutex>& lock, bool waits) {
  reading_ = true;
  const bool or_room = chores_want_room_;
  lock.unlock();
  Frame frame;
  Received received = waits ? wait_for_frame(socket_.fd(), or_room) : Received::frame;
  if (received == Received::frame) received = receive_frame(socket_.fd(), buffer_, frame);
  if (received == Received::frame) pass_kill_point(op_of(frame.header), Step::after_reply);
  lock.lock();
  if (received == Received::frame) {
    heard_at_ = std::chrono::steady_clock::now();
    take_in(frame, lock);
  }
  if (received == Received::closed || received == Received::garbage) fail_all();
  reading_ = false;
  return received != Received::nothing && received != Received::signal;
}

void Connection::take_in(Frame& frame, std::unique_lock<std::mutex>& lock) {
  Call* call = waiting_.find(frame.header.request);
  MapOutcome map;
  UninheritedFd kept;
  if (call != nullptr && frame.descriptor.valid()) {
    const bool keeps = call->keep_descriptor;
    lock.unlock();  // reading_ keeps the others from overtaking this frame.
    if (keeps) {
      kept = std::move(frame.descriptor);
    } else {
      map = map_descriptor(frame);
    }
    lock.lock();
    call = waiting_.find(frame.header.request);
  }
  if (call != nullptr) {
    deliver(*call, frame, map, kept);
    return;
  }
  try {
    take_stray(frame);
  } catch (const std::bad_alloc&) {
    fail_all();  // What cannot be given back singly is given back with the session.
  }
}

MapOutcome Connection::map_descriptor(const Frame& frame) const noexcept {
  ArrayBody body;
  if (frame.header.status != 0 || !read_array_body(frame.body, body)) return {};
  const SegmentView view{hello_.store_id,
                         body.segment,
                         body.offset,
                         body.bytes,
                         body.segment_bytes,
                         static_cast<Access>(body.access),
                         false};
  const Op op = op_of(frame.header);
  pass_kill_point(op, Step::before_map);
  MapOutcome outcome = MappingCache::instance().install(view, frame.descriptor);
  pass_kill_point(op, Step::after_map);
  return outcome;
}

void Connection::deliver(Call& call, Frame& frame, MapOutcome& map, UninheritedFd& kept) noexcept {
  waiting_.remove(call);
  call.status_ = frame.header.status;
  call.map = std::move(map);
  call.descriptor_lost = frame.descriptor_lost;
  call.descriptor = std::move(kept);
  const bool whole = call.body_.assign(frame.body);
  call.outcome_ = whole ? Call::Outcome::reply : Call::Outcome::no_memory;
  if (call.parked_) call.wake_.notify_one();
}

/// A reply that nobody waits for: to a release, a cancel, or to a call that was given up, whose
/// grant goes back.
void Connection::take_stray(const Frame& frame) {
  const auto end = unread_.begin() + static_cast<std::ptrdiff_t>(unread_count_);
  const auto known = std::find_if(unread_.begin(), end, [&](const Unread& unread) {
    return unread.request == frame.header.request;
  });
  if (known != end) {
    if (frame.header.status != 0 && was_sealed_meanwhile(known->op, known->id, known->access)) {
      add_chore({Op::release, known->id, Access::read, 0, {}});
    }
    std::move(known + 1, end, known);
    --unread_count_;
    return;
  }
  const auto orphan = std::find_if(orphans_.begin(), orphans_.end(), [&](const Orphan& lost) {
    return lost.request == frame.header.request;
  });
  ArrayBody body;
  if (frame.header.status == 0 && grants(op_of(frame.header)) &&
      read_array_body(frame.body, body)) {
    add_chore(undo(op_of(frame.header), body,
                   orphan == orphans_.end() ? QualifiedName{} : orphan->loads));
  }
  if (orphan != orphans_.end()) orphans_.erase(orphan);
}

/// How to give back what a reply granted.
Connection::Chore Connection::undo(Op op, const ArrayBody& body, const QualifiedName& loads) {
  if (op == Op::cached && body.role == static_cast<std::uint8_t>(protocol::Role::loader)) {
    return {Op::abort, {}, Access::read, 0, loads};
  }
  const bool is_draft = body.state == static_cast<std::uint8_t>(shmstore::State::draft);
  const bool drops = (op == Op::create && is_draft) || is_unrepaired(body.access, body.state);
  const Op back = drops ? Op::abort : Op::release;
  return {back, ArrayId{body.id}, static_cast<Access>(body.access), 0, {}};
}

void Connection::promote() noexcept {
  for (Call* call = waiting_.first(); call != nullptr; call = CallList::after(*call)) {
    if (!call->parked_) continue;
    call->wake_.notify_one();
    return;
  }
}

/// Between two slices: has the caller been interrupted, is the daemon too long silent?
void Connection::look_around(Call& call, const Interrupted& interrupted) {
  if (call.interruptible && !call.cancelled_ && is_interrupted(interrupted)) {
    call.cancelled_ = true;
    post_or_queue({Op::cancel, {}, Access::read, call.header_.request, {}});
    call.silent_after_ = std::chrono::steady_clock::now() + kCancelGuard;
  }
  const auto now = std::chrono::steady_clock::now();
  const bool endless = !call.server_wait || *call.server_wait > kLongest;
  if (!call.silent_after_ && !endless) call.silent_after_ = now + *call.server_wait + kGuard;
  const bool late = call.silent_after_ && now >= *call.silent_after_;
  if (!late && !is_silent(now)) return;
  if (!call.cancelled_) post_or_queue({Op::cancel, {}, Access::read, call.header_.request, {}});
  give_up(call);
}

/// Whether the daemon is there at all. A wait may last for hours, but its answer to a ping does not
/// take long: nothing for kGuard means that it is stopped or hangs.
bool Connection::is_silent(std::chrono::steady_clock::time_point now) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (now - heard_at_ < kAskAfter) return false;
    if (asked_at_ > heard_at_) return now - asked_at_ >= kGuard;
    asked_at_ = now;
  }
  // No matter if there is no room for it: then there are requests that it has not answered.
  static_cast<void>(post({Op::ping, {}, Access::read, 0, {}}, unread_.size()));
  return false;
}

void Connection::give_up(Call& call) noexcept {
  const std::lock_guard lock(mutex_);
  if (call.outcome_ != Call::Outcome::none) return;
  waiting_.remove(call);
  call.outcome_ = Call::Outcome::silent;
  if (call.loads == nullptr) return;
  try {
    orphans_.push_back({call.header_.request, *call.loads});
  } catch (const std::bad_alloc&) {
    fail_all();  // The role of a loader must not be forgotten: ending the session gives it up.
  }
}

void Connection::fail_all() noexcept {
  broken_ = true;
  ::shutdown(socket_.fd(), SHUT_RDWR);
  while (Call* call = waiting_.first()) {
    waiting_.remove(*call);
    call->outcome_ = Call::Outcome::lost;
    if (call->parked_) call->wake_.notify_one();
  }
  unread_count_ = 0;
  orphans_.clear();
}

Result<void> Connection::conclude(Call& call) {
  switch (call.outcome_) {
    case Call::Outcome::none:
    case Call::Outcome::lost: return gone_error();
    case Call::Outcome::silent:
      if (call.cancelled_) return interrupted_error();
      return make_error(ErrorCode::timed_out,
                        "the daemon does not answer: it has sent nothing for 10 s, so it is "
                        "stopped or hangs; shmctl status answers when it is back");
    case Call::Outcome::no_memory:
      return_grant(call);
      return make_error(ErrorCode::no_capacity, "out of memory");
    case Call::Outcome::reply: break;
  }
  if (call.cancelled_) {
    return_grant(call);
    return interrupted_error();
  }
  if (call.status_ == 0) return {};
  const auto code = error_code_of(call.status_).value_or(ErrorCode::protocol_error);
  return make_error(code, std::string(call.text()));
}

/// The call was granted something that its owner cannot or will not take.
void Connection::return_grant(Call& call) {
  ArrayBody body;
  if (call.status_ != 0 || !grants(call.op_) || !read_array_body(call.body(), body)) return;
  call.map.ref.reset();
  post_or_call(undo(call.op_, body, call.loads == nullptr ? QualifiedName{} : *call.loads));
}

// -- Connection: requests without a waiter --------------------------------------------------------

namespace {

/// The fixed part of what a chore sends; all fit.
union ChoreRequest {
  protocol::ReleaseRequest release;
  protocol::AbortRequest abort;
  protocol::CancelRequest cancel;
  protocol::ReceivedRequest received;
};

}  // namespace

std::size_t Connection::write_chore(const Chore& chore, void* target) noexcept {
  if (chore.op == Op::ping) return 0;
  if (chore.op == Op::cancel) {
    const protocol::CancelRequest request{chore.number};
    std::memcpy(target, &request, sizeof request);
    return sizeof request;
  }
  if (chore.op == Op::received) {
    const protocol::ReceivedRequest request{chore.id.raw, chore.number};
    std::memcpy(target, &request, sizeof request);
    return sizeof request;
  }
  if (chore.op == Op::abort) {
    protocol::AbortRequest request;
    request.id = chore.id.raw;
    request.ns_uid = chore.name.uid;
    request.name_bytes = static_cast<std::uint16_t>(chore.name.name.size());
    std::memcpy(target, &request, sizeof request);
    return sizeof request;
  }
  protocol::ReleaseRequest request;
  request.id = chore.id.raw;
  request.grants = 1;
  request.access = static_cast<std::uint8_t>(chore.access);
  std::memcpy(target, &request, sizeof request);
  return sizeof request;
}

Connection::Posted Connection::post(const Chore& chore, std::size_t unread_max) noexcept {
  std::byte fixed[sizeof(ChoreRequest)];
  protocol::FrameHeader header;
  header.op = static_cast<std::uint16_t>(chore.op);
  const std::string& name = chore.name.name;
  const iovec parts[] = {{&header, sizeof header},
                         {fixed, write_chore(chore, fixed)},
                         {const_cast<char*>(name.data()), name.size()}};
  const std::lock_guard order(send_mutex_);
  header.request = ++last_request_;
  {
    const std::lock_guard lock(mutex_);
    if (broken_) return Posted::closed;
    if (unread_count_ >= unread_max) return Posted::full;
    unread_[unread_count_++] = {header.request, chore.op, chore.id, chore.access};
  }
  pass_kill_point(chore.op, Step::before_send);
  const Sent sent = send_frame(socket_.fd(), parts);
  if (sent == Sent::yes) {
    pass_kill_point(chore.op, Step::after_send);
    return Posted::yes;
  }
  const std::lock_guard lock(mutex_);
  if (sent == Sent::full) {
    if (unread_count_ > 0) --unread_count_;  // Sends are in order: it is the last one.
    return Posted::full;
  }
  fail_all();
  return Posted::closed;
}

void Connection::post_or_queue(const Chore& chore) noexcept {
  if (post(chore, unread_.size()) != Posted::full) return;
  const std::lock_guard lock(mutex_);
  chores_want_room_ = unread_count_ < unread_.size();  // Else replies have to be read first.
  add_chore(chore);
}

/// As post(), but waits for the reply (and so for all earlier ones) when too many are unread.
void Connection::post_or_call(const Chore& chore) noexcept {
  if (post(chore, kUnreadMax) != Posted::full) return;
  std::byte fixed[sizeof(ChoreRequest)];
  Call call(chore.op);
  call.interruptible = false;
  call.add_bytes(fixed, write_chore(chore, fixed)).add_text(chore.name.name);
  try {
    if (send(call, {})) await(call, {});
  } catch (...) {
    return;  // No memory for an error's text; there is nobody to tell.
  }
  const bool sealed_meanwhile = was_sealed_meanwhile(chore.op, chore.id, chore.access) &&
                                call.outcome_ == Call::Outcome::reply && call.status_ != 0;
  if (sealed_meanwhile) post_or_call({Op::release, chore.id, Access::read, 0, {}});
}

void Connection::add_chore(const Chore& chore) noexcept {
  try {
    chores_.push_back(chore);
    has_chores_.store(true, std::memory_order_relaxed);
  } catch (const std::bad_alloc&) {
    fail_all();  // What cannot be given back singly is given back with the session.
  }
}

void Connection::do_chores() noexcept {
  if (!has_chores_.load(std::memory_order_relaxed)) return;
  std::vector<Chore> chores;
  {
    const std::lock_guard lock(mutex_);
    chores.swap(chores_);
    has_chores_.store(false, std::memory_order_relaxed);
    chores_want_room_ = false;
  }
  for (const Chore& chore : chores) post_or_queue(chore);
}

/// At the end of a call: what is queued is sent now, for there may be no other call. If another
/// thread reads, it does that. A daemon that does not read is not waited for: nobody here wants
/// anything of it.
void Connection::finish_chores() noexcept {
  const auto deadline = std::chrono::steady_clock::now() + kLongSlice;
  for (do_chores(); has_chores_.load(std::memory_order_relaxed); do_chores()) {
    std::unique_lock lock(mutex_);
    if (reading_ || broken_ || std::chrono::steady_clock::now() > deadline) return;
    read_one(lock);
    promote();
  }
}

void Connection::release(ArrayId id, Access access) noexcept {
  post_or_call({Op::release, id, access, 0, {}});
}

void Connection::abort(ArrayId id, Access access) noexcept {
  post_or_call({Op::abort, id, access, 0, {}});
}

void Connection::received(ArrayId id, std::uint64_t handle) noexcept {
  post_or_call({Op::received, id, Access::read, handle, {}});
}

void Connection::give_up_loading(const QualifiedName& key) noexcept {
  try {
    post_or_call({Op::abort, {}, Access::read, 0, key});
  } catch (const std::bad_alloc&) {
    const std::lock_guard lock(mutex_);
    fail_all();  // The role must not be forgotten: ending the session gives it up.
  }
}

Result<void> Connection::give_back(ArrayId id, Access access, bool drops) {
  const Chore chore{drops ? Op::abort : Op::release, id, access, 0, {}};
  std::byte fixed[sizeof(ChoreRequest)];
  Call one(chore.op);
  one.interruptible = false;
  one.add_bytes(fixed, write_chore(chore, fixed));
  Result<void> done = call(one, {});
  const bool sealed_meanwhile =
      !done && was_sealed_meanwhile(chore.op, id, access) && one.outcome_ == Call::Outcome::reply;
  if (!sealed_meanwhile) return done;
  Result<void> released = give_back(id, Access::read, false);
  return drops && !released ? done : released;
}

}  // namespace shmstore::client_internal
