#pragma once
/// What a handle (AnyArray) holds: one grant of a lease, and the map of the bytes.
///
/// One handle is one grant, given back once. The daemon counts grants, so a release can never end
/// the lease that another thread's attach has just got, whatever the order on the wire.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client/connection.hpp"
#include "client/mapping_cache.hpp"
#include "client/state.hpp"
#include "shmstore/client.hpp"

namespace shmstore::client_internal {

class Lease {
 public:
  explicit Lease(std::shared_ptr<State> state) noexcept : state_(std::move(state)) {}
  ~Lease();
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  /// Takes over what a successful create, attach or cached reply granted, and maps it. From its
  /// first line on, the grant is this object's to give back, also if the rest fails.
  /// `content`: all bytes of an array that this call made, keeping the descriptor; written first.
  /// Errors: no_capacity (no room for the descriptor or the map), protocol_error,
  /// invalid_argument (the content cannot be read).
  [[nodiscard]] Result<void> adopt(std::shared_ptr<Connection> connection, Call& call,
                                   std::span<const std::byte> content = {});

  /// Unmaps, then gives the grant back and waits for the answer; a creator's draft is aborted. In
  /// a forked child only unmaps.
  [[nodiscard]] Result<void> release();

  /// Publishes; see AnyArray::seal.
  [[nodiscard]] Result<void> seal(const SealOptions& options);

  /// Makes a mutable draft that only this process knows visible, once it is mapped and filled.
  [[nodiscard]] Result<void> publish();

  /// The number of a handle for one receiver (`once`); 0: it is for many.
  [[nodiscard]] Result<std::uint64_t> handover(bool once);

  /// Says that the array of this handle for one receiver is mapped here.
  void received(std::uint64_t handle) noexcept;

  /// Ends the lease, not the map; see AnyArray::let_go.
  [[nodiscard]] Result<void> let_go(bool half_written);

  /// True in every process but the one that got the grant.
  [[nodiscard]] bool inherited() const noexcept { return epoch_ != process_epoch(); }
  /// True when another handle of this process has sealed the array.
  [[nodiscard]] bool is_shared_sealed() const noexcept { return map_.is_sealed(); }
  [[nodiscard]] bool is_draft_creator() const noexcept {
    return creator_ && array_state_ == shmstore::State::draft && !map_.is_sealed();
  }

  // What the handle shows.
  std::byte* data_ = nullptr;
  std::uint64_t bytes_ = 0;
  Dtype dtype_;
  std::vector<std::uint64_t> shape_;
  Order order_ = Order::c;
  ArrayId id_;
  std::uint64_t store_id_ = 0;
  std::string name_;
  std::uint64_t version_ = 0;
  shmstore::State array_state_ = shmstore::State::draft;
  Seal seal_ = Seal::none;
  Access access_ = Access::read;
  std::uint16_t perms_ = 0;
  bool creator_ = false;
  bool hard_ = false;    ///< Made with `hard`: every seal is a hard one.
  bool unseen_ = false;  ///< A mutable draft, to be published when it is mapped and filled.

 private:
  Result<void> describe(const protocol::ArrayBody& body, std::span<const std::byte> tail);
  Result<void> map(Call& call);
  Result<void> write(Call& call, std::span<const std::byte> content);
  Result<MapOutcome> fetch_segment();
  Result<UninheritedFd> fetch_descriptor();
  bool is_dropped() const noexcept;
  void spare_views(protocol::Op op) noexcept;
  void forget_map() noexcept;
  Result<void> swap_map(MapRef& map, bool to_private, protocol::Op op);
  Result<void> swap_map(MapRef& map, const UninheritedFd& descriptor, bool to_private,
                        protocol::Op op);
  Result<void> seal_soft(const SealOptions& options);
  Result<void> seal_hard(const SealOptions& options);
  Result<void> follow_seal();
  Result<void> harden(const SealOptions& options);
  void read_through(MapRef reader) noexcept;
  Result<void> send_seal(bool hard, const SealOptions& options);
  Result<std::uint64_t> handover_inherited(bool once);
  Access granted_access() const noexcept;
  SegmentView view() const noexcept { return view(access_); }
  SegmentView view(Access access) const noexcept;

  std::shared_ptr<State> state_;
  std::shared_ptr<Connection> connection_;
  std::uint64_t epoch_ = 0;
  bool held_ = false;          ///< The grant has not been given back.
  bool damaged_ = false;       ///< A failed hard seal left a private map: what is written is lost.
  bool half_written_ = false;  ///< Exclusive: its end leaves the array broken.
  std::uint64_t segment_ = 0;
  std::uint64_t offset_ = 0;
  std::uint64_t segment_bytes_ = 0;
  MapRef map_;
  /// What map_ was before the seal: for pointers that were taken then.
  MapRef draft_map_;
};

/// A timeout as the wire says it. Error: invalid_argument for a negative one.
[[nodiscard]] Result<std::int64_t> wire_timeout(Timeout timeout, std::string_view field);

}  // namespace shmstore::client_internal
