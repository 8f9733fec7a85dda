#pragma once
/// Element types, in numpy's `descr` syntax: "<f8", "|b1", "<M8[ns]", "<U12", "|V16", or for
/// structured types the text of the list, "[('x', '<f8'), ('', '|V4'), ('y', '<i4', (2, 3))]".
/// A field without a name is padding; `(title, name)` pairs, nested lists and sub-array shapes
/// are allowed. Objects ("O") and StringDType ("T") cannot live in shared memory.

#include <complex>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "shmstore/array.hpp"
#include "shmstore/error.hpp"

namespace shmstore {

/// A validated dtype. Text is canonical: explicit byte order, '|' where none applies.
class Dtype {
 public:
  Dtype() = default;

  /// Parses and validates. A missing byte order or "=" means little-endian.
  /// Errors: invalid_argument, text begins with "dtype:" and names the offending part.
  [[nodiscard]] static Result<Dtype> parse(std::string_view text);

  /// The dtype of a C++ element type: arithmetic types, bool, std::complex<float|double>.
  template <class T>
  [[nodiscard]] static Dtype of();

  [[nodiscard]] const std::string& text() const noexcept { return text_; }
  [[nodiscard]] std::uint64_t itemsize() const noexcept { return itemsize_; }
  friend bool operator==(const Dtype& a, const Dtype& b) noexcept { return a.text_ == b.text_; }

 private:
  Dtype(std::string text, std::uint64_t itemsize) : text_(std::move(text)), itemsize_(itemsize) {}
  friend class DtypeParser;

  std::string text_;
  std::uint64_t itemsize_ = 0;
};

/// Recursive descent over the literal, bounded in depth and length. An implementation detail.
class DtypeParser {
 public:
  explicit DtypeParser(std::string_view text) : rest_(text) {}

  [[nodiscard]] Result<Dtype> run() {
    if (rest_.size() > kDtypeBytesMax) {
      return bad("has " + std::to_string(rest_.size()) + " bytes, at most 8192 are allowed");
    }
    std::string out;
    std::uint64_t itemsize = 0;
    const bool list = !rest_.empty() && rest_.front() == '[';
    const bool ok = list ? fields(0, out, itemsize) : simple(take_all(), out, itemsize);
    if (!ok) return bad(problem_);
    if (!rest_.empty()) return bad("text after the end");
    return Dtype(std::move(out), itemsize);
  }

 private:
  static constexpr int kDepthMax = 8;
  static constexpr std::uint64_t kItemBytesMax = 0x7fffffff;  // numpy's own limit (C int).

  static Error bad(const std::string& text) {
    return make_error(ErrorCode::invalid_argument, "dtype: " + text);
  }
  bool fail(std::string problem) {
    problem_ = std::move(problem);
    return false;
  }
  std::string_view take_all() {
    const std::string_view all = rest_;
    rest_ = {};
    return all;
  }
  void skip_space() {
    while (!rest_.empty() && rest_.front() == ' ') rest_.remove_prefix(1);
  }
  bool accept(char c) {
    skip_space();
    if (rest_.empty() || rest_.front() != c) return false;
    rest_.remove_prefix(1);
    return true;
  }
  bool expect(char c) {
    if (accept(c)) return true;
    problem_ = "expected '";
    problem_ += c;
    problem_ += "' in the list of fields";
    return false;
  }
  bool number(std::string_view& in, std::uint64_t& value) {
    if (in.empty() || in.front() < '0' || in.front() > '9') return false;
    value = 0;
    while (!in.empty() && in.front() >= '0' && in.front() <= '9') {
      value = value * 10 + static_cast<std::uint64_t>(in.front() - '0');
      if (value > kItemBytesMax) return false;
      in.remove_prefix(1);
    }
    return true;
  }

  bool simple(std::string_view in, std::string& out, std::uint64_t& itemsize) {
    const std::string whole(in);
    char order = '<';
    if (!in.empty() && std::string_view("<>|=").find(in.front()) != std::string_view::npos) {
      order = in.front() == '=' ? '<' : in.front();
      in.remove_prefix(1);
    }
    if (in.empty()) return fail("'" + whole + "' is not a type");
    const char kind = in.front();
    in.remove_prefix(1);
    if (kind == 'O' || kind == 'T') return fail("objects cannot be shared ('" + whole + "')");
    std::uint64_t size = 0;
    if (!number(in, size)) return fail("'" + whole + "' has no size, or one over 2^31-1");
    if (!known(kind, size)) return fail("'" + whole + "' is not a type of numpy");
    if (kind == 'M' || kind == 'm') {
      if (!unit(in)) return fail("'" + whole + "' has no valid unit of time");
    } else if (!in.empty()) {
      return fail("'" + whole + "' has text after its size");
    }
    itemsize = kind == 'U' ? size * 4 : size;
    if (itemsize > kItemBytesMax) return fail("'" + whole + "' is over 2^31-1 bytes");
    const bool orderless =
        kind == 'S' || kind == 'V' || kind == 'b' || (size == 1 && (kind == 'i' || kind == 'u'));
    out += orderless ? '|' : (order == '|' ? '<' : order);
    out += kind;
    out += std::to_string(size);
    out += in;
    return true;
  }

