#include "tests/unit/registry_fixture.hpp"

using namespace shmstore;
using namespace shmstore::server;

namespace {

ErrorCode attach_code(Store& store, SessionId who, ArrayId id, Access access) {
  const RequestId request = store.attach(who, by_id(id, access));
  const auto& result = store.completion(request).result;
  return std::holds_alternative<Grant>(result) ? ErrorCode{} : store.code(request);
}

}  // namespace

TEST_CASE("rights: the class of owner, group or others decides, never a mix") {
  Store store;
  const SessionId alice = store.join(kAlice);
  const SessionId group = store.join(kCarol, {kAlice});  // Supplementary group of Alice's gid.
  const SessionId bob = store.join(kBob), root = store.join(kRoot);
  struct Row {
    std::uint16_t perms;
    bool owner_r, owner_w, group_r, group_w, other_r, other_w;
  };
  const Row rows[] = {
      {0600, true, true, false, false, false, false},
      {0640, true, true, true, false, false, false},
      {0660, true, true, true, true, false, false},
      {0604, true, true, false, false, true, false},
      {0606, true, true, false, false, true, true},
      {0666, true, true, true, true, true, true},
      {0400, true, false, false, false, false, false},
      {0000, false, false, false, false, false, false},
      {0066, false, false, true, true, true, true},
      {0602, true, true, false, false, false, false},  // Write alone is no right to map.
  };
  for (const Row& row : rows) {
    CAPTURE(row.perms);
    CreateSpec spec = Store::spec("");
    spec.perms = row.perms;
    spec.options = protocol::kCreateMutable;
    const ArrayId id = store.granted(store.create(alice, spec));
    const auto check = [&](SessionId who, bool reads, bool writes) {
      const ErrorCode none{}, no = ErrorCode::permission_denied;
      // What others may not even read is not there for who guesses its id.
      const ErrorCode hidden = reads || who == alice ? no : ErrorCode::not_found;
      CHECK(attach_code(store, who, id, Access::read) == (reads ? none : hidden));
      CHECK(attach_code(store, who, id, Access::copy) == (reads ? none : hidden));
      CHECK(attach_code(store, who, id, Access::write) == (writes ? none : hidden));
    };
    check(alice, row.owner_r, row.owner_w);
    check(group, row.group_r, row.group_w);
    check(bob, row.other_r, row.other_w);
    check(root, true, true);
  }
}

TEST_CASE("rights: a foreign namespace says the same whether or not the name exists") {
  Store store;
  const SessionId alice = store.join(kAlice), bob = store.join(kBob), root = store.join(kRoot);
  store.put(alice, "secret");
  const auto both = [&](auto&& ask) {
    const Error there = ask("secret"), missing = ask("nothing");
    CHECK(there.code == ErrorCode::permission_denied);
    CHECK(missing.code == ErrorCode::permission_denied);
    CHECK(there.text.size() - 6 == missing.text.size() - 7);  // But for the name itself.
  };
  both([&](const char* name) {
    return store.error(store.attach(bob, by_name(name, -1, 0, kAlice)));
  });
  both([&](const char* name) {
    return store.error(store.attach(bob, by_name(name, -1, 7, kAlice)));
  });
  both([&](const char* name) { return store.error(store.wait(bob, {kAlice, name}, 0, -1)); });
  both([&](const char* name) { return store.error(store.cached(bob, {kAlice, name})); });
  both([&](const char* name) { return store.info(bob, named(name, kAlice)).error(); });
  both([&](const char* name) { return store.holders(bob, named(name, kAlice)).error(); });
  both([&](const char* name) { return store.keep(bob, named(name, kAlice)).error(); });
  both([&](const char* name) { return store.unkeep(bob, named(name, kAlice)).error(); });
  both([&](const char* name) { return store.remove(bob, named(name, kAlice)).error(); });
  both([&](const char* name) { return store.chmod(bob, named(name, kAlice), 0666).error(); });
  both([&](const char* name) {
    CreateSpec spec = Store::spec(name);
    spec.name.uid = kAlice;
    spec.options = protocol::kCreateReplace;
    return store.error(store.create(bob, spec));
  });
  CHECK(store.info(root, named("secret", kAlice)).has_value());
  CHECK(store.info(root, named("nothing", kAlice)).error().code == ErrorCode::not_found);
}

TEST_CASE("rights: only the owner and root delete, keep, seal, replace, chmod") {
  OnePerState one;
  Store& store = one.store;
  const SessionId bob = one.bob, root = store.join(kRoot);
  AttachSpec join = by_id(one.draft, Access::write);
  store.granted(store.attach(bob, join));
  CHECK(store.code(store.seal(bob, one.draft)) == ErrorCode::permission_denied);
  CHECK(store.code(store.abort(bob, with_id(one.draft))) == ErrorCode::permission_denied);
  for (const ArrayId id : {one.draft, one.sealed, one.mutable_, one.dying}) {
    // Before the state: nobody learns it who may not ask.
    CHECK(store.remove(bob, with_id(id)).error().code == ErrorCode::permission_denied);
    CHECK(store.keep(bob, with_id(id)).error().code == ErrorCode::permission_denied);
    CHECK(store.unkeep(bob, with_id(id)).error().code == ErrorCode::permission_denied);
    CHECK(store.chmod(bob, with_id(id), 0600).error().code == ErrorCode::permission_denied);
  }
  CHECK(store.keep(root, named("sealed", kAlice)).has_value());
  CHECK(store.remove(root, named("mutable", kAlice)).has_value());
}

