#include "npy.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <optional>

#include "output.hpp"

namespace shmctl {

using shmstore::Dtype;
using shmstore::Error;
using shmstore::ErrorCode;
using shmstore::make_error;
using shmstore::Order;
using shmstore::Result;

namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::size_t kHeaderBytesMax = 1U << 20U;  // Far above any dtype that shmstore takes.
constexpr std::size_t kDataAlignment = 64;
// The largest single read(2) or write(2) that Linux does.
constexpr std::size_t kTransferBytesMax = 0x7ffff000;

Error not_npy(std::string_view file, std::string_view why) {
  return make_error(ErrorCode::invalid_argument,
                    "file: " + std::string(file) + " is no .npy file: " + std::string(why));
}

/// Reads the literal {'descr': …, 'fortran_order': …, 'shape': (…), }.
class HeaderParser {
 public:
  explicit HeaderParser(std::string_view text) : rest_(text) {}

  bool run() {
    if (!accept('{')) return fail("its header is no dictionary");
    while (!accept('}')) {
      std::string_view key;
      if (!literal(key) || !accept(':')) return fail("its header is damaged");
      if (!entry(key)) return false;
      if (!accept(',') && peek() != '}') return fail("its header is damaged");
    }
    return (have_ == 7U) || fail("its header lacks descr, fortran_order or shape");
  }

  std::string descr;
  std::vector<std::uint64_t> shape;
  bool fortran = false;
  std::string problem;

 private:
  bool fail(std::string_view text) {
    problem = text;
    return false;
  }
  char peek() {
    while (!rest_.empty() && (rest_.front() == ' ' || rest_.front() == '\n')) {
      rest_.remove_prefix(1);
    }
    return rest_.empty() ? '\0' : rest_.front();
  }
  bool accept(char c) {
    if (peek() != c) return false;
    rest_.remove_prefix(1);
    return true;
  }
  /// A quoted string; `body` is what stands between the quotes.
  bool literal(std::string_view& body) {
    const char quote = peek();
    if (quote != '\'' && quote != '"') return false;
    std::size_t end = 1;
    while (end < rest_.size() && rest_[end] != quote) end += rest_[end] == '\\' ? 2U : 1U;
    if (end >= rest_.size()) return false;
    body = rest_.substr(1, end - 1);
    rest_.remove_prefix(end + 1);
    return true;
  }
  bool word(std::string_view expected) {
    peek();
    if (!rest_.starts_with(expected)) return false;
    rest_.remove_prefix(expected.size());
    return true;
  }
  bool entry(std::string_view key) {
    if (key == "descr") {
      have_ |= 1U;
      return descr_value() || fail("its dtype is damaged");
    }
    if (key == "fortran_order") {
      have_ |= 2U;
      fortran = word("True");
      return fortran || word("False") || fail("its fortran_order is neither True nor False");
    }
    if (key == "shape") {
      have_ |= 4U;
      return shape_value() || fail("its shape is damaged");
    }
    return fail("its header has the unknown key '" + std::string(key) + "'");
  }
  /// A string, or a list up to its closing bracket, quotes respected.
  bool descr_value() {
    std::string_view body;
    if (peek() != '[') {
      if (!literal(body)) return false;
      descr = body;
      return true;
    }
    const std::string_view start = rest_;
    int depth = 0;
    do {
      const char c = peek();
      if (c == '\'' || c == '"') {
        if (!literal(body)) return false;
        continue;
      }
      if (c == '\0') return false;
      depth += c == '[' ? 1 : c == ']' ? -1 : 0;
      rest_.remove_prefix(1);
    } while (depth > 0);
    descr = start.substr(0, start.size() - rest_.size());
    return true;
  }
  bool shape_value() {
    if (!accept('(')) return false;
    while (!accept(')')) {
      peek();
      std::uint64_t dim = 0;
      const char* end = rest_.data() + rest_.size();
      const auto [stop, status] = std::from_chars(rest_.data(), end, dim);
      if (status != std::errc()) return false;
      rest_.remove_prefix(static_cast<std::size_t>(stop - rest_.data()));
      accept('L');  // Written by Python 2.
      shape.push_back(dim);
      if (!accept(',') && peek() != ')') return false;
    }
    return true;
  }

