// Clients that mean harm or are broken: garbage, floods, silence. The one that does it is closed or
// refused; nobody else notices; the daemon keeps no descriptor and no memory of it.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <random>

#include "tests/support/raw_session.hpp"
#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;
using protocol::FrameHeader;
using protocol::Op;

namespace {

constexpr std::uint64_t kMib = 1 << 20;

/// A correct frame of each kind, with the reserved and the admin ones.
std::vector<std::string> good_frames() {
  const auto named = [](auto request, std::string_view name) {
    request.name_bytes = static_cast<std::uint16_t>(name.size());
    return bytes_of(request).append(name);
  };
  protocol::SealRequest seal;
  seal.id = 1;
  protocol::ReleaseRequest release;
  release.id = 1;
  release.grants = 1;
  release.access = 1;
  protocol::SegmentRequest segment;
  segment.id = 1;
  segment.access = 1;
  std::vector<std::string> frames = {
      frame(Op::hello, 2, bytes_of(protocol::HelloRequest{})),
      frame(Op::ping, 2),
      frame(Op::create, 2, create_body("fuzz", 4096)),
      frame(Op::create, 2, create_body("", 64, protocol::kCreateMutable)),
      frame(Op::seal, 2, bytes_of(seal)),
      frame(Op::attach, 2, attach_body("victim", Access::read, 0)),
      frame(Op::attach, 2, attach_body("victim", Access::copy, 5)),
      frame(Op::segment, 2, bytes_of(segment)),
      frame(Op::release, 2, bytes_of(release)),
      frame(Op::cached, 2, named(protocol::CachedRequest{}, "fuzz-cached")),
      frame(Op::wait, 2, named(protocol::WaitRequest{}, "fuzz-wait")),
      frame(Op::cancel, 2, bytes_of(protocol::CancelRequest{})),
      frame(Op::abort, 2, named(protocol::AbortRequest{}, "fuzz-cached")),
      frame(Op::handover, 2, bytes_of(protocol::HandoverRequest{})),
      frame(Op::handover, 2,
            bytes_of(protocol::HandoverRequest{1, 5, protocol::kHandoverOnce, {}})),
      frame(Op::received, 2, bytes_of(protocol::ReceivedRequest{1, 1})),
      frame(Op::create, 2,
            create_body("unseen", 64, protocol::kCreateMutable | protocol::kCreateUnseen)),
      frame(Op::publish, 2, bytes_of(protocol::PublishRequest{1})),
      frame(Op::fork, 2),
      frame(Op::put_batch, 2),
  };
  for (std::uint16_t op = 64; op <= 76; ++op) {
    frames.push_back(frame(static_cast<Op>(op), 2, "{}"));
    frames.push_back(frame(static_cast<Op>(op), 2, R"({"name":"victim","perms":"0600"})"));
  }
  return frames;
}

std::string nested_json(std::size_t depth, bool closed) {
  std::string text;
  for (std::size_t i = 0; i < depth; ++i) text += R"({"a":[)";
  for (std::size_t i = 0; closed && i < depth; ++i) text += "]}";
  return text;
}

/// Makes one hostile message out of a random choice.
class Mutator {
 public:
  explicit Mutator(unsigned seed) : random_(seed) {}

  std::string message(std::uint64_t request) {
    if (below(2) == 0) return random_bytes();
    std::string text = frames_[below(frames_.size())];
    std::memcpy(text.data() + offsetof(FrameHeader, request), &request, sizeof request);
    switch (below(4)) {
      case 0:
        for (std::size_t flips = 1 + below(8); flips > 0; --flips) {
          text[below(text.size())] ^= static_cast<char>(1U << below(8));
        }
        break;
      case 1: text.resize(below(text.size())); break;
      case 2:
        text.resize(sizeof(FrameHeader));
        text += nested_json(1 + below(5000), below(2) == 0);
        text.resize(std::min<std::size_t>(text.size(), protocol::kFrameBytesMax));
        break;
      default: break;  // as it is; descriptors may ride along
    }
    return text;
  }
  bool with_descriptors() { return below(8) == 0; }
  std::size_t below(std::size_t bound) { return random_() % bound; }

