#pragma once
/// The operations on arrays behind Client's methods.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "client/lease.hpp"
#include "client/state.hpp"
#include "shmstore/client.hpp"

namespace shmstore::client_internal {

/// What create needs to know, checked and in the wire's terms.
struct CreateCall {
  QualifiedName name;  ///< Empty name: anonymous.
  Dtype dtype;
  std::span<const std::uint64_t> shape;
  std::uint64_t bytes = 0;
  std::uint64_t ttl_ms = 0;
  std::int64_t timeout_ms = 0;
  std::uint16_t flags = 0;             ///< protocol::kCreate…
  std::span<const std::byte> content;  ///< All its bytes; empty: the caller writes it.
  bool granted = false;  ///< Set by create(): the daemon made it, whatever came after.
};

/// Checks everything that needs no daemon. Errors: invalid_argument.
[[nodiscard]] Result<CreateCall> check_create(std::string_view name, std::string_view dtype,
                                              std::span<const std::uint64_t> shape,
                                              const CreateOptions& options);

[[nodiscard]] Result<std::unique_ptr<Lease>> create(const std::shared_ptr<State>& state,
                                                    CreateCall& what, const CreateOptions& options);

/// A ttl in milliseconds; 0 for none. Error: invalid_argument for one that is not positive.
[[nodiscard]] Result<std::uint64_t> wire_ttl(std::optional<std::chrono::milliseconds> ttl);

}  // namespace shmstore::client_internal
