#pragma once
/// What an array is: its identity, state, access and limits. Plain values, no behaviour beyond
/// validation; shared by the daemon and its clients.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>

#include "shmstore/error.hpp"

namespace shmstore {

inline constexpr std::size_t kNdimMax = 64;          ///< Dimensions of one array.
inline constexpr std::size_t kNameBytesMax = 255;    ///< Bytes of a name, without `~uid/`.
inline constexpr std::size_t kDtypeBytesMax = 8192;  ///< Bytes of a dtype's text.
inline constexpr std::size_t kAttrsBytesMax = 4096;  ///< Bytes of an array's attrs (JSON object).
inline constexpr std::size_t kAlignment = 64;        ///< Alignment of an array's first byte.
inline constexpr std::uint64_t kArrayBytesMax = std::uint64_t{1} << 56;  ///< Bytes of one array.
inline constexpr std::uint16_t kPermsMax = 0666;      ///< Permission bits an array may have.
inline constexpr std::uint16_t kPermsDefault = 0600;  ///< Private to its owner.

/// Names an array within one store for ever: slots are reused, generations are not.
/// Text form everywhere (Python, JSON, shmctl): the decimal number `raw`.
struct ArrayId {
  std::uint64_t raw = 0;  ///< slot in the low 24 bits, generation in the high 40. 0: none.

  static constexpr unsigned kSlotBits = 24;
  static constexpr std::uint64_t kSlotMax = (std::uint64_t{1} << kSlotBits) - 1;
  static constexpr std::uint64_t kGenerationMax = (std::uint64_t{1} << 40) - 1;

  [[nodiscard]] static constexpr ArrayId of(std::uint32_t slot, std::uint64_t generation) noexcept {
    return ArrayId{(generation << kSlotBits) | slot};
  }
  [[nodiscard]] constexpr std::uint32_t slot() const noexcept {
    return static_cast<std::uint32_t>(raw & kSlotMax);
  }
  [[nodiscard]] constexpr std::uint64_t generation() const noexcept { return raw >> kSlotBits; }
  [[nodiscard]] constexpr bool valid() const noexcept { return raw != 0; }
  friend constexpr bool operator==(ArrayId, ArrayId) noexcept = default;
};

/// How a holder maps an array; numpy.memmap's letters, and two of our own.
enum class Access : std::uint8_t {
  read = 1,       ///< "r": shared, read-only.
  write = 2,      ///< "r+": shared, read and write.
  copy = 3,       ///< "c": private copy-on-write; changes stay in the process.
  exclusive = 4,  ///< "x": read and write while no other process maps the (mutable) array.
  hold = 5,       ///< "h": keeps the array alive without mapping it.
};

/// Whether what is written with this access reaches the array.
[[nodiscard]] constexpr bool writes(Access access) noexcept {
  return access == Access::write || access == Access::exclusive;
}

[[nodiscard]] constexpr std::string_view to_string(Access access) noexcept {
  switch (access) {
    case Access::read: return "r";
    case Access::write: return "r+";
    case Access::copy: return "c";
    case Access::exclusive: return "x";
    case Access::hold: return "h";
  }
  return "?";
}

/// Life of an array. Comments name the next states.
enum class State : std::uint8_t {
  draft = 1,     ///< Being filled by its creator and co-writers → sealed, dying.
  sealed = 2,    ///< Immutable → dying.
  mutable_ = 3,  ///< Shared read-write → sealed, broken, dying.
  dying = 4,     ///< No name, no new attach; the memory waits for its holders → gone.
  gone = 5,      ///< Id retired. Never seen by clients.
  broken = 6,    ///< Its exclusive writer died half-way → mutable, sealed, dying.
};

[[nodiscard]] constexpr std::string_view to_string(State state) noexcept {
  switch (state) {
    case State::draft: return "draft";
    case State::sealed: return "sealed";
    case State::mutable_: return "mutable";
    case State::dying: return "dying";
    case State::gone: return "gone";
    case State::broken: return "broken";
  }
  return "?";
}

/// Who could still change a sealed array.
enum class Seal : std::uint8_t {
  none = 0,  ///< Not sealed.
  soft = 1,  ///< Only the creating process could (it may still hold a writable map).
  hard = 2,  ///< Nobody: the kernel refuses (F_SEAL_WRITE).
};

enum class Order : std::uint8_t {
  c = 0,
  f = 1
};

/// A name and the namespace it lives in. There is one namespace per user id.
struct QualifiedName {
  static constexpr std::uint32_t kOwn = 0xffffffffU;  ///< The caller's own namespace.
  std::uint32_t uid = kOwn;
  std::string name;
  friend bool operator==(const QualifiedName&, const QualifiedName&) = default;
};

/// Checks a name without its `~uid/`: `[A-Za-z0-9._/:@+=,-]`, 1–255 bytes, no leading `-`, `~`,
/// `/`, no trailing `/`, no `//`, no `..`. Error: invalid_argument that names the rule.
[[nodiscard]] inline Result<void> check_name(std::string_view name) {
  const auto bad = [](std::string text) {
    return make_error(ErrorCode::invalid_argument, "name: " + std::move(text));
  };
  if (name.empty()) return bad("must not be empty");
  if (name.size() > kNameBytesMax) {
    return bad("has " + std::to_string(name.size()) + " bytes, at most " +
               std::to_string(kNameBytesMax) + " are allowed");
  }
  if (name.front() == '-' || name.front() == '~' || name.front() == '/') {
    return bad("must not begin with '-', '~' or '/'");
  }
  if (name.back() == '/') return bad("must not end with '/'");
  if (name.find("//") != std::string_view::npos) return bad("must not contain '//'");
  if (name.find("..") != std::string_view::npos) return bad("must not contain '..'");
  constexpr std::string_view kOther = "._/:@+=,-";
  for (char c : name) {
    const bool alnum = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (!alnum && kOther.find(c) == std::string_view::npos) {
      return bad("only letters, digits and . _ / : @ + = , - are allowed");
    }
  }
  return {};
}

/// Bytes of an array of `itemsize`-byte items. A dimension of 0 gives 0; no dimensions, one item.
/// Errors: invalid_argument for more than kNdimMax dimensions or more than kArrayBytesMax bytes
/// (overflow included).
[[nodiscard]] inline Result<std::uint64_t> array_bytes(std::uint64_t itemsize,
                                                       std::span<const std::uint64_t> shape) {
  if (shape.size() > kNdimMax) {
    return make_error(ErrorCode::invalid_argument, "shape: " + std::to_string(shape.size()) +
                                                       " dimensions, at most 64 are allowed");
  }
  // Zero-sized items or dimensions must not hide an overflow of the others: count them as one.
  std::uint64_t bytes = itemsize == 0 ? 1 : itemsize;
  bool empty = itemsize == 0;
  for (std::uint64_t dim : shape) {
    if (dim > kArrayBytesMax) {
      return make_error(ErrorCode::invalid_argument,
                        "shape: dimension " + std::to_string(dim) + " is over the limit of 2^56");
    }
    if (dim == 0) {
      empty = true;
      continue;
    }
    if (bytes > kArrayBytesMax / dim) {
      return make_error(ErrorCode::invalid_argument,
                        "shape: the array would have more than 2^56 bytes");
    }
    bytes *= dim;
  }
  return empty ? 0 : bytes;
}

}  // namespace shmstore