TEST_CASE("rights: who guesses an id hears the same of a private array as of none") {
  Store store;
  const SessionId alice = store.join(kAlice), bob = store.join(kBob);
  const auto ask = [&](ArrayId id) {
    return std::vector<Error>{store.error(store.attach(bob, by_id(id))),
                              store.error(store.attach(bob, by_id(id, Access::write))),
                              store.error(store.attach(bob, by_id(id, Access::exclusive))),
                              store.error(store.attach(bob, by_id(id, Access::hold))),
                              store.error(store.seal(bob, id)),
                              store.error(store.abort(bob, with_id(id))),
                              store.error(store.handover(bob, id, 0, true)),
                              store.error(store.received(bob, id, 1)),
                              store.error(store.segment(bob, id, Access::read)),
                              store.error(store.release(bob, id, Access::read)),
                              store.info(bob, with_id(id)).error(),
                              store.holders(bob, with_id(id)).error(),
                              store.remove(bob, with_id(id)).error(),
                              store.keep(bob, with_id(id)).error(),
                              store.unkeep(bob, with_id(id)).error(),
                              store.chmod(bob, with_id(id), 0666).error()};
  };
  const ArrayId none{0x123456789aU};
  const std::vector<Error> should = ask(none);
  for (const ArrayId id : {store.put(alice, "secret"), store.draft(alice, "secret-too"),
                           store.draft(alice, "mutable", protocol::kCreateMutable)}) {
    const std::vector<Error> is = ask(id);
    for (std::size_t n = 0; n < is.size(); ++n) {
      std::string text = is[n].text;
      const std::string own = std::to_string(id.raw);
      if (const std::size_t at = text.find(own); at != std::string::npos) {
        text.replace(at, own.size(), std::to_string(none.raw));
      }
      CHECK(is[n].code == should[n].code);
      CHECK(text == should[n].text);
    }
  }
}

TEST_CASE("rights: root works in a user's namespace, the user cannot take what is root's") {
  Store store;
  const SessionId alice = store.join(kAlice), root = store.join(kRoot);
  CreateSpec spec = Store::spec("given");
  spec.name.uid = kAlice;
  const ArrayId id = store.granted(store.create(root, spec));
  store.seal(root, id);
  CHECK(store.registry.quota().usage(kRoot).arrays == 1);
  CHECK(store.code(store.attach(alice, by_name("given"))) == ErrorCode::permission_denied);
  CHECK(store.remove(alice, named("given")).error().code == ErrorCode::permission_denied);
  CreateSpec mine = Store::spec("given");
  CHECK(store.code(store.create(alice, mine)) == ErrorCode::already_exists);
  mine.options = protocol::kCreateReplace;
  CHECK(store.code(store.create(alice, mine)) == ErrorCode::permission_denied);
}

TEST_CASE("rights: a draft that would replace is asked again at the seal") {
  Store store;
  const SessionId alice = store.join(kAlice), root = store.join(kRoot);
  const ArrayId draft = store.draft(alice, "grid", protocol::kCreateReplace);
  CreateSpec spec = Store::spec("grid");
  spec.name.uid = kAlice;
  spec.options = protocol::kCreateReplace;
  store.seal(root, store.granted(store.create(root, spec)));
  CHECK(store.code(store.seal(alice, draft)) == ErrorCode::permission_denied);
  CHECK(store.state(draft) == State::draft);
}

TEST_CASE("rights: events carry what is needed to ask") {
  Store store;
  const SessionId alice = store.join(kAlice), bob = store.join(kBob), root = store.join(kRoot);
  store.put(alice, "grid");
  REQUIRE_FALSE(store.events.empty());
  const EventRecord& event = store.events[0];
  CHECK(store.registry.may_read(*store.registry.identity(alice), event));
  CHECK_FALSE(store.registry.may_read(*store.registry.identity(bob), event));
  CHECK(store.registry.may_read(*store.registry.identity(root), event));
}

TEST_CASE("rights: only a hard-sealed or a mutable array is opened to others") {
  Store store;
  const SessionId alice = store.join(kAlice);
  const ArrayId draft = store.draft(alice, "draft"), soft = store.put(alice, "soft");
  const ArrayId hard = store.put(alice, "hard", protocol::kCreateHard);
  const ArrayId shared = store.draft(alice, "mutable", protocol::kCreateMutable);
  const ArrayId broken =
      store.draft(alice, "broken", protocol::kCreateMutable | protocol::kCreateKeep);
  store.release(alice, broken, Access::write);
  store.granted(store.attach(alice, by_id(broken, Access::exclusive)));
  store.as<Done>(store.abort(alice, with_id(broken)));
  for (const std::uint16_t perms : std::vector<std::uint16_t>{0640, 0604, 0620, 0602}) {
    for (const ArrayId id : {draft, soft, broken}) {
      const Result<ArrayView> refused = store.chmod(alice, with_id(id), perms);
      REQUIRE_FALSE(refused.has_value());
      CHECK(refused.error().code == ErrorCode::invalid_argument);
      CHECK(store.registry.find(id)->perms == 0600);
    }
    for (const ArrayId id : {hard, shared}) {
      CHECK(store.chmod(alice, with_id(id), perms).has_value());
      CHECK(store.chmod(alice, with_id(id), 0600).has_value());
    }
  }
  for (const ArrayId id : {draft, soft, broken, hard, shared}) {
    CHECK(store.chmod(alice, with_id(id), 0400).has_value());
    CHECK(store.chmod(alice, with_id(id), 0600).has_value());
  }
}
