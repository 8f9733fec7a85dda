/// A frame goes: header checks → table → handler, which parses the body, checks the values that no
/// state is needed for, and calls the registry. The registry appends effects; run_effects() carries
/// them out one by one, in order, and those that they lead to behind them, until none is left. So
/// the registry is never called from inside one of its own calls.

#include "server/dispatch.hpp"

#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <new>
#include <utility>

#include "server/dispatch_admin.hpp"
#include "server/log.hpp"
#include "server/memory_reserve.hpp"

namespace shmstore::server {
namespace {

using namespace protocol;

/// Released segments asked about at a time, 1.5 µs each.
constexpr std::size_t kProbesAtOnce = 64;
/// What a session holds is taken from it in turns, so that nobody waits for the end of one that had
/// a million arrays. The first turn is its own; the others are shared by all that have ended, and
/// many may end at the same moment.
constexpr std::size_t kLeasesAtOnce = 64;
/// What gone sessions hold is not charged any more. So that nobody can make more of it than goes,
/// for each lease that there are more than after the last turn so many go besides.
constexpr std::uint64_t kLeasesPerNewOne = 2;
/// Creates of one user that may wait for memory on its way back. More are refused at once.
constexpr std::ptrdiff_t kUserParkedMax = 256;
/// Up to so many arrays a debug build checks its accounts after every request.
constexpr std::uint64_t kSelfcheckArraysMax = 256;

/// Names in a text as its reader writes them: the registry qualifies all ('~1000/x'), people leave
/// out their own namespace.
std::string as_read_by(std::uint32_t uid, std::string text) {
  const std::string own = "'~" + std::to_string(uid) + "/";
  for (std::size_t at = text.find(own); at != std::string::npos; at = text.find(own, at + 1)) {
    text.erase(at + 1, own.size() - 1);
  }
  return text;
}

/// Operations after which the daemon holds more than before.
bool takes_memory(std::uint16_t op) {
  switch (static_cast<Op>(op)) {
    case Op::create:
    case Op::attach:
    case Op::cached:
    case Op::wait:
    case Op::handover:
    case Op::watch: return true;
    default: return false;
  }
}

}  // namespace

Error no_memory() {
  return make_error(ErrorCode::no_capacity,
                    "memory: shmstored itself gets no more from the system (a limit of its address "
                    "space, or the machine's); it works again when something is released");
}

Now read_clock() {
  Now now;
  timespec at{};
  (void)::clock_gettime(CLOCK_BOOTTIME, &at);
  now.boot_ms = std::int64_t{at.tv_sec} * 1000 + at.tv_nsec / 1'000'000;
  (void)::clock_gettime(CLOCK_REALTIME, &at);
  now.wall_s = static_cast<double>(at.tv_sec) + static_cast<double>(at.tv_nsec) * 1e-9;
  return now;
}

Dispatcher::Dispatcher(Registry& registry, SegmentStore& store, Outbox& outbox, DaemonFacts facts,
                       Selfcheck selfcheck)
    : registry_(registry),
      store_(store),
      outbox_(outbox),
      facts_(std::move(facts)),
      selfcheck_(selfcheck),
      admin_(std::make_unique<AdminPlane>(
          registry, store, outbox, facts_, [this] { return this->selfcheck(); },
          [this](SessionId session, RequestId request, const AdminPlane::Collected& collected) {
            begin_gc({session, request, collected.handovers, collected.freed_bytes});
          })) {
  store_.set_on_freed([this](SegmentId segment) {
    registry_.segment_freed(segment, read_clock(), effects_);
    run_effects();
    retry_parked();
  });
  store_.set_on_pinned([this](SegmentId segment) {
    registry_.segment_pinned(segment, read_clock(), effects_);
    run_effects();
  });
}

Dispatcher::~Dispatcher() {
  store_.set_on_freed(nullptr);
  store_.set_on_pinned(nullptr);
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
  std::erase_if(gcs_, [session](const Gc& gc) { return gc.session == session; });
  if (!registry_.end_session(session, read_clock(), effects_, kLeasesAtOnce)) {
    if (ending_.empty()) leases_after_turn_ = registry_.counts().leases;
    ending_.push_back(session);
  }
  run_effects();
  (void)probe_released();
  check_after_request();
}

void Dispatcher::end_some(std::uint64_t leases_wanted) {
  if (ending_.empty()) return;
  std::uint64_t leases = registry_.counts().leases;
  const std::uint64_t more = leases - std::min(leases, leases_after_turn_);
  std::uint64_t left = leases_wanted + kLeasesPerNewOne * more;
  while (left > 0 && !ending_.empty()) {
    const SessionId session = ending_.front();
    ending_.pop_front();
    if (!registry_.end_session(session, read_clock(), effects_, left)) {
      ending_.push_back(session);
      left = 0;
    }
    const std::uint64_t before = std::exchange(leases, registry_.counts().leases);
    left -= std::min(left, std::max<std::uint64_t>(before - std::min(before, leases), 1));
  }
  run_effects();
  leases_after_turn_ = registry_.counts().leases;
  if (ending_.empty()) (void)probe_released();
  check_after_request();
}

// -- frames ---------------------------------------------------------------------------------------

bool Dispatcher::handle(SessionState& session, Bytes message, bool truncated) try {
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
  log_violation(session.id, header, outcome.error());
  return false;
} catch (const std::bad_alloc&) {
  return refuse_for_memory(session.id, message);
}

/// Not even the reserve sufficed: the request is answered by that, or its session has to go.
bool Dispatcher::refuse_for_memory(SessionId session, Bytes message) noexcept try {
  FrameHeader header;
  if (!read_header(message, header)) return false;
  send_error(session, header, no_memory());
  return true;
} catch (const std::exception&) {
  return false;
}

void Dispatcher::log_violation(SessionId session, const FrameHeader& header, const Error& error) {
  if (!violations_.allow(read_clock().boot_ms)) return;
  if (const std::uint64_t lines = violations_.take_left_out(); lines != 0) {
    log(LogLevel::info, "protocol violations not logged", {{"lines", lines}});
  }
  const Identity* who = registry_.identity(session);
  log(LogLevel::info, "protocol violation",
      {{"session", session},
       {"pid", who == nullptr ? 0 : who->pid},
       {"uid", who == nullptr ? 0 : who->uid},
       {"op", header.op},
       {"text", error.text}});
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
  if (memory_is_short() && takes_memory(header.op)) return no_memory();
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
  if (reply && !reply->empty()) {
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
  const Identity* reader = registry_.identity(session);
  Error said = error;
  if (reader != nullptr) said.text = as_read_by(reader->uid, error.text);
  if (error.code == ErrorCode::not_found) said.text += facts_.note;
  write_error(writer_, header, said);
  outbox_.send(session, writer_.frame(), {});
}

// -- room -----------------------------------------------------------------------------------------

bool Dispatcher::lacks_memory(std::uint32_t uid, const CreateSpec& spec) const {
  const std::uint64_t bytes = charge_of(spec.bytes) + record_bytes(spec);
  const Quota& quota = registry_.quota();
  const Usage usage = quota.usage(uid);
  const Limits& limits = quota.limits();
  const bool store_full =
      quota.bytes_used() > limits.capacity || bytes > limits.capacity - quota.bytes_used();
  const bool user_full = usage.bytes > usage.bytes_max || bytes > usage.bytes_max - usage.bytes;
  const bool no_segment = spec.bytes > 0 && (store_.segments() >= limits.segments_max ||
                                             usage.segments >= usage.segments_max);
  return store_full || user_full || no_segment;
}

bool Dispatcher::lacks_arrays(std::uint32_t uid) const {
  const Usage usage = registry_.quota().usage(uid);
  return usage.arrays >= usage.arrays_max;
}

/// Nothing is refused for want of memory that nobody maps any more. Asking the kernel begins here
/// and goes on in turns.
void Dispatcher::make_room(std::uint32_t uid, const CreateSpec& spec) {
  if (lacks_arrays(uid) || !lacks_memory(uid, spec)) return;
  begin_sweep();
  sweep_some();
  if (!lacks_memory(uid, spec)) return;
  if (registry_.end_unread(uid, true, read_clock(), effects_) > 0) run_effects();
}

void Dispatcher::begin_sweep() {
  sweep_left_ = std::max(sweep_left_, store_.pinned_segments());
}

void Dispatcher::sweep_some() {
  std::uint64_t freed = 0;
  sweep_left_ = std::min(sweep_left_, store_.pinned_segments());
  for (std::size_t n = 0; n < kProbesAtOnce && freed < kFreedAtOnceBytes && sweep_left_ > 0; ++n) {
    --sweep_left_;
    freed += store_.probe_released(1, kFreedAtOnceBytes);
  }
  for (Gc& gc : gcs_) gc.freed_bytes += freed;
  if (sweep_left_ == 0) answer_gcs();
  retry_parked();
}

void Dispatcher::begin_gc(Gc gc) {
  gcs_.push_back(gc);
  begin_sweep();
  sweep_some();
}

void Dispatcher::answer_gcs() {
  for (const Gc& gc : std::exchange(gcs_, {})) {
    writer_.begin(Op::gc, gc.request);
    writer_.put_text(admin_->gc_reply({gc.handovers, gc.freed_bytes}));
    send_reply(gc.session);
  }
}

std::uint64_t Dispatcher::probe_released() {
  const std::uint64_t freed = store_.probe_released(kProbesAtOnce, kFreedAtOnceBytes);
  retry_parked();  // what was hoped for may turn out to be pinned
  return freed;
}

bool Dispatcher::more_to_come() const {
  return store_.freeing_bytes() > 0 || sweep_left_ > 0 || !ending_.empty();
}

/// Does it lack what is on its way back? Sessions that end give back memory and numbers of arrays,
/// the kernel memory only.
bool Dispatcher::may_hope(std::uint32_t uid, const CreateSpec& spec) const {
  if (!ending_.empty()) return lacks_arrays(uid) || lacks_memory(uid, spec);
  const bool memory_to_come = store_.freeing_bytes() > 0 || sweep_left_ > 0;
  return memory_to_come && !lacks_arrays(uid) && lacks_memory(uid, spec);
}

/// Places for those who hope are a share of each user's: nobody can take those of others.
bool Dispatcher::may_park(std::uint32_t uid) const {
  const auto same = [uid](const Parked& parked) { return parked.uid == uid; };
  return std::count_if(parked_.begin(), parked_.end(), same) < kUserParkedMax;
}

/// One by one: each that is made takes room from those behind it. Once more from the start when
/// nothing is to come any more since, for nobody would ask again.
void Dispatcher::retry_parked() {
  if (running_effects_) return;
  for (bool again = true; again;) {
    const bool hoped = more_to_come();
    for (std::size_t at = 0; at < parked_.size();) {
      if (may_hope(parked_[at].uid, parked_[at].spec)) {
        ++at;
        continue;
      }
      Parked parked = std::move(parked_[at]);
      parked_.erase(parked_.begin() + static_cast<std::ptrdiff_t>(at));
      registry_.create(parked.session, parked.request, std::move(parked.spec), read_clock(),
                       effects_);
      run_effects();
    }
    again = hoped && !more_to_come();
  }
}

// -- time, checks ---------------------------------------------------------------------------------

void Dispatcher::tick() {
  registry_.tick(read_clock(), effects_);
  run_effects();
  check_after_request();
}

std::optional<std::int64_t> Dispatcher::next_deadline_ms() const {
  return registry_.next_deadline_ms();
}

std::vector<std::string> Dispatcher::selfcheck() const {
  std::vector<std::string> problems = registry_.selfcheck();
  const std::vector<std::string> of_store = store_.selfcheck();
  problems.insert(problems.end(), of_store.begin(), of_store.end());
  const std::uint64_t charged = registry_.quota().bytes_used() - registry_.counts().record_bytes;
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
