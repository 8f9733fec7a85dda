#pragma once
/// One line per event to standard error: `info listening socket=/run/shmstore/socket pid=42`.
/// Under journald (JOURNAL_STREAM names our standard error) each line begins with its `<N>` level.
/// An error is logged once, where it is found, with the state that explains it.

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace shmstore::server {

enum class LogLevel : std::uint8_t {
  error = 0,
  warning = 1,
  info = 2,
  debug = 3
};

[[nodiscard]] std::string_view to_string(LogLevel level) noexcept;
[[nodiscard]] std::optional<LogLevel> log_level_of(std::string_view text) noexcept;

/// One `key=value`; the value is quoted when it has spaces, quotes or control characters.
struct LogField {
  LogField(std::string_view name, std::string_view text) : key(name), value(text) {}
  LogField(std::string_view name, const char* text) : key(name), value(text) {}
  LogField(std::string_view name, const std::string& text) : key(name), value(text) {}
  template <class Number>
    requires std::is_arithmetic_v<Number>
  LogField(std::string_view name, Number number) : key(name), value(std::to_string(number)) {}

  std::string_view key;
  std::string value;
};

void set_log_level(LogLevel level) noexcept;
[[nodiscard]] bool log_enabled(LogLevel level) noexcept;

/// Writes the line at once or not at all: it never waits for whoever reads the log. Lines that
/// found no room are counted, and the next one that finds some says how many. Any thread.
void log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields = {});

/// Keeps a client that misbehaves from filling the log: so many lines of one kind in a minute, then
/// none until it is over; the next line says how many were left out.
class LogLimit {
 public:
  explicit LogLimit(std::uint32_t lines_per_minute) : lines_max_(lines_per_minute) {}
  /// Whether a line may be written at this time (CLOCK_BOOTTIME, milliseconds).
  [[nodiscard]] bool allow(std::int64_t boot_ms) noexcept {
    if (boot_ms - since_ms_ >= 60'000) {
      since_ms_ = boot_ms;
      lines_ = 0;
    }
    if (lines_ < lines_max_) {
      ++lines_;
      return true;
    }
    ++left_out_;
    return false;
  }
  /// Lines left out since the last call.
  [[nodiscard]] std::uint64_t take_left_out() noexcept { return std::exchange(left_out_, 0); }

 private:
  const std::uint32_t lines_max_;
  std::uint32_t lines_ = 0;
  std::int64_t since_ms_ = -60'000;
  std::uint64_t left_out_ = 0;
};

/// The line without prefix and line feed; for tests.
[[nodiscard]] std::string log_line(LogLevel level, std::string_view event,
                                   std::initializer_list<LogField> fields);

}  // namespace shmstore::server
