// Invariants: a Mapping has at least one reference; it is in the index iff `shown`; the index is
// keyed by process epoch as well, so a forked child never finds what its parent mapped (its own
// attach must not get the parent's writable map) but can still unmap what it inherited.
// Every map is made and ended under a ForkGuard, so fork() finds each one listed by a reference.
#include "client/mapping_cache.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <new>
#include <unordered_map>
#include <utility>

#include "client/fork.hpp"

namespace shmstore::client_internal {

namespace {

constexpr std::size_t kHugeBytes = std::size_t{2} << 20U;

struct Key {
  std::uint64_t epoch = 0;
  std::uint64_t store_id = 0;
  std::uint64_t segment = 0;
  Access access = Access::read;
  friend bool operator==(const Key&, const Key&) noexcept = default;
};

Key key_of(const SegmentView& view) noexcept {
  return {process_epoch(), view.store_id, view.segment, view.access};
}

struct KeyHash {
  std::size_t operator()(const Key& key) const noexcept {
    std::uint64_t mixed = key.segment * 0x9e3779b97f4a7c15U;
    mixed ^= key.store_id + (key.epoch << 8U) + static_cast<std::uint64_t>(key.access);
    return mixed ^ (mixed >> 32U);
  }
};

bool is_huge_aligned(const void* address) noexcept {
  return reinterpret_cast<std::uintptr_t>(address) % kHugeBytes == 0;
}

/// Where the last large map was: most likely free and aligned when the next one is made.
std::atomic<void*> g_hint{nullptr};

/// Maps at an address at which the kernel can use huge pages. A range larger than needed is
/// reserved first and its ends are given back. `map(address)` maps over what is there, or anywhere
/// when it is null.
template <class Map>
void* map_in_range(std::size_t bytes, Map&& map) noexcept {
  void* range = mmap(nullptr, bytes + kHugeBytes, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) return map(nullptr);
  auto* const begin = static_cast<std::byte*>(range);
  const std::size_t over = reinterpret_cast<std::uintptr_t>(begin) % kHugeBytes;
  std::byte* const target = begin + (over == 0 ? 0 : kHugeBytes - over);
  void* at = map(target);
  if (at == MAP_FAILED) {
    const int number = errno;
    munmap(range, bytes + kHugeBytes);
    errno = number;
    return MAP_FAILED;
  }
  if (target != begin) munmap(begin, static_cast<std::size_t>(target - begin));
  static const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto used = (reinterpret_cast<std::uintptr_t>(target) + bytes + page - 1) / page * page;
  const auto end = reinterpret_cast<std::uintptr_t>(begin) + bytes + kHugeBytes;
  const auto range_end = (end + page - 1) / page * page;
  if (range_end > used) munmap(reinterpret_cast<void*>(used), range_end - used);
  return at;
}

/// The same for a file; the hint makes the range a rare path.
void* map_aligned(std::size_t bytes, int prot, int flags, int fd) noexcept {
  if (void* hint = g_hint.load(std::memory_order_relaxed); hint != nullptr) {
    void* at = mmap(hint, bytes, prot, flags, fd, 0);
    if (at == MAP_FAILED || is_huge_aligned(at)) return at;
    munmap(at, bytes);
  }
  return map_in_range(bytes, [&](void* target) {
    return mmap(target, bytes, prot, target == nullptr ? flags : flags | MAP_FIXED, fd, 0);
  });
}

/// A second map of what a shared one maps (that is what an old size of 0 means to mremap).
void* map_again(void* base, std::size_t bytes) noexcept {
  const auto again = [&](void* target) {
    return target == nullptr ? mremap(base, 0, bytes, MREMAP_MAYMOVE)
                             : mremap(base, 0, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, target);
  };
  return bytes >= kHugeBytes ? map_in_range(bytes, again) : again(nullptr);
}

int protection(Access access) noexcept {
  return access == Access::read ? PROT_READ : PROT_READ | PROT_WRITE;
}

/// A child that writes what its parent has alone would be a second writer.
bool stays_here(const SegmentView& view, bool is_private) noexcept {
  return view.dont_fork || (view.access == Access::exclusive && !is_private);
}

void* map_file(const SegmentView& view, int fd, int prot, bool is_private) noexcept {
  const int flags = is_private ? MAP_PRIVATE | MAP_NORESERVE : MAP_SHARED;
  const std::size_t bytes = view.segment_bytes;
  void* at = bytes >= kHugeBytes ? map_aligned(bytes, prot, flags, fd)
                                 : mmap(nullptr, bytes, prot, flags, fd, 0);
  if (at == MAP_FAILED) return at;
  // A core dump shall not carry gigabytes that are not the program's own. All are hints.
  static_cast<void>(madvise(at, bytes, MADV_DONTDUMP));
  if (stays_here(view, is_private)) static_cast<void>(madvise(at, bytes, MADV_DONTFORK));
  if (bytes >= kHugeBytes && prot != PROT_READ) {
    static_cast<void>(madvise(at, bytes, MADV_HUGEPAGE));
  }
  return at;
}

/// The daemon is trusted, and yet: a map of a file that can shrink would be a SIGBUS to come, and
/// a writable description behind a read-only array a hole.
bool fits(const SegmentView& view, int fd, int mode) noexcept {
  struct stat status {};
  if (fstat(fd, &status) != 0 || status.st_size < 0) return false;
  if (static_cast<std::uint64_t>(status.st_size) < view.segment_bytes) return false;
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) return false;
  const int flags = fcntl(fd, F_GETFL);
  return flags >= 0 && (flags & O_ACCMODE) == mode;
}

int mode_of(Access access) noexcept {
  return writes(access) ? O_RDWR : O_RDONLY;
}

bool sane(const SegmentView& view) noexcept {
  return view.bytes > 0 && view.offset % kAlignment == 0 &&
         view.segment_bytes <= kArrayBytesMax * 2 && view.bytes <= view.segment_bytes &&
         view.offset <= view.segment_bytes - view.bytes;
}

MapOutcome problem(MapProblem what, int number = 0) noexcept {
  MapOutcome outcome;
  outcome.problem = what;
  outcome.number = number;
  return outcome;
}

MapOutcome mmap_problem() noexcept {
  const int number = errno;
  return problem(number == ENOMEM ? MapProblem::no_memory : MapProblem::system, number);
}

}  // namespace

