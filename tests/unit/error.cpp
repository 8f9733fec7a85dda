#include "shmstore/error.hpp"

#include <doctest/doctest.h>

#include <memory>
#include <set>

using namespace shmstore;

TEST_CASE("error codes: each has one number and one text, and comes back from its number") {
  std::set<std::uint32_t> numbers;
  std::set<std::string_view> texts;
  for (const ErrorCode code : kErrorCodes) {
    const auto number = static_cast<std::uint32_t>(code);
    CHECK(number > 0);
    CHECK(numbers.insert(number).second);
    CHECK(texts.insert(to_string(code)).second);
    CHECK(error_code_of(number) == code);
  }
  CHECK(numbers.size() == *numbers.rbegin());  // No gaps.
  CHECK_FALSE(error_code_of(0).has_value());
  CHECK_FALSE(error_code_of(*numbers.rbegin() + 1).has_value());
  CHECK_FALSE(error_code_of(UINT32_MAX).has_value());
}

TEST_CASE("error codes: the numbers of the wire") {
  CHECK(static_cast<int>(ErrorCode::not_found) == 1);
  CHECK(static_cast<int>(ErrorCode::busy) == 7);
  CHECK(static_cast<int>(ErrorCode::internal) == 13);
}

TEST_CASE("result: a value or an error") {
  Result<int> good = 7;
  CHECK(good.has_value());
  CHECK(good.value() == 7);
  CHECK(*good == 7);
  Result<int> bad = make_error(ErrorCode::busy, "seal: pid 4");
  CHECK_FALSE(bad);
  CHECK(bad.error().code == ErrorCode::busy);
  CHECK_THROWS_WITH_AS(static_cast<void>(bad.value()), "busy: seal: pid 4", BadResult);
  try {
    static_cast<void>(bad.value());
  } catch (const BadResult& caught) {
    CHECK(caught.error().code == ErrorCode::busy);
  }
  const Result<void> done;
  CHECK(done.has_value());
  CHECK_NOTHROW(done.value());
  const Result<void> failed = make_error(ErrorCode::timed_out, "");
  CHECK_THROWS_AS(failed.value(), BadResult);
}

TEST_CASE("result: carries what can only be moved") {
  Result<std::unique_ptr<int>> owner = std::make_unique<int>(3);
  const std::unique_ptr<int> taken = std::move(owner).value();
  CHECK(*taken == 3);
}
