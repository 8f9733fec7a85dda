// The end of a session in slices: what others see in between, and that it comes to the same as an
// end in one go.
#include <random>

#include "tests/unit/registry_fixture.hpp"

using namespace shmstore;
using namespace shmstore::server;

namespace {

/// A session that leaves with `count` drafts d0, d1 … and has not been asked for any lease yet.
struct Leaving {
  explicit Leaving(int count) {
    for (int i = 0; i < count; ++i) ids.push_back(store.draft(gone, "d" + std::to_string(i)));
  }
  Store store;
  SessionId gone = store.join(kAlice);
  SessionId other = store.join(kAlice);
  std::vector<ArrayId> ids;
};

std::string names_listed(const Store& store, SessionId session) {
  std::string names;
  const Result<ListPage> page = store.registry.list(session, "", {}, "", 1'000, store.now);
  REQUIRE(page.has_value());
  for (const ArrayView& array : page->arrays) {
    if (!array.name.empty()) names += std::string(array.name) + " ";
  }
  return names;
}

/// Name, state, leases and who broke it, of each array with a name.
std::string rows_listed(const Store& store, SessionId session) {
  std::string rows;
  const Result<ListPage> page = store.registry.list(session, "", {}, "", 1'000, store.now);
  REQUIRE(page.has_value());
  for (const ArrayView& array : page->arrays) {
    if (array.name.empty()) continue;
    rows += std::string(array.name) + " " + std::string(to_string(array.state)) + " " +
            std::to_string(array.leases);
    if (array.broken) {
      rows += " by " + std::to_string(array.broken->pid) + " " + array.broken->command + " at " +
              std::to_string(array.broken->at_s) + (array.broken->gave_up ? " gave up" : "");
    }
    rows += "\n";
  }
  return rows;
}

}  // namespace

TEST_CASE("end: leases go in slices of the size asked for, requests are answered in between") {
  Leaving leaving(10);
  Store& store = leaving.store;
  CHECK_FALSE(store.leave_some(leaving.gone, 4));
  CHECK(store.registry.counts().leases == 6);
  CHECK(store.registry.counts().sessions == 1);
  store.put(leaving.other, "mine");
  CHECK(store.registry.counts().leases == 7);
  CHECK_FALSE(store.leave_some(leaving.gone, 4));
  CHECK(store.registry.counts().leases == 3);
  CHECK(store.leave_some(leaving.gone, 4));
  CHECK(store.registry.counts().leases == 1);
  CHECK(store.leave_some(leaving.gone, 4));  // It is not there any more.
}

TEST_CASE("end: what is left is met by nobody") {
  Leaving leaving(3);
  Store& store = leaving.store;
  const SessionId other = leaving.other;
  const RequestId waits = store.attach(other, by_name("d1", -1));
  CHECK_FALSE(store.leave_some(leaving.gone, 0));
  CHECK(store.registry.counts().arrays == 3);
  CHECK(names_listed(store, other).empty());
  SUBCASE("its names are free") {
    for (const char* name : {"d0", "d1", "d2"}) store.draft(other, name);
    CHECK(store.code(waits) == ErrorCode::aborted);
    CHECK(names_listed(store, other) == "d0 d1 d2 ");
  }
  SUBCASE("attach and info find nothing") {
    CHECK(store.code(store.attach(other, by_name("d0", -1))) == ErrorCode::not_found);
    CHECK(store.code(store.attach(other, by_id(leaving.ids[1], Access::write, -1))) ==
          ErrorCode::not_found);
    CHECK(store.info(other, named("d2")).error().code == ErrorCode::not_found);
    CHECK(store.code(waits) == ErrorCode::aborted);
  }
  SUBCASE("nor does what only the owner may do") {
    CHECK(store.remove(other, named("d0")).error().code == ErrorCode::not_found);
    CHECK(store.chmod(other, with_id(leaving.ids[1]), 0400).error().code == ErrorCode::not_found);
    CHECK(store.code(store.seal(other, leaving.ids[2])) == ErrorCode::not_found);
  }
  SUBCASE("who waits is told in time") {
    CHECK(store.open(waits));
    CHECK(store.leave_some(leaving.gone, 3));
    CHECK(store.code(waits) == ErrorCode::aborted);
  }
  CHECK(store.leave_some(leaving.gone, 3));
}

TEST_CASE("end: who shares an array with a gone session has it to itself") {
  Store store;
  const SessionId gone = store.join(kAlice), other = store.join(kAlice);
  const ArrayId id = store.draft(gone, "m", protocol::kCreateMutable);
  store.granted(store.attach(other, by_id(id, Access::write)));
  CHECK_FALSE(store.leave_some(gone, 0));
  SUBCASE("seen by holders and info") {
    const auto holders = store.holders(other, with_id(id)).value();
    REQUIRE(holders.size() == 1);
    CHECK(holders[0].pid == static_cast<std::int64_t>(10'000 + other));
    CHECK(store.info(other, with_id(id))->leases == 1);
  }
  SUBCASE("sealed at once") {
    CHECK(store.as<Sealed>(store.seal(other, id)).state == State::sealed);
  }
  CHECK(store.leave_some(gone, 9));
  CHECK(store.registry.counts().leases == 1);
}

TEST_CASE("end: exclusive access is broken before anybody gets the array") {
  Store store;
  const SessionId gone = store.join(kAlice), other = store.join(kAlice);
  const ArrayId id = store.draft(gone, "m", protocol::kCreateMutable);
  store.release(gone, id, Access::write);
  const ArrayId kept = store.draft(gone, "k", protocol::kCreateMutable | protocol::kCreateKeep);
  store.release(gone, kept, Access::write);
  store.granted(store.attach(gone, by_id(kept, Access::exclusive)));
  CHECK_FALSE(store.leave_some(gone, 0));
  CHECK(store.state(kept) == State::mutable_);
  CHECK(store.code(store.attach(other, by_id(kept))) == ErrorCode::aborted);
  CHECK(store.state(kept) == State::broken);
  CHECK(store.events.back().event == "broken");
  CHECK(store.leave_some(gone, 1));
}

TEST_CASE("end: all that is left of a name goes for one request, and is settled once") {
  constexpr std::uint32_t kDrafts = 1'500;
  Limits limits = test_limits();
  limits.segments_max = kDrafts;
  Registry registry(limits);
  Effects effects;
  constexpr SessionId kGone = 1, kOther = 2;
  for (SessionId session : {kGone, kOther}) {
    REQUIRE(registry.open_session(session, {1, kAlice, kAlice, {}, "test"}).has_value());
  }
  RequestId request = 0;
  std::vector<ArrayId> ids;
  for (std::uint32_t i = 0; i < kDrafts; ++i) {
    CreateSpec spec = Store::spec("n");
    spec.options = protocol::kCreateReplace;
    effects.clear();
    registry.create(kGone, ++request, std::move(spec), {}, effects);
    ids.push_back(std::get<AllocateSegment>(effects.back()).id);
    registry.segment_ready(ids.back(), SegmentId{i + 1}, {}, effects);
  }
  std::size_t settled = 1;
  SUBCASE("drafts alone") {}
  SUBCASE("a published array before them") {
    registry.seal(kGone, ++request, ids.front(), false, 0, {}, effects);
    settled = 2;
  }
  CHECK_FALSE(registry.end_session(kGone, {}, effects, 0));
  effects.clear();
  registry.attach(kOther, ++request, by_name("n"), {}, effects);
  const auto& answer = std::get<Completion>(effects.back());
  CHECK(std::get<Error>(answer.result).code == ErrorCode::not_found);
  // An array's event comes when its lease ends, its memory is freed when it is settled.
  std::size_t frees = 0, runs = 0;
  bool freeing = false;
  for (const Effect& effect : effects) {
    const bool frees_now = std::holds_alternative<FreeSegment>(effect);
    frees += frees_now ? 1 : 0;
    runs += frees_now && !freeing ? 1 : 0;
    freeing = frees_now;
  }
  CHECK(frees == kDrafts);
  CHECK(runs == settled);
  CHECK(registry.selfcheck().empty());
}

TEST_CASE("end: list shows what a gone session had to itself as broken") {
  Store store;
  const SessionId gone = store.join(kAlice), other = store.join(kAlice);
  const ArrayId id = store.draft(gone, "m", protocol::kCreateMutable | protocol::kCreateKeep);
  store.release(gone, id, Access::write);
  store.granted(store.attach(other, by_id(id, Access::hold)));
  store.granted(store.attach(gone, by_id(id, Access::exclusive)));
  CHECK(rows_listed(store, other) == "m mutable 2\n");
  store.now.wall_s += 5;
  CHECK_FALSE(store.leave_some(gone, 0));
  const std::string listed = rows_listed(store, other);
  const std::string pid = std::to_string(10'000 + gone);
  CHECK(listed == "m broken 1 by " + pid + " test at 1700000005.000000\n");
  CHECK(store.leave_some(gone, 1));
  CHECK(rows_listed(store, other) == listed);
}

TEST_CASE("end: list leaves out the leases of gone sessions, many of one array or one of many") {
  Store store;
  const SessionId keeper = store.join(kAlice);
  const ArrayId shared = store.put(keeper, "shared");
  store.put(keeper, "own");
  std::vector<SessionId> readers;
  for (int i = 0; i < 20; ++i) {
    readers.push_back(store.join(kAlice));
    store.granted(store.attach(readers.back(), by_id(shared)));
    store.granted(store.attach(readers.back(), by_id(shared, Access::copy)));
  }
  // With few gone sessions they are asked, with many the array.
  for (std::size_t left = readers.size(); left > 0; --left) {
    CHECK_FALSE(store.leave_some(readers[left - 1], 0));
    CHECK(rows_listed(store, keeper) ==
          "own sealed 1\nshared sealed " + std::to_string(2 * left - 1) + "\n");
  }
  CHECK(store.registry.counts().leases == 42);
}

TEST_CASE("end: what a request breaks is broken at its time, whatever it asks for") {
  Store store;
  const SessionId gone = store.join(kAlice), other = store.join(kAlice);
  const ArrayId id = store.draft(gone, "m", protocol::kCreateMutable | protocol::kCreateKeep);
  store.release(gone, id, Access::write);
  store.granted(store.attach(other, by_id(id, Access::hold)));
  store.granted(store.attach(gone, by_id(id, Access::exclusive)));
  CHECK_FALSE(store.leave_some(gone, 0));
  store.now.wall_s += 5;
  store.granted(store.segment(other, id, Access::hold));
  REQUIRE(store.state(id) == State::broken);
  CHECK(store.registry.find(id)->broken->at_s == store.now.wall_s);
  CHECK(store.leave_some(gone, 1));
}

TEST_CASE("end: quotas are free at once, so that whoever comes back finds its place") {
  Limits limits = test_limits();
  limits.user_connections_max = 1;
  limits.user_leases_max = 2;
  Store store(limits);
  const SessionId gone = store.join(kAlice);
  store.put(gone, "a", protocol::kCreateKeep);
  store.put(gone, "b");
  CHECK_FALSE(store.leave_some(gone, 0));
  const Usage usage = store.registry.quota().usage(kAlice);
  CHECK(usage.connections == 0);
  CHECK(usage.leases == 0);
  const SessionId back = store.join(kAlice);
  store.granted(store.attach(back, by_name("a")));
  store.put(back, "b");
  CHECK(store.code(store.create(back, Store::spec("c"))) == ErrorCode::quota_exceeded);
  CHECK(store.leave_some(gone, 2));
  CHECK(store.registry.quota().usage(kAlice).leases == 2);
}

TEST_CASE("end: nothing is granted to a session that is gone") {
  Store store;
  store.hold_memory = true;
  const SessionId gone = store.join(kAlice), other = store.join(kAlice);
  store.hold_memory = false;
  store.put(gone, "ballast");
  const RequestId role = store.cached(gone, own("key"));
  store.as<LoaderRole>(role);
  const RequestId next = store.cached(other, own("key"));
  const RequestId waits = store.wait(gone, own("later"), 0, -1);
  store.hold_memory = true;
  const RequestId unborn = store.create(gone, Store::spec("unborn"));
  CHECK_FALSE(store.leave_some(gone, 0));
  store.as<LoaderRole>(next);
  CHECK(store.cancelled == std::vector<ArrayId>{store.allocations.at(0).id});
  store.give_memory();
  store.hold_memory = false;
  store.put(other, "later");
  store.put(other, "unborn");
  CHECK(store.leave_some(gone, 9));
  CHECK(store.open(waits));
  CHECK(store.open(unborn));
  CHECK(store.code(store.release(gone, ArrayId{1}, Access::read)) == ErrorCode::internal);
}

TEST_CASE("end: a create that waits for room does not stumble over what is left") {
  Limits limits = test_limits();
  limits.user_arrays_max = 2;
  Store store(limits);
  const SessionId gone = store.join(kAlice), other = store.join(kAlice);
  const ArrayId first = store.put(gone, "a");
  store.put(gone, "b");
  CreateSpec spec = Store::spec("n");
  spec.timeout_ms = -1;
  const RequestId waits = store.create(other, std::move(spec));
  store.release(gone, first, Access::read);
  store.granted(waits);
  CreateSpec again = Store::spec("b");
  again.timeout_ms = -1;
  again.options = protocol::kCreateReplace;
  const RequestId second = store.create(other, std::move(again));
  CHECK(store.open(second));
  CHECK_FALSE(store.leave_some(gone, 0));
  store.granted(second);
  CHECK(store.leave_some(gone, 9));
}

TEST_CASE("end: the kernel's answer to a hard seal finds no writer that is gone") {
  Store store;
  store.hold_seals = true;
  const SessionId gone = store.join(kAlice), other = store.join(kAlice);
  const ArrayId m = store.draft(gone, "m", protocol::kCreateMutable);
  const ArrayId draft = store.draft(gone, "d");
  store.granted(store.attach(other, by_id(m)));
  store.seal(gone, m, true);
  store.seal(gone, draft, true);
  CHECK_FALSE(store.leave_some(gone, 0));
  store.answer_seal({});
  store.answer_seal({});
  CHECK(store.state(m) == State::sealed);
  CHECK_FALSE(store.state(draft).has_value());
  CHECK(store.leave_some(gone, 9));
}

// -- the same as in one go ------------------------------------------------------------------------

namespace {

/// The same requests to two stores: in one sessions end in one go, in the other bit by bit. Only
/// versions may differ: those of a name made anew lie above what has been deleted by then.
class Twins {
 public:
  explicit Twins(std::uint64_t seed) : random_(seed) {
    for (int i = 0; i < 4; ++i) join();
  }

  void step() {
    const SessionId who = sessions_[roll(sessions_.size())];
    const std::string name = "n" + std::to_string(roll(4));
    switch (roll(12)) {
      case 0: roll(3) == 0 && sessions_.size() > 1 ? leave(who) : join(); break;
      case 1:
      case 2: create(who, name); break;
      case 3: seal(who); break;
      case 4: {
        AttachSpec spec = by_name(name);
        spec.access = static_cast<Access>(1 + roll(5));
        spec.repair = spec.access == Access::exclusive && roll(2) == 0;
        both([&](Store& store) { return store.attach(who, spec); });
        break;
      }
      case 5: both([&](Store& store) { return store.cached(who, own(name), 0); }); break;
      case 6: both([&](Store& store) { return store.wait(who, own(name), 0, 0); }); break;
      case 7: release(who); break;
      case 8: look(who, name); break;
      case 9: {
        const auto is = one_.remove(who, named(name)), same = other_.remove(who, named(name));
        CHECK(is.has_value() == same.has_value());
        break;
      }
      case 10:
        CHECK(one_.keep(who, named(name)).has_value() == other_.keep(who, named(name)).has_value());
        break;
      default:
        if (!leaving_.empty() && other_.leave_some(leaving_.back(), roll(3))) leaving_.pop_back();
        break;
    }
    CHECK(rows_listed(one_, sessions_[0]) == rows_listed(other_, sessions_[0]));
  }

  void finish() {
    for (const SessionId gone : leaving_) (void)other_.leave_some(gone, SIZE_MAX);
    const RegistryCounts is = one_.registry.counts(), same = other_.registry.counts();
    CHECK(is.arrays == same.arrays);
    CHECK(is.leases == same.leases);
    CHECK(is.sessions == same.sessions);
    CHECK(is.waits == same.waits);
  }

 private:
  std::uint64_t roll(std::uint64_t sides) { return random_() % sides; }

  void join() {
    const std::uint32_t uid = roll(4) == 0 ? kRoot : kAlice;
    const SessionId session = one_.join(uid);
    CHECK(other_.join(uid) == session);
    sessions_.push_back(session);
  }
  void leave(SessionId who) {
    std::erase(sessions_, who);
    one_.leave(who);
    if (!other_.leave_some(who, roll(3))) leaving_.push_back(who);
  }

  struct Ids {
    ArrayId one, other;
    Access access = Access::read;
  };

  /// Asks both; the answers have to be alike.
  template <class F>
  void both(F&& ask) {
    const RequestId request = ask(one_), same = ask(other_);
    REQUIRE(request == same);
    REQUIRE(one_.open(request) == other_.open(request));
    if (one_.open(request)) return;
    const auto& is = one_.completion(request).result;
    const auto& should = other_.completion(request).result;
    if (const auto* error = std::get_if<Error>(&is)) INFO(error->text);
    if (const auto* error = std::get_if<Error>(&should)) INFO(error->text);
    REQUIRE(is.index() == should.index());
    CHECK(one_.code(request) == other_.code(request));
    if (const auto* grant = std::get_if<Grant>(&is)) {
      held_.push_back({grant->id, std::get<Grant>(should).id, grant->access});
    }
  }

  void create(SessionId who, const std::string& name) {
    CreateSpec spec = Store::spec(name, roll(2) * 4096);
    spec.name.uid = kAlice;
    spec.options = static_cast<std::uint16_t>((roll(2) * protocol::kCreateReplace) |
                                              (roll(2) * protocol::kCreateMutable));
    both([&](Store& store) { return store.create(who, spec); });
  }
  void seal(SessionId who) {
    if (held_.empty()) return;
    const Ids ids = held_[roll(held_.size())];
    const bool hard = roll(3) == 0;
    both(
        [&](Store& store) { return store.seal(who, &store == &one_ ? ids.one : ids.other, hard); });
  }
  void release(SessionId who) {
    if (held_.empty()) return;
    const Ids ids = held_[roll(held_.size())];
    both([&](Store& store) {
      return store.release(who, &store == &one_ ? ids.one : ids.other, ids.access);
    });
  }
  void look(SessionId who, const std::string& name) {
    const auto is = one_.info(who, named(name, kAlice)),
               same = other_.info(who, named(name, kAlice));
    REQUIRE(is.has_value() == same.has_value());
    if (!is) return;
    CHECK(is->state == same->state);
    CHECK(is->leases == same->leases);
    CHECK(is->broken.has_value() == same->broken.has_value());
    if (is->broken && same->broken) CHECK(is->broken->pid == same->broken->pid);
  }

  std::mt19937_64 random_;
  Store one_, other_;
  std::vector<SessionId> sessions_, leaving_;
  std::vector<Ids> held_;
};

}  // namespace

TEST_CASE("end: in slices or in one go, every answer is the same") {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    CAPTURE(seed);
    Twins twins(seed);
    for (int i = 0; i < 400; ++i) twins.step();
    twins.finish();
  }
}
