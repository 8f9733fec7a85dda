#include "server/wire.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

using namespace shmstore;
using namespace shmstore::server;
using namespace shmstore::protocol;

namespace {

/// Bytes of a struct, then of texts.
template <class T>
std::vector<std::byte> bytes_of(const T& fixed, const std::string& tail = {}) {
  const auto head = std::as_bytes(std::span(&fixed, 1));
  std::vector<std::byte> bytes(head.begin(), head.end());
  for (char c : tail) bytes.push_back(static_cast<std::byte>(c));
  return bytes;
}

template <class T>
bool is_protocol_error(const Result<T>& result) {
  return !result && result.error().code == ErrorCode::protocol_error;
}

}  // namespace

TEST_CASE("wire: a header is checked before anything else") {
  FrameHeader header{2, 0, 0, 7};
  const auto good = bytes_of(header, "body");
  const Result<Frame> frame = parse_frame(good);
  REQUIRE(frame.has_value());
  CHECK(frame->header.request == 7);
  CHECK(frame->body.size() == 4);

  CHECK(is_protocol_error(parse_frame(Bytes(good).first(15))));
  header.flags = kFlagReply;
  CHECK(is_protocol_error(parse_frame(bytes_of(header))));
  header = {2, 0, 1, 7};
  CHECK(is_protocol_error(parse_frame(bytes_of(header))));
  header = {2, 0, 0, 0};
  CHECK(is_protocol_error(parse_frame(bytes_of(header))));
}

TEST_CASE("wire: fixed requests have exactly their length and zero reserved bytes") {
  ReleaseRequest request;
  request.id = 5;
  request.grants = 2;
  request.access = 1;
  auto bytes = bytes_of(request);
  const Result<ReleaseRequest> parsed = parse_fixed<ReleaseRequest>(bytes);
  REQUIRE(parsed.has_value());
  CHECK(parsed->grants == 2);
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    CHECK(is_protocol_error(parse_fixed<ReleaseRequest>(Bytes(bytes).first(length))));
  }
  bytes.push_back(std::byte{0});
  CHECK(is_protocol_error(parse_fixed<ReleaseRequest>(bytes)));
  request.reserved[1] = 1;
  CHECK(is_protocol_error(parse_fixed<ReleaseRequest>(bytes_of(request))));
  request.reserved[1] = 0;
  request.grants = 0;
  CHECK(is_protocol_error(parse_fixed<ReleaseRequest>(bytes_of(request))));
  request.grants = 1;
  request.access = 6;
  CHECK(is_protocol_error(parse_fixed<ReleaseRequest>(bytes_of(request))));
}

TEST_CASE("wire: a name's length is compared with what is there") {
  WaitRequest request;
  request.name_bytes = 3;
  const auto bytes = bytes_of(request, "abc");  // the parsed name points into it
  const auto named = parse_named<WaitRequest>(bytes);
  REQUIRE(named.has_value());
  CHECK(named->name == "abc");
  CHECK(is_protocol_error(parse_named<WaitRequest>(bytes_of(request, "ab"))));
  CHECK(is_protocol_error(parse_named<WaitRequest>(bytes_of(request, "abcd"))));
  request.name_bytes = 65535;
  CHECK(is_protocol_error(parse_named<WaitRequest>(bytes_of(request, "abc"))));

  AttachRequest attach;
  attach.id = 1;
  attach.name_bytes = 1;
  attach.access = 1;
  CHECK(is_protocol_error(parse_named<AttachRequest>(bytes_of(attach, "x"))));
}

TEST_CASE("wire: a create has dims, name, dtype and attrs in its tail") {
  CreateRequest request;
  request.ndim = 1;
  request.name_bytes = 2;
  request.dtype_bytes = 3;
  request.attrs_bytes = 2;
  const std::string dims("\x05\0\0\0\0\0\0\0", 8);
  const auto bytes = bytes_of(request, dims + "ab" + "<f8" + "{}");
  const Result<CreateFrame> frame = parse_create(bytes);
  REQUIRE(frame.has_value());
  CHECK(frame->dims[0] == 5);
  CHECK(frame->name == "ab");
  CHECK(frame->dtype == "<f8");
  CHECK(frame->attrs == "{}");
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    CHECK(is_protocol_error(parse_create(Bytes(bytes).first(length))));
  }
  request.options = 1U << 6U;
  CHECK(is_protocol_error(parse_create(bytes_of(request, dims + "ab<f8{}"))));
  request.options = 0;
  request.order = 2;
  CHECK(is_protocol_error(parse_create(bytes_of(request, dims + "ab<f8{}"))));
  request.order = 0;
  request.ndim = 255;
  CHECK(is_protocol_error(parse_create(bytes_of(request, dims + "ab<f8{}"))));
  // More than 64 dimensions are the business of whoever knows the limit.
  CHECK(parse_create(bytes_of(request, std::string(std::size_t{255} * 8, '\0') + "ab<f8{}"))
            .has_value());
}

TEST_CASE("wire: the depth of a JSON text is counted outside of strings") {
  CHECK(json_depth("") == 0);
  CHECK(json_depth("{}") == 1);
  CHECK(json_depth(R"({"a": [1, [2]], "b": {}})") == 3);
  CHECK(json_depth(R"({"a": "[[[[", "b\"[[": "\\"})") == 1);
  CHECK(json_depth("]]]]{") == 1);
  CHECK(json_depth(std::string(60'000, '[')) == 60'000);
}

TEST_CASE("wire: UTF-8 is told from what only looks like it") {
  CHECK(is_utf8(""));
  CHECK(is_utf8("grid"));
  CHECK(is_utf8("\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80"));
  CHECK_FALSE(is_utf8("\xc3"));
  CHECK_FALSE(is_utf8("\x80"));
  CHECK_FALSE(is_utf8("\xc0\xaf"));          // overlong
  CHECK_FALSE(is_utf8("\xe0\x80\xaf"));      // overlong
  CHECK_FALSE(is_utf8("\xed\xa0\x80"));      // a surrogate
  CHECK_FALSE(is_utf8("\xf4\x90\x80\x80"));  // above U+10FFFF
  CHECK_FALSE(is_utf8("\xff"));
}

TEST_CASE("wire: an error's text is cut between characters, a frame at its limit") {
  FrameWriter writer;
  std::string text(kErrorTextBytesMax - 1, 'x');
  text += "\xe2\x82\xac";
  write_error(writer, {3, 0, 0, 9}, make_error(ErrorCode::busy, text));
  FrameHeader header;
  REQUIRE(read_header(writer.frame(), header));
  CHECK(header.op == 3);
  CHECK(header.request == 9);
  CHECK(header.flags == kFlagReply);
  CHECK(header.status == static_cast<std::uint32_t>(ErrorCode::busy));
  CHECK(writer.frame().size() == sizeof header + kErrorTextBytesMax - 1);

  writer.begin(Op::list, 1);
  writer.put_text(std::string(kFrameBytesMax - sizeof header, 'y'));
  CHECK_FALSE(writer.overflow());
  writer.put_text("z");
  CHECK(writer.overflow());
}
