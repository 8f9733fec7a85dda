#include <memory>
#include <string>
#include <utility>

#include "client/guarded.hpp"
#include "client/names.hpp"
#include "client/operations.hpp"

namespace shmstore {

using client_internal::Connection;
using client_internal::CreateCall;
using client_internal::guarded;
using client_internal::Lease;

namespace client_internal {

namespace {

/// The daemon pre-faults memory before it answers: its guard grows with the size.
constexpr std::uint64_t kSlowestBytesPerMs = 32U << 10U;

Error bad_argument(std::string text) {
  return make_error(ErrorCode::invalid_argument, std::move(text));
}

std::uint16_t flags_of(const CreateOptions& options) {
  unsigned flags = 0;
  if (options.is_mutable) flags |= protocol::kCreateMutable;
  if (options.keep) flags |= protocol::kCreateKeep;
  if (options.replace) flags |= protocol::kCreateReplace;
  if (options.hard) flags |= protocol::kCreateHard;
  return static_cast<std::uint16_t>(flags);
}

}  // namespace

Result<std::uint64_t> wire_ttl(std::optional<std::chrono::milliseconds> ttl) {
  if (!ttl) return std::uint64_t{0};
  if (ttl->count() <= 0 || ttl->count() > protocol::kTimeoutMsMax) {
    return bad_argument("ttl: must be above 0 and at most 2^52 ms");
  }
  return static_cast<std::uint64_t>(ttl->count());
}

Result<CreateCall> check_create(std::string_view name, std::string_view dtype,
                                std::span<const std::uint64_t> shape,
                                const CreateOptions& options) {
  CreateCall what;
  if (!name.empty()) {
    Result<QualifiedName> parsed = parse_name(name);
    if (!parsed) return parsed.error();
    what.name = std::move(*parsed);
  }
  Result<Dtype> type = Dtype::parse(dtype);
  if (!type) return type.error();
  what.dtype = std::move(*type);
  Result<std::uint64_t> bytes = array_bytes(what.dtype.itemsize(), shape);
  if (!bytes) return bytes.error();
  if ((options.perms & ~kPermsMax) != 0) return bad_argument("perms: only bits of 0666 may be set");
  if (options.attrs.size() > kAttrsBytesMax) {
    return bad_argument("attrs: have " + std::to_string(options.attrs.size()) +
                        " bytes, at most 4096 are allowed");
  }
  Result<std::uint64_t> ttl = wire_ttl(options.ttl);
  if (!ttl) return ttl.error();
  Result<std::int64_t> timeout = wire_timeout(options.timeout, "timeout");
  if (!timeout) return timeout.error();
  what.shape = shape;
  what.bytes = *bytes;
  what.ttl_ms = *ttl;
  what.timeout_ms = *timeout;
  what.flags = flags_of(options);
  return what;
}

Result<std::unique_ptr<Lease>> create(const std::shared_ptr<State>& state, CreateCall& what,
                                      const CreateOptions& options) {
  protocol::CreateRequest request;
  request.bytes = what.bytes;
  request.timeout_ms = what.timeout_ms;
  request.ttl_ms = what.ttl_ms;
  request.ns_uid = what.name.uid;
  request.name_bytes = static_cast<std::uint16_t>(what.name.name.size());
  request.dtype_bytes = static_cast<std::uint16_t>(what.dtype.text().size());
  request.attrs_bytes = static_cast<std::uint16_t>(options.attrs.size());
  request.perms = options.perms;
  request.options = what.flags;
  request.ndim = static_cast<std::uint8_t>(what.shape.size());
  request.order = static_cast<std::uint8_t>(options.order);
  // A mutable array is there for all at once. Where that would replace another, or stay for good,
  // it first has to be mapped; where it has contents, those have to be written first.
  const bool unseen =
      options.is_mutable && (options.keep || options.replace || !what.content.empty());
  if (unseen) request.options |= protocol::kCreateUnseen;
  auto lease = std::make_unique<Lease>(state);
  Call call(protocol::Op::create);
  call.add(request).add_bytes(what.shape.data(), what.shape.size_bytes());
  call.add_text(what.name.name).add_text(what.dtype.text());
  call.add_text(options.attrs);
  call.server_wait = options.timeout;
  call.waits_for = "room for an array";
  call.keep_descriptor = !what.content.empty();
  if (call.server_wait) {
    *call.server_wait += std::chrono::milliseconds(what.bytes / kSlowestBytesPerMs);
  }
  Result<std::shared_ptr<Connection>> connection = state->call(call);
  what.granted = call.replied();
  if (!connection) return connection.error();
  lease->unseen_ = unseen;
  const Result<void> adopted = lease->adopt(std::move(*connection), call, what.content);
  if (!adopted) return adopted.error();
  if (unseen) {
    if (Result<void> published = lease->publish(); !published) return published.error();
  }
  return lease;
}

}  // namespace client_internal

Result<AnyArray> Client::create_any(std::string_view name, std::string_view dtype,
                                    std::span<const std::uint64_t> shape,
                                    const CreateOptions& options) {
  return guarded([&]() -> Result<AnyArray> {
    Result<CreateCall> what = client_internal::check_create(name, dtype, shape, options);
    if (!what) return what.error();
    Result<std::unique_ptr<Lease>> lease = client_internal::create(state_, *what, options);
    if (!lease) return lease.error();
    return AnyArray(std::move(*lease));
  });
}

Result<AnyArray> Client::put_any(std::string_view name, std::string_view dtype,
                                 std::span<const std::uint64_t> shape,
                                 std::span<const std::byte> bytes, const CreateOptions& options) {
  return guarded([&]() -> Result<AnyArray> {
    Result<CreateCall> what = client_internal::check_create(name, dtype, shape, options);
    if (!what) return what.error();
    if (bytes.size() != what->bytes) {
      return make_error(ErrorCode::invalid_argument, "bytes: " + std::to_string(bytes.size()) +
                                                         " given, dtype and shape need " +
                                                         std::to_string(what->bytes));
    }
    what->content = bytes;
    // On an error the draft is aborted by the end of its lease.
    Result<std::unique_ptr<Lease>> lease = client_internal::create(state_, *what, options);
    if (!lease) return lease.error();
    if (!options.is_mutable) {
      if (Result<void> sealed = (*lease)->seal({}); !sealed) return sealed.error();
    }
    return AnyArray(std::move(*lease));
  });
}

}  // namespace shmstore
