// Seal: what the maker gets is read-only; soft keeps its writable map for old pointers, hard makes
// stale writes harmless and is enforced by the kernel.
#include <fcntl.h>
#include <sys/mman.h>

#include <cerrno>

#include "tests/support/raw_session.hpp"
#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;
using protocol::ArrayBody;

namespace {

constexpr std::size_t kBytes = 300'000;

SealOptions hard_seal() {
  SealOptions options;
  options.hard = true;
  return options;
}

}  // namespace

TEST_CASE("seal: soft: read-only for this handle, twice is fine") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto draft = create_bytes(client, "x", kBytes);
  REQUIRE(draft);
  CHECK(draft->is_creator());
  CHECK(draft->state() == State::draft);
  std::byte* stale = draft->writable_data();
  fill(*draft, 1);
  EXPECT_OK(draft->seal());
  const std::byte* data = draft->data();
  EXPECT_OK(draft->seal());
  CHECK(draft->data() == data);
  CHECK(data != stale);
  CHECK(find_map(::getpid(), data)->perms == "r--s");
  CHECK(only_byte(*draft) == 1);
  stale[0] = std::byte{1};  // Old pointers stay valid.
  CHECK(draft->access() == Access::read);
  CHECK(draft->writable_data() == nullptr);
  CHECK(draft->state() == State::sealed);
  CHECK(draft->sealed() == Seal::soft);
  CHECK(draft->version() > 0);
  CHECK(client.info("x").value().sealed == "soft");
  CHECK(client.info("x").value().leases == 1);
}

TEST_CASE("seal: an array that was opened to others after its making is sealed hard") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  CreateOptions options;
  options.is_mutable = true;
  for (const std::uint16_t perms : std::vector<std::uint16_t>{0644, 0600}) {
    auto shared = create_bytes(client, "x", kBytes, options);
    REQUIRE(shared);
    fill(*shared, 1);
    EXPECT_OK(client.chmod("x", 0644));
    EXPECT_OK(client.chmod("x", perms));
    SealOptions wait;
    wait.wait = std::nullopt;  // It would wait for its own map.
    EXPECT_OK(shared->seal(wait));
    CHECK(shared->sealed() == Seal::hard);
    CHECK(client.info("x").value().sealed == "hard");
    CHECK(only_byte(client.attach_any("x").value()) == 1);
  }
}

TEST_CASE("seal: a co-writer that seals the memory itself stops nobody for ever") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  CreateOptions options;
  options.is_mutable = options.keep = true;
  auto shared = create_bytes(client, "x", kBytes, options);
  REQUIRE(shared);
  fill(*shared, 1);
  RawSession raw(daemon.socket());
  REQUIRE(raw.hello().ok());
  const RawReply joined = raw.attach("x", Access::write);
  REQUIRE(joined.fds.size() == 1);
  const std::uint64_t id = struct_at<ArrayBody>(joined.body).id;
  SUBCASE("closed to seals: a hard seal is refused, also if it may wait for ever") {
    REQUIRE(::fcntl(joined.fds[0].get(), F_ADD_SEALS, F_SEAL_SEAL) == 0);
    CHECK(raw.release(id, Access::write).ok());
    SealOptions wait = hard_seal();
    wait.wait = std::nullopt;
    EXPECT_ERROR(shared->seal(wait), permission_denied);
    fill(*shared, 2);
    CHECK(only_byte(client.attach_any("x").value()) == 2);
  }
  SUBCASE("closed to new writers: its owner is told why it cannot attach") {
    constexpr int kFutureWrite = 0x0010;
    const bool known = ::fcntl(joined.fds[0].get(), F_ADD_SEALS, kFutureWrite) == 0;
    if (skip_unless(known, "F_SEAL_FUTURE_WRITE: not on this kernel")) return;
    CHECK(raw.release(id, Access::write).ok());
    EXPECT_OK(shared->release());
    EXPECT_ERROR(client.attach_any("x", access(Access::write)), permission_denied);
    EXPECT_ERROR(client.attach_any("x", access(Access::exclusive)), permission_denied);
    EXPECT_OK(client.attach_any("x", access(Access::copy)));
    CHECK(client.info("x").value().state == "mutable");
  }
}