struct Mapping {
  const Key key;
  void* const base;
  const std::size_t bytes;
  std::size_t references = 1;  ///< Guarded by the cache's mutex.
  std::size_t let_go = 0;      ///< Those of them whose handle has no lease; likewise guarded.
  bool shown = false;          ///< Likewise.
  bool of_writer = false;      ///< Its description can write, whatever the map can.
  std::atomic<bool> is_private{false};
  std::atomic<bool> is_sealed{false};
  // Not inherited by children: guarded by the cache's mutex.
  bool stays_here = false;
  bool absent = false;  ///< In such a child: the addresses may be somebody else's.
  Mapping *next_staying = nullptr, *previous_staying = nullptr;
};

struct MappingCache::Impl {
  mutable std::mutex mutex;  // A leaf: taken under a ForkGuard, nothing is taken under it.
  std::unordered_map<Key, Mapping*, KeyHash> index;
  Mapping* staying = nullptr;  ///< What children do not inherit.
  Counts counts;

  MapRef find(const Key& key, std::size_t bytes) noexcept;
  /// REQUIRES: a ForkGuard, and that the descriptor fits.
  MapOutcome map(const SegmentView& view, int fd, bool is_private) noexcept;
  void set_staying(Mapping& mapping, bool stays) noexcept;
  void reserve_in_child() noexcept;
  /// Lists a map that was just made, or ends it again if another thread was faster.
  MapRef add(Mapping* mapping, bool shows, bool stays) noexcept;
};

Error map_error(const MapOutcome& outcome) {
  switch (outcome.problem) {
    case MapProblem::no_memory:
      return make_error(ErrorCode::no_capacity,
                        "address space: this process cannot map more (vm.max_map_count, "
                        "RLIMIT_AS or overcommit)");
    case MapProblem::bad_range:
      return make_error(ErrorCode::protocol_error, "segment: the reply's range is impossible");
    case MapProblem::bad_descriptor:
      return make_error(ErrorCode::protocol_error,
                        "segment: the descriptor is too short, not sealed or of another access");
    case MapProblem::system:
      return make_error(ErrorCode::internal,
                        "segment: mmap failed: " + std::string(strerrordesc_np(outcome.number)));
    case MapProblem::none: break;
  }
  return make_error(ErrorCode::internal, "segment: no map");
}

