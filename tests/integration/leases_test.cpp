// Leases and grants: what holds an array alive, and what ends it.
#include "tests/support/raw_session.hpp"
#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;
using protocol::ArrayBody;
using protocol::Op;

namespace {
constexpr std::size_t kBytes = 100'000;
}

TEST_CASE("leases: an array that nobody holds is gone at once, its bytes too") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto array = put_bytes(client, "x", kBytes, 1);
  REQUIRE(array);
  CHECK(client.status().value().used >= kBytes);
  EXPECT_OK(array->release());
  CHECK(array->data() == nullptr);
  EXPECT_OK(array->release());
  EXPECT_ERROR(client.info("x"), not_found);
  CHECK(daemon.settles_empty(1));
}

TEST_CASE("leases: many handles of one array in a process share one map") {
  DaemonFixture daemon;
  Client owner = daemon.connect();
  Client client = daemon.connect();
  auto array = put_bytes(owner, "x", kBytes, 1);
  REQUIRE(array);
  auto first = client.attach_any("x");
  auto second = client.attach_any("x");
  REQUIRE(first);
  REQUIRE(second);
  CHECK(first->data() == second->data());
  CHECK(owner.info("x").value().leases == 2);
  EXPECT_OK(first->release());
  CHECK(only_byte(*second) == 1);
  EXPECT_OK(array->release());
  CHECK(only_byte(*second) == 1);
  EXPECT_OK(client.info("x"));
  EXPECT_OK(second->release());
  EXPECT_ERROR(client.info("x"), not_found);
}

TEST_CASE("leases: a read attach never returns the creator's writable map") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  auto draft = create_bytes(client, "x", kBytes);
  REQUIRE(draft);
  fill(*draft, 3);
  EXPECT_OK(draft->seal());
  auto reader = client.attach_any("x");
  REQUIRE(reader);
  const auto map = find_map(::getpid(), reader->data());
  REQUIRE(map);
  CHECK(map->perms == "r--s");
  CHECK(reader->data() != draft->data());
  CHECK(only_byte(*reader) == 3);
}

TEST_CASE("leases: nothing of the client stays mapped or open after release") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  const std::size_t fds = fd_count(::getpid());
  const std::size_t maps = segment_maps(::getpid()).size();
  {
    auto array = put_bytes(client, "x", kBytes, 1);
    auto reader = client.attach_any("x");
    auto copy = client.attach_any("x", access(Access::copy));
    REQUIRE(copy);
  }
  client.ping().value();
  CHECK(segment_maps(::getpid()).size() == maps);
  CHECK(fd_count(::getpid()) == fds);
}

TEST_CASE("leases: a reader that holds while others delete keeps its data") {
  DaemonFixture daemon;
  Client owner = daemon.connect();
  Client other = daemon.connect();
  Client reader_client = daemon.connect();
  auto array = put_bytes(owner, "x", kBytes, 1);
  auto reader = reader_client.attach_any("x");
  REQUIRE(reader);
  EXPECT_OK(other.remove("x"));
  EXPECT_ERROR(other.remove("x"), not_found);
  EXPECT_OK(array->release());
  auto next = put_bytes(owner, "x", kBytes, 2);
  REQUIRE(next);
  CHECK(next->id() != reader->id());
  CHECK(only_byte(*reader) == 1);
  CHECK(only_byte(other.attach_any("x").value()) == 2);
  CHECK(owner.status().value().used >= 2 * kBytes);
  EXPECT_OK(reader->release());
  EXPECT_OK(next->release());
  CHECK(daemon.settles_empty(3));
}

