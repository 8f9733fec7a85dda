/// Every length in a frame is a number that a stranger chose: each is compared with what is left of
/// the frame before it is used, and what is left at the end must be nothing.

#include "server/wire.hpp"

#include <algorithm>
#include <bit>
#include <string>

#include "shmstore/text.hpp"

namespace shmstore::server {
namespace {

using namespace protocol;

static_assert(std::endian::native == std::endian::little,
              "the protocol is little-endian and copied as it stands");

Error malformed(std::string text) {
  return make_error(ErrorCode::protocol_error, std::move(text));
}

Error wrong_length(std::size_t has, std::size_t wants) {
  return malformed("the body has " + std::to_string(has) + " bytes, its fields say " +
                   std::to_string(wants));
}

template <class T>
bool read(Bytes body, T& value) noexcept {
  if (body.size() < sizeof value) return false;
  std::memcpy(&value, body.data(), sizeof value);
  return true;
}

bool all_zero(Bytes bytes) noexcept {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

template <class Field>
bool zero(const Field& field) noexcept {
  return all_zero(std::as_bytes(std::span(&field, 1)));
}

bool is_access(std::uint8_t value) noexcept {
  return value >= static_cast<std::uint8_t>(Access::read) &&
         value <= static_cast<std::uint8_t>(Access::hold);
}

// What makes a request's fixed part malformed, beyond its length; null: nothing.
const char* fault(const HelloRequest& r) noexcept {
  return zero(r.reserved) ? nullptr : "reserved bytes are not zero";
}
const char* fault(const CreateRequest& r) noexcept {
  if ((r.options & ~kCreateOptions) != 0) return "unknown options";
  return r.order <= 1 ? nullptr : "order is neither 0 nor 1";
}
const char* fault(const SealRequest& r) noexcept {
  if (r.reserved != 0) return "reserved bytes are not zero";
  return r.hard <= 1 ? nullptr : "hard is neither 0 nor 1";
}
const char* fault(const AttachRequest& r) noexcept {
  if (!is_access(r.access)) return "access is none of 1 to 5";
  if ((r.options & ~kAttachOptions) != 0) return "unknown options";
  if (r.id != 0 && r.name_bytes != 0) return "both an id and a name are given";
  const bool once = (r.options & kAttachOnce) != 0;
  if (once && (r.id == 0 || r.newer_than == 0))
    return "options: a handle for one receiver has an id and a number";
  return nullptr;
}
const char* fault(const SegmentRequest& r) noexcept {
  if (!is_access(r.access)) return "access is none of 1 to 5";
  return zero(r.reserved) ? nullptr : "reserved bytes are not zero";
}
const char* fault(const ReleaseRequest& r) noexcept {
  if (!is_access(r.access)) return "access is none of 1 to 5";
  if (r.grants == 0) return "grants is 0";
  return zero(r.reserved) ? nullptr : "reserved bytes are not zero";
}
const char* fault(const CachedRequest& r) noexcept {
  return r.reserved == 0 ? nullptr : "reserved bytes are not zero";
}
const char* fault(const WaitRequest& r) noexcept {
  return r.reserved == 0 ? nullptr : "reserved bytes are not zero";
}
const char* fault(const CancelRequest&) noexcept {
  return nullptr;
}
const char* fault(const AbortRequest& r) noexcept {
  if (r.reserved != 0) return "reserved bytes are not zero";
  return r.id != 0 && r.name_bytes != 0 ? "both an id and a name are given" : nullptr;
}
const char* fault(const HandoverRequest& r) noexcept {
  if ((r.options & ~kHandoverOnce) != 0) return "options: unknown bits are set";
  return zero(r.reserved) ? nullptr : "reserved bytes are not zero";
}
const char* fault(const ReceivedRequest&) noexcept {
  return nullptr;
}
const char* fault(const PublishRequest&) noexcept {
  return nullptr;
}

std::string_view take_text(Bytes& rest, std::size_t bytes) noexcept {
  const auto* first = reinterpret_cast<const char*>(rest.data());
  rest = rest.subspan(bytes);
  return {first, bytes};
}

}  // namespace

bool read_header(Bytes message, FrameHeader& header) noexcept {
  return read(message, header);
}

Result<Frame> parse_frame(Bytes message) {
  Frame frame;
  if (!read(message, frame.header)) return malformed("a frame is shorter than its header");
  if (frame.header.flags != 0) return malformed("flags are not zero in a request");
  if (frame.header.status != 0) return malformed("status is not zero in a request");
  if (frame.header.request == 0) return malformed("request ids begin at 1");
  frame.body = message.subspan(sizeof frame.header);
  return frame;
}

template <class Request>
Result<Request> parse_fixed(Bytes body) {
  Request request;
  if (body.size() != sizeof request) return wrong_length(body.size(), sizeof request);
  (void)read(body, request);
  if (const char* problem = fault(request)) return malformed(problem);
  return request;
}

template <class Request>
Result<Named<Request>> parse_named(Bytes body) {
  Named<Request> named;
  if (!read(body, named.fixed)) return wrong_length(body.size(), sizeof(Request));
  const std::size_t wanted = sizeof(Request) + named.fixed.name_bytes;
  if (body.size() != wanted) return wrong_length(body.size(), wanted);
  if (const char* problem = fault(named.fixed)) return malformed(problem);
  Bytes rest = body.subspan(sizeof(Request));
  named.name = take_text(rest, named.fixed.name_bytes);
  return named;
}

template Result<HelloRequest> parse_fixed<HelloRequest>(Bytes);
template Result<SealRequest> parse_fixed<SealRequest>(Bytes);
template Result<SegmentRequest> parse_fixed<SegmentRequest>(Bytes);
template Result<ReleaseRequest> parse_fixed<ReleaseRequest>(Bytes);
template Result<CancelRequest> parse_fixed<CancelRequest>(Bytes);
template Result<HandoverRequest> parse_fixed<HandoverRequest>(Bytes);
template Result<ReceivedRequest> parse_fixed<ReceivedRequest>(Bytes);
template Result<PublishRequest> parse_fixed<PublishRequest>(Bytes);
template Result<Named<AttachRequest>> parse_named<AttachRequest>(Bytes);
template Result<Named<CachedRequest>> parse_named<CachedRequest>(Bytes);
template Result<Named<WaitRequest>> parse_named<WaitRequest>(Bytes);
template Result<Named<AbortRequest>> parse_named<AbortRequest>(Bytes);

Result<CreateFrame> parse_create(Bytes body) {
  CreateFrame frame;
  const CreateRequest& fixed = frame.fixed;
  if (!read(body, frame.fixed)) return wrong_length(body.size(), sizeof fixed);
  const std::size_t dims_bytes = std::size_t{fixed.ndim} * sizeof(std::uint64_t);
  const std::size_t wanted =
      sizeof fixed + dims_bytes + fixed.name_bytes + fixed.dtype_bytes + fixed.attrs_bytes;
  if (body.size() != wanted) return wrong_length(body.size(), wanted);
  if (const char* problem = fault(fixed)) return malformed(problem);
  Bytes rest = body.subspan(sizeof fixed);
  if (dims_bytes != 0) std::memcpy(frame.dims.data(), rest.data(), dims_bytes);
  rest = rest.subspan(dims_bytes);
  frame.name = take_text(rest, fixed.name_bytes);
  frame.dtype = take_text(rest, fixed.dtype_bytes);
  frame.attrs = take_text(rest, fixed.attrs_bytes);
  return frame;
}

std::size_t json_depth(std::string_view text) noexcept {
  std::size_t depth = 0;
  std::size_t deepest = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      deepest = std::max(deepest, ++depth);
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  return deepest;
}

bool is_utf8(std::string_view text) noexcept {
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

void write_error(FrameWriter& writer, const FrameHeader& request, const Error& error) {
  std::string_view text = error.text;
  if (text.size() > kErrorTextBytesMax) {
    text = text.substr(0, kErrorTextBytesMax);
    while (!text.empty() && !is_utf8(text)) text.remove_suffix(1);
  }
  writer.begin(static_cast<Op>(request.op), request.request,
               static_cast<std::uint32_t>(error.code));
  writer.put_text(text);
}

}  // namespace shmstore::server
