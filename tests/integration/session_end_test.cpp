// A client with thousands of arrays goes away: its end is under way for many turns of the daemon's
// event loop. The daemon is stopped while requests are put into its socket, so that what it does
// first when it goes on does not depend on who gets the processor.
#include <csignal>
#include <nlohmann/json.hpp>

#include "tests/support/raw_session.hpp"
#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;
using protocol::Op;

namespace {

constexpr int kArrays = 20'000;
constexpr int kRequests = 64;  // Several turns long, and far fewer than the end takes.

DaemonOptions many_arrays() {
  DaemonOptions options;
  options.invariants = false;  // All accounting after every request would take minutes.
  return options;
}

std::string name_of(int number) {
  return "n" + std::to_string(number);
}

/// A session with drafts of no bytes.
RawSession with_many(const DaemonFixture& daemon) {
  RawSession session(daemon.socket());
  REQUIRE(session.hello().ok());
  for (int i = 0; i < kArrays; ++i) REQUIRE(session.create(name_of(i), 0).ok());
  return session;
}

std::uint64_t arrays_in(const RawReply& status) {
  return nlohmann::json::parse(status.body).at("arrays").get<std::uint64_t>();
}

}  // namespace

TEST_CASE("session end: others are served while it is under way") {
  DaemonFixture daemon(many_arrays());
  RawSession neighbour(daemon.socket());
  REQUIRE(neighbour.hello().ok());
  {
    const RawSession gone = with_many(daemon);
    REQUIRE(stop_process(daemon.process()));
  }
  for (int i = 0; i < kRequests; ++i) {
    REQUIRE(neighbour.send(frame(Op::status, neighbour.next_request(), "{}")));
  }
  daemon.process().kill(SIGCONT);
  std::vector<std::uint64_t> left;
  for (int i = 0; i < kRequests; ++i) left.push_back(arrays_in(neighbour.receive()));
  CHECK(std::is_sorted(left.rbegin(), left.rend()));
  CHECK(left.back() > 0);
  CHECK(left.back() < left.front());
  CHECK(wait_until([&] { return arrays_in(neighbour.call(Op::status, "{}")) == 0; }));
  CHECK(daemon.selfcheck().empty());
}

TEST_CASE("session end: who comes back meanwhile finds its names free") {
  DaemonFixture daemon(many_arrays());
  {
    const RawSession gone = with_many(daemon);
    REQUIRE(stop_process(daemon.process()));
  }
  RawSession back(daemon.socket());
  REQUIRE(back.send(frame(Op::hello, back.next_request(), bytes_of(protocol::HelloRequest{}))));
  for (int i = 0; i < kRequests; ++i) {
    const std::string name = name_of(i * (kArrays / kRequests));
    REQUIRE(back.send(frame(Op::attach, back.next_request(), attach_body(name, Access::read, -1))));
    REQUIRE(back.send(frame(Op::create, back.next_request(), create_body(name, 0))));
  }
  REQUIRE(back.send(frame(Op::list, back.next_request(), "{}")));
  REQUIRE(back.send(frame(Op::status, back.next_request(), "{}")));
  daemon.process().kill(SIGCONT);
  CHECK(back.receive().ok());
  for (int i = 0; i < kRequests; ++i) {
    CHECK(back.receive().outcome() == "not_found");
    CHECK(back.receive().ok());
  }
  const auto page = nlohmann::json::parse(back.receive().body);
  CHECK(page.at("arrays").size() <= kRequests);
  for (const auto& array : page.at("arrays")) CHECK(array.at("leases") == 1);
  CHECK(arrays_in(back.receive()) > kRequests);
  CHECK(wait_until([&] { return arrays_in(back.call(Op::status, "{}")) == kRequests; }));
  CHECK(daemon.selfcheck().empty());
}

TEST_CASE("session end: the daemon can be stopped meanwhile") {
  DaemonFixture daemon(many_arrays());
  RawSession neighbour(daemon.socket());
  REQUIRE(neighbour.hello().ok());
  {
    const RawSession gone = with_many(daemon);
    REQUIRE(stop_process(daemon.process()));
  }
  REQUIRE(neighbour.send(frame(Op::status, neighbour.next_request(), "{}")));
  daemon.process().kill(SIGCONT);
  CHECK(arrays_in(neighbour.receive()) > 0);
  CHECK(daemon.stop() == 0);
}