TEST_CASE("leases: kept arrays outlive their makers until deleted, unkept or their ttl ends") {
  DaemonFixture daemon;
  CreateOptions keep;
  keep.keep = true;
  {
    Client client = daemon.connect();
    EXPECT_OK(put_bytes(client, "kept", kBytes, 1, keep));
    EXPECT_OK(put_bytes(client, "unkept", kBytes, 2, keep));
    keep.ttl = 1h;
    EXPECT_OK(put_bytes(client, "with-ttl", kBytes, 3, keep));
    keep.ttl = 50ms;
    EXPECT_OK(put_bytes(client, "brief", kBytes, 4, keep));
  }
  Client client = daemon.connect();
  REQUIRE(wait_until([&] { return client.status().value().sessions == 1; }));
  CHECK(only_byte(client.attach_any("kept").value()) == 1);
  CHECK(client.info("with-ttl").value().ttl_s.value_or(-1) > 3000);
  CHECK(wait_until([&] { return outcome(client.info("brief")) == "not_found"; }));
  EXPECT_OK(client.unkeep("unkept"));
  EXPECT_ERROR(client.info("unkept"), not_found);
  EXPECT_OK(client.keep("with-ttl", 10ms));
  CHECK(wait_until([&] { return outcome(client.info("with-ttl")) == "not_found"; }));
  EXPECT_OK(client.remove("kept"));
  CHECK(daemon.settles_empty(1));
}

TEST_CASE("leases: a hand-over lease keeps an array for its receiver, then ends by itself") {
  DaemonFixture daemon;
  ConnectOptions options;
  options.grace = 1h;
  Client sender = daemon.connect(options);
  Client receiver = daemon.connect();
  auto array = put_bytes(sender, "", kBytes, 5);
  REQUIRE(array);
  const ArrayId id = array->id();
  EXPECT_OK(array->handover());
  EXPECT_OK(array->release());
  auto received = receiver.attach_id(id, sender.store_id(), {}, true);
  REQUIRE(received);
  CHECK(only_byte(*received) == 5);
  const std::string target = R"({"id":")" + std::to_string(id.raw) + R"("})";
  const std::string who = receiver.admin("holders", target).value();
  CHECK(who.find("hand-over") != std::string::npos);

  options.grace = 50ms;
  Client hasty = daemon.connect(options);
  auto dropped = put_bytes(hasty, "", kBytes, 6);
  REQUIRE(dropped);
  const ArrayId gone = dropped->id();
  EXPECT_OK(dropped->handover());
  EXPECT_OK(dropped->release());
  CHECK(wait_until([&] { return outcome(receiver.attach_id(gone)) == "not_found"; }));
}

TEST_CASE("leases: grants are counted, the descriptor is sent once, segment sends it again") {
  DaemonFixture daemon;
  Client owner = daemon.connect();
  auto array = put_bytes(owner, "x", kBytes, 1);
  REQUIRE(array);
  RawSession raw(daemon.socket());
  REQUIRE(raw.hello().ok());
  const RawReply first = raw.attach("x");
  const RawReply second = raw.attach("x");
  CHECK(first.fds.size() == 1);
  CHECK((first.header.flags & protocol::kFlagDescriptor) != 0);
  CHECK(second.ok());
  CHECK(second.fds.empty());
  const std::uint64_t id = struct_at<ArrayBody>(first.body).id;
  CHECK(owner.info("x").value().leases == 2);

  protocol::SegmentRequest segment;
  segment.id = id;
  segment.access = static_cast<std::uint8_t>(Access::read);
  CHECK(raw.call(Op::segment, bytes_of(segment)).fds.size() == 1);
  CHECK(raw.call(Op::segment, bytes_of(segment)).fds.size() == 1);
  segment.access = static_cast<std::uint8_t>(Access::write);
  CHECK(raw.call(Op::segment, bytes_of(segment)).fds.empty());

  CHECK(raw.release(id, Access::read).ok());
  CHECK(owner.info("x").value().leases == 2);
  CHECK(raw.release(id, Access::write).outcome() != "ok");
  CHECK(raw.release(id, Access::read, 0).outcome() != "ok");
}

TEST_CASE("leases: more grants given back than taken is refused and takes nobody else's") {
  DaemonFixture daemon;
  Client owner = daemon.connect();
  auto array = put_bytes(owner, "x", kBytes, 1);
  REQUIRE(array);
  RawSession raw(daemon.socket());
  REQUIRE(raw.hello().ok());
  REQUIRE(raw.attach("x").ok());
  CHECK(raw.release(array->id().raw, Access::read, 100).outcome() != "ok");
  EXPECT_OK(owner.info("x"));
  CHECK(only_byte(*array) == 1);
}