 private:
  std::string random_bytes() {
    std::string text(below(20) == 0 ? below(70'000) : below(300), '\0');
    for (char& c : text) c = static_cast<char>(random_());
    return text;
  }

  std::mt19937 random_;
  std::vector<std::string> frames_ = good_frames();
};

/// Sends `count` hostile messages, each after a valid hello (a connection goes on while the daemon
/// lets it).
void attack(const DaemonFixture& daemon, std::size_t count, unsigned seed) {
  Mutator mutator(seed);
  const int fds[] = {::memfd_create("hostile", MFD_CLOEXEC), ::memfd_create("too", MFD_CLOEXEC)};
  std::optional<RawSession> session;
  for (std::size_t i = 0; i < count; ++i) {
    if (!session) {
      session.emplace(daemon.socket());
      if (!session->hello().ok()) {
        session.reset();
        continue;
      }
    }
    const std::string text = mutator.message(session->next_request());
    const std::span<const int> riders(fds, mutator.with_descriptors() ? 2 : 0);
    bool alive = session->send(text, riders);
    while (alive && session->readable()) alive = !session->receive().closed;
    if (!alive || mutator.below(64) == 0) session.reset();
  }
  ::close(fds[0]);
  ::close(fds[1]);
}

/// A client that works all the time and counts what went wrong.
Child bystander(const DaemonFixture& daemon) {
  return Child::fork([&](Link& link) {
    Client client = daemon.connect();
    link.say("working");
    std::string problem;
    std::size_t rounds = 0;
    const auto check = [&](const std::string& what, bool right) {
      if (!right && problem.empty()) problem = what;
    };
    ::fcntl(link.fd(), F_SETFL, O_NONBLOCK);
    for (char stop = 0; ::recv(link.fd(), &stop, 1, 0) != 1; ++rounds) {
      auto array = put_bytes(client, "bystander", 3000, 7);
      check(describe(array), array.has_value());
      auto again = client.attach_any("bystander", no_wait());
      check(describe(again), again && only_byte(*again) == 7);
      check("info", client.info("bystander").has_value());
    }
    link.say(problem.empty() ? (rounds > 0 ? "no error" : "no round") : problem);
    return 0;
  });
}

std::string stop_and_hear(const Child& child) {
  child.say("stop");
  return child.hear();
}

void remove_all(const DaemonFixture& daemon) {
  Client client = daemon.connect();
  for (const ArrayInfo& info : client.list().value()) {
    if (!info.name.empty()) static_cast<void>(client.remove(info.name));
  }
}

}  // namespace

TEST_CASE("hostile: thousands of bad messages: the neighbour sees no error, nothing leaks") {
  DaemonOptions options;
  options.invariants = false;
  options.environment = {"ASAN_OPTIONS=quarantine_size_mb=1"};
  DaemonFixture daemon(options);
  const std::size_t count = scaled("SHMSTORE_TEST_HOSTILE", kSanitized ? 1500 : 10'000);
  const auto seed = static_cast<unsigned>(scaled("SHMSTORE_TEST_SEED", std::random_device()()));
  MESSAGE("seed " << seed);
  REQUIRE(daemon.settles_empty());
  const std::size_t fds = daemon.settled_fds();
  std::uint64_t rss[2] = {};
  for (std::uint64_t& after : rss) {
    Child neighbour = bystander(daemon);
    REQUIRE(neighbour.hear() == "working");
    attack(daemon, count, seed);
    CHECK(stop_and_hear(neighbour) == "no error");
    neighbour.wait();
    remove_all(daemon);  // a flipped bit may have made a kept array
    CHECK(daemon.settles_empty());
    CHECK(daemon.settles_fds(fds));
    after = rss_bytes(daemon.pid());
  }
  MESSAGE("RSS after the rounds: " << rss[0] << " and " << rss[1]);
  if (!kSanitized) CHECK(rss[1] <= rss[0] + kMib);
}

TEST_CASE("hostile: before hello nothing is served") {
  DaemonFixture daemon;
  for (const std::string& text : good_frames()) {
    if (struct_at<FrameHeader>(text).op == static_cast<std::uint16_t>(Op::hello)) continue;
    RawSession raw(daemon.socket());
    raw.send(text);
    const RawReply reply = raw.receive();
    CHECK(reply.outcome() == "protocol_error");
    CHECK(raw.receive().closed);
  }
  CHECK(daemon.settles_empty());
}

TEST_CASE("hostile: descriptors that a client sends are refused or closed, never kept") {
  DaemonFixture daemon;
  REQUIRE(daemon.settles_empty());
  const std::size_t fds = daemon.settled_fds();
  const UniqueFd rider(::memfd_create("rider", MFD_CLOEXEC));
  for (int round = 0; round < 20; ++round) {
    RawSession raw(daemon.socket());
    REQUIRE(raw.hello().ok());
    const int riders[] = {rider.get(), rider.get(), rider.get()};
    const bool sent = raw.send(frame(Op::ping, raw.next_request()), riders);
    if (!sent && errno == EPERM) continue;  // a kernel that lets the receiver forbid it
    REQUIRE(sent);
    RawReply reply = raw.receive();
    if (!reply.closed) {
      CHECK(reply.outcome() == "protocol_error");
      reply = raw.receive();
    }
    CHECK(reply.closed);
  }
  CHECK(daemon.settles_fds(fds));
}

TEST_CASE("hostile: a client that never reads is bounded and does not hold up others") {
  DaemonOptions options;
  options.invariants = false;
  DaemonFixture daemon(options);
  Client client = daemon.connect();
  std::vector<AnyArray> held;
  for (int i = 0; i < 100; ++i) {
    held.push_back(put_bytes(client, "n" + std::to_string(i), 64, 1).value());
  }
  RawSession deaf(daemon.socket());
  REQUIRE(deaf.hello().ok());
  REQUIRE(::fcntl(deaf.fd(), F_SETFL, O_NONBLOCK) == 0);
  for (int i = 0; i < 50'000; ++i) {  // each would be answered by a long list
    if (!deaf.send(frame(Op::list, deaf.next_request(), "{}"))) break;
  }
  for (int i = 0; i < 100; ++i) EXPECT_OK(client.info("n" + std::to_string(i)));
  CHECK(rss_bytes(daemon.pid()) < 512 * kMib);
  deaf.close();
  CHECK(wait_until([&] { return client.status().value().sessions == 1; }));
}

TEST_CASE("hostile: a deaf client's descriptors do not pile up") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  std::vector<AnyArray> held;
  for (int i = 0; i < 200; ++i) {
    held.push_back(put_bytes(client, "n" + std::to_string(i), 64, 1).value());
  }
  RawSession deaf(daemon.socket());
  REQUIRE(deaf.hello().ok());
  REQUIRE(::fcntl(deaf.fd(), F_SETFL, O_NONBLOCK) == 0);
  for (int i = 0; i < 200; ++i) {
    const std::string name = "n" + std::to_string(i);
    deaf.send(frame(Op::attach, deaf.next_request(), attach_body(name, Access::read, 0)));
  }
  // The neighbour is served, with descriptors, while the deaf one's wait.
  Client other = daemon.connect();
  for (int i = 0; i < 20; ++i) {
    EXPECT_OK(other.attach_any("n" + std::to_string(i)));
  }
  deaf.close();
  CHECK(wait_until([&] { return client.status().value().sessions == 2; }));
  CHECK(daemon.selfcheck() == "");
}

TEST_CASE("hostile: floods of connections come and go") {
  DaemonFixture daemon;
  REQUIRE(daemon.settles_empty());
  const std::size_t fds = daemon.settled_fds();
  Child neighbour = bystander(daemon);
  REQUIRE(neighbour.hear() == "working");
  for (int round = 0; round < 20; ++round) {
    std::vector<RawSession> flood;
    for (int i = 0; i < 100; ++i) {
      flood.emplace_back(daemon.socket());
      if (i % 3 == 0) flood.back().send(frame(Op::hello, 1, bytes_of(protocol::HelloRequest{})));
      if (i % 3 == 1) flood.back().send("x");
    }
  }
  CHECK(stop_and_hear(neighbour) == "no error");
  neighbour.wait();
  CHECK(daemon.settles_fds(fds));
  CHECK(daemon.settles_empty());
}

TEST_CASE("hostile: a stopped client delays nobody") {
  DaemonFixture daemon;
  Child stopped = Child::fork([&](Link& link) {
    Client client = daemon.connect();
    auto held = put_bytes(client, "held", 5000, 1);
    auto draft = create_bytes(client, "draft", 5000);
    link.say(outcome(draft));
    while (client.attach_any("held").has_value()) {
    }
    return 0;
  });
  REQUIRE(stopped.hear() == "ok");
  REQUIRE(stop_process(stopped));
  Client client = daemon.connect();
  for (int i = 0; i < 50; ++i) {
    auto array = client.attach_any("held");
    REQUIRE(array);
    CHECK(only_byte(*array) == 1);
    EXPECT_OK(put_bytes(client, "mine", 5000, 2));
  }
  EXPECT_ERROR(client.attach_any("draft", no_wait()), timed_out);
  stopped.kill(SIGKILL);
  stopped.wait();
  CHECK(wait_until([&] { return outcome(client.info("held")) == "not_found"; }));
  CHECK(daemon.settles_empty(1));
}

TEST_CASE("hostile: opening a segment while the daemon probes it kills nothing") {
  if (skip_unless(is_root(), "needs the right to open the daemon's descriptors")) return;
  DaemonFixture daemon;
  const std::string folder = "/proc/" + std::to_string(daemon.pid()) + "/fd/";
  Child racer = Child::fork([&](Link& link) {
    link.say("racing");
    ::fcntl(link.fd(), F_SETFL, O_NONBLOCK);
    for (char stop = 0; ::recv(link.fd(), &stop, 1, 0) != 1;) {
      for (int fd = 5; fd < 40; ++fd) {
        const int opened = ::open((folder + std::to_string(fd)).c_str(), O_RDONLY | O_NONBLOCK);
        if (opened >= 0) ::close(opened);
      }
    }
    link.say("done");
    return 0;
  });
  REQUIRE(racer.hear() == "racing");
  Client client = daemon.connect();
  for (int i = 0; i < 500; ++i) {
    EXPECT_OK(put_bytes(client, "x", 5000, 1));  // released at once: probed and freed
  }
  CHECK(stop_and_hear(racer) == "done");
  CHECK(daemon.settles_empty(1));
}

TEST_CASE("hostile: a kept descriptor keeps the bytes charged, past any release") {
  DaemonOptions options;
  options.capacity = "64MiB";
  DaemonFixture daemon(options);
  RawSession raw(daemon.socket());
  REQUIRE(raw.hello().ok());
  std::vector<UniqueFd> hoard;
  std::string last;
  for (int i = 0; i < 20; ++i) {  // 20 × 8 MiB of released arrays that are still open
    RawReply made = raw.create("", 8 * kMib);
    last = made.outcome();
    if (!made.ok()) break;
    hoard.push_back(std::move(made.fds.at(0)));
    const std::uint64_t id = struct_at<protocol::ArrayBody>(made.body).id;
    REQUIRE(raw.release(id, Access::write).ok());
  }
  CHECK(last == "no_capacity");
  CHECK(hoard.size() <= 8);
  Client client = daemon.connect();
  const StoreStatus status = client.status().value();
  CHECK(status.pinned >= hoard.size() * 8 * kMib);
  CHECK(status.arrays == 0);
  hoard.clear();
  EXPECT_OK(put_bytes(client, "x", 40 * kMib, 1));
  raw.close();
  CHECK(daemon.settles_empty(1));
}

TEST_CASE("hostile: another session's ids can be named but not misused") {
  DaemonFixture daemon;
  Client owner = daemon.connect();
  auto array = put_bytes(owner, "x", 5000, 1);
  auto draft = create_bytes(owner, "draft", 5000);
  REQUIRE(draft);
  RawSession raw(daemon.socket());
  REQUIRE(raw.hello().ok());
  protocol::HandoverRequest handover;
  handover.id = array->id().raw;
  CHECK(raw.call(Op::handover, bytes_of(handover)).outcome() != "ok");
  CHECK(raw.release(array->id().raw, Access::read).outcome() != "ok");
  CHECK(raw.release(draft->id().raw, Access::write).outcome() != "ok");
  protocol::SegmentRequest segment;
  segment.id = draft->id().raw;
  segment.access = static_cast<std::uint8_t>(Access::write);
  const RawReply refused = raw.call(Op::segment, bytes_of(segment));
  CHECK(refused.outcome() != "ok");
  CHECK(refused.fds.empty());
  CHECK(owner.info("draft").value().state == "draft");
  CHECK(owner.info("x").value().leases == 1);
}

TEST_CASE("hostile: a process name with escape sequences reaches no frame") {
  DaemonFixture daemon;
  Child hostile = Child::fork([&](Link& link) {
    static_cast<void>(::prctl(PR_SET_NAME, "\x1b]0;\xff\xc2\x9bm"));
    Client client = daemon.connect();
    auto array = put_bytes(client, "x", 100, 1);
    link.say(outcome(array));
    static_cast<void>(link.hear());
    return 0;
  });
  REQUIRE(hostile.hear() == "ok");
  Client client = daemon.connect();
  CHECK(client.holders("x").value().at(0).command == "?]0;??m");
}
