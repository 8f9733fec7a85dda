#include "tests/unit/registry_fixture.hpp"

using namespace shmstore;
using namespace shmstore::server;

namespace {

std::vector<std::string> names(Store& store, SessionId session, std::string_view prefix = {},
                               std::optional<std::uint32_t> uid = {}, std::size_t limit = 2) {
  std::vector<std::string> found;
  std::string cursor;
  while (true) {
    const ListPage page =
        store.registry.list(session, prefix, uid, cursor, limit, store.now).value();
    CHECK(page.arrays.size() <= limit);
    for (const ArrayView& view : page.arrays) {
      const bool foreign = view.ns_uid != store.registry.identity(session)->uid;
      found.push_back((foreign ? "~" + std::to_string(view.ns_uid) + "/" : "") +
                      std::string(view.name));
    }
    if (!page.cursor) break;
    cursor = *page.cursor;
  }
  return found;
}

using Names = std::vector<std::string>;

void put_open(Store& store, SessionId session, std::string name) {
  CreateSpec spec = Store::spec(std::move(name));
  spec.perms = 0644;
  store.seal(session, store.granted(store.create(session, spec)));
}

}  // namespace

TEST_CASE("list: own names first, then the readable ones of others, then anonymous") {
  Store store;
  const SessionId alice = store.join(kAlice), bob = store.join(kBob), root = store.join(kRoot);
  store.put(alice, "b");
  store.put(alice, "a/x");
  store.put(alice, "a/y");
  put_open(store, alice, "open");
  store.put(alice, "");
  put_open(store, bob, "a/z");
  store.put(bob, "secret");
  for (std::size_t limit = 1; limit < 9; ++limit) {
    CHECK(names(store, alice, "", {}, limit) == Names{"a/x", "a/y", "b", "open", "~1001/a/z", ""});
    CHECK(names(store, bob, "", {}, limit) == Names{"a/z", "secret", "~1000/open"});
    CHECK(names(store, alice, "a/", {}, limit) == Names{"a/x", "a/y", "~1001/a/z"});
    CHECK(names(store, alice, "", kBob, limit) == Names{"~1001/a/z"});
    CHECK(names(store, alice, "", kAlice, limit) == Names{"a/x", "a/y", "b", "open", ""});
    CHECK(names(store, root, "", {}, limit) ==
          Names{"~1000/a/x", "~1000/a/y", "~1000/b", "~1000/open", "~1001/a/z", "~1001/secret"});
    CHECK(names(store, alice, "zzz", {}, limit).empty());
    CHECK(names(store, alice, "", 4711, limit).empty());
  }
}

TEST_CASE("list: every array of a name, also in pages of one") {
  Store store;
  const SessionId alice = store.join(kAlice);
  store.put(alice, "grid");
  for (int i = 0; i < 5; ++i) store.draft(alice, "grid", protocol::kCreateReplace);
  store.put(alice, "h");
  for (std::size_t limit = 1; limit < 9; ++limit) {
    CHECK(names(store, alice, "", {}, limit).size() == 7);
  }
}

TEST_CASE("list: goes on where it was although names come and go") {
  Store store;
  const SessionId alice = store.join(kAlice);
  for (const char* name : {"a", "c", "e"}) store.put(alice, name);
  const ListPage first = store.registry.list(alice, "", {}, "", 2, store.now).value();
  REQUIRE(first.cursor.has_value());
  CHECK(store.remove(alice, named("c")).has_value());
  store.put(alice, "b");
  store.put(alice, "d");
  const ListPage second = store.registry.list(alice, "", {}, *first.cursor, 9, store.now).value();
  REQUIRE(second.arrays.size() == 3);  // And "c", which is dying and without a name now.
  CHECK(second.arrays[0].name == "d");
  CHECK(second.arrays[1].name == "e");
  CHECK(second.arrays[2].state == State::dying);
}

TEST_CASE("list: a page looks at a bounded number of arrays") {
  Limits limits = test_limits();
  limits.segments_max = 100'000;
  Registry registry(limits);
  Effects effects;
  CHECK(registry.open_session(1, {1, kAlice, kAlice, {}, ""}).has_value());
  CHECK(registry.open_session(2, {2, kBob, kBob, {}, ""}).has_value());
  for (RequestId i = 1; i <= 10'000; ++i) {
    registry.create(1, i, Store::spec("n" + std::to_string(i), 0), {}, effects);
  }
  const ListPage first = registry.list(2, "", {}, "", 10, {}).value();
  CHECK(first.arrays.empty());
  REQUIRE(first.cursor.has_value());
  const ListPage second = registry.list(2, "", {}, *first.cursor, 10, {}).value();
  CHECK(second.arrays.empty());
  CHECK_FALSE(second.cursor.has_value());
}

TEST_CASE("list: the leases that gone sessions left count as looked at") {
  constexpr SessionId kSessions = 1'000;
  constexpr int kArrays = 20;
  Limits limits = test_limits();
  Registry registry(limits);
  Effects effects;
  RequestId request = 0;
  for (SessionId session = 1; session <= kSessions; ++session) {
    CHECK(registry.open_session(session, {1, kAlice, kAlice, {}, ""}).has_value());
    for (int i = 0; i < kArrays; ++i) {
      CreateSpec spec = Store::spec("n" + std::to_string(i), 0);
      spec.options = protocol::kCreateMutable;
      if (session == 1) {
        registry.create(session, ++request, std::move(spec), {}, effects);
      } else {
        registry.attach(session, ++request, by_name(spec.name.name), {}, effects);
      }
    }
  }
  REQUIRE(registry.counts().leases == kArrays * kSessions);
  for (SessionId session = 1; session <= kSessions; ++session) {
    CHECK_FALSE(registry.end_session(session, {}, effects, 0));
  }
  const SessionId other = kSessions + 1;
  CHECK(registry.open_session(other, {1, kAlice, kAlice, {}, ""}).has_value());
  std::string cursor;
  int pages = 1;
  for (;; ++pages) {
    const ListPage page = registry.list(other, "", {}, cursor, 100, {}).value();
    CHECK(page.arrays.empty());
    if (!page.cursor) break;
    cursor = *page.cursor;
  }
  CHECK(pages == 3);  // 8,192 looks each, and an array takes 1,001
}

TEST_CASE("list: cursors that are none") {
  Store store;
  const SessionId alice = store.join(kAlice);
  for (const char* cursor :
       {"x", "n", "n1", "n1,", "n1,2", "n99999999999,0,x", "a", "a1x", "nx,0,a"}) {
    CAPTURE(cursor);
    const auto page = store.registry.list(alice, "", {}, cursor, 10, store.now);
    REQUIRE_FALSE(page.has_value());
    CHECK(page.error().code == ErrorCode::invalid_argument);
  }
}
