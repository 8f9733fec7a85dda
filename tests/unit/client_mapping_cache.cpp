// The client's mapping cache: one shared map per segment and access, references, swaps.
#include "client/mapping_cache.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <utility>

#include "client/fork.hpp"
#include "client/owned_fd.hpp"

namespace {

using shmstore::Access;
using namespace shmstore::client_internal;

/// A sealed file like the daemon's, and descriptions of it.
class Segment {
 public:
  explicit Segment(std::size_t bytes, unsigned seals = F_SEAL_SHRINK | F_SEAL_GROW)
      : fd_(memfd_create("segment", MFD_CLOEXEC | MFD_ALLOW_SEALING)), bytes_(bytes) {
    REQUIRE(prepare_for_fork());
    REQUIRE(ftruncate(fd_.get(), static_cast<off_t>(bytes)) == 0);
    REQUIRE(fcntl(fd_.get(), F_ADD_SEALS, seals) == 0);
    static std::uint64_t last = 0;
    number_ = ++last;
  }
  [[nodiscard]] UninheritedFd reopen(int flags) const {
    const std::string path = "/proc/self/fd/" + std::to_string(fd_.get());
    return UninheritedFd(open(path.c_str(), flags | O_CLOEXEC));
  }
  [[nodiscard]] SegmentView view(Access access) const {
    return {7, number_, 0, bytes_, bytes_, access, false};
  }
  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  OwnedFd fd_;
  std::size_t bytes_;
  std::uint64_t number_ = 0;
};

MappingCache& cache() {
  return MappingCache::instance();
}

MapOutcome install(const Segment& segment, Access access) {
  const int flags = access == Access::write ? O_RDWR : O_RDONLY;
  return cache().install(segment.view(access), segment.reopen(flags));
}

/// As a reply with a descriptor that is not mapped brings it.
UninheritedFd writable(const Segment& segment) {
  return segment.reopen(O_RDWR);
}

}  // namespace

TEST_CASE("a segment is mapped once per access, until its last reference goes") {
  const Segment segment(8192);
  const MappingCache::Counts before = cache().counts();
  CHECK_FALSE(cache().find(segment.view(Access::read)).valid());
  MapOutcome first = install(segment, Access::read);
  REQUIRE(first.problem == MapProblem::none);
  MapOutcome again = install(segment, Access::read);
  MapRef found = cache().find(segment.view(Access::read));
  CHECK(again.ref.base() == first.ref.base());
  CHECK(found.base() == first.ref.base());
  CHECK(cache().counts().maps == before.maps + 1);
  CHECK(cache().counts().references == before.references + 3);
  first.ref.reset();
  again.ref.reset();
  CHECK(cache().find(segment.view(Access::read)).valid());
  found.reset();
  CHECK_FALSE(cache().find(segment.view(Access::read)).valid());
  CHECK(cache().counts().maps == before.maps);
  CHECK(cache().counts().references == before.references);
}

TEST_CASE("readers and writers have maps of their own, copies each have one") {
  const Segment segment(4096);
  const MapOutcome read = install(segment, Access::read);
  const MapOutcome write = install(segment, Access::write);
  const MapOutcome copy = install(segment, Access::copy);
  const MapOutcome other = install(segment, Access::copy);
  REQUIRE(write.ref.valid());
  REQUIRE(copy.ref.valid());
  CHECK(read.ref.base() != write.ref.base());
  CHECK(copy.ref.base() != other.ref.base());
  *write.ref.base() = std::byte{1};
  CHECK(*read.ref.base() == std::byte{1});
  *copy.ref.base() = std::byte{2};
  CHECK(*read.ref.base() == std::byte{1});
  CHECK(write.ref.writes_through());
  CHECK_FALSE(copy.ref.writes_through());
}

TEST_CASE("a descriptor that does not fit is refused and closed") {
  const Segment unsealed(4096, F_SEAL_GROW);
  CHECK(install(unsealed, Access::read).problem == MapProblem::bad_descriptor);
  const Segment segment(4096);
  CHECK(cache().install(segment.view(Access::read), segment.reopen(O_RDWR)).problem ==
        MapProblem::bad_descriptor);
  CHECK(cache().install(segment.view(Access::write), segment.reopen(O_RDONLY)).problem ==
        MapProblem::bad_descriptor);
  SegmentView longer = segment.view(Access::read);
  longer.segment_bytes = 8192;
  CHECK(cache().install(longer, segment.reopen(O_RDONLY)).problem == MapProblem::bad_descriptor);
  SegmentView outside = segment.view(Access::read);
  outside.offset = 64;
  CHECK(cache().install(outside, segment.reopen(O_RDONLY)).problem == MapProblem::bad_range);
  const UninheritedFd fd = segment.reopen(O_RDWR);
  CHECK(cache().install(segment.view(Access::read), fd).problem != MapProblem::none);
}

TEST_CASE("large maps are aligned for huge pages") {
  const std::size_t bytes = (std::size_t{2} << 20U) + 4096;
  const Segment first(bytes);
  const Segment second(bytes);
  for (int round = 0; round < 3; ++round) {
    const MapOutcome one = install(first, Access::read);
    const MapOutcome two = install(second, Access::write);
    REQUIRE(one.ref.valid());
    REQUIRE(two.ref.valid());
    CHECK(reinterpret_cast<std::uintptr_t>(one.ref.base()) % (std::size_t{2} << 20U) == 0);
    CHECK(reinterpret_cast<std::uintptr_t>(two.ref.base()) % (std::size_t{2} << 20U) == 0);
    CHECK(one.ref.base()[bytes - 1] == std::byte{0});
  }
}

TEST_CASE("a hidden map is not found until it is shown again") {
  const Segment segment(4096);
  MapOutcome write = install(segment, Access::write);
  cache().hide(write.ref);
  CHECK_FALSE(cache().find(segment.view(Access::write)).valid());
  cache().show(write.ref);
  CHECK(cache().find(segment.view(Access::write)).valid());
  cache().hide(write.ref);
  MapOutcome other = install(segment, Access::write);
  CHECK(other.ref.base() != write.ref.base());
  cache().show(write.ref);
  CHECK(cache().find(segment.view(Access::write)).base() == other.ref.base());
}

TEST_CASE("a swapped map keeps its address; the kernel then accepts the hard seal") {
  const Segment segment(8192);
  MapOutcome write = install(segment, Access::write);
  std::byte* const at = write.ref.base();
  at[0] = std::byte{1};
  CHECK(fcntl(segment.fd(), F_ADD_SEALS, F_SEAL_WRITE) == -1);
  const SegmentView view = segment.view(Access::write);
  REQUIRE(cache().swap(write.ref, view, writable(segment), true).problem == MapProblem::none);
  CHECK(write.ref.base() == at);
  CHECK(at[0] == std::byte{1});
  at[0] = std::byte{2};
  const MapOutcome read = install(segment, Access::read);
  CHECK(read.ref.base()[0] == std::byte{1});

  REQUIRE(cache().swap(write.ref, view, writable(segment), false).problem == MapProblem::none);
  CHECK(at[0] == std::byte{1});
  at[0] = std::byte{3};
  CHECK(read.ref.base()[0] == std::byte{3});
  REQUIRE(cache().swap(write.ref, view, writable(segment), true).problem == MapProblem::none);
  CHECK(fcntl(segment.fd(), F_ADD_SEALS, F_SEAL_WRITE) == 0);
  at[1] = std::byte{9};
  CHECK(read.ref.base()[1] == std::byte{0});
}
