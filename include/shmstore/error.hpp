#pragma once
/// Errors of shmstore: one code list shared by the wire protocol, C++, Python and shmctl, and the
/// value-or-error type that every call returns. No call of the library throws; `value()` on an
/// error throws `BadResult`, which is its documented purpose (quick programs, tests).

#include <array>
#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace shmstore {

/// The numbers are part of the wire protocol and never change; new codes go at the end.
enum class ErrorCode : std::uint16_t {
  not_found = 1,          ///< No such array, name or handle (also a handle of an earlier store).
  already_exists = 2,     ///< The name is taken (by a draft too) and `replace` was not asked for.
  permission_denied = 3,  ///< The array's mode, or the foreign namespace, does not allow it.
  no_capacity = 4,        ///< The store is full: bytes, segments, descriptors or address space.
  quota_exceeded = 5,     ///< This user's share is used up.
  timed_out = 6,          ///< The deadline passed first.
  busy = 7,               ///< Somebody else still writes or maps it (the text names the pids).
  not_sealed = 8,         ///< The operation needs a sealed array (or one made with `replace`).
  aborted = 9,            ///< The draft's creator, or an array's exclusive writer, gave up or
                          ///< died; or the wait was cancelled.
  invalid_argument = 10,  ///< The caller's mistake; the text names the field and the limit.
  protocol_error = 11,    ///< The peers do not understand each other.
  disconnected = 12,      ///< No daemon, or it went away. Arrays already mapped stay readable.
  internal = 13,          ///< A bug of shmstore.
};

inline constexpr std::array<ErrorCode, 13> kErrorCodes = {ErrorCode::not_found,
                                                          ErrorCode::already_exists,
                                                          ErrorCode::permission_denied,
                                                          ErrorCode::no_capacity,
                                                          ErrorCode::quota_exceeded,
                                                          ErrorCode::timed_out,
                                                          ErrorCode::busy,
                                                          ErrorCode::not_sealed,
                                                          ErrorCode::aborted,
                                                          ErrorCode::invalid_argument,
                                                          ErrorCode::protocol_error,
                                                          ErrorCode::disconnected,
                                                          ErrorCode::internal};

/// The code as text, as `shmctl` and the JSON of the admin plane print it: "not_found", …
[[nodiscard]] constexpr std::string_view to_string(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::not_found: return "not_found";
    case ErrorCode::already_exists: return "already_exists";
    case ErrorCode::permission_denied: return "permission_denied";
    case ErrorCode::no_capacity: return "no_capacity";
    case ErrorCode::quota_exceeded: return "quota_exceeded";
    case ErrorCode::timed_out: return "timed_out";
    case ErrorCode::busy: return "busy";
    case ErrorCode::not_sealed: return "not_sealed";
    case ErrorCode::aborted: return "aborted";
    case ErrorCode::invalid_argument: return "invalid_argument";
    case ErrorCode::protocol_error: return "protocol_error";
    case ErrorCode::disconnected: return "disconnected";
    case ErrorCode::internal: return "internal";
  }
  return "internal";
}

/// The code of a number that came over the wire; nothing for a number outside the list.
[[nodiscard]] constexpr std::optional<ErrorCode> error_code_of(std::uint32_t number) noexcept {
  for (ErrorCode code : kErrorCodes) {
    if (static_cast<std::uint32_t>(code) == number) return code;
  }
  return std::nullopt;
}

/// What went wrong. `text` is one line for a person: it names the field and the limit.
struct Error {
  ErrorCode code = ErrorCode::internal;
  std::string text;
};

[[nodiscard]] inline Error make_error(ErrorCode code, std::string text) {
  return Error{code, std::move(text)};
}

/// Thrown by `Result::value()` when there is an error instead of a value.
class BadResult : public std::exception {
 public:
  explicit BadResult(Error error)
      : error_(std::move(error)), what_(std::string(to_string(error_.code)) + ": " + error_.text) {}
  [[nodiscard]] const char* what() const noexcept override { return what_.c_str(); }
  [[nodiscard]] const Error& error() const noexcept { return error_; }

 private:
  Error error_;
  std::string what_;
};

/// A value or an `Error`, after std::expected (C++23), which C++20 does not have.
/// `value()` throws BadResult when there is none; `error()` REQUIRES that there is no value.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  [[nodiscard]] bool has_value() const noexcept { return state_.index() == 0; }
  explicit operator bool() const noexcept { return has_value(); }

  [[nodiscard]] T& value() & {
    check();
    return known(std::get_if<0>(&state_));
  }
  [[nodiscard]] const T& value() const& {
    check();
    return known(std::get_if<0>(&state_));
  }
  [[nodiscard]] T value() && {
    check();
    return std::move(known(std::get_if<0>(&state_)));
  }
  /// REQUIRES: has_value(). Unchecked.
  [[nodiscard]] T& operator*() & noexcept { return known(std::get_if<0>(&state_)); }
  [[nodiscard]] const T& operator*() const& noexcept { return known(std::get_if<0>(&state_)); }
  [[nodiscard]] T&& operator*() && noexcept { return std::move(known(std::get_if<0>(&state_))); }
  [[nodiscard]] T* operator->() noexcept { return &known(std::get_if<0>(&state_)); }
  [[nodiscard]] const T* operator->() const noexcept { return &known(std::get_if<0>(&state_)); }

  [[nodiscard]] const Error& error() const& noexcept { return known(std::get_if<1>(&state_)); }
  [[nodiscard]] Error&& error() && noexcept { return std::move(known(std::get_if<1>(&state_))); }

 private:
  /// What get_if found, where it must have found something: compilers warn of null otherwise.
  template <class Found>
  static Found& known(Found* found) noexcept {
    if (found == nullptr) __builtin_unreachable();
    return *found;
  }
  void check() const {
    if (!has_value()) throw BadResult(error());
  }
  std::variant<T, Error> state_;
};

/// Success without a value, or an `Error`. `return {};` is success.
template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}

  [[nodiscard]] bool has_value() const noexcept { return !error_.has_value(); }
  explicit operator bool() const noexcept { return has_value(); }
  void value() const {
    if (error_) throw BadResult(*error_);
  }
  [[nodiscard]] const Error& error() const& noexcept { return *error_; }

 private:
  std::optional<Error> error_;
};

}  // namespace shmstore
