#include "shmstore/protocol.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstring>
#include <string_view>

using namespace shmstore;
using namespace shmstore::protocol;

TEST_CASE("protocol: sizes and places of fields are the wire's") {
  CHECK(sizeof(FrameHeader) == 16);
  CHECK(offsetof(FrameHeader, status) == 4);
  CHECK(offsetof(FrameHeader, request) == 8);
  CHECK(offsetof(HelloRequest, features_required) == 8);
  CHECK(offsetof(HelloRequest, token) == 24);
  CHECK(offsetof(HelloReply, store_id) == 16);
  CHECK(offsetof(HelloReply, uid) == 40);
  CHECK(offsetof(CreateRequest, name_bytes) == 28);
  CHECK(offsetof(CreateRequest, ndim) == 38);
  CHECK(offsetof(ArrayBody, owner_uid) == 48);
  CHECK(offsetof(ArrayBody, state) == 64);
  CHECK(offsetof(ArrayBody, role) == 69);
  CHECK(offsetof(AttachRequest, ns_uid) == 32);
  CHECK(offsetof(AttachRequest, access) == 38);
  CHECK(offsetof(ReleaseRequest, grants) == 8);
}

TEST_CASE("protocol: the first word of hello reads SHM1") {
  const HelloRequest hello;
  char text[4];
  std::memcpy(text, &hello, sizeof text);
  CHECK(std::string_view(text, 4) == "SHM1");
}

TEST_CASE("protocol: the largest data-plane messages fit into a frame") {
  constexpr std::size_t kDims = kNdimMax * sizeof(std::uint64_t);
  constexpr std::size_t kHead = sizeof(FrameHeader);
  CHECK(kHead + sizeof(CreateRequest) + kDims + kNameBytesMax + kDtypeBytesMax + kAttrsBytesMax <=
        kFrameBytesMax);
  CHECK(kHead + sizeof(ArrayBody) + kDims + kNameBytesMax + kDtypeBytesMax <= kFrameBytesMax);
  CHECK(kHead + kErrorTextBytesMax <= kFrameBytesMax);
}

TEST_CASE("protocol: planes and options") {
  CHECK(static_cast<int>(Op::attach_batch) < 64);
  CHECK(static_cast<int>(Op::list) == 64);
  CHECK(kCreateOptions == (kCreateMutable | kCreateKeep | kCreateReplace | kCreateHard |
                           kCreateCached | kCreateUnseen));
  CHECK(QualifiedName::kOwn == UINT32_MAX);
}