TEST_CASE("seal: hard: the maker's stale writes stay in its process") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  Client other = daemon.connect();
  auto draft = create_bytes(client, "x", kBytes);
  REQUIRE(draft);
  fill(*draft, 1);
  std::byte* stale = draft->writable_data();
  EXPECT_OK(draft->seal(hard_seal()));
  CHECK(draft->sealed() == Seal::hard);
  CHECK(draft->data() != stale);
  CHECK(find_map(::getpid(), draft->data())->perms == "r--p");
  stale[0] = std::byte{9};
  CHECK(only_byte(*draft) == 1);
  auto reader = other.attach_any("x");
  REQUIRE(reader);
  CHECK(only_byte(*reader) == 1);
  CHECK(client.info("x").value().sealed == "hard");
}

TEST_CASE("seal: hard asked for at create, or because others may open it") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  CreateOptions options;
  options.hard = true;
  auto one = put_bytes(client, "one", kBytes, 1, options);
  REQUIRE(one);
  CHECK(one->sealed() == Seal::hard);
  options.hard = false;
  options.perms = 0644;
  auto two = create_bytes(client, "two", kBytes, options);
  REQUIRE(two);
  fill(*two, 2);
  EXPECT_OK(two->seal());
  CHECK(two->sealed() == Seal::hard);
  CHECK(only_byte(*two) == 2);
  options.perms = 0600;
  auto three = put_bytes(client, "three", kBytes, 1, options);
  REQUIRE(three);
  CHECK(three->sealed() == Seal::soft);
}

TEST_CASE("seal: a writable descriptor is refused by the kernel after a hard seal") {
  DaemonFixture daemon;
  RawSession raw(daemon.socket());
  REQUIRE(raw.hello().ok());
  const RawReply made = raw.create("x", kBytes);
  REQUIRE(made.fds.size() == 1);
  const int fd = made.fds[0].get();
  const std::uint64_t id = struct_at<ArrayBody>(made.body).id;

  SUBCASE("with a writable map it is busy, without one it is sealed") {
    void* map = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    REQUIRE(map != MAP_FAILED);
    CHECK(raw.seal(id, true).outcome() == "busy");
    ::munmap(map, kBytes);
    CHECK(raw.seal(id, true).ok());
    CHECK(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
    CHECK(errno == EPERM);
    CHECK(::write(fd, "x", 1) < 0);
    CHECK(errno == EPERM);
    CHECK((::fcntl(fd, F_GET_SEALS) & F_SEAL_WRITE) != 0);
  }
  SUBCASE("the length never changes, and nobody adds seals to a draft of others") {
    CHECK(::ftruncate(fd, 0) != 0);
    CHECK(::ftruncate(fd, 1 << 30) != 0);
    const int seals = ::fcntl(fd, F_GET_SEALS);
    CHECK((seals & (F_SEAL_SHRINK | F_SEAL_GROW)) == (F_SEAL_SHRINK | F_SEAL_GROW));
    CHECK((seals & F_SEAL_WRITE) == 0);
  }
}

TEST_CASE("seal: a forked child that maps the draft writable makes a hard seal busy") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto draft = create_bytes(client, "x", kBytes);
  REQUIRE(draft);
  fill(*draft, 1);
  Child child = Child::fork([&](Link& link) {
    link.say(draft->inherited() ? "inherited" : "own");
    static_cast<void>(link.hear());
    return 0;
  });
  CHECK(child.hear() == "inherited");
  EXPECT_ERROR(draft->seal(hard_seal()), busy);
  // What failed changed nothing: still a draft, still writable, still shared.
  CHECK(draft->state() == State::draft);
  REQUIRE(draft->writable_data() != nullptr);
  draft->writable_data()[0] = std::byte{2};
  draft->writable_data()[0] = std::byte{1};
  child.say("end");
  child.wait();
  SealOptions options = hard_seal();
  CHECK(wait_until([&] { return draft->seal(options).has_value(); }));
  CHECK(only_byte(daemon.connect().attach_any("x").value()) == 1);
}

