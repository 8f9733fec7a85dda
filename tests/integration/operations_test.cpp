// Every operation on an array in every state, as the interface's table has it.
#include <functional>

#include "tests/support/testing.hpp"

using namespace shmstore;
using namespace shmstore::testing;

namespace {

constexpr std::size_t kBytes = 1000;

/// One array per state, held by `owner`; `other` is a second session of the same user.
struct OneOfEach {
  DaemonFixture daemon;
  Client owner = daemon.connect();
  Client other = daemon.connect();
  AnyArray draft, sealed, changing, dying;

  OneOfEach() {
    draft = create_bytes(owner, "draft", kBytes).value();
    sealed = put_bytes(owner, "sealed", kBytes, 1).value();
    CreateOptions options;
    options.is_mutable = true;
    changing = create_bytes(owner, "mutable", kBytes, options).value();
    dying = put_bytes(owner, "dying", kBytes, 2).value();
    owner.remove("dying").value();
  }
};

using Operation = std::function<std::string(Client&, const std::string& name)>;

struct Row {
  const char* what;
  Operation operation;
  const char *draft, *sealed, *changing, *absent;  ///< Expected; absent: dying or never there.
};

std::string attach(Client& client, const std::string& name, Access wanted) {
  return outcome(client.attach_any(name, access(wanted)));
}

const Row kRows[] = {
    {"attach r", [](Client& c, const std::string& n) { return attach(c, n, Access::read); },
     "timed_out", "ok", "ok", "not_found"},
    {"attach r+", [](Client& c, const std::string& n) { return attach(c, n, Access::write); }, "ok",
     "invalid_argument", "ok", "not_found"},
    {"attach c", [](Client& c, const std::string& n) { return attach(c, n, Access::copy); },
     "timed_out", "ok", "ok", "not_found"},
    {"attach newer",
     [](Client& c, const std::string& n) {
       AttachOptions options = no_wait();
       options.newer_than = 1'000'000;
       return outcome(c.attach_any(n, options));
     },
     "timed_out", "timed_out", "timed_out", "timed_out"},
    {"wait", [](Client& c, const std::string& n) { return outcome(c.wait(n, 0, kDoNotWait)); },
     "timed_out", "ok", "ok", "timed_out"},
    {"info", [](Client& c, const std::string& n) { return outcome(c.info(n)); }, "ok", "ok", "ok",
     "not_found"},
    {"holders", [](Client& c, const std::string& n) { return outcome(c.holders(n)); }, "ok", "ok",
     "ok", "not_found"},
    {"keep", [](Client& c, const std::string& n) { return outcome(c.keep(n)); }, "not_sealed", "ok",
     "ok", "not_found"},
    {"chmod narrower", [](Client& c, const std::string& n) { return outcome(c.chmod(n, 0400)); },
     "ok", "ok", "ok", "not_found"},
    {"delete", [](Client& c, const std::string& n) { return outcome(c.remove(n)); }, "ok", "ok",
     "ok", "not_found"},
    {"create", [](Client& c, const std::string& n) { return outcome(create_bytes(c, n, 10)); },
     "already_exists", "already_exists", "already_exists", "ok"},
    {"create with replace",
     [](Client& c, const std::string& n) {
       CreateOptions options;
       options.replace = true;
       return outcome(create_bytes(c, n, 10, options));
     },
     "not_sealed", "ok", "ok", "ok"},
};

}  // namespace

TEST_CASE("operations: each on an array in each state") {
  for (const Row& row : kRows) {
    OneOfEach arrays;
    CAPTURE(row.what);
    CHECK_MESSAGE(row.operation(arrays.other, "draft") == row.draft, "draft");
    CHECK_MESSAGE(row.operation(arrays.other, "sealed") == row.sealed, "sealed");
    CHECK_MESSAGE(row.operation(arrays.other, "mutable") == row.changing, "mutable");
    CHECK_MESSAGE(row.operation(arrays.other, "dying") == row.absent, "dying");
    CHECK_MESSAGE(row.operation(arrays.other, "missing") == row.absent, "missing");
  }
}

TEST_CASE("operations: by id, a dying array is not found but its holder keeps its bytes") {
  OneOfEach arrays;
  EXPECT_ERROR(arrays.other.attach_id(arrays.dying.id(), 0, no_wait()), not_found);
  CHECK(only_byte(arrays.dying) == 2);
  EXPECT_OK(arrays.other.attach_id(arrays.sealed.id(), 0, no_wait()));
  EXPECT_OK(arrays.other.attach_id(arrays.sealed.id(), arrays.owner.store_id(), no_wait()));
}

TEST_CASE("operations: a handle of an earlier store is not found and says so") {
  OneOfEach arrays;
  const auto stale =
      arrays.other.attach_id(arrays.sealed.id(), arrays.owner.store_id() + 1, no_wait());
  EXPECT_ERROR(stale, not_found);
  CHECK(stale.error().text.find("store") != std::string::npos);
}

