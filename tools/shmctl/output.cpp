#include "output.hpp"

#include <pwd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>

#include "commands.hpp"
#include "json.hpp"

namespace shmctl {

using shmstore::ErrorCode;
using shmstore::make_error;

namespace {

constexpr std::string_view code_of(Style style) {
  switch (style) {
    case Style::plain: return "";
    case Style::bold: return "1";
    case Style::dim: return "2";
    case Style::red: return "31";
    case Style::green: return "32";
    case Style::yellow: return "33";
    case Style::cyan: return "36";
  }
  return "";
}

double unix_now() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

std::string rounded_text(double value, int decimals) {
  std::array<char, 64> text{};
  const int length = std::snprintf(text.data(), text.size(), "%.*f", decimals, value);
  return std::string(text.data(), static_cast<std::size_t>(std::max(length, 0)));
}

}  // namespace

bool colour_wanted(std::FILE* stream) {
  const char* no_color = std::getenv("NO_COLOR");
  if (no_color != nullptr && *no_color != '\0') return false;
  const char* terminal = std::getenv("TERM");
  if (terminal == nullptr || std::strcmp(terminal, "dumb") == 0) return false;
  return isatty(fileno(stream)) == 1;
}

bool utf8_wanted() {
  for (const char* variable : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* value = std::getenv(variable);
    if (value == nullptr || *value == '\0') continue;
    std::string text(value);
    std::transform(text.begin(), text.end(), text.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return text.find("utf-8") != std::string::npos || text.find("utf8") != std::string::npos;
  }
  return false;
}

std::string paint(Style style, std::string_view text, bool colour) {
  if (!colour || style == Style::plain) return std::string(text);
  return "\x1b[" + std::string(code_of(style)) + "m" + std::string(text) + "\x1b[0m";
}

int terminal_columns() {
  if (isatty(STDOUT_FILENO) != 1) return 0;
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

std::string bytes_text(std::uint64_t bytes) {
  if (bytes < 1024) return std::to_string(bytes) + " B";
  constexpr std::array<const char*, 6> kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes) / 1024;
  std::size_t unit = 0;
  // 1023.5 would be printed as 1024: the next unit says it better.
  while (value >= 1023.5 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  const int decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return rounded_text(value, decimals) + " " + kUnits[unit];
}

std::string grouped_text(std::uint64_t value) {
  std::string text = std::to_string(value);
  for (std::size_t at = text.size(); at > 3; at -= 3) text.insert(at - 3, 1, ',');
  return text;
}

std::string count_text(std::uint64_t count, std::string_view noun) {
  return grouped_text(count) + " " + std::string(noun) + (count == 1 ? "" : "s");
}

std::string span_text(double seconds) {
  const auto whole = static_cast<std::int64_t>(std::max(seconds, 0.0));
  if (whole < 60) return std::to_string(whole) + "s";
  if (whole < 3600) return std::to_string(whole / 60) + "m";
  if (whole < 86400) return std::to_string(whole / 3600) + "h";
  return std::to_string(whole / 86400) + "d";
}

std::string age_text(double unix_time) {
  return span_text(unix_now() - unix_time);
}

std::string time_text(double unix_time) {
  const auto seconds = static_cast<std::time_t>(unix_time);
  std::tm local{};
  localtime_r(&seconds, &local);
  std::array<char, 32> text{};
  const std::size_t length = std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S", &local);
  return std::string(text.data(), length);
}

std::string user_text(std::uint32_t uid) {
  static std::map<std::uint32_t, std::string> known;
  const auto found = known.find(uid);
  if (found != known.end()) return found->second;
  const passwd* entry = getpwuid(uid);
  std::string name = entry != nullptr ? entry->pw_name : std::to_string(uid);
  return known.emplace(uid, std::move(name)).first->second;
}

std::string shape_text(std::span<const std::uint64_t> shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

std::string bar_text(double part, int columns, bool colour) {
  const double bounded = std::clamp(part, 0.0, 1.0);
  auto full = static_cast<int>(std::lround(bounded * columns));
  if (bounded > 0 && full == 0) full = 1;  // Something is not nothing.
  const bool blocks = utf8_wanted();
  std::string done;
  std::string rest;
  for (int i = 0; i < full; ++i) done += blocks ? "█" : "#";
  for (int i = full; i < columns; ++i) rest += blocks ? "░" : ".";
  const Style style = bounded < 0.7 ? Style::green : bounded < 0.9 ? Style::yellow : Style::red;
  return paint(style, done, colour) + paint(Style::dim, rest, colour);
}

std::string kept_text(const shmstore::ArrayInfo& info) {
  if (!info.kept) return "";
  return info.ttl_s ? "kept for " + span_text(*info.ttl_s) : "kept";
}

std::string label_text(const shmstore::ArrayInfo& info) {
  return info.name.empty() ? "%" + info.id : info.name;
}

std::vector<std::string> wrapped(std::string_view text, int width) {
  std::vector<std::string> lines(1);
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(' '), text.size());
    std::string& line = lines.back();
    const bool fits =
        width <= 0 || line.empty() || line.size() + 1 + end <= static_cast<std::size_t>(width);
    if (fits) {
      line += (line.empty() ? "" : " ") + std::string(text.substr(0, end));
    } else {
      lines.emplace_back(text.substr(0, end));
    }
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

void say(std::string_view line) {
  std::fwrite(line.data(), 1, line.size(), stdout);
  std::fputc('\n', stdout);
}

int fail(const Error& error) {
  std::fflush(stdout);
  const std::string head = paint(Style::red, "error:", colour_wanted(stderr));
  const std::string line =
      head + " " + std::string(to_string(error.code)) + ": " + error.text + "\n";
  std::fputs(line.c_str(), stderr);
  return error.code == ErrorCode::disconnected ? kNoDaemon : kRefused;
}

void note(std::string_view text) {
  std::fflush(stdout);
  const std::string head = paint(Style::yellow, "note:", colour_wanted(stderr));
  const std::string line = head + " " + std::string(text) + "\n";
  std::fputs(line.c_str(), stderr);
}

int print_json(const Result<std::string>& text) {
  if (!text) return fail(text.error());
  say(json_layout(*text, isatty(STDOUT_FILENO) == 1));
  return kDone;
}

int finish_output(int status) {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return status;
  const int failed = fail(file_error("standard output", errno));
  return status == kDone ? failed : status;
}

Error file_error(std::string_view path, int number) {
  const std::string text = std::string(path) + ": " + std::strerror(number);
  switch (number) {
    case ENOENT: return make_error(ErrorCode::not_found, text);
    case EACCES:
    case EPERM:
    case EROFS: return make_error(ErrorCode::permission_denied, text);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case ENOMEM: return make_error(ErrorCode::no_capacity, text);
    case EISDIR:
    case ENOTDIR:
    case ENAMETOOLONG:
    case ELOOP: return make_error(ErrorCode::invalid_argument, text);
    default: return make_error(ErrorCode::internal, text);
  }
}

}  // namespace shmctl
