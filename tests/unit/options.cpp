#include "server/options.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cstdlib>
#include <fstream>
#include <initializer_list>
#include <vector>

#include "server/unique_fd.hpp"

using namespace shmstore;
using namespace shmstore::server;

namespace {

ParsedFlags parse(std::initializer_list<const char*> flags) {
  std::vector<const char*> argv = {"shmstored"};
  argv.insert(argv.end(), flags);
  return parse_flags(static_cast<int>(argv.size()), argv.data());
}

Result<Options> configured(std::string_view text, const Options& flags = {}) {
  Options options = flags;
  Result<void> applied = apply_config(text, options);
  if (!applied) return applied.error();
  return options;
}

std::string refusal(std::string_view text) {
  const Result<Options> options = configured(text);
  return options ? "taken" : options.error().text;
}

}  // namespace

TEST_CASE("options: sizes") {
  const auto bytes = [](const char* text) { return parse_size(text).value().bytes; };
  CHECK(bytes("0") == 0);
  CHECK(bytes("4096") == 4096);
  CHECK(bytes("64K") == 64 * 1024);
  CHECK(bytes("64KiB") == 64 * 1024);
  CHECK(bytes("64KB") == 64'000);
  CHECK(bytes("2 GiB") == std::uint64_t{2} << 30);
  CHECK(bytes("1.5G") == (std::uint64_t{3} << 30) / 2);
  CHECK(bytes("1T") == std::uint64_t{1} << 40);
  CHECK(parse_size("50%").value() == Size{0, 50});
  for (const char* bad : {"", "G", "-1", "5X", "1KIB", "0%", "101%", "2.5%", "1e400", "nan", "inf",
                          "99999999T", "1 2"}) {
    CAPTURE(bad);
    const Result<Size> size = parse_size(bad);
    REQUIRE_FALSE(size.has_value());
    CHECK(size.error().code == ErrorCode::invalid_argument);
  }
}

TEST_CASE("options: a share is exact at its ends") {
  CHECK(Size{0, 100}.of(16'777'216) == 16'777'216);
  CHECK(Size{0, 50}.of(101) == 50);
  CHECK(Size{0, 1}.of(~std::uint64_t{0}) == ~std::uint64_t{0} / 100);
  CHECK(Size{7, 0}.of(100) == 7);
  for (const char* text : {"50%", "1048576"}) CHECK(to_string(parse_size(text).value()) == text);
}

TEST_CASE("options: flags") {
  const ParsedFlags flags = parse(
      {"--socket", "/tmp/s", "--capacity", "1G", "--idle-exit", "60", "--log-level", "debug"});
  REQUIRE(flags.options.has_value());
  CHECK(flags.options->socket == "/tmp/s");
  CHECK(flags.options->capacity == Size{std::uint64_t{1} << 30, 0});
  CHECK(flags.options->capacity_given);
  CHECK(flags.options->idle_exit == 60);
  CHECK(flags.options->log_level == LogLevel::debug);
  CHECK(flags.options->user_quota == Options{}.user_quota);
  CHECK_FALSE(parse({}).options->capacity_given);
}

TEST_CASE("options: a config file has the flags' names, and flags win") {
  const auto options = configured(
      R"({"capacity": "2G", "user-quota": 4096, "user_arrays": 7, "log-level": "error"})");
  REQUIRE(options.has_value());
  CHECK(options->capacity == Size{std::uint64_t{2} << 30, 0});
  CHECK(options->capacity_given);
  CHECK(options->user_quota == Size{4096, 0});
  CHECK(options->user_arrays == 7);
  CHECK(options->log_level == LogLevel::error);

  const Options flags = *parse({"--capacity", "1G"}).options;
  CHECK(configured(R"({"capacity": "2G"})", flags).value().capacity == flags.capacity);
}

TEST_CASE("options: a config file that is wrong names the key and changes nothing") {
  CHECK(refusal("[1]") == "config: must be a JSON object");
  CHECK(refusal("{") == "config: is not valid JSON");
  CHECK(refusal(std::string("{}\0{", 4)) == "config: is not valid JSON");
  CHECK(refusal(R"({"capacty": 1})") == "capacty: is not an option");
  CHECK(refusal(R"({"capacity": -1})").starts_with("capacity: must be"));
  CHECK(refusal(R"({"capacity": "5X"})").starts_with("capacity: '5X' is not a size"));
  CHECK(refusal(R"({"idle-exit": "soon"})").starts_with("idle-exit: must be a number"));
  CHECK(refusal(R"({"log-level": 3})").starts_with("log-level: must be"));
  CHECK(refusal(R"({"supervise": 1})").starts_with("supervise: must be true or false"));
  Options options;
  CHECK_FALSE(apply_config(R"({"user-leases": 5, "nope": 1})", options).has_value());
  CHECK(options.user_leases == Options{}.user_leases);
}

TEST_CASE("options: the config file is read when it is asked for") {
  std::array<char, 32> path = {"/tmp/shmstore-test-XXXXXX"};
  const UniqueFd file(::mkstemp(path.data()));
  REQUIRE(file.valid());
  Options flags;
  flags.config = path.data();
  std::ofstream(path.data()) << R"({"user-waits": 9})";
  CHECK(with_config(flags).value().user_waits == 9);
  std::ofstream(path.data(), std::ios::trunc) << "{}";
  CHECK(with_config(flags).value().user_waits == flags.user_waits);
  CHECK(::unlink(path.data()) == 0);
  CHECK(with_config(flags).error().code == ErrorCode::not_found);
}