MapRef::MapRef(MapRef&& other) noexcept
    : mapping_(std::exchange(other.mapping_, nullptr)),
      let_go_(std::exchange(other.let_go_, false)) {}

MapRef& MapRef::operator=(MapRef&& other) noexcept {
  if (this != &other) {
    reset();
    mapping_ = std::exchange(other.mapping_, nullptr);
    let_go_ = std::exchange(other.let_go_, false);
  }
  return *this;
}

std::byte* MapRef::base() const noexcept {
  return mapping_ == nullptr ? nullptr : static_cast<std::byte*>(mapping_->base);
}

bool MapRef::writes_through() const noexcept {
  return mapping_ != nullptr && writes(mapping_->key.access) && !mapping_->is_private;
}

bool MapRef::hinders_hard_seal() const noexcept {
  return mapping_ != nullptr && mapping_->of_writer && !mapping_->is_private;
}

void MapRef::mark_sealed() noexcept {
  if (mapping_ == nullptr) return;
  mapping_->is_sealed.store(true, std::memory_order_relaxed);
  MappingCache::instance().let_children_have(*mapping_);
}

bool MapRef::is_sealed() const noexcept {
  return mapping_ != nullptr && mapping_->is_sealed.load(std::memory_order_relaxed);
}

std::size_t MapRef::bytes() const noexcept {
  return mapping_ == nullptr ? 0 : mapping_->bytes;
}

void MapRef::reset() noexcept {
  const bool let_go = std::exchange(let_go_, false);
  if (mapping_ != nullptr) MappingCache::instance().drop(std::exchange(mapping_, nullptr), let_go);
}

MappingCache::MappingCache() : impl_(new Impl) {
  static std::atomic<Impl*> of_process{nullptr};  // instance() may not be ready when a child is.
  of_process = impl_;
  set_child_handler([] { of_process.load()->reserve_in_child(); });
}

MappingCache& MappingCache::instance() noexcept {
  static MappingCache* const cache = new MappingCache;  // Handles may outlive static destruction.
  return *cache;
}

MapRef MappingCache::Impl::find(const Key& key, std::size_t bytes) noexcept {
  const std::lock_guard lock(mutex);
  const auto at = index.find(key);
  if (at == index.end() || at->second->bytes != bytes) return {};
  ++at->second->references;
  ++counts.references;
  return MapRef(at->second);
}

MapRef MappingCache::find(const SegmentView& view) noexcept {
  if (view.access == Access::copy) return {};
  const ForkGuard guard;
  return impl_->find(key_of(view), view.segment_bytes);
}

MapOutcome MappingCache::install(const SegmentView& view, const UninheritedFd& fd) noexcept {
  const ForkGuard guard;
  if (!sane(view)) return problem(MapProblem::bad_range);
  if (!fits(view, fd.fd(), mode_of(view.access))) return problem(MapProblem::bad_descriptor);
  return impl_->map(view, fd.fd(), view.access == Access::copy);
}

MapOutcome MappingCache::install_for_writer(const SegmentView& view,
                                            const UninheritedFd& fd) noexcept {
  const ForkGuard guard;
  if (!sane(view)) return problem(MapProblem::bad_range);
  if (!fits(view, fd.fd(), O_RDWR)) return problem(MapProblem::bad_descriptor);
  return impl_->map(view, fd.fd(), true);
}

MapOutcome MappingCache::Impl::map(const SegmentView& view, int fd, bool is_private) noexcept {
  const Key key = key_of(view);
  const bool shared = view.access != Access::copy;
  MapOutcome outcome;
  if (shared) outcome.ref = find(key, view.segment_bytes);
  if (outcome.ref.valid()) return outcome;

  void* const base = map_file(view, fd, protection(view.access), is_private);
  if (base == MAP_FAILED) return mmap_problem();
  auto* mapping = new (std::nothrow) Mapping{key, base, view.segment_bytes};
  if (mapping == nullptr) {
    munmap(base, view.segment_bytes);
    return problem(MapProblem::no_memory);
  }
  mapping->of_writer = writes(view.access);
  mapping->is_private = is_private;
  outcome.ref = add(mapping, shared, stays_here(view, is_private));
  return outcome;
}

