#include "server/memfd_store.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include <algorithm>
#include <optional>

using namespace shmstore;
using namespace shmstore::server;

namespace {

constexpr std::uint64_t kPlenty = std::uint64_t{1} << 40;
constexpr std::uint64_t kBig = (std::uint64_t{9} << 20) + 5;  // three slices on the worker

/// A store, and the event loop that it needs.
struct Bench {
  MemoryWorker worker;
  Admission admission;
  LeaseProbe probe;
  MemfdStore store{worker, admission, probe, 4};
  std::vector<SegmentId> freed;

  Bench() {
    store.set_on_freed([this](SegmentId id) { freed.push_back(id); });
  }
  ~Bench() { worker.stop(); }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  void run_until(const std::function<bool()>& done) {
    while (!done()) {
      pollfd ready{worker.completion_fd(), POLLIN, 0};
      REQUIRE(::poll(&ready, 1, 30'000) == 1);
      worker.run_completions();
    }
  }
  Result<SegmentId> allocate(std::uint64_t bytes, std::uint64_t ticket = 1) {
    std::optional<Result<SegmentId>> answer;
    store.allocate(ticket, 1000, bytes, [&](Result<SegmentId> id) { answer = std::move(id); });
    run_until([&] { return answer.has_value(); });
    return *answer;
  }
  [[nodiscard]] bool is_freed(SegmentId id) const {
    return std::find(freed.begin(), freed.end(), id) != freed.end();
  }
};

}  // namespace

TEST_CASE("memfd store: small at once, big on the worker, both backed and accounted") {
  Bench bench;
  const SegmentId small = bench.allocate(100).value();
  CHECK(bench.store.segment_bytes(small) == kPageBytes);
  const SegmentId big = bench.allocate(kBig).value();
  CHECK(bench.store.segment_bytes(big) == charge_of(kBig));
  CHECK(bench.store.segments() == 2);
  CHECK(bench.store.kernel_bytes() >= kPageBytes + charge_of(kBig));
  CHECK(bench.store.kernel_bytes() <= kPageBytes + charge_of(kBig) + bench.store.slack_bytes());
  CHECK(bench.store.selfcheck().empty());
  bench.store.release(small, true);
  CHECK(bench.is_freed(small));
  bench.store.release(big, true);
  CHECK(bench.store.freeing_bytes() == charge_of(kBig));
  bench.run_until([&] { return bench.is_freed(big); });
  CHECK(bench.store.freeing_bytes() == 0);
  CHECK(bench.store.kernel_bytes() == 0);
  CHECK(bench.store.selfcheck().empty());
}

TEST_CASE("memfd store: what somebody has stays, and stays as it is") {
  Bench bench;
  for (std::uint64_t bytes : {std::uint64_t{100}, kBig}) {
    const SegmentId id = bench.allocate(bytes).value();
    UniqueFd holder = bench.store.open(id, true).value();
    CHECK(::pwrite(holder.get(), "abc", 3, 0) == 3);
    bench.store.release(id, true);
    CHECK(bench.store.pinned_segments() == 1);
    CHECK(bench.store.probe_released(10, kPlenty) == 0);
    CHECK_FALSE(bench.store.open(id, false).has_value());
    char text[4] = {};
    CHECK(::pread(holder.get(), text, 3, 0) == 3);
    CHECK(std::string_view(text) == "abc");
    CHECK(bench.store.selfcheck().empty());
    holder.reset();
    CHECK(bench.store.probe_released(10, kPlenty) == charge_of(bytes));
    bench.run_until([&] { return bench.is_freed(id); });
  }
  CHECK(bench.store.segments() == 0);
}

TEST_CASE("memfd store: many released at once are asked about later, in order") {
  Bench bench;
  const SegmentId first = bench.allocate(1).value();
  const SegmentId second = bench.allocate(1).value();
  const SegmentId third = bench.allocate(1).value();
  const UniqueFd holder = bench.store.open(first, false).value();
  for (SegmentId id : {first, second, third}) bench.store.release(id, false);
  CHECK(bench.freed.empty());
  CHECK(bench.store.pinned_segments() == 3);
  CHECK(bench.store.freeing_bytes() == 3 * kPageBytes);
  CHECK(bench.store.selfcheck().empty());
  CHECK(bench.store.probe_released(2, kPlenty) == kPageBytes);
  CHECK(bench.is_freed(second));
  CHECK(bench.store.freeing_bytes() == kPageBytes);
  CHECK(bench.store.probe_released(10, kPlenty) == kPageBytes);
  CHECK(bench.is_freed(third));
  CHECK(bench.store.pinned_segments() == 1);
  CHECK(bench.store.freeing_bytes() == 0);
}

TEST_CASE("memfd store: so many pages are given back at once, the worker's do not count") {
  Bench bench;
  const SegmentId big = bench.allocate(kBig).value();
  const SegmentId first = bench.allocate(1).value();
  const SegmentId second = bench.allocate(1).value();
  const SegmentId third = bench.allocate(1).value();
  for (SegmentId id : {big, first, second, third}) bench.store.release(id, false);
  CHECK(bench.store.probe_released(10, 2 * kPageBytes) == charge_of(kBig) + 2 * kPageBytes);
  CHECK(bench.is_freed(second));
  CHECK_FALSE(bench.is_freed(third));
  CHECK(bench.store.probe_released(10, 2 * kPageBytes) == kPageBytes);
  bench.run_until([&] { return bench.is_freed(big); });
}

TEST_CASE("memfd store: descriptors are read-only unless asked otherwise, and never the original") {
  Bench bench;
  const SegmentId id = bench.allocate(100).value();
  const UniqueFd reader = bench.store.open(id, false).value();
  const UniqueFd writer = bench.store.open(id, true).value();
  CHECK((::fcntl(reader.get(), F_GETFL) & O_ACCMODE) == O_RDONLY);
  CHECK((::fcntl(writer.get(), F_GETFL) & O_ACCMODE) == O_RDWR);
  CHECK((::fcntl(reader.get(), F_GETFD) & FD_CLOEXEC) != 0);
}

TEST_CASE("memfd store: a hard seal is busy while a mapping could write") {
  Bench bench;
  const SegmentId id = bench.allocate(kBig).value();
  const auto seal = [&] {
    std::optional<Result<void>> answer;
    bench.store.seal_hard(id, [&](Result<void> sealed) { answer = std::move(sealed); });
    bench.run_until([&] { return answer.has_value(); });
    return *answer;
  };
  {
    const UniqueFd writer = bench.store.open(id, true).value();
    void* map = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, writer.get(), 0);
    REQUIRE(map != MAP_FAILED);
    CHECK(seal().error().code == ErrorCode::busy);
    CHECK(::munmap(map, 4096) == 0);
  }
  CHECK(seal().has_value());
  CHECK(bench.store.selfcheck().empty());
  bench.store.release(id, true);
  bench.run_until([&] { return bench.is_freed(id); });
  CHECK(bench.store.kernel_bytes() == 0);
}

TEST_CASE("memfd store: running out of segments is a typed error") {
  Bench bench;
  for (int n = 0; n < 4; ++n) CHECK(bench.allocate(1).has_value());
  const Result<SegmentId> fifth = bench.allocate(1);
  REQUIRE_FALSE(fifth.has_value());
  CHECK(fifth.error().code == ErrorCode::no_capacity);
  CHECK(fifth.error().text.starts_with("segments: all 4"));
}

TEST_CASE("memfd store: a cancelled allocation ends early and leaves nothing") {
  Bench bench;
  std::optional<Result<SegmentId>> answer;
  bench.store.allocate(7, 1000, std::uint64_t{64} << 20,
                       [&](Result<SegmentId> id) { answer = std::move(id); });
  CHECK(bench.store.segments() == 1);
  bench.store.cancel(7);
  bench.store.cancel(8);
  bench.run_until([&] { return answer.has_value(); });
  // It may have been done already.
  if (answer->has_value()) bench.store.release(**answer, true);
  bench.run_until([&] { return bench.store.segments() == 0; });
  CHECK(bench.store.kernel_bytes() == 0);
}

TEST_CASE("memfd store: a cancelled allocation is given back in slices, between those of others") {
  Bench bench;
  constexpr std::uint64_t kMib = std::uint64_t{1} << 20;
  bool cancelled = false, made = false;
  bench.store.allocate(7, 1000, 1024 * kMib, [&](Result<SegmentId>) { cancelled = true; });
  while (bench.store.kernel_bytes() < 192 * kMib) {
  }
  bench.store.cancel(7);
  bench.store.allocate(8, 1001, 32 * kMib, [&](Result<SegmentId>) { made = true; });
  bench.run_until([&] { return made; });
  CHECK_FALSE(cancelled);
  bench.run_until([&] { return cancelled; });
  CHECK(bench.store.kernel_bytes() <= 32 * kMib + bench.store.slack_bytes());
}

TEST_CASE("memfd store: seals that wait for pinned pages keep no allocation waiting") {
  Bench bench;
  int ends[2] = {};
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  const UniqueFd reader(ends[0]);
  const UniqueFd writer(ends[1]);
  constexpr int kSeals = 3;  // and an allocation: as many as the bench may have
  int refused = 0, sealed = 0;
  for (int i = 0; i < kSeals; ++i) {
    const SegmentId id = bench.allocate(kPageBytes).value();
    const UniqueFd holder = bench.store.open(id, false).value();
    void* map = ::mmap(nullptr, kPageBytes, PROT_READ, MAP_SHARED, holder.get(), 0);
    REQUIRE(map != MAP_FAILED);
    const iovec page{map, kPageBytes};
    REQUIRE(::vmsplice(writer.get(), &page, 1, 0) == ssize_t{kPageBytes});  // pins it
    CHECK(::munmap(map, kPageBytes) == 0);
    bench.store.seal_hard(id, [&](const Result<void>& answer) { ++(answer ? sealed : refused); });
  }
  bool made = false;
  bench.store.allocate(9, 1001, std::uint64_t{24} << 20, [&](Result<SegmentId>) { made = true; });
  bench.run_until([&] { return made; });
  CHECK(refused + sealed < kSeals);  // 150 ms each, in the kernel
  bench.run_until([&] { return refused + sealed == kSeals; });
  CHECK(bench.store.selfcheck().empty());
}

TEST_CASE("memfd store: what is being sealed is not freed meanwhile") {
  Bench bench;
  const SegmentId id = bench.allocate(kPageBytes).value();
  bool sealed = false;
  bench.store.seal_hard(id, [&](const Result<void>&) { sealed = true; });
  bench.store.release(id, true);
  CHECK_FALSE(bench.is_freed(id));
  bench.run_until([&] { return sealed; });
  CHECK(bench.store.probe_released(10, kPlenty) == kPageBytes);
  CHECK(bench.is_freed(id));
}

TEST_CASE("memfd store: more than there is memory is refused before a page is touched") {
  Bench bench;
  const Result<SegmentId> id = bench.allocate(std::uint64_t{1} << 50);
  REQUIRE_FALSE(id.has_value());
  CHECK(id.error().code == ErrorCode::no_capacity);
  CHECK(bench.store.segments() == 0);
}
