#pragma once
/// The maps of a process. Shared maps (read and write) exist once per segment and access; each
/// holder has a reference. Private maps (copy) belong to one holder each. No descriptor is kept:
/// a map keeps the memory alive, and thousands of arrays cost no descriptors.

#include <cstddef>
#include <cstdint>

#include "client/fork.hpp"
#include "shmstore/array.hpp"
#include "shmstore/error.hpp"

namespace shmstore::client_internal {

struct Mapping;

/// A reference to a map; move-only. The map ends with its last reference. References may be
/// dropped by any thread, and in a forked child.
class MapRef {
 public:
  MapRef() noexcept = default;
  MapRef(MapRef&& other) noexcept;
  MapRef& operator=(MapRef&& other) noexcept;
  MapRef(const MapRef&) = delete;
  MapRef& operator=(const MapRef&) = delete;
  ~MapRef() { reset(); }

  [[nodiscard]] bool valid() const noexcept { return mapping_ != nullptr; }
  /// First byte of the segment.
  [[nodiscard]] std::byte* base() const noexcept;
  [[nodiscard]] std::size_t bytes() const noexcept;
  /// True when a write through it reaches the segment.
  [[nodiscard]] bool writes_through() const noexcept;
  /// True when the kernel takes it for one through which the segment could be written, although it
  /// is read-only, and refuses a hard seal.
  [[nodiscard]] bool hinders_hard_seal() const noexcept;
  /// Tells all holders of a writable map that this process has sealed the array: their write
  /// leases are read leases from then on.
  void mark_sealed() noexcept;
  [[nodiscard]] bool is_sealed() const noexcept;
  void reset() noexcept;

 private:
  friend class MappingCache;
  explicit MapRef(Mapping* mapping) noexcept : mapping_(mapping) {}
  Mapping* mapping_ = nullptr;
  bool let_go_ = false;  ///< Its handle has no lease any more; views of it may be left.
};

/// What of which segment is wanted, as a reply names it.
struct SegmentView {
  std::uint64_t store_id = 0;
  std::uint64_t segment = 0;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;          ///< > 0
  std::uint64_t segment_bytes = 0;  ///< ≥ offset + bytes
  Access access = Access::read;
  bool dont_fork = false;  ///< A forked child shall not inherit the map (nor an exclusive one).
};

enum class MapProblem : std::uint8_t {
  none,
  no_memory,       ///< No address space, too many maps, or no memory for the bookkeeping.
  bad_range,       ///< The reply contradicts itself.
  bad_descriptor,  ///< Too short, not sealed against shrinking, or open for the wrong access.
  system,          ///< mmap failed otherwise; `number` says how.
};

struct MapOutcome {
  MapRef ref;
  MapProblem problem = MapProblem::none;
  int number = 0;  ///< errno
};
[[nodiscard]] Error map_error(const MapOutcome& outcome);

class MappingCache {
 public:
  /// The one of this process; lives until it ends.
  static MappingCache& instance() noexcept;

  /// The shared map that is there already; an empty reference if none is, or for copy.
  [[nodiscard]] MapRef find(const SegmentView& view) noexcept;

  /// Maps the segment behind `fd`, after checking that it cannot shrink under the map. If there is
  /// a shared map already, that is what comes back.
  [[nodiscard]] MapOutcome install(const SegmentView& view, const UninheritedFd& fd) noexcept;

  /// Maps the segment read-only behind a descriptor to write with, which its writer has: privately,
  /// so that nothing that is done to the map reaches the segment, and a hard seal is not refused.
  /// `view` says read. If there is a map to read already, that is what comes back.
  [[nodiscard]] MapOutcome install_for_writer(const SegmentView& view,
                                              const UninheritedFd& fd) noexcept;

  /// A read-only map of the same bytes as a shared writable one, elsewhere and without a
  /// descriptor; `view` says read. If there is a map to read already, that is what comes back; else
  /// one that find() does not know, because it hinders a hard seal for as long as it lives.
  [[nodiscard]] MapOutcome make_reader(const MapRef& writable, const SegmentView& view) noexcept;

  /// The pages of a map that is hardly used any more no longer count as this process's; they come
  /// back when they are touched.
  void drop_pages(const MapRef& ref) noexcept;

  /// For a handle that gives up its lease while views of it may be left. True: no other handle with
  /// a lease has the map, find() does not know it any more, and the caller has to make it private.
  /// False: the last handle with a lease will have to.
  [[nodiscard]] bool let_go(MapRef& ref) noexcept;
  /// For a handle that goes: true when of all others that have the map none has a lease, so that
  /// the caller has to make it private for their views. Then find() does not know it any more.
  [[nodiscard]] bool leaves_views(MapRef& ref) noexcept;
  /// Where there is no room for a private map: a write through views that are left is a fault.
  void forbid_writing(MapRef& ref) noexcept;

  /// From now on find() does not know the map; references stay.
  void hide(MapRef& ref) noexcept;
  /// Takes hide() back, unless another map has taken its place.
  void show(MapRef& ref) noexcept;

  /// Replaces a shared map by a private one of the same bytes at the same address (`to_private`),
  /// or back. Pointers stay valid; what was written to the private one is lost. A map that could be
  /// written still can, a read-only one (hinders_hard_seal) stays so. On an error the map is as it
  /// was.
  [[nodiscard]] MapOutcome swap(MapRef& ref, const SegmentView& view, const UninheritedFd& fd,
                                bool to_private) noexcept;

  /// Maps alive and references to them, for tests.
  struct Counts {
    std::size_t maps = 0;
    std::size_t references = 0;
  };
  [[nodiscard]] Counts counts() const noexcept;

 private:
  friend class MapRef;
  MappingCache();
  void let_children_have(Mapping& mapping) noexcept;
  void drop(Mapping* mapping, bool let_go) noexcept;
  struct Impl;
  Impl* impl_;
};

}  // namespace shmstore::client_internal