MapOutcome MappingCache::make_reader(const MapRef& writable, const SegmentView& view) noexcept {
  const ForkGuard guard;
  if (!writable.valid() || view.segment_bytes != writable.bytes()) {
    return problem(MapProblem::bad_range);
  }
  const std::size_t bytes = writable.bytes();
  MapOutcome outcome;
  outcome.ref = impl_->find(key_of(view), bytes);
  if (outcome.ref.valid()) return outcome;
  void* const base = map_again(writable.base(), bytes);
  if (base == MAP_FAILED) return mmap_problem();
  if (mprotect(base, bytes, PROT_READ) != 0) {
    outcome = mmap_problem();
    munmap(base, bytes);
    return outcome;
  }
  static_cast<void>(madvise(base, bytes, MADV_DOFORK));
  auto* mapping = new (std::nothrow) Mapping{key_of(view), base, bytes};
  if (mapping == nullptr) {
    munmap(base, bytes);
    return problem(MapProblem::no_memory);
  }
  mapping->of_writer = true;
  outcome.ref = impl_->add(mapping, false, false);
  return outcome;
}

void MappingCache::drop_pages(const MapRef& ref) noexcept {
  // A private map would lose what was written to it.
  if (ref.hinders_hard_seal()) {
    static_cast<void>(madvise(ref.base(), ref.bytes(), MADV_DONTNEED));
  }
}

MapRef MappingCache::Impl::add(Mapping* mapping, bool shows, bool stays) noexcept {
  const std::lock_guard lock(mutex);
  ++counts.references;
  if (shows) {
    try {
      const auto [at, inserted] = index.try_emplace(mapping->key, mapping);
      if (!inserted && at->second->bytes == mapping->bytes) {
        munmap(mapping->base, mapping->bytes);
        delete mapping;
        ++at->second->references;
        return MapRef(at->second);
      }
      mapping->shown = inserted;
    } catch (const std::bad_alloc&) {
      mapping->shown = false;  // It serves its own holder only.
    }
  }
  ++counts.maps;
  set_staying(*mapping, stays);
  return MapRef(mapping);
}

void MappingCache::hide(MapRef& ref) noexcept {
  if (!ref.valid()) return;
  const ForkGuard guard;
  const std::lock_guard lock(impl_->mutex);
  if (std::exchange(ref.mapping_->shown, false)) impl_->index.erase(ref.mapping_->key);
}

bool MappingCache::let_go(MapRef& ref) noexcept {
  if (!ref.valid()) return false;
  const ForkGuard guard;
  const std::lock_guard lock(impl_->mutex);
  Mapping& mapping = *ref.mapping_;
  const bool last = mapping.references - mapping.let_go == 1;
  ++mapping.let_go;
  ref.let_go_ = true;
  if (last && std::exchange(mapping.shown, false)) impl_->index.erase(mapping.key);
  return last;
}

bool MappingCache::leaves_views(MapRef& ref) noexcept {
  if (!ref.valid() || ref.let_go_) return false;
  const ForkGuard guard;
  const std::lock_guard lock(impl_->mutex);
  Mapping& mapping = *ref.mapping_;
  if (mapping.let_go == 0 || mapping.references - mapping.let_go != 1) return false;
  if (std::exchange(mapping.shown, false)) impl_->index.erase(mapping.key);
  return true;
}

void MappingCache::forbid_writing(MapRef& ref) noexcept {
  if (!ref.valid()) return;
  const ForkGuard guard;
  const std::lock_guard lock(impl_->mutex);
  Mapping& mapping = *ref.mapping_;
  if (mapping.references - mapping.let_go > (ref.let_go_ ? 0U : 1U)) return;  // In use again.
  if (std::exchange(mapping.shown, false)) impl_->index.erase(mapping.key);
  (void)::mprotect(mapping.base, mapping.bytes, PROT_READ);
}