TEST_CASE("seal: mutable arrays are shared at once and can be sealed") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  Client other = daemon.connect();
  const std::uint64_t shape[] = {4};
  auto mine = client.create_mutable<std::int64_t>("counter", shape);
  REQUIRE(mine);
  auto theirs = other.attach_writable<std::int64_t>("counter");
  auto reader = other.attach<std::int64_t>("counter");
  AttachOptions copy = access(Access::copy);
  auto copied = other.attach_writable<std::int64_t>("counter", copy);
  REQUIRE(theirs);
  REQUIRE(reader);
  REQUIRE(copied);
  mine->data()[0] = 41;
  ++theirs->data()[0];
  CHECK(reader->data()[0] == 42);
  CHECK(copied->data()[0] == 42);
  copied->data()[0] = 7;
  CHECK(reader->data()[0] == 42);
  CHECK(client.info("counter").value().state == "mutable");
  EXPECT_ERROR(mine->any().seal(), busy);
  EXPECT_OK(theirs->release());
  EXPECT_OK(mine->any().seal());
  CHECK(client.info("counter").value().state == "sealed");
  EXPECT_ERROR(other.attach_any("counter", access(Access::write)), invalid_argument);
  CHECK(reader->data()[0] == 42);
}

TEST_CASE("seal: by another process than the maker, of an array made to be sealed hard") {
  DaemonFixture daemon;
  Child maker = Child::fork([&](Link&) {
    Client own = daemon.connect();
    CreateOptions options;
    options.is_mutable = options.hard = options.keep = true;
    return create_bytes(own, "x", 4096, options) ? 0 : 1;
  });
  REQUIRE(maker.wait() == 0);
  Client client = daemon.connect();
  AttachOptions write;
  write.access = Access::write;
  auto array = client.attach_any("x", write);
  REQUIRE(array);
  EXPECT_OK(array->seal());
  CHECK(array->sealed() == Seal::hard);
  EXPECT_OK(client.remove("x"));
}

TEST_CASE("seal: through another handle of the maker's process") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  for (const std::uint64_t bytes : {kBytes, std::uint64_t{0}}) {
    for (const std::uint16_t perms : {std::uint16_t{0600}, std::uint16_t{0644}}) {
      CreateOptions options;
      options.perms = perms;
      auto maker = create_bytes(client, "x", bytes, options);
      REQUIRE(maker);
      auto second = client.attach_any("x", access(Access::write));
      REQUIRE(second);
      EXPECT_OK(second->seal());
      if (perms == 0600) {  // The maker's handle notices: by itself, or when it is asked to seal.
        CHECK(maker->is_creator() == (bytes == 0));
      } else {
        EXPECT_OK(maker->seal());
        CHECK(maker->state() == State::sealed);
        CHECK(maker->sealed() == second->sealed());
      }
      EXPECT_OK(maker->release());
      CHECK(client.exists("x").value());
      EXPECT_OK(second->release());
      CHECK(!client.exists("x").value());
      // The same by destructors, which do not wait.
      maker = create_bytes(client, "x", bytes, options);
      second = client.attach_any("x", access(Access::write));
      REQUIRE(second);
      EXPECT_OK(second->seal());
      maker = Error{};
      second = Error{};
      EXPECT_OK(client.ping());  // Reads what the daemon said to the releases.
      CHECK(!client.exists("x").value());
    }
  }
}

