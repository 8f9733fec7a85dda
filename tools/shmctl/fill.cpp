#include "fill.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <complex>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <optional>
#include <string>

// Items are built in the machine's order, which is little-endian (Dtype's canonical text says so
// too), and turned round at the end for a big-endian dtype.

namespace shmctl {

using shmstore::Dtype;
using shmstore::ErrorCode;
using shmstore::make_error;
using shmstore::Result;

namespace {

using Bytes = std::vector<std::byte>;

constexpr std::int64_t kNotATime = std::numeric_limits<std::int64_t>::min();

template <class T>
Bytes bytes_of(const T& value) {
  Bytes bytes(sizeof(T));
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

/// The whole text as a number; nothing if there is anything else or it is out of range.
template <class T>
std::optional<T> number(std::string_view text) {
  if (text.size() > 1 && text.front() == '+' && text[1] != '-') text.remove_prefix(1);
  T value{};
  const char* end = text.data() + text.size();
  if constexpr (std::is_same_v<T, long double>) {
    const std::string copy(text);
    char* stop = nullptr;
    if (copy.empty() || copy.front() == ' ') return std::nullopt;
    value = std::strtold(copy.c_str(), &stop);
    if (stop != copy.c_str() + copy.size()) return std::nullopt;
  } else {
    const auto [stop, status] = std::from_chars(text.data(), end, value);
    if (status != std::errc() || stop != end) return std::nullopt;
  }
  return value;
}

/// IEEE half precision, rounded to nearest even; nothing when it does not fit.
std::optional<std::uint16_t> half_bits(double value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000U : 0U;
  const auto with_sign = [sign](double bits) {
    return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(bits));
  };
  if (std::isnan(value)) return with_sign(0x7e00);
  if (std::isinf(value)) return with_sign(0x7c00);
  const double size = std::fabs(value);
  if (size >= 65520) return std::nullopt;
  if (size < 0x1p-14) return with_sign(std::nearbyint(size * 0x1p24));
  int exponent = 0;
  std::frexp(size, &exponent);  // size = f · 2^exponent, f in [0.5, 1)
  const double significand = std::nearbyint(std::ldexp(size, 11 - exponent));  // 1024 … 2048
  return with_sign((exponent + 14) * 1024.0 + (significand - 1024));
}

template <class T>
std::optional<Bytes> plain(std::string_view text) {
  const std::optional<T> value = number<T>(text);
  return value ? std::optional(bytes_of(*value)) : std::nullopt;
}

std::optional<Bytes> half(std::string_view text) {
  const std::optional<double> value = number<double>(text);
  const std::optional<std::uint16_t> bits = value ? half_bits(*value) : std::nullopt;
  return bits ? std::optional(bytes_of(*bits)) : std::nullopt;
}

std::optional<Bytes> long_double(std::string_view text) {
  const std::optional<long double> value = number<long double>(text);
  if (!value) return std::nullopt;
  Bytes bytes(sizeof(long double));
  // Of the 16 bytes x86 uses 10; the others are left zero.
  const std::size_t used = std::numeric_limits<long double>::digits == 64 ? 10 : bytes.size();
  std::memcpy(bytes.data(), &*value, used);
  return bytes;
}

std::optional<Bytes> boolean(std::string_view text) {
  if (text == "1" || text == "true" || text == "True") return Bytes{std::byte{1}};
  if (text == "0" || text == "false" || text == "False") return Bytes{std::byte{0}};
  return std::nullopt;
}

std::optional<Bytes> integer(std::string_view text, std::uint64_t itemsize) {
  switch (itemsize) {
    case 1: return plain<std::int8_t>(text);
    case 2: return plain<std::int16_t>(text);
    case 4: return plain<std::int32_t>(text);
    default: return plain<std::int64_t>(text);
  }
}

std::optional<Bytes> natural(std::string_view text, std::uint64_t itemsize) {
  switch (itemsize) {
    case 1: return plain<std::uint8_t>(text);
    case 2: return plain<std::uint16_t>(text);
    case 4: return plain<std::uint32_t>(text);
    default: return plain<std::uint64_t>(text);
  }
}

std::optional<Bytes> real(std::string_view text, std::uint64_t itemsize) {
  switch (itemsize) {
    case 2: return half(text);
    case 4: return plain<float>(text);
    case 8: return plain<double>(text);
    default: return long_double(text);
  }
}

/// "1", "1+2j", "(1-2j)", "-2j", "j".
std::optional<Bytes> complex(std::string_view text, std::uint64_t itemsize) {
  if (text.size() >= 2 && text.front() == '(' && text.back() == ')') {
    text = text.substr(1, text.size() - 2);
  }
  std::string real_part(text);
  std::string imaginary = "0";
  if (!text.empty() && (text.back() == 'j' || text.back() == 'J')) {
    std::size_t split = 0;  // Where the imaginary part begins: the last sign that is no exponent's.
    for (std::size_t i = 1; i + 1 < text.size(); ++i) {
      const bool sign = text[i] == '+' || text[i] == '-';
      if (sign && text[i - 1] != 'e' && text[i - 1] != 'E') split = i;
    }
    real_part = split == 0 ? "0" : std::string(text.substr(0, split));
    imaginary = std::string(text.substr(split, text.size() - split - 1));
    if (imaginary.empty() || imaginary == "+" || imaginary == "-") imaginary += "1";
  }
  std::optional<Bytes> bytes = real(real_part, itemsize / 2);
  const std::optional<Bytes> second = real(imaginary, itemsize / 2);
  if (!bytes || !second) return std::nullopt;
  bytes->insert(bytes->end(), second->begin(), second->end());
  return bytes;
}

/// A unit of time: so many of `per_second` to the second, or so many seconds, or months.
struct TimeUnit {
  std::string_view name;
  std::int64_t months = 0;
  std::int64_t seconds = 0;
  std::int64_t per_second = 0;
};

constexpr std::array kTimeUnits = {
    TimeUnit{"Y", 12, 0, 0},
    TimeUnit{"M", 1, 0, 0},
    TimeUnit{"W", 0, 604800, 0},
    TimeUnit{"D", 0, 86400, 0},
    TimeUnit{"h", 0, 3600, 0},
    TimeUnit{"m", 0, 60, 0},
    TimeUnit{"s", 0, 1, 1},
    TimeUnit{"ms", 0, 0, 1'000},
    TimeUnit{"us", 0, 0, 1'000'000},
    TimeUnit{"ns", 0, 0, 1'000'000'000},
    TimeUnit{"ps", 0, 0, 1'000'000'000'000},
    TimeUnit{"fs", 0, 0, 1'000'000'000'000'000},
    TimeUnit{"as", 0, 0, 1'000'000'000'000'000'000},
};

std::int64_t floor_divide(std::int64_t value, std::int64_t by) {
  return value / by - (value % by < 0 ? 1 : 0);
}

/// Takes `digits` digits, or as many as there are when 0, from the front.
std::optional<std::int64_t> take_digits(std::string_view& text, std::size_t digits) {
  std::size_t end = 0;
  while (end < text.size() && text[end] >= '0' && text[end] <= '9' && end < 18) ++end;
  if (end == 0 || (digits != 0 && end < digits)) return std::nullopt;
  const std::size_t taken = digits == 0 ? end : digits;
  const std::optional<std::int64_t> value = number<std::int64_t>(text.substr(0, taken));
  text.remove_prefix(taken);
  return value;
}

bool accept(std::string_view& text, char c) {
  if (text.empty() || text.front() != c) return false;
  text.remove_prefix(1);
  return true;
}

struct Moment {
  std::int64_t months = 0;       ///< Since January 1970.
  std::int64_t seconds = 0;      ///< Since 1970.
  std::int64_t nanoseconds = 0;  ///< Of the second.
};

/// "hh:mm[:ss[.fraction]]" into `moment`.
bool clock_time(std::string_view text, Moment& moment) {
  const auto hours = take_digits(text, 2);
  if (!hours || !accept(text, ':')) return false;
  const auto minutes = take_digits(text, 2);
  std::optional<std::int64_t> seconds = 0;
  if (accept(text, ':')) seconds = take_digits(text, 2);
  if (!minutes || !seconds || *hours > 23 || *minutes > 59 || *seconds > 59) return false;
  moment.seconds += *hours * 3600 + *minutes * 60 + *seconds;
  if (accept(text, '.')) {
    std::string fraction(text.substr(0, 9));
    fraction.resize(9, '0');
    const auto nanoseconds = number<std::int64_t>(fraction);
    if (text.empty() || text.size() > 9 || !nanoseconds || *nanoseconds < 0) return false;
    moment.nanoseconds = *nanoseconds;
    text = {};
  }
  return text.empty();
}

/// ISO 8601 as numpy reads it: "2024", "2024-05", "2024-05-01", "2024-05-01T12:00:03.5".
std::optional<Moment> moment_of(std::string_view text) {
  const auto year = take_digits(text, 4);
  if (!year) return std::nullopt;
  std::optional<std::int64_t> month = 1;
  std::optional<std::int64_t> day = 1;
  if (accept(text, '-')) month = take_digits(text, 2);
  if (month && accept(text, '-')) day = take_digits(text, 2);
  if (!month || !day) return std::nullopt;
  const std::chrono::year_month_day date{std::chrono::year(static_cast<int>(*year)),
                                         std::chrono::month(static_cast<unsigned>(*month)),
                                         std::chrono::day(static_cast<unsigned>(*day))};
  if (!date.ok()) return std::nullopt;
  Moment moment;
  moment.months = (*year - 1970) * 12 + *month - 1;
  const auto days = std::chrono::sys_days(date).time_since_epoch();
  moment.seconds = std::int64_t{days.count()} * 86400;
  if (text.empty()) return moment;
  if (!accept(text, 'T') && !accept(text, ' ')) return std::nullopt;
  return clock_time(text, moment) ? std::optional(moment) : std::nullopt;
}

/// The moment as a count of `unit`; nothing when it overflows.
std::optional<std::int64_t> count_of(const Moment& moment, const TimeUnit& unit) {
  if (unit.months != 0) return floor_divide(moment.months, unit.months);
  if (unit.seconds != 0) return floor_divide(moment.seconds, unit.seconds);
  std::int64_t count = 0;
  const std::int64_t part = unit.per_second >= 1'000'000'000
                                ? moment.nanoseconds * (unit.per_second / 1'000'000'000)
                                : moment.nanoseconds / (1'000'000'000 / unit.per_second);
  if (__builtin_mul_overflow(moment.seconds, unit.per_second, &count)) return std::nullopt;
  if (__builtin_add_overflow(count, part, &count)) return std::nullopt;
  return count;
}

/// A count of the dtype's unit, "NaT", or for datetime64 a date.
std::optional<Bytes> time_value(std::string_view text, std::string_view unit_text, bool dates) {
  if (text == "NaT") return bytes_of(kNotATime);
  // Four digits are a year, as numpy has it.
  const std::optional<Moment> moment = dates ? moment_of(text) : std::nullopt;
  const std::optional<std::int64_t> plain_count = number<std::int64_t>(text);
  if (!moment && plain_count) return bytes_of(*plain_count);
  if (!moment || unit_text.size() < 3) return std::nullopt;
  std::string_view body = unit_text.substr(1, unit_text.size() - 2);
  std::int64_t multiple = 1;
  if (body.front() >= '0' && body.front() <= '9') multiple = take_digits(body, 0).value_or(1);
  for (const TimeUnit& unit : kTimeUnits) {
    if (unit.name != body) continue;
    const std::optional<std::int64_t> count = count_of(*moment, unit);
    return count ? std::optional(bytes_of(floor_divide(*count, multiple))) : std::nullopt;
  }
  return std::nullopt;
}

std::optional<Bytes> byte_text(std::string_view text, std::uint64_t itemsize) {
  if (text.size() > itemsize) return std::nullopt;
  Bytes bytes(itemsize);
  std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

/// UTF-8 to the UCS-4 of numpy's U.
std::optional<Bytes> unicode_text(std::string_view text, std::uint64_t itemsize) {
  Bytes bytes;
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i++]);
    const int more = lead < 0x80 ? 0 : lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : lead >= 0xc2 ? 1 : -1;
    if (more < 0 || lead > 0xf4 || text.size() - i < static_cast<std::size_t>(more)) return {};
    std::uint32_t point = more == 0 ? lead : lead & (0x3fU >> static_cast<unsigned>(more));
    for (int k = 0; k < more; ++k) {
      const auto next = static_cast<unsigned char>(text[i++]);
      if ((next & 0xc0U) != 0x80U) return {};
      point = (point << 6U) | (next & 0x3fU);
    }
    const Bytes four = bytes_of(point);
    bytes.insert(bytes.end(), four.begin(), four.end());
  }
  if (bytes.size() > itemsize) return {};
  bytes.resize(itemsize);
  return bytes;
}

/// Turns each number of an item round: halves of a complex, characters of a U.
void swap_order(Bytes& item, char kind) {
  std::size_t width = item.size();
  if (kind == 'c') width /= 2;
  if (kind == 'U') width = 4;
  for (std::size_t at = 0; at + width <= item.size(); at += width) {
    const auto first = item.begin() + static_cast<std::ptrdiff_t>(at);
    std::reverse(first, first + static_cast<std::ptrdiff_t>(width));
  }
}

std::optional<Bytes> item_of(const Dtype& dtype, char kind, std::string_view text) {
  switch (kind) {
    case 'b': return boolean(text);
    case 'i': return integer(text, dtype.itemsize());
    case 'u': return natural(text, dtype.itemsize());
    case 'f': return real(text, dtype.itemsize());
    case 'c': return complex(text, dtype.itemsize());
    case 'M':
    case 'm': {
      const std::string_view all = dtype.text();
      return time_value(text, all.substr(std::min<std::size_t>(3, all.size())), kind == 'M');
    }
    case 'S': return byte_text(text, dtype.itemsize());
    case 'U': return unicode_text(text, dtype.itemsize());
    default: return text == "0" ? std::optional(Bytes(dtype.itemsize())) : std::nullopt;
  }
}

std::string expectation(char kind) {
  switch (kind) {
    case 'b': return "true, false, 1 or 0";
    case 'i':
    case 'u': return "an integer in its range";
    case 'f': return "a number in its range, inf or nan";
    case 'c': return "a complex number such as 1+2j";
    case 'M': return "a date, a count or NaT";
    case 'm': return "a count or NaT";
    case 'S':
    case 'U': return "a text that fits";
    default: return "only 0";
  }
}

}  // namespace

Result<Bytes> parse_fill(const Dtype& dtype, std::string_view text) {
  const bool structured = dtype.text().front() == '[';
  const char kind = structured ? 'V' : dtype.text()[1];
  std::optional<Bytes> item = item_of(dtype, kind, text);
  if (!item) {
    return make_error(ErrorCode::invalid_argument, "fill: '" + std::string(text) +
                                                       "' cannot be stored as " + dtype.text() +
                                                       ", which takes " + expectation(kind));
  }
  if (dtype.text().front() == '>') swap_order(*item, kind);
  return std::move(*item);
}

void fill_with(std::span<std::byte> out, std::span<const std::byte> item) {
  const bool zero =
      std::all_of(item.begin(), item.end(), [](std::byte b) { return b == std::byte{}; });
  if (out.empty() || item.empty()) return;
  if (zero) {
    std::memset(out.data(), 0, out.size());
    return;
  }
  // Doubles what is there, up to blocks that stay in the cache.
  constexpr std::size_t kBlockBytes = std::size_t{1} << 18U;
  std::memcpy(out.data(), item.data(), item.size());
  for (std::size_t done = item.size(); done < out.size();) {
    std::size_t step =
        std::min(done, std::max(kBlockBytes / item.size(), std::size_t{1}) * item.size());
    step = std::min(step, out.size() - done);
    std::memcpy(out.data() + done, out.data(), step);
    done += step;
  }
}

}  // namespace shmctl