TEST_CASE("operations: arguments out of range name the field and the limit") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  const std::uint64_t shape[] = {4};
  const auto refused = [&](const auto& result, std::string_view field) {
    EXPECT_ERROR(result, invalid_argument);
    if (!result) CHECK_MESSAGE(result.error().text.starts_with(field), result.error().text);
  };
  for (const char* name : {"-x", "~x", "/x", "a//b", "a/../b", "x/", "a b", "a\nb", "a\"b"}) {
    CAPTURE(name);
    refused(client.create_any(name, "<f8", shape), "name:");
  }
  refused(client.create_any(std::string(256, 'x'), "<f8", shape), "name:");
  EXPECT_OK(client.create_any(std::string(255, 'x'), "<f8", shape));
  for (const char* dtype : {"", "O", "|O", "<f3", "nonsense", "[('a', '<f8')", "[('a', 'O')]"}) {
    CAPTURE(dtype);
    refused(client.create_any("x", dtype, shape), "dtype:");
  }
  const std::uint64_t huge[] = {1ULL << 40, 1ULL << 40};
  refused(client.create_any("x", "<f8", huge), "shape:");
  const std::vector<std::uint64_t> deep(65, 1);
  refused(client.create_any("x", "<f8", deep), "shape:");
  CreateOptions options;
  options.perms = 0777;
  refused(client.create_any("x", "<f8", shape, options), "perms:");
  options = {};
  options.attrs = "[1]";
  refused(client.create_any("x", "<f8", shape, options), "attrs:");
  options.attrs = "{\"a\": \"" + std::string(5000, 'x') + "\"}";
  refused(client.create_any("x", "<f8", shape, options), "attrs:");
  EXPECT_ERROR(client.info("x"), not_found);
}

TEST_CASE("operations: what was put comes back, with its description") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  const double values[] = {1.5, -2.0, 3.25, 0.0, 5.0, 6.0};
  const std::uint64_t shape[] = {2, 3};
  CreateOptions options;
  options.order = Order::f;
  options.attrs = R"({"unit":"K"})";
  auto made = client.put_any("a/b", "<f8", shape, std::as_bytes(std::span(values)), options);
  REQUIRE(made);
  auto array = daemon.connect().attach_any("a/b");
  REQUIRE(array);
  CHECK(array->dtype().text() == "<f8");
  CHECK(std::vector(array->shape().begin(), array->shape().end()) ==
        std::vector<std::uint64_t>{2, 3});
  CHECK(array->order() == Order::f);
  CHECK(array->bytes() == sizeof values);
  CHECK(array->id() == made->id());
  CHECK(array->name() == "a/b");
  CHECK(array->state() == State::sealed);
  CHECK(array->access() == Access::read);
  CHECK(array->writable_data() == nullptr);
  CHECK(reinterpret_cast<std::uintptr_t>(array->data()) % kAlignment == 0);
  const auto* read = reinterpret_cast<const double*>(array->data());
  CHECK(std::vector<double>(read, read + 6) ==
        std::vector<double>(std::begin(values), std::end(values)));
  const ArrayInfo info = client.info("a/b").value();
  CHECK(info.id == std::to_string(made->id().raw));
  CHECK(info.order == "F");
  CHECK(info.perms == "0600");
  CHECK(info.attrs.find("\"K\"") != std::string::npos);
  CHECK(info.uid == ::getuid());
  CHECK(info.leases == 2);
}

TEST_CASE("operations: empty and 0-d arrays, and 64 dimensions") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  const std::uint64_t none[] = {3, 0};
  auto empty = client.put_any("empty", "<f8", none, {});
  REQUIRE(empty);
  CHECK(empty->data() != nullptr);
  CHECK(empty->bytes() == 0);
  auto again = client.attach_any("empty");
  REQUIRE(again);
  CHECK(again->shape().size() == 2);
  const double value = 7;
  auto scalar = client.put_any("scalar", "<f8", {}, std::as_bytes(std::span(&value, 1)));
  REQUIRE(scalar);
  CHECK(scalar->shape().empty());
  CHECK(scalar->bytes() == 8);
  const std::vector<std::uint64_t> ones(64, 1);
  auto deep = client.put_any("deep", "<f8", ones, std::as_bytes(std::span(&value, 1)));
  EXPECT_OK(deep);
  CHECK(client.attach_any("deep").value().shape().size() == 64);
}

TEST_CASE("operations: a typed attach of another dtype is refused and holds nothing") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  const double values[] = {1, 2};
  auto array = client.put<double>("x", values);
  REQUIRE(array);
  EXPECT_ERROR(client.attach<float>("x"), invalid_argument);
  CHECK(wait_until([&] { return client.info("x").value().leases == 1; }));
  auto same = client.attach<double>("x");
  REQUIRE(same);
  CHECK(same->data()[1] == 2);
}

TEST_CASE("operations: anonymous arrays are found by id only") {
  DaemonFixture daemon;
  Client client = daemon.connect();
  Client other = daemon.connect();
  auto first = put_bytes(client, "", 100, 1);
  auto second = put_bytes(client, "", 100, 2);
  REQUIRE(first);
  REQUIRE(second);
  CHECK(first->name().empty());
  CHECK(only_byte(other.attach_id(second->id()).value()) == 2);
  CHECK(client.list().value().size() == 2);
  const ArrayId released = first->id();
  first->release().value();
  EXPECT_ERROR(other.attach_id(released), not_found);
}

TEST_CASE("operations: list pages, and by prefix") {
  DaemonOptions options;
  options.invariants = false;
  DaemonFixture daemon(options);
  Client client = daemon.connect();
  std::vector<AnyArray> held;
  for (int i = 0; i < 300; ++i) {
    const std::string name = (i % 3 == 0 ? "third/" : "rest/") + std::to_string(i);
    held.push_back(put_bytes(client, name, 64, 1).value());
  }
  CHECK(client.list().value().size() == 300);
  const auto third = client.list("third/").value();
  CHECK(third.size() == 100);
  CHECK(std::all_of(third.begin(), third.end(),
                    [](const ArrayInfo& info) { return info.name.starts_with("third/"); }));
  CHECK(client.list("none/").value().empty());
  held.clear();
  CHECK(daemon.settles_empty(1));
}
