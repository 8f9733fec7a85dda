// Co-writers: several processes fill slices of one draft in place.
#include <sys/mman.h>

#include <cstring>

#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;

namespace {

constexpr std::size_t kWriters = 8;

std::size_t slice_bytes() {
  return scaled("SHMSTORE_TEST_COWRITE_MIB", 64) * (1 << 20) / kWriters;
}

/// Joins the draft "big", fills slice `index`, says so, holds until told, lets go.
Child start_writer(const DaemonFixture& daemon, std::size_t index, bool stops_half_way = false) {
  return Child::fork([&daemon, index, stops_half_way](Link& link) {
    Client client = daemon.connect();
    auto array = client.attach_any("big", access(Access::write));
    if (!array) {
      link.say(describe(array));
      return 1;
    }
    std::byte* slice = array->writable_data() + index * slice_bytes();
    const std::size_t bytes = stops_half_way ? slice_bytes() / 2 : slice_bytes();
    std::memset(slice, static_cast<int>(index + 1), bytes);
    link.say("filled");
    static_cast<void>(link.hear());
    static_cast<void>(array->release());
    link.say("released");
    return 0;
  });
}

/// The value of slice `index`, −1 when torn.
int slice_value(const AnyArray& array, std::size_t index) {
  const std::byte* slice = array.data() + index * slice_bytes();
  return std::memcmp(slice, slice + 1, slice_bytes() - 1) == 0 ? std::to_integer<int>(*slice) : -1;
}

void check_busy(AnyArray& draft, const std::vector<Child>& writers) {
  const Result<void> sealed = draft.seal();
  EXPECT_ERROR(sealed, busy);
  if (sealed) return;
  for (const Child& writer : writers) {
    CHECK_MESSAGE(sealed.error().text.find(std::to_string(writer.pid())) != std::string::npos,
                  sealed.error().text);
  }
}

}  // namespace

TEST_CASE("co-writers: 8 processes fill one draft in place; one seals; a reader sees all") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto draft = create_bytes(client, "big", kWriters * slice_bytes());
  REQUIRE(draft);
  std::vector<Child> writers;
  for (std::size_t i = 0; i < kWriters; ++i) writers.push_back(start_writer(daemon, i));
  for (Child& writer : writers) REQUIRE(writer.hear() == "filled");
  check_busy(*draft, writers);
  for (Child& writer : writers) {
    writer.say("let go");
    CHECK(writer.hear() == "released");
  }
  EXPECT_OK(draft->seal());
  Child reader = Child::fork([&](Link& link) {
    Client own = daemon.connect();
    auto array = own.attach_any("big");
    if (!array) return 1;
    const auto map = find_map(::getpid(), array->data());
    link.say(map ? map->perms : "unmapped");
    for (std::size_t i = 0; i < kWriters; ++i) {
      if (slice_value(*array, i) != static_cast<int>(i + 1)) return 2;
    }
    link.say("right");
    ::signal(SIGSEGV, SIG_DFL);  // sanitizers have a handler of their own
    const_cast<std::byte*>(array->data())[0] = std::byte{9};
    return 3;
  });
  CHECK(reader.hear() == "r--s");
  CHECK(reader.hear() == "right");
  CHECK(reader.wait() == 128 + SIGSEGV);
}

TEST_CASE("co-writers: one killed half-way; the others and the seal go on") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto draft = create_bytes(client, "big", kWriters * slice_bytes());
  REQUIRE(draft);
  std::vector<Child> writers;
  for (std::size_t i = 0; i < kWriters; ++i) writers.push_back(start_writer(daemon, i, i == 3));
  for (Child& writer : writers) REQUIRE(writer.hear() == "filled");
  check_busy(*draft, writers);
  writers[3].kill(SIGKILL);
  CHECK(writers[3].wait() == 137);
  for (std::size_t i = 0; i < kWriters; ++i) {
    if (i != 3) writers[i].say("let go");
  }
  SealOptions patient;
  patient.wait = kWaitForever;
  EXPECT_OK(draft->seal(patient));
  auto array = client.attach_any("big");
  REQUIRE(array);
  for (std::size_t i = 0; i < kWriters; ++i) {
    if (i != 3) CHECK(slice_value(*array, i) == static_cast<int>(i + 1));
  }
}

TEST_CASE("co-writers: a co-writer of the owner may seal, a waiting seal is woken by the release") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto draft = create_bytes(client, "big", kWriters * slice_bytes());
  REQUIRE(draft);
  Child writer = Child::fork([&](Link& link) {
    Client own = daemon.connect();
    auto array = own.attach_any("big", access(Access::write));
    link.say(outcome(array));
    SealOptions patient;
    patient.wait = kWaitForever;
    link.say(outcome(array->seal(patient)));
    return 0;
  });
  REQUIRE(writer.hear() == "ok");
  // The creator lets go as a co-writer would: its lease moves on by sealing elsewhere.
  SealOptions brief;
  brief.wait = 10ms;
  const Result<void> mine = draft->seal(brief);
  CHECK_MESSAGE((outcome(mine) == "timed_out" || outcome(mine) == "busy"), describe(mine));
  writer.kill(SIGKILL);
  writer.wait();
  EXPECT_OK(draft->seal(brief));
}

TEST_CASE("co-writers: the creator's death aborts the draft; co-writers keep their map") {
  DaemonFixture daemon;
  Child creator = Child::fork([&](Link& link) {
    Client own = daemon.connect();
    auto array = create_bytes(own, "big", kWriters * slice_bytes());
    link.say(outcome(array));
    static_cast<void>(link.hear());
    return 0;
  });
  REQUIRE(creator.hear() == "ok");
  Client client = daemon.connect();
  auto joined = client.attach_any("big", access(Access::write));
  REQUIRE(joined);
  creator.kill(SIGKILL);
  creator.wait();
  CHECK(wait_until([&] { return outcome(client.info("big")) == "not_found"; }));
  EXPECT_ERROR(joined->seal(), aborted);
  fill(*joined, 4);
  CHECK(only_byte(*joined) == 4);
  auto next = create_bytes(client, "big", 100);
  EXPECT_OK(next);
  CHECK(client.status().value().used >= joined->bytes());
  EXPECT_OK(joined->release());
  EXPECT_OK(next->release());
  CHECK(daemon.settles_empty(1));
}
