#include "server/options.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>

#include "shmstore/version.hpp"

namespace shmstore::server {
namespace {

struct Unit {
  std::string_view name;
  std::uint64_t bytes;
};
constexpr std::uint64_t kKi = 1024;
/// A lease takes some 200 bytes of the daemon, which nobody is charged for.
constexpr std::uint64_t kBytesForEachLease = kKi;
// Longest names first within a letter is not needed: names are compared whole.
constexpr std::array<Unit, 18> kUnits = {{{"", 1},
                                          {"B", 1},
                                          {"K", kKi},
                                          {"KiB", kKi},
                                          {"KB", 1000},
                                          {"M", kKi* kKi},
                                          {"MiB", kKi* kKi},
                                          {"MB", 1'000'000},
                                          {"G", kKi* kKi* kKi},
                                          {"GiB", kKi* kKi* kKi},
                                          {"GB", 1'000'000'000},
                                          {"T", kKi* kKi* kKi* kKi},
                                          {"TiB", kKi* kKi* kKi* kKi},
                                          {"TB", 1'000'000'000'000},
                                          {"k", kKi},
                                          {"m", kKi* kKi},
                                          {"g", kKi* kKi* kKi},
                                          {"t", kKi* kKi* kKi* kKi}}};

Error bad_size(std::string_view text) {
  return make_error(ErrorCode::invalid_argument,
                    "'" + std::string(text) +
                        "' is not a size: write 512M, 64KiB, 1.5G or a share from 1% to 100%");
}

/// A flag whose value is a Size.
CLI::Option* add_size(CLI::App& app, const std::string& flag, Size& size, const std::string& help) {
  return app
      .add_option_function<std::string>(
          flag,
          [&size, flag](const std::string& text) {
            const Result<Size> parsed = parse_size(text);
            if (!parsed) throw CLI::ValidationError(flag, parsed.error().text);
            size = *parsed;
          },
          help)
      ->type_name("SIZE")
      ->default_str(to_string(size));
}

void add_flags(CLI::App& app, Options& options) {
  app.add_option("--socket", options.socket, "Path of the socket")->type_name("PATH");
  add_size(app, "--capacity", options.capacity, "Bytes of all arrays together, or share of RAM");
  add_size(app, "--user-quota", options.user_quota,
           "Bytes of one user's arrays, or share of the capacity; 0: half of it, all of it where "
           "only one user can connect");
  const auto count = [&app](const char* flag, std::uint64_t& value, const char* help) {
    app.add_option(flag, value, help)->type_name("N")->capture_default_str();
  };
  count("--user-arrays", options.user_arrays, "Arrays of one user");
  count("--user-segments", options.user_segments,
        "Of these, arrays with bytes; 0: half of what descriptors there are for, all of them where "
        "only one user can connect");
  count("--user-leases", options.user_leases, "Leases of one user");
  count("--user-connections", options.user_connections, "Connections of one user");
  count("--user-waits", options.user_waits, "Blocked requests of one user");
  app.add_option("--config", options.config, "JSON file with the same names; flags win")
      ->type_name("FILE");
  app.add_flag("--supervise", options.supervise, "Keep a child and start it again when it dies");
  app.add_option("--idle-exit", options.idle_exit,
                 "End after so many seconds without sessions and arrays; 0: never")
      ->type_name("SECONDS")
      ->capture_default_str();
  app.add_option_function<std::string>(
         "--log-level",
         [&options](const std::string& text) {
           const std::optional<LogLevel> level = log_level_of(text);
           if (!level) throw CLI::ValidationError("--log-level: error, warning, info or debug");
           options.log_level = *level;
         },
         "error, warning, info or debug")
      ->type_name("LEVEL")
      ->default_str(std::string(to_string(options.log_level)));
  app.set_version_flag("--version", std::string("shmstored ") + SHMSTORE_VERSION_STRING);
}

}  // namespace

Result<Size> parse_size(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || !std::isfinite(value) || value < 0 || text.front() == '-') {
    return bad_size(text);
  }
  std::string_view unit = text.substr(static_cast<std::size_t>(end - text.data()));
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  if (unit == "%") {
    if (value < 1 || value > 100 || value != std::floor(value)) return bad_size(text);
    return Size{0, static_cast<unsigned>(value)};
  }
  for (const Unit& known : kUnits) {
    if (known.name != unit) continue;
    const double bytes = value * static_cast<double>(known.bytes);
    // 2^60: far above any machine, far below where a double loses bytes' meaning as a limit.
    if (bytes > 1152921504606846976.0) return bad_size(text);
    return Size{static_cast<std::uint64_t>(bytes), 0};
  }
  return bad_size(text);
}

std::string to_string(const Size& size) {
  return size.percent != 0 ? std::to_string(size.percent) + "%" : std::to_string(size.bytes);
}

ParsedFlags parse_flags(int argc, const char* const* argv) {
  Options options;
  CLI::App app("shmstored, the daemon of shmstore: one per node, owner of all shared arrays",
               "shmstored");
  add_flags(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return {std::nullopt, app.exit(error) == 0 ? 0 : 2};
  }
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() != 0) options.given.insert(option->get_single_name());
  }
  options.capacity_given = options.given.count("capacity") != 0;
  return {std::move(options), 0};
}

Limits limits_of(const Options& options, bool autostarted, const SharedOut& all) {
  const bool small = autostarted && !options.capacity_given;
  const auto share = [&all](std::uint64_t whole) {
    return all.one_user ? whole : std::max<std::uint64_t>(whole / 2, 1);
  };
  Limits limits;
  limits.capacity = (small ? kAutostartCapacity : options.capacity).of(all.memory);
  limits.segments_max = all.segments;
  limits.user_bytes_max = options.user_quota.of(limits.capacity);
  if (limits.user_bytes_max == 0) limits.user_bytes_max = share(limits.capacity);
  limits.user_arrays_max = options.user_arrays;
  limits.user_segments_max =
      options.user_segments != 0 ? options.user_segments : share(all.segments);
  limits.user_leases_max =
      std::min(options.user_leases, share(limits.capacity / kBytesForEachLease));
  limits.user_connections_max = std::min(options.user_connections, share(all.connections));
  limits.user_waits_max = options.user_waits;
  return limits;
}

}  // namespace shmstore::server