  static bool known(char kind, std::uint64_t size) {
    switch (kind) {
      case 'b': return size == 1;
      case 'i':
      case 'u': return size == 1 || size == 2 || size == 4 || size == 8;
      case 'f': return size == 2 || size == 4 || size == 8 || size == 16;
      case 'c': return size == 8 || size == 16 || size == 32;
      case 'M':
      case 'm': return size == 8;
      case 'S':
      case 'U':
      case 'V': return true;
      default: return false;
    }
  }

  /// "", "[ns]", "[25s]", "[2D]".
  bool unit(std::string_view in) {
    if (in.empty()) return true;
    if (in.size() < 3 || in.front() != '[' || in.back() != ']') return false;
    in = in.substr(1, in.size() - 2);
    std::uint64_t count = 1;
    if (in.front() >= '0' && in.front() <= '9' && (!number(in, count) || count == 0)) return false;
    for (std::string_view known_unit :
         {"Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as", "generic"}) {
      if (in == known_unit) return true;
    }
    return false;
  }

  /// A Python string literal; copied through as it stands, quotes and escapes included.
  bool literal(std::string& out, std::string_view* body = nullptr) {
    skip_space();
    if (rest_.empty() || (rest_.front() != '\'' && rest_.front() != '"')) {
      return fail("expected a quoted string");
    }
    const char quote = rest_.front();
    std::size_t end = 1;
    while (end < rest_.size() && rest_[end] != quote) end += rest_[end] == '\\' ? 2U : 1U;
    if (end >= rest_.size()) return fail("a string does not end");
    for (char c : rest_.substr(0, end)) {
      if (static_cast<unsigned char>(c) < 0x20) return fail("a control character in a string");
    }
    if (body != nullptr) *body = rest_.substr(1, end - 1);
    out += rest_.substr(0, end + 1);
    rest_.remove_prefix(end + 1);
    return true;
  }

  bool fields(int depth, std::string& out, std::uint64_t& itemsize) {
    if (depth >= kDepthMax) return fail("nested deeper than 8 levels");
    if (!expect('[')) return false;
    out += '[';
    bool first = true;
    while (!accept(']')) {
      if (!first && !expect(',')) return false;
      if (!first) out += ", ";
      if (!field(depth, out, itemsize)) return false;
      first = false;
    }
    out += ']';
    return true;
  }

  bool field(int depth, std::string& out, std::uint64_t& itemsize) {
    if (!expect('(')) return false;
    out += '(';
    if (accept('(')) {  // (title, name)
      out += '(';
      if (!literal(out) || !expect(',')) return false;
      out += ", ";
      if (!literal(out) || !expect(')')) return false;
      out += ')';
    } else if (!literal(out)) {
      return false;
    }
    if (!expect(',')) return false;
    out += ", ";
    std::uint64_t bytes = 0;
    if (!field_type(depth, out, bytes)) return false;
    if (accept(',')) {
      out += ", ";
      if (!sub_shape(out, bytes)) return false;
    }
    if (!expect(')')) return false;
    out += ')';
    itemsize += bytes;
    return itemsize <= kItemBytesMax || fail("an item is over 2^31-1 bytes");
  }

  bool field_type(int depth, std::string& out, std::uint64_t& bytes) {
    skip_space();
    if (!rest_.empty() && rest_.front() == '[') return fields(depth + 1, out, bytes);
    std::string raw;
    std::string_view body;
    if (!literal(raw, &body)) return false;
    out += '\'';
    if (!simple(body, out, bytes)) return false;
    out += '\'';
    return true;
  }

  bool sub_shape(std::string& out, std::uint64_t& bytes) {
    if (!expect('(')) return false;
    out += '(';
    std::size_t count = 0;
    while (!accept(')')) {
      if (count != 0) {
        if (!expect(',')) return false;
        if (accept(')')) break;
        out += ", ";
      }
      skip_space();
      std::uint64_t dim = 0;
      if (!number(rest_, dim)) return fail("a sub-array's shape is not a number");
      out += std::to_string(dim);
      if (++count > kNdimMax) return fail("a sub-array has more than 64 dimensions");
      if (dim != 0 && bytes > kItemBytesMax / dim) return fail("an item is over 2^31-1 bytes");
      bytes *= dim;
    }
    out += count == 1 ? ",)" : ")";
    return true;
  }

  std::string_view rest_;
  std::string problem_;
};

inline Result<Dtype> Dtype::parse(std::string_view text) {
  return DtypeParser(text).run();
}

template <class T>
Dtype Dtype::of() {
  using U = std::remove_cv_t<T>;
  constexpr auto size = sizeof(U);
  std::string text;
  if constexpr (std::is_same_v<U, bool>) {
    text = "|b1";
  } else if constexpr (std::is_same_v<U, std::complex<float>> ||
                       std::is_same_v<U, std::complex<double>>) {
    text = "<c" + std::to_string(size);
  } else if constexpr (std::is_same_v<U, float> || std::is_same_v<U, double>) {
    text = "<f" + std::to_string(size);
  } else {
    static_assert(std::is_integral_v<U> || std::is_same_v<U, std::byte>,
                  "shmstore: no dtype for this element type; use create_any with a dtype text");
    constexpr bool is_signed = std::is_signed_v<U>;
    text = (size == 1 ? "|" : "<") + std::string(is_signed ? "i" : "u") + std::to_string(size);
  }
  return Dtype(std::move(text), size);
}

}  // namespace shmstore
