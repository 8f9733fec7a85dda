#include "server/metrics.hpp"

#include <doctest/doctest.h>

#include <sstream>

using namespace shmstore::server;

TEST_CASE("metrics: OpenMetrics text, each family once, ended") {
  std::map<std::uint32_t, Usage> users;
  users[1000].bytes = 4096;
  users[1001].arrays = 2;
  MetricsInput input;
  input.capacity = 100;
  input.used = 7;
  input.users = &users;
  const std::string text = metrics_text(input, 65536);
  CHECK(text.find("\nshmstore_capacity_bytes 100\n") != std::string::npos);
  CHECK(text.find("\nshmstore_used_bytes 7\n") != std::string::npos);
  CHECK(text.find("\nshmstore_user_bytes{uid=\"1000\"} 4096\n") != std::string::npos);
  CHECK(text.find("\nshmstore_user_arrays{uid=\"1001\"} 2\n") != std::string::npos);
  CHECK(text.ends_with("# EOF\n"));
  std::istringstream lines(text);
  std::map<std::string, int> types;
  for (std::string line; std::getline(lines, line);) {
    CHECK_FALSE(line.empty());
    if (line.starts_with("# TYPE ")) ++types[line];
  }
  for (const auto& [line, count] : types) CHECK(count == 1);
}

TEST_CASE("metrics: too many users are left out, not over the limit") {
  std::map<std::uint32_t, Usage> users;
  for (std::uint32_t uid = 0; uid < 10'000; ++uid) users[uid].bytes = ~std::uint64_t{0};
  MetricsInput input;
  input.users = &users;
  const std::string text = metrics_text(input, 32'768);
  CHECK(text.size() <= 32'768);
  CHECK(text.find("shmstore_user_leases{uid=\"0\"}") != std::string::npos);
  CHECK(text.ends_with("# EOF\n"));
}
