#include <utility>

#include "client/guarded.hpp"
#include "client/lease.hpp"

namespace shmstore {

using client_internal::guarded;

AnyArray::AnyArray() noexcept = default;
AnyArray::AnyArray(AnyArray&&) noexcept = default;
AnyArray& AnyArray::operator=(AnyArray&&) noexcept = default;
AnyArray::~AnyArray() = default;
AnyArray::AnyArray(std::unique_ptr<client_internal::Lease> lease) noexcept
    : lease_(std::move(lease)) {}

bool AnyArray::valid() const noexcept {
  return lease_ != nullptr;
}

const std::byte* AnyArray::data() const noexcept {
  return lease_ ? lease_->data_ : nullptr;
}

std::byte* AnyArray::writable_data() const noexcept {
  return lease_ && lease_->access_ != Access::read ? lease_->data_ : nullptr;
}

std::uint64_t AnyArray::bytes() const noexcept {
  return lease_ ? lease_->bytes_ : 0;
}

const Dtype& AnyArray::dtype() const noexcept {
  static const Dtype none;
  return lease_ ? lease_->dtype_ : none;
}

std::span<const std::uint64_t> AnyArray::shape() const noexcept {
  return lease_ ? std::span<const std::uint64_t>(lease_->shape_) : std::span<const std::uint64_t>();
}

Order AnyArray::order() const noexcept {
  return lease_ ? lease_->order_ : Order::c;
}

ArrayId AnyArray::id() const noexcept {
  return lease_ ? lease_->id_ : ArrayId{};
}

std::uint64_t AnyArray::store_id() const noexcept {
  return lease_ ? lease_->store_id_ : 0;
}

const std::string& AnyArray::name() const noexcept {
  static const std::string none;
  return lease_ ? lease_->name_ : none;
}

std::uint64_t AnyArray::version() const noexcept {
  return lease_ ? lease_->version_ : 0;
}

State AnyArray::state() const noexcept {
  return lease_ ? lease_->array_state_ : State::gone;
}

Seal AnyArray::sealed() const noexcept {
  return lease_ ? lease_->seal_ : Seal::none;
}

Access AnyArray::access() const noexcept {
  return lease_ ? lease_->access_ : Access::read;
}

std::uint16_t AnyArray::perms() const noexcept {
  return lease_ ? lease_->perms_ : std::uint16_t{0};
}

bool AnyArray::is_creator() const noexcept {
  return lease_ && lease_->creator_ && !lease_->inherited() && !lease_->is_shared_sealed();
}

bool AnyArray::inherited() const noexcept {
  return lease_ && lease_->inherited();
}

Result<void> AnyArray::seal(const SealOptions& options) {
  return guarded([&]() -> Result<void> {
    if (lease_) return lease_->seal(options);
    return make_error(ErrorCode::invalid_argument, "array: the handle is empty");
  });
}

Result<void> AnyArray::handover() {
  return guarded([&]() -> Result<void> {
    if (!lease_) return make_error(ErrorCode::invalid_argument, "array: the handle is empty");
    Result<std::uint64_t> handle = lease_->handover(false);
    return handle ? Result<void>() : Result<void>(handle.error());
  });
}

Result<std::uint64_t> AnyArray::handover_once() {
  return guarded([&]() -> Result<std::uint64_t> {
    if (lease_) return lease_->handover(true);
    return make_error(ErrorCode::invalid_argument, "array: the handle is empty");
  });
}

void AnyArray::received(std::uint64_t handle) noexcept {
  if (lease_) lease_->received(handle);
}

Result<void> AnyArray::let_go(bool half_written) {
  return guarded([&]() -> Result<void> {
    if (lease_) return lease_->let_go(half_written);
    return make_error(ErrorCode::invalid_argument, "array: the handle is empty");
  });
}

Result<void> AnyArray::release() noexcept {
  const std::unique_ptr<client_internal::Lease> lease = std::move(lease_);
  return guarded([&]() -> Result<void> {
    if (lease) return lease->release();
    return {};
  });
}

}  // namespace shmstore
