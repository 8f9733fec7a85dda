// put copies through the descriptor of the segment, before the array is mapped.
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <utility>

#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;

namespace {

constexpr std::size_t kBytes = 1 << 20;

/// Memory of which only the first half can be read.
class HalfReadable {
 public:
  HalfReadable()
      : memory_(
            ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
    REQUIRE(memory_ != MAP_FAILED);
    REQUIRE(::mprotect(static_cast<std::byte*>(memory_) + kBytes / 2, kBytes / 2, PROT_NONE) == 0);
  }
  ~HalfReadable() { ::munmap(memory_, kBytes); }
  HalfReadable(const HalfReadable&) = delete;
  HalfReadable& operator=(const HalfReadable&) = delete;
  [[nodiscard]] std::span<const std::byte> bytes() const {
    return {static_cast<const std::byte*>(memory_), kBytes};
  }

 private:
  void* memory_;
};

}  // namespace

TEST_CASE("put: bytes that cannot be read are an error and leave nothing") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  const HalfReadable source;
  const std::uint64_t shape[] = {kBytes};
  for (const auto& [is_mutable, keep] : {std::pair{false, false}, {true, false}, {true, true}}) {
    CreateOptions options;
    options.is_mutable = is_mutable;
    options.keep = keep;
    const auto made = client.put_any("x", "|u1", shape, source.bytes(), options);
    EXPECT_ERROR(made, invalid_argument);
    CHECK(made.error().text.starts_with("bytes: "));
    EXPECT_ERROR(client.info("x"), not_found);
  }
  CHECK(outcome(put_bytes(client, "x", kBytes, 3)) == "ok");
  CHECK(daemon.settles_empty(1));
}

TEST_CASE("put: a limit for the size of files does not count") {
  DaemonFixture daemon;
  Child child = Child::fork([&](Link& link) {
    const rlimit limit{4096, RLIM_INFINITY};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    Client client = daemon.connect();
    const auto made = put_bytes(client, "x", kBytes, 7);
    link.say(outcome(made));
    static_cast<void>(link.hear());
    return 0;
  });
  CHECK(child.hear() == "ok");
  Client client = daemon.connect();
  auto array = client.attach_any("x");
  REQUIRE(array);
  CHECK(only_byte(*array) == 7);
  child.say("end");
  CHECK(child.wait() == 0);
}

TEST_CASE("put: in every state that an array can have from its maker") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  Client other = daemon.connect();
  const std::size_t sizes[] = {0, 1, 4097, 3 * kBytes + 5};
  for (const std::size_t bytes : sizes) {
    CAPTURE(bytes);
    for (const bool is_mutable : {false, true}) {
      for (const bool hard : {false, true}) {
        if (is_mutable && hard) continue;
        CreateOptions options;
        options.is_mutable = is_mutable;
        options.hard = hard;
        auto mine = put_bytes(client, "x", bytes, 9, options);
        CHECK(outcome(mine) == "ok");
        auto theirs = other.attach_any("x");
        CHECK(outcome(theirs) == "ok");
        if (!mine || !theirs) continue;
        CHECK(mine->state() == (is_mutable ? State::mutable_ : State::sealed));
        CHECK((mine->writable_data() != nullptr) == is_mutable);
        if (bytes > 0) CHECK(only_byte(*mine) == 9);
        if (bytes > 0) CHECK(only_byte(*theirs) == 9);
        EXPECT_OK(client.remove("x"));
      }
    }
  }
}
