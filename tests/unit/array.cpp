#include "shmstore/array.hpp"

#include <doctest/doctest.h>

#include <vector>

using namespace shmstore;

TEST_CASE("names: what is allowed") {
  for (const char* name :
       {"a", "grid", "sim/step-3/u", "A.B_c:d@e+f=g,h", "0", ".hidden", "a.b.c", "x-", "x~"}) {
    CAPTURE(name);
    // '~' is no character of a name at all.
    const bool tilde = std::string_view(name).find('~') != std::string_view::npos;
    CHECK(check_name(name).has_value() == !tilde);
  }
  CHECK(check_name(std::string(kNameBytesMax, 'x')).has_value());
}

TEST_CASE("names: what is not, and the text says so") {
  for (const char* name : {"", "-x", "~x", "/x", "x/", "a//b", "a/../b", "..", "a..b", "a b",
                           "a\nb", "ä", "a*", "a\\b", "a\"b", "a%b"}) {
    CAPTURE(name);
    const Result<void> result = check_name(name);
    REQUIRE_FALSE(result.has_value());
    CHECK(result.error().code == ErrorCode::invalid_argument);
    CHECK(result.error().text.starts_with("name: "));
  }
  CHECK_FALSE(check_name(std::string_view("a\0b", 3)).has_value());
  const Result<void> longer = check_name(std::string(kNameBytesMax + 1, 'x'));
  REQUIRE_FALSE(longer.has_value());
  CHECK(longer.error().text.find("255") != std::string::npos);
}

TEST_CASE("bytes of an array") {
  const auto bytes = [](std::uint64_t itemsize, std::vector<std::uint64_t> shape) {
    return array_bytes(itemsize, shape);
  };
  CHECK(bytes(8, {}).value() == 8);
  CHECK(bytes(8, {3, 4}).value() == 96);
  CHECK(bytes(8, {3, 0, 4}).value() == 0);
  CHECK(bytes(0, {3, 4}).value() == 0);
  CHECK(bytes(1, {kArrayBytesMax}).value() == kArrayBytesMax);
  CHECK(bytes(1, std::vector<std::uint64_t>(kNdimMax, 1)).value() == 1);
}

TEST_CASE("bytes of an array: too many, or too many dimensions") {
  const auto refused = [](std::uint64_t itemsize, std::vector<std::uint64_t> shape) {
    const Result<std::uint64_t> bytes = array_bytes(itemsize, shape);
    return !bytes && bytes.error().code == ErrorCode::invalid_argument &&
           bytes.error().text.starts_with("shape: ");
  };
  CHECK(refused(1, {kArrayBytesMax + 1}));
  CHECK(refused(2, {kArrayBytesMax}));
  CHECK(refused(8, {UINT64_MAX}));
  CHECK(refused(1, {std::uint64_t{1} << 32U, std::uint64_t{1} << 32U}));
  CHECK(refused(8, {0, kArrayBytesMax, kArrayBytesMax}));  // A zero hides no overflow.
  CHECK(refused(0, {std::uint64_t{1} << 40U, std::uint64_t{1} << 40U}));
  CHECK(refused(1, std::vector<std::uint64_t>(kNdimMax + 1, 1)));
}

TEST_CASE("ids: slot and generation come back") {
  const ArrayId id = ArrayId::of(ArrayId::kSlotMax, ArrayId::kGenerationMax);
  CHECK(id.raw == UINT64_MAX);
  CHECK(id.slot() == ArrayId::kSlotMax);
  CHECK(id.generation() == ArrayId::kGenerationMax);
  CHECK(ArrayId::of(5, 7).slot() == 5);
  CHECK(ArrayId::of(5, 7).generation() == 7);
  CHECK(ArrayId::of(0, 1).valid());
  CHECK_FALSE(ArrayId{}.valid());
}

TEST_CASE("texts of states and accesses") {
  CHECK(to_string(State::draft) == "draft");
  CHECK(to_string(State::mutable_) == "mutable");
  CHECK(to_string(State::dying) == "dying");
  CHECK(to_string(Access::read) == "r");
  CHECK(to_string(Access::write) == "r+");
  CHECK(to_string(Access::copy) == "c");
}
