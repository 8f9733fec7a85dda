#pragma once
/// A client that speaks frames by hand and may say anything. For what no client library would do.

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "shmstore/protocol.hpp"
#include "tests/support/process.hpp"

namespace shmstore::testing {

/// The bytes of a plain struct.
template <class T>
[[nodiscard]] std::string bytes_of(const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

/// The struct at the start of `bytes`, zero-filled when they are too few.
template <class T>
[[nodiscard]] T struct_at(std::string_view bytes) {
  T value{};
  std::memcpy(&value, bytes.data(), std::min(bytes.size(), sizeof(T)));
  return value;
}

[[nodiscard]] std::string frame(protocol::Op op, std::uint64_t request, std::string_view body = {});

struct RawReply {
  bool closed = false;  ///< The daemon hung up.
  bool hung = false;    ///< Nothing came until the watchdog bit.
  protocol::FrameHeader header;
  std::string body;
  std::vector<UniqueFd> fds;
  bool lost_fds = false;  ///< MSG_CTRUNC

  [[nodiscard]] bool ok() const { return outcome() == "ok"; }
  /// "ok", "closed", "nothing came", or the error code's text.
  [[nodiscard]] std::string outcome() const;
};

class RawSession {
 public:
  /// Connects. Throws std::system_error.
  explicit RawSession(const std::string& socket_path);

  /// One message. False when it could not be sent.
  bool send(std::string_view bytes, std::span<const int> fds = {});
  [[nodiscard]] RawReply receive();
  /// The next message if it is there already.
  [[nodiscard]] bool readable() const;

  /// Sends a request with the next id and returns the next message.
  RawReply call(protocol::Op op, std::string_view body = {});
  RawReply hello();
  [[nodiscard]] std::uint64_t last_request() const { return request_; }
  [[nodiscard]] std::uint64_t next_request() { return ++request_; }
  [[nodiscard]] int fd() const { return fd_.get(); }
  void close() { fd_.reset(); }

  // Requests that tests use often; `name` in the own namespace.
  RawReply create(std::string_view name, std::uint64_t bytes, std::uint16_t options = 0,
                  std::uint16_t perms = kPermsDefault);
  RawReply attach(std::string_view name, Access access = Access::read, std::int64_t timeout_ms = 0);
  RawReply seal(std::uint64_t id, bool hard = false);
  RawReply release(std::uint64_t id, Access access, std::uint32_t grants = 1);

 private:
  UniqueFd fd_;
  std::uint64_t request_ = 0;
};

[[nodiscard]] std::string create_body(std::string_view name, std::uint64_t bytes,
                                      std::uint16_t options = 0,
                                      std::uint16_t perms = kPermsDefault);
[[nodiscard]] std::string attach_body(std::string_view name, Access access,
                                      std::int64_t timeout_ms);

}  // namespace shmstore::testing
