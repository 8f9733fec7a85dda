// fair_bench SOCKET DAEMON_PID quick|full: what a hostile user does to the waiting times of
// another. Prints one flat JSON object. Needs root, for two users; the daemon has to let both
// connect.
//
// The victim's step is a ping, an attach, a release, and a put of 64 KiB; its time is measured in
// blocks, in turn without the other user (his processes are stopped) and with. The hostile user has
// used up most of the arrays that he may have, and has five processes:
//   lists       128 sessions that always have requests pending, over arrays with nested attrs
//   seals       64 hard seals of pages that a pipe pins, which wait for ever
//   creates     1 GiB, cancelled half-way, again and again
//   deaths      clients that are killed with 200 creates of 1 MiB in their sockets
//   frees       256 MiB, sealed hard and let go
// The victim and the daemon's event loop have a processor each; the hostile processes share them at
// the lowest priority, for what is measured is the store and not the kernel's scheduler.
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <exception>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "shmstore/client.hpp"
#include "tests/bench/floors.hpp"
#include "tests/bench/samples.hpp"
#include "tests/support/raw_session.hpp"

namespace shmstore::bench {
namespace {

using protocol::Op;
using testing::Child;
using testing::frame;
using testing::Link;
using testing::RawReply;
using testing::RawSession;

constexpr uid_t kHostile = 4201, kVictim = 4202;
constexpr std::uint64_t kMib = std::uint64_t{1} << 20;

Client connect(const std::string& socket) {
  ConnectOptions options;
  options.socket = socket;
  return Client::connect(options).value();
}

// -- the hostile user -----------------------------------------------------------------------------

/// Says "ready" when everything is set up, then never ends by itself.
using Load = void (*)(const std::string& socket, const Link& link);

/// Set up; from here on at the lowest priority.
void begin(const Link& link) {
  (void)::setpriority(PRIO_PROCESS, 0, 19);
  link.say("ready");
}

void lists(const std::string& socket, const Link& link) {
  Client client = connect(socket);
  CreateOptions options;
  options.attrs = "{\"a\":[";
  for (int i = 0; i < 1'300; ++i) options.attrs += i == 0 ? "[]" : ",[]";
  options.attrs += "]}";
  const std::uint64_t one[] = {1};
  std::vector<AnyArray> arrays;
  for (int i = 0; i < 40; ++i) {
    arrays.push_back(client.create_any("list" + std::to_string(i), "|u1", one, options).value());
  }
  for (int i = 0; i < 1'500; ++i) {  // of the 2,000 that run.py lets him have
    auto more = client.create_any("", "|u1", one);
    if (!more) break;
    arrays.push_back(std::move(*more));
  }
  std::deque<RawSession> sessions;
  std::vector<pollfd> ready;
  for (int i = 0; i < 128; ++i) {
    RawSession& session = sessions.emplace_back(socket);
    (void)session.hello();
    for (int n = 0; n < 4; ++n) session.send(frame(Op::list, session.next_request(), "{}"));
    ready.push_back({session.fd(), POLLIN, 0});
  }
  begin(link);
  while (true) {
    (void)::poll(ready.data(), ready.size(), -1);
    for (std::size_t i = 0; i < ready.size(); ++i) {
      if (ready[i].revents == 0) continue;
      (void)sessions[i].receive();
      sessions[i].send(frame(Op::list, sessions[i].next_request(), "{}"));
    }
  }
}

void seals(const std::string& socket, const Link& link) {
  RawSession session(socket);
  (void)session.hello();
  for (int i = 0; i < 64; ++i) {
    const RawReply made = session.create("pinned" + std::to_string(i), 4096);
    if (!made.ok()) break;
    int ends[2] = {};
    void* map = ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, made.fds.at(0).get(), 0);
    const iovec page{map, 4096};
    if (map == MAP_FAILED || ::pipe(ends) != 0 || ::vmsplice(ends[1], &page, 1, 0) != 4096) break;
    ::munmap(map, 4096);
    protocol::SealRequest seal;
    seal.id = testing::struct_at<protocol::ArrayBody>(made.body).id;
    seal.wait_ms = protocol::kForever;
    seal.hard = 1;
    session.send(frame(Op::seal, session.next_request(), testing::bytes_of(seal)));
  }
  begin(link);
  ::pause();
}

void creates(const std::string& socket, const Link& link) {
  RawSession session(socket);
  (void)session.hello();
  begin(link);
  while (true) {
    const std::uint64_t request = session.next_request();
    session.send(frame(Op::create, request, testing::create_body("", 1024 * kMib)));
    ::usleep(30'000);  // tidy: allow(sleep) because it is a load with a rhythm
    protocol::CancelRequest cancel;
    cancel.request = request;
    session.send(frame(Op::cancel, session.next_request(), testing::bytes_of(cancel)));
    for (int replies = 0; replies < 2; ++replies) {
      const RawReply reply = session.receive();
      if (reply.header.op != static_cast<std::uint16_t>(Op::create) || !reply.ok()) continue;
      (void)session.release(testing::struct_at<protocol::ArrayBody>(reply.body).id, Access::write);
    }
  }
}

void deaths(const std::string& socket, const Link& link) {
  begin(link);
  while (true) {
    RawSession session(socket);
    (void)session.hello();
    (void)::fcntl(session.fd(), F_SETFL, O_NONBLOCK);
    for (int i = 0; i < 200; ++i) {
      session.send(frame(Op::create, session.next_request(), testing::create_body("", kMib)));
    }
    session.close();
    ::usleep(20'000);  // tidy: allow(sleep) because it is a load with a rhythm
  }
}

void frees(const std::string& socket, const Link& link) {
  Client client = connect(socket);
  begin(link);
  while (true) {
    const std::uint64_t shape[] = {256 * kMib};
    auto array = client.create_any("", "|u1", shape);
    if (!array) {
      ::usleep(10'000);  // tidy: allow(sleep) because it is a load with a rhythm
      continue;
    }
    SealOptions hard;
    hard.hard = true;
    (void)array->seal(hard);
    (void)array->release();
  }
}

class Hostile {
 public:
  explicit Hostile(const std::string& socket) {
    for (Load load : {Load{lists}, Load{seals}, Load{creates}, Load{deaths}, Load{frees}}) {
      children_.push_back(Child::fork_as(kHostile, [&](Link& link) {
        load(socket, link);
        return 0;
      }));
      const std::string word = children_.back().hear();
      if (word != "ready") throw std::runtime_error("the load does not start: " + word);
    }
    stop();
  }
  void stop() const { signal(SIGSTOP); }
  void go_on() const { signal(SIGCONT); }

 private:
  void signal(int number) const {
    for (const Child& child : children_) child.kill(number);
  }
  std::vector<Child> children_;
};

// -- the victim -----------------------------------------------------------------------------------

/// Steps of one block; the number of those that failed.
int block(Client& client, int steps, Samples& step_us, Samples& ping_us) {
  const std::vector<std::byte> source(std::size_t{64} << 10, std::byte{1});
  const std::uint64_t shape[] = {source.size()};
  int refused = 0;
  step_us.begin_block();
  ping_us.begin_block();
  for (int i = 0; i < steps; ++i) {
    step_us.add(microseconds([&] {
      ping_us.add(microseconds([&] { refused += client.ping() ? 0 : 1; }));
      auto read = client.attach_any("victim");
      refused += read && read->release() ? 0 : 1;
      auto put = client.put_any("", "|u1", shape, source);
      refused += put && put->release() ? 0 : 1;
    }));
  }
  return refused;
}

/// As the victim; says the report.
int measure(const std::string& socket, int blocks, int steps, const Link& link) {
  pin(::getpid(), 0);
  Client client = connect(socket);
  const std::uint64_t shape[] = {4096};
  const std::vector<std::byte> source(4096);
  AnyArray kept = client.put_any("victim", "|u1", shape, source).value();
  Samples alone_us, beside_us, ping_alone_us, ping_beside_us;
  int refused = 0;
  for (int n = 0; n < blocks; ++n) {
    link.say("stop");
    (void)link.hear();
    refused += block(client, steps, alone_us, ping_alone_us);
    link.say("go on");
    (void)link.hear();
    refused += block(client, steps, beside_us, ping_beside_us);
  }
  Report report;
  report.samples("fair_step_us", beside_us);
  report.samples("fair_step_alone_us", alone_us);
  report.value("fair_step_p99_us", beside_us.quantile(0.99));
  report.value("fair_step_alone_p99_us", alone_us.quantile(0.99));
  report.value("fair_p99_ratio", beside_us.quantile(0.99) / alone_us.quantile(0.99));
  report.value("fair_ping_p99_us", ping_beside_us.quantile(0.99));
  report.value("fair_ping_alone_p99_us", ping_alone_us.quantile(0.99));
  report.value("fair_ping_p99_ratio", ping_beside_us.quantile(0.99) / ping_alone_us.quantile(0.99));
  report.value("fair_refused", refused);
  link.say(report.json());
  return 0;
}

/// The event loop's thread, not the worker's.
void pin_loop(pid_t daemon) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(1, &set);
  (void)::sched_setaffinity(daemon, sizeof set, &set);
}

/// Whether the daemon still carries out what was asked before: it takes more than a tenth of a
/// processor.
bool works(pid_t daemon) {
  const auto ticks = [daemon] {
    std::ifstream file("/proc/" + std::to_string(daemon) + "/stat");
    std::string word;
    long sum = 0;
    for (int field = 1; file >> word && field <= 15; ++field) {
      if (field >= 14) sum += std::stol(word);
    }
    return sum;
  };
  const long before = ticks();
  ::usleep(200'000);  // tidy: allow(sleep) because a use of time is measured
  return ticks() - before > 2;
}

int run(const std::string& socket, pid_t daemon, bool full) {
  const Hostile hostile(socket);
  pin_loop(daemon);
  const int blocks = full ? 20 : 6;
  Child victim = Child::fork_as(
      kVictim, [&](Link& link) { return measure(socket, blocks, full ? 1'000 : 100, link); });
  while (true) {
    const std::string word = victim.hear();
    if (word == "stop") {
      hostile.stop();
    } else if (word == "go on") {
      hostile.go_on();
    } else {
      std::printf("%s\n", word.c_str());
      return word.starts_with("{") ? 0 : 1;
    }
    do {
      ::usleep(200'000);  // tidy: allow(sleep) because nothing tells when the load has begun
    } while (word == "stop" && works(daemon));
    victim.say("done");
  }
}

}  // namespace
}  // namespace shmstore::bench

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: fair_bench SOCKET DAEMON_PID quick|full\n");
    return 2;
  }
  try {
    return shmstore::bench::run(argv[1], std::atoi(argv[2]), std::string_view(argv[3]) == "full");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fair_bench: %s\n", error.what());
    return 1;
  }
}
