#pragma once
/// What people see: sizes, ages, colours, errors. Everything here formats; commands decide.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "shmstore/client.hpp"
#include "shmstore/error.hpp"

namespace shmctl {

using shmstore::Error;
using shmstore::Result;

enum class Style {
  plain,
  bold,
  dim,
  red,
  green,
  yellow,
  cyan
};

/// True when `stream` is a terminal that may be given colours (NO_COLOR and TERM=dumb say no).
[[nodiscard]] bool colour_wanted(std::FILE* stream);
/// `text` in a style; as it is when `colour` is false.
[[nodiscard]] std::string paint(Style style, std::string_view text, bool colour);

/// True when the locale's characters are UTF-8: bars and ellipses may be drawn.
[[nodiscard]] bool utf8_wanted();

/// Columns of the terminal behind stdout; 0 when that is no terminal: nothing is cut then.
[[nodiscard]] int terminal_columns();

[[nodiscard]] std::string bytes_text(std::uint64_t bytes);    ///< "96 B", "1.50 KiB", "12.3 GiB"
[[nodiscard]] std::string grouped_text(std::uint64_t value);  ///< "8,388,608"
[[nodiscard]] std::string count_text(std::uint64_t count, std::string_view noun);  ///< "2 arrays"
[[nodiscard]] std::string span_text(double seconds);     ///< "45s", "3m", "2h", "5d"
[[nodiscard]] std::string age_text(double unix_time);    ///< The span from then until now.
[[nodiscard]] std::string time_text(double unix_time);   ///< "2024-05-01 12:00:03", local time.
[[nodiscard]] std::string user_text(std::uint32_t uid);  ///< Name of the user, else the number.
[[nodiscard]] std::string shape_text(std::span<const std::uint64_t> shape);  ///< "(3, 4)"
/// The part that is taken, as a bar of `columns` characters.
[[nodiscard]] std::string bar_text(double part, int columns, bool colour);
/// "kept", "kept for 3m" or "".
[[nodiscard]] std::string kept_text(const shmstore::ArrayInfo& info);
/// The name, or what stands for it on the command line: %ID.
[[nodiscard]] std::string label_text(const shmstore::ArrayInfo& info);

/// `text` broken between words into lines of `width` characters; 0: not at all.
[[nodiscard]] std::vector<std::string> wrapped(std::string_view text, int width);

/// One line to stdout.
void say(std::string_view line);
/// Prints "error: CODE: text" to stderr. Returns the exit status that goes with the code.
int fail(const Error& error);
/// Prints "note: text" to stderr.
void note(std::string_view text);
/// JSON text, or its error: indented for a terminal, on one line elsewhere.
int print_json(const Result<std::string>& text);
/// Flushes stdout. Returns `status`, or a failure when the output could not be written.
int finish_output(int status);

/// The error for a system call on `path` that set errno to `number`.
[[nodiscard]] Error file_error(std::string_view path, int number);

}  // namespace shmctl
