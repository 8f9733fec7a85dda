#include "dtype_names.hpp"

#include <array>
#include <utility>

namespace shmctl {

namespace {

using Pair = std::pair<std::string_view, std::string_view>;

// The first name of each code is the one shown to people.
constexpr std::array kNames = {
    Pair{"bool", "b1"},         Pair{"int8", "i1"},       Pair{"int16", "i2"},
    Pair{"int32", "i4"},        Pair{"int64", "i8"},      Pair{"uint8", "u1"},
    Pair{"uint16", "u2"},       Pair{"uint32", "u4"},     Pair{"uint64", "u8"},
    Pair{"float16", "f2"},      Pair{"float32", "f4"},    Pair{"float64", "f8"},
    Pair{"longdouble", "f16"},  Pair{"complex64", "c8"},  Pair{"complex128", "c16"},
    Pair{"clongdouble", "c32"}, Pair{"datetime64", "M8"}, Pair{"timedelta64", "m8"},
    Pair{"bool_", "b1"},        Pair{"byte", "i1"},       Pair{"short", "i2"},
    Pair{"intc", "i4"},         Pair{"int", "i8"},        Pair{"int_", "i8"},
    Pair{"long", "i8"},         Pair{"longlong", "i8"},   Pair{"intp", "i8"},
    Pair{"ubyte", "u1"},        Pair{"ushort", "u2"},     Pair{"uintc", "u4"},
    Pair{"uint", "u8"},         Pair{"ulong", "u8"},      Pair{"ulonglong", "u8"},
    Pair{"uintp", "u8"},        Pair{"half", "f2"},       Pair{"single", "f4"},
    Pair{"double", "f8"},       Pair{"float", "f8"},      Pair{"float128", "f16"},
    Pair{"csingle", "c8"},      Pair{"cdouble", "c16"},   Pair{"complex", "c16"},
    Pair{"complex256", "c32"},  Pair{"object", "O8"},
};

// numpy's one-letter codes; `long` has 8 bytes on every system that shmstore supports.
constexpr std::array kLetters = {
    Pair{"?", "b1"}, Pair{"b", "i1"},  Pair{"B", "u1"}, Pair{"h", "i2"},  Pair{"H", "u2"},
    Pair{"i", "i4"}, Pair{"I", "u4"},  Pair{"l", "i8"}, Pair{"L", "u8"},  Pair{"q", "i8"},
    Pair{"Q", "u8"}, Pair{"p", "i8"},  Pair{"P", "u8"}, Pair{"e", "f2"},  Pair{"f", "f4"},
    Pair{"d", "f8"}, Pair{"g", "f16"}, Pair{"F", "c8"}, Pair{"D", "c16"}, Pair{"G", "c32"},
    Pair{"M", "M8"}, Pair{"m", "m8"},  Pair{"c", "S1"}, Pair{"O", "O8"},
};

bool is_byte_order(char c) {
  return c == '<' || c == '>' || c == '=' || c == '|';
}

/// "datetime64[ns]" → {"datetime64", "[ns]"}
Pair split_unit(std::string_view text) {
  const std::size_t bracket = text.find('[');
  if (bracket == std::string_view::npos) return {text, {}};
  return {text.substr(0, bracket), text.substr(bracket)};
}

/// "[('x', '<f4'), (('title', 'y'), …)]" → "{x, y}"; nested fields and padding are left out.
std::string field_names(std::string_view text) {
  std::string names;
  std::string_view name;  // The last literal of a field's first element.
  int depth = 0;          // Of brackets.
  bool in_first = false;  // Before the comma that ends the first element.
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\'' || c == '"') {
      std::size_t end = i + 1;
      while (end < text.size() && text[end] != c) end += text[end] == '\\' ? 2U : 1U;
      if (in_first) name = text.substr(i + 1, std::min(end, text.size()) - i - 1);
      i = end;
      continue;
    }
    if (c == '(' && depth == 1) in_first = true;
    if (c == '(' || c == '[') ++depth;
    if (c == ')' || c == ']') --depth;
    if (c != ',' || depth != 2 || !in_first) continue;
    in_first = false;
    if (!name.empty()) names += (names.empty() ? "" : ", ") + std::string(name);
  }
  return "{" + names + "}";
}

}  // namespace

std::string dtype_from_numpy(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  if (text.empty() || text.front() == '[') return std::string(text);
  std::string order;
  std::string_view body = text;
  if (is_byte_order(body.front())) {
    order = body.front();
    body.remove_prefix(1);
  }
  const auto [head, unit] = split_unit(body);
  for (const auto& [letter, code] : kLetters) {
    if (head == letter) return order + std::string(code) + std::string(unit);
  }
  if (!order.empty()) return std::string(text);
  for (const auto& [name, code] : kNames) {
    if (head == name) return std::string(code) + std::string(unit);
  }
  return std::string(text);
}

std::string dtype_for_people(std::string_view canonical) {
  if (canonical.starts_with('[')) return field_names(canonical);
  if (canonical.empty() || (canonical.front() != '<' && canonical.front() != '|')) {
    return std::string(canonical);
  }
  const auto [head, unit] = split_unit(canonical.substr(1));
  for (const auto& [name, code] : kNames) {
    if (head == code) return std::string(name) + std::string(unit);
  }
  return std::string(head) + std::string(unit);
}

}  // namespace shmctl
