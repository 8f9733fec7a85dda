/// The config file: one JSON object, its keys are the flags' names (`_` for `-` is fine). An
/// unknown key is an error: a limit that is misspelt is a limit that is missing.

#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "server/json_fields.hpp"
#include "server/options.hpp"
#include "server/small_file.hpp"

namespace shmstore::server {
namespace {

constexpr std::size_t kConfigBytesMax = std::size_t{1} << 20U;

Error bad(const std::string& key, const std::string& problem) {
  return make_error(ErrorCode::invalid_argument, key + ": " + problem);
}

Result<void> take_text(const std::string& key, const Json& value, std::string& text) {
  if (!value.is_string()) return bad(key, "must be a text");
  text = value.get<std::string>();
  return {};
}

Result<void> take_count(const std::string& key, const Json& value, std::uint64_t& count) {
  if (!value.is_number_unsigned()) return bad(key, "must be a number from 0 on");
  count = value.get<std::uint64_t>();
  return {};
}

Result<void> take_size(const std::string& key, const Json& value, Size& size) {
  if (value.is_number_unsigned()) {
    size = Size{value.get<std::uint64_t>(), 0};
    return {};
  }
  if (!value.is_string()) return bad(key, "must be a number of bytes or a text like \"2GiB\"");
  Result<Size> parsed = parse_size(value.get<std::string>());
  if (!parsed) return bad(key, parsed.error().text);
  size = *parsed;
  return {};
}

Result<void> take_log_level(const std::string& key, const Json& value, LogLevel& level) {
  const auto parsed =
      value.is_string() ? log_level_of(value.get<std::string>()) : std::optional<LogLevel>();
  if (!parsed) return bad(key, "must be \"error\", \"warning\", \"info\" or \"debug\"");
  level = *parsed;
  return {};
}

Result<void> take(const std::string& key, const Json& value, Options& options) {
  if (key == "socket") return take_text(key, value, options.socket);
  if (key == "capacity") return take_size(key, value, options.capacity);
  if (key == "user-quota") return take_size(key, value, options.user_quota);
  if (key == "user-arrays") return take_count(key, value, options.user_arrays);
  if (key == "user-segments") return take_count(key, value, options.user_segments);
  if (key == "user-leases") return take_count(key, value, options.user_leases);
  if (key == "user-connections") return take_count(key, value, options.user_connections);
  if (key == "user-waits") return take_count(key, value, options.user_waits);
  if (key == "idle-exit") return take_count(key, value, options.idle_exit);
  if (key == "log-level") return take_log_level(key, value, options.log_level);
  if (key == "supervise") {
    if (!value.is_boolean()) return bad(key, "must be true or false");
    options.supervise = value.get<bool>();
    return {};
  }
  return bad(key, "is not an option");
}

/// A file that everybody may write to is nobody's word.
Result<std::string> read_config(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat status {};
  if (!fd.valid() || ::fstat(fd.get(), &status) != 0) {
    const bool missing = errno == ENOENT || errno == ENOTDIR;
    return make_error(missing ? ErrorCode::not_found : ErrorCode::permission_denied,
                      "config: cannot read " + path + ": " + std::strerror(errno));
  }
  if (S_ISREG(status.st_mode) && (status.st_mode & 0002U) != 0) {
    return make_error(ErrorCode::permission_denied,
                      "config: " + path + " can be written to by everybody");
  }
  const std::optional<std::string> text = read_all(fd.get(), kConfigBytesMax + 1);
  if (!text) return make_error(ErrorCode::permission_denied, "config: cannot read " + path);
  if (text->size() > kConfigBytesMax) return bad("config", path + " is over 1 MiB");
  return *text;
}

}  // namespace

Result<void> apply_config(std::string_view text, Options& options) {
  const Json config = parse_json(text, true);
  if (config.is_discarded()) return bad("config", "is not valid JSON");
  if (!config.is_object()) return bad("config", "must be a JSON object");
  Options changed = options;
  for (const auto& [name, value] : config.items()) {
    std::string key = name;
    for (char& c : key) c = c == '_' ? '-' : c;
    const bool by_flag = options.given.count(key) != 0;
    Options ignored;
    if (Result<void> taken = take(key, value, by_flag ? ignored : changed); !taken) return taken;
    changed.capacity_given |= key == "capacity";
  }
  options = std::move(changed);
  return {};
}

Result<Options> with_config(const Options& flags) {
  Options options = flags;
  const bool may_miss = flags.config.starts_with('-');
  const std::string path = flags.config.substr(may_miss ? 1 : 0);
  if (path.empty()) return options;
  Result<std::string> text = read_config(path);
  if (!text && text.error().code == ErrorCode::not_found && may_miss) return options;
  if (!text) return text.error();
  if (Result<void> applied = apply_config(*text, options); !applied) {
    return make_error(applied.error().code, path + ": " + applied.error().text);
  }
  return options;
}

}  // namespace shmstore::server
