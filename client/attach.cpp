#include <cstring>
#include <string>
#include <utility>

#include "client/guarded.hpp"
#include "client/names.hpp"
#include "client/operations.hpp"

namespace shmstore {

using client_internal::Call;
using client_internal::Connection;
using client_internal::guarded;
using client_internal::Lease;

namespace client_internal {

namespace {

Result<void> check_access(Access access) {
  switch (access) {
    case Access::read:
    case Access::write:
    case Access::copy:
    case Access::exclusive:
    case Access::hold: return {};
  }
  return make_error(ErrorCode::invalid_argument, "access: must be r, r+, c, x or h");
}

/// `name` is empty for an attach by id.
Result<std::unique_ptr<Lease>> attach(const std::shared_ptr<State>& state,
                                      protocol::AttachRequest request, std::string_view name,
                                      const AttachOptions& options, std::uint64_t handle = 0) {
  if (Result<void> access = check_access(options.access); !access) return access.error();
  Result<std::int64_t> timeout = wire_timeout(options.timeout, "timeout");
  if (!timeout) return timeout.error();
  request.newer_than = handle != 0 ? handle : options.newer_than;
  request.timeout_ms = *timeout;
  request.name_bytes = static_cast<std::uint16_t>(name.size());
  request.access = static_cast<std::uint8_t>(options.access);
  if (options.repair) request.options |= protocol::kAttachRepair;
  auto lease = std::make_unique<Lease>(state);
  Call call(protocol::Op::attach);
  call.add(request).add_text(name);
  call.server_wait = options.timeout;
  const std::string subject =
      "array " + (name.empty() ? std::to_string(request.id) : "'" + std::string(name) + "'");
  call.waits_for = subject;
  Result<std::shared_ptr<Connection>> connection = state->call(call);
  if (!connection) return connection.error();
  if (Result<void> adopted = lease->adopt(std::move(*connection), call); !adopted) {
    return adopted.error();
  }
  if (handle != 0) lease->received(handle);
  return lease;
}

}  // namespace

}  // namespace client_internal

Result<AnyArray> Client::attach_any(std::string_view name, const AttachOptions& options) {
  return guarded([&]() -> Result<AnyArray> {
    Result<QualifiedName> parsed = client_internal::parse_name(name);
    if (!parsed) return parsed.error();
    protocol::AttachRequest request;
    request.ns_uid = parsed->uid;
    Result<std::unique_ptr<Lease>> lease =
        client_internal::attach(state_, request, parsed->name, options);
    if (!lease) return lease.error();
    return AnyArray(std::move(*lease));
  });
}

Result<AnyArray> Client::attach_id(ArrayId id, std::uint64_t store_id, const AttachOptions& options,
                                   bool from_handle, std::uint64_t handle) {
  return guarded([&]() -> Result<AnyArray> {
    if (!id.valid()) return make_error(ErrorCode::invalid_argument, "id: must not be 0");
    if (handle != 0 && options.newer_than != 0) {
      return make_error(ErrorCode::invalid_argument, "newer_than: only with a name");
    }
    protocol::AttachRequest request;
    request.id = id.raw;
    request.store_id = store_id;
    if (handle != 0) {
      request.options |= protocol::kAttachOnce;
    } else if (from_handle) {
      request.options |= protocol::kAttachHandover;
    }
    Result<std::unique_ptr<Lease>> lease =
        client_internal::attach(state_, request, {}, options, handle);
    if (!lease) return lease.error();
    return AnyArray(std::move(*lease));
  });
}

Result<std::uint64_t> Client::wait(std::string_view name, std::uint64_t newer_than,
                                   Timeout timeout) {
  return guarded([&]() -> Result<std::uint64_t> {
    Result<QualifiedName> parsed = client_internal::parse_name(name);
    if (!parsed) return parsed.error();
    Result<std::int64_t> timeout_ms = client_internal::wire_timeout(timeout, "timeout");
    if (!timeout_ms) return timeout_ms.error();
    protocol::WaitRequest request;
    request.newer_than = newer_than;
    request.timeout_ms = *timeout_ms;
    request.ns_uid = parsed->uid;
    request.name_bytes = static_cast<std::uint16_t>(parsed->name.size());
    Call call(protocol::Op::wait);
    call.add(request).add_text(parsed->name);
    call.server_wait = timeout;
    const std::string subject = "array '" + parsed->name + "'";
    call.waits_for = subject;
    Result<std::shared_ptr<Connection>> done = state_->call(call);
    if (!done) return done.error();
    protocol::WaitReply reply;
    if (call.body().size() != sizeof reply) {
      return make_error(ErrorCode::protocol_error, "reply: its length is wrong");
    }
    std::memcpy(&reply, call.body().data(), sizeof reply);
    return std::uint64_t{reply.version};
  });
}

}  // namespace shmstore
