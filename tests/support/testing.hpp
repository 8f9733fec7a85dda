#pragma once
/// What every integration test includes: doctest, the fixture, and checks of results that show the
/// error's text.

#include <signal.h>
#include <sys/types.h>
#include <unistd.h>

#include <doctest/doctest.h>
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "shmstore/client.hpp"
#include "tests/support/daemon_fixture.hpp"
#include "tests/support/proc.hpp"
#include "tests/support/process.hpp"

namespace shmstore::testing {

using namespace std::chrono_literals;

/// "ok", or "code: text".
template <class T>
[[nodiscard]] std::string describe(const Result<T>& result) {
  if (result) return "ok";
  return std::string(to_string(result.error().code)) + ": " + result.error().text;
}
/// "ok", or the code: what conformance and child processes compare.
template <class T>
[[nodiscard]] std::string outcome(const Result<T>& result) {
  return result ? "ok" : std::string(to_string(result.error().code));
}

#define EXPECT_OK(expression) CHECK(::shmstore::testing::describe(expression) == "ok")
#define EXPECT_ERROR(expression, name)                                                \
  do {                                                                                \
    const std::string described_ = ::shmstore::testing::describe(expression);         \
    CHECK_MESSAGE(described_.starts_with(#name ":"), described_, " (not " #name ")"); \
  } while (false)

/// Says why a test does nothing here; main counts it. Use: `if (skip_unless(root, "…")) return;`
bool skip_unless(bool condition, const std::string& reason);
[[nodiscard]] int skipped_tests();

[[nodiscard]] inline bool is_root() {
  return ::geteuid() == 0;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadSanitized = true;
#else
inline constexpr bool kThreadSanitized = false;
#endif

/// A number from the environment, for counts that a thorough run scales up.
[[nodiscard]] std::size_t scaled(const char* variable, std::size_t usual);

// Arrays of bytes, all of one value: a torn or foreign one shows.
[[nodiscard]] Result<AnyArray> put_bytes(Client& client, std::string_view name, std::size_t size,
                                         std::uint8_t value, const CreateOptions& options = {});
[[nodiscard]] Result<AnyArray> create_bytes(Client& client, std::string_view name, std::size_t size,
                                            const CreateOptions& options = {});
/// The one value that all bytes have; −1 when they differ or there are none.
[[nodiscard]] int only_byte(const AnyArray& array);
void fill(AnyArray& array, std::uint8_t value);

[[nodiscard]] inline AttachOptions access(Access wanted, Timeout timeout = kDoNotWait) {
  AttachOptions options;
  options.access = wanted;
  options.timeout = timeout;
  return options;
}
[[nodiscard]] inline AttachOptions no_wait() {
  return access(Access::read);
}

/// Memory that this process and its children share.
template <class T>
class Shared {
 public:
  Shared();
  ~Shared();
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  T* operator->() const { return value_; }
  T& operator*() const { return *value_; }

 private:
  T* value_;
};

[[nodiscard]] void* map_shared(std::size_t bytes);
void unmap_shared(void* memory, std::size_t bytes);

template <class T>
Shared<T>::Shared() : value_(new(map_shared(sizeof(T))) T()) {}
template <class T>
Shared<T>::~Shared() {
  unmap_shared(value_, sizeof(T));
}

}  // namespace shmstore::testing