  std::string_view rest_;
  unsigned have_ = 0;  // Bits: descr, fortran_order, shape.
};

std::string utf8_from_latin1(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80) {
      out += c;
    } else {
      out += static_cast<char>(0xc0U | (byte >> 6U));
      out += static_cast<char>(0x80U | (byte & 0x3fU));
    }
  }
  return out;
}

Result<std::string> read_text(int fd, std::size_t bytes, std::string_view file) {
  std::string text(bytes, '\0');
  Result<void> read = read_fully(fd, std::as_writable_bytes(std::span(text)), file);
  if (!read) return read.error();
  return text;
}

std::size_t little_endian(std::string_view bytes) {
  std::size_t value = 0;
  for (std::size_t i = bytes.size(); i-- > 0;) {
    value = (value << 8U) | static_cast<unsigned char>(bytes[i]);
  }
  return value;
}

}  // namespace

Result<void> read_fully(int fd, std::span<std::byte> out, std::string_view file) {
  std::size_t done = 0;
  while (done < out.size()) {
    const std::size_t want = std::min(out.size() - done, kTransferBytesMax);
    const ssize_t got = ::read(fd, out.data() + done, want);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return file_error(file, errno);
    if (got == 0) {
      return make_error(ErrorCode::invalid_argument, "file: " + std::string(file) + " ends " +
                                                         count_text(out.size() - done, "byte") +
                                                         " too early");
    }
    done += static_cast<std::size_t>(got);
  }
  return {};
}

Result<void> write_fully(int fd, std::span<const std::byte> bytes, std::string_view file) {
  while (!bytes.empty()) {
    const ssize_t put = ::write(fd, bytes.data(), std::min(bytes.size(), kTransferBytesMax));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return file_error(file, errno);
    bytes = bytes.subspan(static_cast<std::size_t>(put));
  }
  return {};
}

Result<NpyHeader> read_npy_header(int fd, std::string_view file) {
  Result<std::string> head = read_text(fd, kMagic.size() + 2, file);
  if (!head) return head.error();
  if (!head->starts_with(kMagic)) return not_npy(file, "it does not begin with \\x93NUMPY");
  const int major = static_cast<unsigned char>((*head)[kMagic.size()]);
  if (major < 1 || major > 3) {
    return not_npy(file, "format version " + std::to_string(major) + " is not known, only 1 to 3");
  }
  Result<std::string> length = read_text(fd, major == 1 ? 2 : 4, file);
  if (!length) return length.error();
  const std::size_t header_bytes = little_endian(*length);
  if (header_bytes > kHeaderBytesMax) return not_npy(file, "its header is over 1 MiB");
  Result<std::string> text = read_text(fd, header_bytes, file);
  if (!text) return text.error();

  const std::string utf8 = major < 3 ? utf8_from_latin1(*text) : *text;
  HeaderParser parser(utf8);
  if (!parser.run()) return not_npy(file, parser.problem);
  Result<Dtype> dtype = Dtype::parse(parser.descr);
  if (!dtype) return dtype.error();
  return NpyHeader{std::move(*dtype), std::move(parser.shape),
                   parser.fortran ? Order::f : Order::c};
}

std::string npy_header_bytes(std::string_view dtype, std::span<const std::uint64_t> shape,
                             Order order) {
  const std::string quote = dtype.starts_with('[') ? "" : "'";
  std::string text = "{'descr': " + quote + std::string(dtype) + quote +
                     ", 'fortran_order': " + (order == Order::f ? "True" : "False") +
                     ", 'shape': " + shape_text(shape) + ", }";
  const bool ascii = std::all_of(text.begin(), text.end(),
                                 [](char c) { return static_cast<unsigned char>(c) < 0x80; });
  const bool short_length = ascii && text.size() + kDataAlignment + 10 < 65536;
  const int major = !ascii ? 3 : short_length ? 1 : 2;
  const std::size_t fixed = kMagic.size() + 2 + (major == 1 ? 2 : 4);
  text.resize(
      (fixed + text.size() + 1 + kDataAlignment - 1) / kDataAlignment * kDataAlignment - fixed - 1,
      ' ');
  text += '\n';
  std::string out(kMagic);
  out += static_cast<char>(major);
  out += '\0';
  for (std::size_t i = 0, rest = text.size(); i < (major == 1 ? 2U : 4U); ++i, rest >>= 8U) {
    out += static_cast<char>(rest & 0xffU);
  }
  return out + text;
}

}  // namespace shmctl
