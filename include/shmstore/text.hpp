#pragma once
/// Text of unknown origin: what may be sent in a frame, and shown on a terminal.

#include <cstddef>
#include <string>
#include <string_view>

namespace shmstore {

/// Bytes of the UTF-8 character that `text` begins with, as Unicode defines it (no surrogates, no
/// overlong forms); 0 when it begins with none.
[[nodiscard]] inline std::size_t utf8_length(std::string_view text) noexcept {
  if (text.empty()) return 0;
  const auto at = [&](std::size_t k) { return static_cast<unsigned char>(text[k]); };
  const unsigned first = at(0);
  const std::size_t length = first < 0x80U                     ? 1
                             : first >= 0xc2U && first < 0xe0U ? 2
                             : first >= 0xe0U && first < 0xf0U ? 3
                             : first >= 0xf0U && first < 0xf5U ? 4
                                                               : 0;
  if (length == 0 || length > text.size()) return 0;
  for (std::size_t k = 1; k < length; ++k) {
    if ((at(k) & 0xc0U) != 0x80U) return 0;
  }
  // Overlong forms, surrogates and what lies above U+10FFFF show in the second byte.
  const unsigned second = length > 1 ? at(1) : 0;
  const bool odd = (first == 0xe0U && second < 0xa0U) || (first == 0xedU && second >= 0xa0U) ||
                   (first == 0xf0U && second < 0x90U) || (first == 0xf4U && second >= 0x90U);
  return odd ? 0 : length;
}

/// `text` with a question mark for each control character (they move a terminal's cursor, and more)
/// and for each byte that is not UTF-8. The names of processes are such: anybody chooses its own.
[[nodiscard]] inline std::string printable(std::string_view text) {
  std::string clean;
  clean.reserve(text.size());
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    const auto first = static_cast<unsigned char>(text.front());
    const bool control =
        first < 0x20U || first == 0x7fU ||
        (length == 2 && first == 0xc2U && static_cast<unsigned char>(text[1]) < 0xa0U);
    if (length == 0 || control) {
      clean += '?';
    } else {
      clean += text.substr(0, length);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return clean;
}

}  // namespace shmstore
