// A client killed at any named point of the client library is as if it had never been: no half-made
// name, no lease, session, descriptor or byte of it stays; what it had published stays whole.
#include <map>

#include "tests/integration/scripted_client.hpp"
#include "tests/support/testing.hpp"

#ifdef SHMSTORE_KILL_POINTS
#include "client/kill_points.hpp"
#endif

using namespace shmstore;
using namespace shmstore::testing;

#ifdef SHMSTORE_KILL_POINTS
namespace {

/// Runs the script and kills it at the `pass`-th pass of `point`; returns its exit code.
int run_script(const DaemonFixture& daemon, const std::string& point, int pass) {
  std::vector<std::string> environment = {"SHMSTORE_KILL_AT=" + point + ":" + std::to_string(pass)};
  Child victim = Child::run({"/proc/self/exe", "--scripted-client", daemon.socket()}, environment);
  return victim.wait();
}

/// Nothing unfinished is visible, and what is published is whole.
void check_visible(Client& client) {
  for (const ArrayInfo& info : client.list().value()) {
    CAPTURE(info.name);
    CHECK(info.state != "draft");
    if (info.state != "sealed") continue;
    Result<AnyArray> array = client.attach_id(ArrayId{std::stoull(info.id)});
    if (array) CHECK(only_byte(*array) == kScriptByte);
  }
}

/// The name is gone, or can be made and deleted by somebody else.
void remove_all(Client& client) {
  for (const ArrayInfo& info : client.list().value()) {
    if (!info.name.empty()) static_cast<void>(client.remove(info.name));
  }
}

}  // namespace

TEST_CASE("kill points: a client killed anywhere leaves nothing") {
  DaemonFixture daemon;
  Client observer = daemon.connect();
  const std::size_t fds = daemon.settled_fds(1);
  REQUIRE(Child::run({"/proc/self/exe", "--scripted-client", daemon.socket()}).wait() == 0);

  for (const std::string_view point : client_internal::kKillPoints) {
    CAPTURE(point);
    for (int pass = 1; pass <= 3; ++pass) {
      CAPTURE(pass);
      const int code = run_script(daemon, std::string(point), pass);
      // Every point is passed at least once, or the list names one that does not exist.
      CHECK_MESSAGE((code == 137 || (pass > 1 && code == 0)), "the script ended with " << code);
      REQUIRE(wait_until([&] { return observer.status().value().sessions == 1; }));
      check_visible(observer);
      remove_all(observer);
      REQUIRE(wait_until([&] {
        const StoreStatus status = observer.status().value();
        return status.arrays == 0 && status.used == 0;
      }));
      CHECK(daemon.settles_fds(fds));
      if (code == 0) break;
    }
  }
  CHECK(daemon.selfcheck() == "");
}

TEST_CASE(
    "kill points: a mutable array replaces another when its creator has mapped and filled it") {
  DaemonFixture daemon;
  Client observer = daemon.connect();
  const std::map<std::string, int> points = {
      {"create.before_send", 3}, {"create.after_send", 3},   {"create.after_reply", 3},
      {"create.before_map", 3},  {"create.after_map", 3},    {"publish.before_send", 3},
      {"publish.after_send", 0}, {"publish.after_reply", 0},
  };
  for (const auto& [point, old] : points) {
    CAPTURE(point);
    CreateOptions keep;
    keep.keep = keep.replace = true;
    EXPECT_OK(put_bytes(observer, "alone", 200'000, 3, keep));
    Child victim = Child::run({"/proc/self/exe", "--exclusive-client", daemon.socket(), "replace"},
                              {"SHMSTORE_KILL_AT=" + point + ":1"});
    CHECK(victim.wait() == 137);
    REQUIRE(wait_until([&] { return observer.status().value().sessions == 1; }));
    auto there = observer.attach_any("alone");
    REQUIRE(there);
    CHECK(only_byte(*there) == (old != 0 ? old : int{kScriptByte}));
    CHECK(there->state() == (old != 0 ? State::sealed : State::mutable_));
    EXPECT_OK(there->release());
    EXPECT_OK(observer.remove("alone"));
    CHECK(wait_until([&] { return observer.status().value().used == 0; }));
  }
}
#else
TEST_CASE("kill points: a client killed anywhere leaves nothing") {
  if (skip_unless(false, "built without SHMSTORE_KILL_POINTS")) return;
}
#endif
