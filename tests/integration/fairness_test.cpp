// One user floods the daemon, another asks for something small. The daemon is stopped while
// requests are put into its sockets, so that what it does first does not depend on who gets the
// processor; how many of the flood's requests came before an answer is in the answer itself.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "tests/support/raw_session.hpp"
#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;
using protocol::Op;

namespace {

constexpr uid_t kMany = 4101, kFew = 4102;
constexpr int kSessions = 64;
constexpr int kRequests = 40;  // of each session of the flood
/// Far more than there is time for in two turns, far fewer than the flood's.
constexpr std::uint64_t kFewRequests = 600;

DaemonOptions for_everybody() {
  DaemonOptions options;
  options.invariants = false;
  options.open_to_all = true;
  return options;
}

RawSession session_of(uid_t uid, const DaemonFixture& daemon) {
  REQUIRE(::seteuid(uid) == 0);
  RawSession session(daemon.socket());
  REQUIRE(::seteuid(0) == 0);
  REQUIRE(session.hello().ok());
  return session;
}

/// Sessions of one user, each with creates of empty arrays in its socket. REQUIRES: the daemon
/// runs; it is stopped afterwards.
std::vector<RawSession> flood_of(uid_t uid, const DaemonFixture& daemon, Child& process) {
  std::vector<RawSession> flood;
  for (int i = 0; i < kSessions; ++i) flood.push_back(session_of(uid, daemon));
  REQUIRE(stop_process(process));
  for (RawSession& session : flood) {
    for (int i = 0; i < kRequests; ++i) {
      REQUIRE(session.send(frame(Op::create, session.next_request(), create_body("", 0))));
    }
  }
  return flood;
}

std::uint64_t arrays_in(const RawReply& status) {
  return nlohmann::json::parse(status.body).at("arrays").get<std::uint64_t>();
}

/// Events of this kind in what a watching session has got by now.
int events_of(RawSession& watcher, const std::string& kind) {
  int events = 0;
  while (watcher.readable()) {
    const RawReply event = watcher.receive();
    if (event.closed) break;
    if (event.body.find("\"" + kind + "\"") != std::string::npos) ++events;
  }
  return events;
}

}  // namespace

TEST_CASE("fairness: who asks for little is answered before a flood of another user is") {
  if (skip_unless(is_root(), "needs two users")) return;
  DaemonFixture daemon(for_everybody());
  RawSession few = session_of(kFew, daemon);
  const std::vector<RawSession> flood = flood_of(kMany, daemon, daemon.process());
  REQUIRE(few.send(frame(Op::status, few.next_request(), "{}")));
  daemon.process().kill(SIGCONT);
  CHECK(arrays_in(few.receive()) < kFewRequests);
  CHECK(wait_until([&] {
    return arrays_in(few.call(Op::status, "{}")) == std::uint64_t{kSessions} * kRequests;
  }));
}

TEST_CASE("fairness: a flood of one user does not keep the daemon from a signal") {
  if (skip_unless(is_root(), "needs two users")) return;
  DaemonFixture daemon(for_everybody());
  const std::vector<RawSession> flood = flood_of(kMany, daemon, daemon.process());
  daemon.process().kill(SIGTERM);
  daemon.process().kill(SIGCONT);
  CHECK(daemon.process().wait() == 0);
  const std::string log = daemon.log();
  const std::string key = "reason=SIGTERM sessions=64 arrays=";
  const std::size_t at = log.find(key);
  REQUIRE(at != std::string::npos);
  CHECK(std::stoull(log.substr(at + key.size())) < kFewRequests);
}

TEST_CASE("fairness: what a client that has died asked for itself is not carried out") {
  DaemonFixture daemon;
  RawSession watcher(daemon.socket());
  REQUIRE(watcher.hello().ok());
  REQUIRE(watcher.call(Op::watch, "{}").ok());
  RawSession dying(daemon.socket());
  REQUIRE(dying.hello().ok());
  const RawReply held =
      dying.create("held", 4096, protocol::kCreateMutable | protocol::kCreateKeep);
  REQUIRE(held.ok());
  REQUIRE(stop_process(daemon.process()));
  for (int i = 0; i < 100; ++i) {
    const std::string body = create_body("n" + std::to_string(i), 4096);
    REQUIRE(dying.send(frame(Op::create, dying.next_request(), body)));
  }
  protocol::SealRequest seal;
  seal.id = struct_at<protocol::ArrayBody>(held.body).id;
  REQUIRE(dying.send(frame(Op::seal, dying.next_request(), bytes_of(seal))));
  dying.close();
  daemon.process().kill(SIGCONT);
  Client client = daemon.connect();
  CHECK(wait_until([&] { return client.status().value().sessions == 2; }));
  CHECK(client.info("held").value().state == "sealed");  // that was meant for others
  CHECK(events_of(watcher, "created") <= 2);             // that array, and while nobody knew yet
}

TEST_CASE("fairness: a log that nobody reads holds up nobody") {
  int ends[2] = {};
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  REQUIRE(::fcntl(writer.get(), F_SETFL, O_NONBLOCK) == 0);
  const std::string filling(4096, '.');
  while (::write(writer.get(), filling.data(), filling.size()) > 0) {
  }
  REQUIRE(::fcntl(writer.get(), F_SETFL, 0) == 0);
  DaemonOptions options;
  options.arguments = {"--log-level", "debug"};
  options.before_exec = [&] { ::dup2(writer.get(), STDERR_FILENO); };
  DaemonFixture daemon(options);
  writer.reset();
  for (int i = 0; i < 10; ++i) CHECK(RawSession(daemon.socket()).hello().ok());
  // Who reads again learns that lines are missing.
  std::string log(std::size_t{1} << 20, '\0');
  REQUIRE(::read(reader.get(), log.data(), log.size()) > 0);
  CHECK(daemon.settles_empty());
  CHECK(daemon.stop() == 0);
  std::string rest;
  for (ssize_t got = 0; (got = ::read(reader.get(), log.data(), log.size())) > 0;) {
    rest.append(log, 0, static_cast<std::size_t>(got));
  }
  CHECK(rest.find("warning log lines dropped lines=") != std::string::npos);
}