void MappingCache::show(MapRef& ref) noexcept {
  if (!ref.valid() || ref.mapping_->key.epoch != process_epoch()) return;
  const ForkGuard guard;
  const std::lock_guard lock(impl_->mutex);
  if (ref.mapping_->shown) return;
  try {
    ref.mapping_->shown = impl_->index.try_emplace(ref.mapping_->key, ref.mapping_).second;
  } catch (const std::bad_alloc&) {
    ref.mapping_->shown = false;
  }
}

MapOutcome MappingCache::swap(MapRef& ref, const SegmentView& view, const UninheritedFd& fd,
                              bool to_private) noexcept {
  const ForkGuard guard;
  if (!sane(view) || view.segment_bytes != ref.bytes()) return problem(MapProblem::bad_range);
  if (!fits(view, fd.fd(), mode_of(view.access))) return problem(MapProblem::bad_descriptor);
  // Made elsewhere and moved over the old one: mmap(MAP_FIXED) would have removed the old map
  // already when it fails.
  void* fresh = map_file(view, fd.fd(), protection(ref.mapping_->key.access), to_private);
  if (fresh == MAP_FAILED) return mmap_problem();
  void* const target = ref.base();
  if (mremap(fresh, ref.bytes(), ref.bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, target) ==
      MAP_FAILED) {
    MapOutcome failed = mmap_problem();
    munmap(fresh, ref.bytes());
    return failed;
  }
  ref.mapping_->is_private = to_private;
  const std::lock_guard lock(impl_->mutex);
  impl_->set_staying(*ref.mapping_, stays_here(view, to_private));
  return {};
}

void MappingCache::drop(Mapping* mapping, bool let_go) noexcept {
  // After a raw clone() the lock may be held by a thread that is not there: leave the map alone.
  if (process_epoch() == 0) return;
  const ForkGuard guard;
  {
    const std::lock_guard lock(impl_->mutex);
    --impl_->counts.references;
    if (let_go) --mapping->let_go;
    if (--mapping->references > 0) return;
    --impl_->counts.maps;
    if (mapping->shown) impl_->index.erase(mapping->key);
    impl_->set_staying(*mapping, false);
  }
  if (!mapping->absent) munmap(mapping->base, mapping->bytes);
  if (is_huge_aligned(mapping->base)) g_hint.store(mapping->base, std::memory_order_relaxed);
  delete mapping;
}

// -- maps that children do not inherit ------------------------------------------------------------

void MappingCache::Impl::set_staying(Mapping& mapping, bool stays) noexcept {
  if (std::exchange(mapping.stays_here, stays) == stays) return;
  if (stays) {
    mapping.previous_staying = nullptr;
    mapping.next_staying = staying;
    if (staying != nullptr) staying->previous_staying = &mapping;
    staying = &mapping;
    return;
  }
  Mapping*& before =
      mapping.previous_staying != nullptr ? mapping.previous_staying->next_staying : staying;
  before = mapping.next_staying;
  if (mapping.next_staying != nullptr) {
    mapping.next_staying->previous_staying = mapping.previous_staying;
  }
}

/// In a child, before it maps anything else: whoever uses an array that stayed behind shall be
/// stopped, not meet other memory at its address. Locks are free here, see fork.cpp.
void MappingCache::Impl::reserve_in_child() noexcept {
  while (staying != nullptr) {
    Mapping& mapping = *staying;
    set_staying(mapping, false);
    void* at = mmap(mapping.base, mapping.bytes, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    mapping.absent = at != mapping.base;
    if (mapping.absent && at != MAP_FAILED) munmap(at, mapping.bytes);  // Kernels before 4.17.
  }
}

void MappingCache::let_children_have(Mapping& mapping) noexcept {
  const ForkGuard guard;
  const std::lock_guard lock(impl_->mutex);
  if (!mapping.stays_here) return;
  static_cast<void>(madvise(mapping.base, mapping.bytes, MADV_DOFORK));
  impl_->set_staying(mapping, false);
}

MappingCache::Counts MappingCache::counts() const noexcept {
  const ForkGuard guard;
  const std::lock_guard lock(impl_->mutex);
  return impl_->counts;
}

}  // namespace shmstore::client_internal
