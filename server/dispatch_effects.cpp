/// What the registry asked for, carried out: replies, memory, seals, events.

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "server/dispatch.hpp"
#include "server/dispatch_admin.hpp"
#include "server/log.hpp"

namespace shmstore::server {

using namespace protocol;

namespace {

constexpr std::size_t kFreedAtOnceMax = 64;

}  // namespace

void Dispatcher::run_effects() {
  if (running_effects_) return;
  running_effects_ = true;
  freed_in_run_ = 0;
  freed_bytes_in_run_ = 0;
  // By index and moved out first: carrying one out may append more. One that fails for want of
  // memory is lost; those behind it are carried out by the next call.
  std::size_t next = 0;
  try {
    while (next < effects_.size()) {
      Effect effect = std::move(effects_[next++]);
      std::visit([this](const auto& one) { carry_out(one); }, effect);
    }
  } catch (...) {
    effects_.erase(effects_.begin(), effects_.begin() + static_cast<std::ptrdiff_t>(next));
    running_effects_ = false;
    throw;
  }
  effects_.clear();
  running_effects_ = false;
}

void Dispatcher::carry_out(const Completion& completion) {
  std::visit([this, &completion](const auto& result) { answer(completion, result); },
             completion.result);
}

void Dispatcher::carry_out(const AllocateSegment& effect) {
  store_.allocate(effect.id.raw, effect.uid, effect.bytes,
                  [this, id = effect.id](Result<SegmentId> segment) {
                    registry_.segment_ready(id, std::move(segment), read_clock(), effects_);
                    run_effects();
                  });
}

void Dispatcher::carry_out(const CancelAllocation& effect) {
  store_.cancel(effect.id.raw);
}

void Dispatcher::carry_out(const HardSealSegment& effect) {
  store_.seal_hard(effect.segment, [this, id = effect.id](const Result<void>& sealed) {
    registry_.hard_sealed(id, sealed, read_clock(), effects_);
    run_effects();
  });
}

void Dispatcher::carry_out(const FreeSegment& effect) {
  // Thousands at once (a session ends) would hold up everybody else.
  const bool ask_now =
      ++freed_in_run_ <= kFreedAtOnceMax && freed_bytes_in_run_ < kFreedAtOnceBytes;
  freed_bytes_in_run_ += store_.segment_bytes(effect.segment);
  store_.release(effect.segment, ask_now);
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
  const unsigned options = (array->kept ? kArrayKept : 0U) | (array->hard ? kArrayHard : 0U);
  body.options = static_cast<std::uint16_t>(options);
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
  send_reply(completion.session,
             descriptor ? DescriptorRef{array->segment, writes(grant.access)} : DescriptorRef{});
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

void Dispatcher::answer(const Completion& completion, const HandedOver& handle) {
  begin_reply(completion);
  writer_.put(HandoverReply{handle.number});
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
    const ArrayId id{body.id};
    const auto access = static_cast<Access>(body.access);
    // A release would say that a broken array is whole again.
    if (access == Access::exclusive && body.state == static_cast<std::uint8_t>(State::broken)) {
      registry_.abort(session, header.request, {id, {}}, read_clock(), effects);
    } else {
      registry_.release(session, header.request, id, access, 1, read_clock(), effects);
    }
    std::erase_if(effects, [&](const Effect& effect) {
      const auto* completion = std::get_if<Completion>(&effect);
      return completion != nullptr && completion->session == session &&
             completion->request == header.request;
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

}  // namespace shmstore::server
