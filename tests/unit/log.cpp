#include "server/log.hpp"

#include <doctest/doctest.h>

using namespace shmstore::server;

TEST_CASE("log: one line, values quoted when they need it") {
  CHECK(log_line(LogLevel::info, "listening", {{"socket", "/run/x"}, {"pid", 7}}) ==
        "info listening socket=/run/x pid=7");
  CHECK(log_line(LogLevel::warning, "x", {{"text", "a b"}}) == R"(warning x text="a b")");
  CHECK(log_line(LogLevel::error, "x", {{"text", ""}}) == R"(error x text="")");
  CHECK(log_line(LogLevel::debug, "x", {{"text", "say \"hi\"\\"}}) ==
        R"(debug x text="say \"hi\"\\")");
  CHECK(log_line(LogLevel::info, "x", {{"text", "a\nerror forged\x1b[0m"}}) ==
        R"(info x text="a\x0aerror forged\x1b[0m")");
}

TEST_CASE("log: levels have names") {
  for (LogLevel level : {LogLevel::error, LogLevel::warning, LogLevel::info, LogLevel::debug}) {
    CHECK(log_level_of(to_string(level)) == level);
  }
  CHECK_FALSE(log_level_of("loud").has_value());
}

TEST_CASE("log: a limit lets some lines pass and counts the others") {
  LogLimit limit(2);
  CHECK(limit.allow(0));
  CHECK(limit.take_left_out() == 0);
  CHECK(limit.allow(1));
  CHECK_FALSE(limit.allow(2));
  CHECK_FALSE(limit.allow(59'999));
  CHECK(limit.allow(60'000));
  CHECK(limit.take_left_out() == 2);
  CHECK(limit.take_left_out() == 0);
}
