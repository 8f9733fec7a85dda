// Names as callers write them: namespaces by number and by user name.
#include "client/names.hpp"

#include <doctest/doctest.h>

#include <string>

using namespace shmstore;
using client_internal::parse_name;
using client_internal::parse_prefix;
using client_internal::wire_name;

TEST_CASE("a bare name is in the caller's own namespace") {
  const QualifiedName name = parse_name("sim/step-1").value();
  CHECK(name == QualifiedName{QualifiedName::kOwn, "sim/step-1"});
  CHECK(wire_name(name) == "sim/step-1");
}

TEST_CASE("a namespace is a user's number or name") {
  CHECK(parse_name("~1000/x").value() == QualifiedName{1000, "x"});
  CHECK(wire_name({1000, "x"}) == "~1000/x");
  CHECK(parse_name("~root/a/b").value() == QualifiedName{0, "a/b"});
  CHECK(parse_name("~4294967294/x").value().uid == 4294967294U);
}

TEST_CASE("names that break the rules are refused, naming the field") {
  for (const std::string text :
       {"", "~", "~1000", "~1000/", "~/x", "-x", "/x", "a//b", "a/../b", "a b", "x/",
        "~4294967295/x", "~99999999999999999999/x", "~no-such-user-here/x"}) {
    CAPTURE(text);
    const Result<QualifiedName> parsed = parse_name(text);
    REQUIRE_FALSE(parsed.has_value());
    CHECK(parsed.error().code == ErrorCode::invalid_argument);
    CHECK(parsed.error().text.starts_with("name: "));
  }
}

TEST_CASE("a prefix may be unfinished") {
  CHECK(parse_prefix("").value() == QualifiedName{QualifiedName::kOwn, ""});
  CHECK(parse_prefix("sim/").value() == QualifiedName{QualifiedName::kOwn, "sim/"});
  CHECK(parse_prefix("~1000").value() == QualifiedName{1000, ""});
  CHECK(parse_prefix("~1000/si").value() == QualifiedName{1000, "si"});
}
