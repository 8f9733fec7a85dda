/// Lines to standard error, which never wait: whoever is to read them may have stopped, and the
/// event loop goes on. A pipe or a terminal is asked first whether it has room, and a line is at
/// most what a pipe with room takes without blocking. (O_NONBLOCK would do the same, but it belongs
/// to the open description, which others share.) Lines without room are dropped and counted; the
/// count is logged when there is room again.

#include "server/log.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <mutex>

namespace shmstore::server {
namespace {

/// A pipe that has room at all takes so much.
constexpr std::size_t kLineBytesMax = PIPE_BUF;

std::atomic<LogLevel> level_in_force{LogLevel::info};

/// Whether standard error is the journal: systemd says which device and inode that would be.
bool is_journal() {
  const char* stream = std::getenv("JOURNAL_STREAM");
  struct stat status {};
  if (stream == nullptr || ::fstat(STDERR_FILENO, &status) != 0) return false;
  const std::string ours = std::to_string(status.st_dev) + ":" + std::to_string(status.st_ino);
  return ours == stream;
}

/// Not waiting for a reader. False: there is no room for it now.
bool write_now(std::string_view line) {
  struct stat status {};
  if (::fstat(STDERR_FILENO, &status) == 0 && S_ISSOCK(status.st_mode)) {
    return ::send(STDERR_FILENO, line.data(), line.size(), MSG_DONTWAIT | MSG_NOSIGNAL) >= 0 ||
           errno != EAGAIN;
  }
  if (S_ISFIFO(status.st_mode) || S_ISCHR(status.st_mode)) {
    pollfd room{STDERR_FILENO, POLLOUT, 0};
    if (::poll(&room, 1, 0) == 0) return false;
  }
  // Gone or full in another way: nobody could be told.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
  return true;
}

/// syslog(3) priorities of our levels.
constexpr std::array<std::string_view, 4> kJournalPrefix = {"<3>", "<4>", "<6>", "<7>"};

bool is_plain(std::string_view text) {
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte <= 0x20 || byte == 0x7f || c == '"' || c == '\\' || c == '=') return false;
  }
  return !text.empty();
}

/// A client can choose parts of what is logged: no line feed or escape sequence gets through.
void append_quoted(std::string& line, std::string_view text) {
  line += '"';
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      line += '\\';
      line += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      std::array<char, 8> escape{};
      (void)std::snprintf(escape.data(), escape.size(), "\\x%02x", static_cast<unsigned>(byte));
      line += escape.data();
    } else {
      line += c;
    }
  }
  line += '"';
}

}  // namespace

std::string_view to_string(LogLevel level) noexcept {
  switch (level) {
    case LogLevel::error: return "error";
    case LogLevel::warning: return "warning";
    case LogLevel::info: return "info";
    case LogLevel::debug: return "debug";
  }
  return "error";
}

std::optional<LogLevel> log_level_of(std::string_view text) noexcept {
  for (LogLevel level : {LogLevel::error, LogLevel::warning, LogLevel::info, LogLevel::debug}) {
    if (to_string(level) == text) return level;
  }
  return std::nullopt;
}

void set_log_level(LogLevel level) noexcept {
  level_in_force.store(level);
}

bool log_enabled(LogLevel level) noexcept {
  return level <= level_in_force.load();
}

std::string log_line(LogLevel level, std::string_view event,
                     std::initializer_list<LogField> fields) {
  std::string line(to_string(level));
  line += ' ';
  line += event;
  for (const LogField& field : fields) {
    line += ' ';
    line += field.key;
    line += '=';
    if (is_plain(field.value)) {
      line += field.value;
    } else {
      append_quoted(line, field.value);
    }
  }
  return line;
}

void log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  if (!log_enabled(level)) return;
  static const bool journal = is_journal();
  static std::mutex mutex;  // between asking for room and writing nobody else may take it
  static std::uint64_t dropped = 0;
  const auto whole_line = [](LogLevel of, std::string text) {
    if (journal) text.insert(0, kJournalPrefix[static_cast<std::size_t>(of)]);
    text.resize(std::min(text.size(), kLineBytesMax - 1));
    return text += '\n';
  };
  const std::string line = whole_line(level, log_line(level, event, fields));
  const std::lock_guard lock(mutex);
  if (dropped > 0) {
    if (!write_now(whole_line(LogLevel::warning, log_line(LogLevel::warning, "log lines dropped",
                                                          {{"lines", dropped}})))) {
      ++dropped;
      return;
    }
    dropped = 0;
  }
  if (!write_now(line)) ++dropped;
}

}  // namespace shmstore::server