TEST_CASE("seal: a copy of a sealed array is private") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto array = put_bytes(client, "x", kBytes, 1);
  auto one = client.attach_any("x", access(Access::copy));
  auto two = client.attach_any("x", access(Access::copy));
  REQUIRE(one);
  REQUIRE(two);
  CHECK(one->data() != two->data());
  fill(*one, 8);
  CHECK(only_byte(*two) == 1);
  CHECK(only_byte(*array) == 1);
  CHECK(only_byte(*one) == 8);
}

TEST_CASE("seal: only writers may seal") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto draft = create_bytes(client, "x", kBytes);
  REQUIRE(draft);
  RawSession raw(daemon.socket());
  REQUIRE(raw.hello().ok());
  CHECK(raw.seal(draft->id().raw).outcome() == "invalid_argument");
  CHECK(raw.seal(12345).outcome() == "not_found");
  CHECK(client.info("x").value().state == "draft");
}

TEST_CASE("seal: soft, then hard: the maps of the maker do not hinder it") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  Client other = daemon.connect();
  auto draft = create_bytes(client, "x", kBytes);
  auto made = put_bytes(client, "y", kBytes, 2);
  REQUIRE(draft);
  fill(*draft, 1);
  std::byte* stale = draft->writable_data();
  EXPECT_OK(draft->seal());
  auto again = client.attach_any("x");
  CHECK(again->data() != draft->data());
  EXPECT_OK(draft->seal(hard_seal()));
  EXPECT_OK(made->seal(hard_seal()));
  stale[0] = std::byte{9};
  CHECK(only_byte(*draft) == 1);
  CHECK(only_byte(*again) == 1);
  CHECK(only_byte(other.attach_any("x").value()) == 1);
  CHECK(find_map(::getpid(), draft->data())->perms == "r--p");
}

TEST_CASE("seal: a sealed array has no writable map that anybody was given") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  const auto dies_writing = [](const AnyArray& array) {
    Child child = Child::fork([&](Link&) {
      ::signal(SIGSEGV, SIG_DFL);  // doctest's handler has a lot to say.
      const_cast<std::byte*>(array.data())[0] = std::byte{9};
      return 0;
    });
    return child.wait() != 0 && only_byte(array) == 1;
  };
  const auto writable_maps = [] {
    const std::vector<MapLine> maps = segment_maps(::getpid());
    return std::count_if(maps.begin(), maps.end(),
                         [](const MapLine& map) { return map.perms[1] == 'w'; });
  };
  CreateOptions options;
  SUBCASE("soft") {}
  SUBCASE("hard") {
    options.hard = true;
  }
  auto made = put_bytes(client, "put", kBytes, 1, options);
  REQUIRE(made);
  CHECK(dies_writing(*made));
  CHECK(writable_maps() == 0);
  auto draft = create_bytes(client, "draft", kBytes, options);
  REQUIRE(draft);
  fill(*draft, 1);
  EXPECT_OK(draft->seal());
  CHECK(dies_writing(*draft));
  auto shared = client.create_any("shared", "|u1", std::vector<std::uint64_t>{kBytes}, [&] {
    CreateOptions mutable_one = options;
    mutable_one.is_mutable = true;
    return mutable_one;
  }());
  REQUIRE(shared);
  fill(*shared, 1);
  auto sibling = client.attach_any("shared", access(Access::write));
  EXPECT_OK(shared->seal());
  CHECK(dies_writing(*shared));
  EXPECT_OK(sibling->seal());
  CHECK(dies_writing(*sibling));
  CHECK(only_byte(client.attach_any("shared").value()) == 1);
}

TEST_CASE("seal: refused as busy, the draft is written on and sealed later") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  Client other = daemon.connect();
  auto draft = create_bytes(client, "x", kBytes);
  auto writer = other.attach_any("x", access(Access::write));
  REQUIRE(writer);
  std::byte* data = draft->writable_data();
  EXPECT_ERROR(draft->seal(), busy);
  CHECK(draft->writable_data() == data);
  EXPECT_OK(writer->release());
  fill(*draft, 1);
  EXPECT_OK(draft->seal());
  CHECK(only_byte(other.attach_any("x").value()) == 1);
}
