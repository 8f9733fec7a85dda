#pragma once
/// Framing: bytes ↔ the structs of protocol.hpp. Everything a client sent passes through here
/// before anything else looks at it: lengths, reserved bytes and enumerations are checked, values
/// (names, sizes, rights) are not. Nothing is allocated; views point into the frame.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>

#include "shmstore/array.hpp"
#include "shmstore/error.hpp"
#include "shmstore/protocol.hpp"

namespace shmstore::server {

using Bytes = std::span<const std::byte>;

struct Frame {
  protocol::FrameHeader header;
  Bytes body;
};

/// The header alone, if there are 16 bytes: to answer a frame that is wrong otherwise.
[[nodiscard]] bool read_header(Bytes message, protocol::FrameHeader& header) noexcept;

/// Errors (all here): protocol_error, the frame makes no sense and its sender has to go.
[[nodiscard]] Result<Frame> parse_frame(Bytes message);

/// A request without a tail.
template <class Request>
[[nodiscard]] Result<Request> parse_fixed(Bytes body);

/// A request whose tail is a name.
template <class Request>
struct Named {
  Request fixed;
  std::string_view name;
};
template <class Request>
[[nodiscard]] Result<Named<Request>> parse_named(Bytes body);

struct CreateFrame {
  protocol::CreateRequest fixed;
  std::array<std::uint64_t, 256> dims;  ///< As many as `ndim` can say; the first `ndim` are set.
  std::string_view name;
  std::string_view dtype;
  std::string_view attrs;
};
[[nodiscard]] Result<CreateFrame> parse_create(Bytes body);

/// How deep the arrays and objects of a JSON text nest, counted without parsing it: brackets
/// outside of strings. Never less than the parser would find.
[[nodiscard]] std::size_t json_depth(std::string_view text) noexcept;

/// Whether `text` is UTF-8 as Unicode defines it (no surrogates, no overlong forms).
[[nodiscard]] bool is_utf8(std::string_view text) noexcept;

/// Builds one outgoing frame in a buffer of its own. One frame at a time.
class FrameWriter {
 public:
  void begin(protocol::Op op, std::uint64_t request, std::uint32_t status = 0,
             std::uint16_t flags = 0) noexcept {
    size_ = 0;
    overflow_ = false;
    put(protocol::FrameHeader{static_cast<std::uint16_t>(op),
                              static_cast<std::uint16_t>(flags | protocol::kFlagReply), status,
                              request});
  }
  template <class T>
  void put(const T& value) noexcept {
    static_assert(std::is_trivially_copyable_v<T>);
    put_bytes(&value, sizeof value);
  }
  void put_text(std::string_view text) noexcept { put_bytes(text.data(), text.size()); }
  void put_bytes(const void* data, std::size_t bytes) noexcept {
    if (bytes > buffer_.size() - size_) {
      overflow_ = true;
      return;
    }
    if (bytes != 0) std::memcpy(buffer_.data() + size_, data, bytes);
    size_ += bytes;
  }
  /// True when something did not fit: the frame must not be sent.
  [[nodiscard]] bool overflow() const noexcept { return overflow_; }
  [[nodiscard]] Bytes frame() const noexcept { return {buffer_.data(), size_}; }

 private:
  alignas(64) std::array<std::byte, protocol::kFrameBytesMax> buffer_{};
  std::size_t size_ = 0;
  bool overflow_ = false;
};

/// An error reply; the text is cut at the protocol's limit, between characters.
void write_error(FrameWriter& writer, const protocol::FrameHeader& request, const Error& error);

}  // namespace shmstore::server
