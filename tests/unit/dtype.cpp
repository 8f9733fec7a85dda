#include "shmstore/dtype.hpp"

#include <doctest/doctest.h>

#include <string>

using namespace shmstore;

namespace {

std::string canonical(std::string_view text) {
  const Result<Dtype> dtype = Dtype::parse(text);
  return dtype ? dtype->text() : "error: " + dtype.error().text;
}

std::uint64_t size_of(std::string_view text) {
  const Result<Dtype> dtype = Dtype::parse(text);
  return dtype ? dtype->itemsize() : UINT64_MAX;
}

}  // namespace

TEST_CASE("dtype: canonical text and item size") {
  struct Row {
    const char *in, *out;
    std::uint64_t itemsize;
  };
  const Row rows[] = {
      {"f8", "<f8", 8},
      {"<f8", "<f8", 8},
      {"=f8", "<f8", 8},
      {">f8", ">f8", 8},
      {"|u1", "|u1", 1},
      {"<u1", "|u1", 1},
      {">i1", "|i1", 1},
      {"b1", "|b1", 1},
      {"<b1", "|b1", 1},
      {"f2", "<f2", 2},
      {"f16", "<f16", 16},
      {"c8", "<c8", 8},
      {"c32", "<c32", 32},
      {"S10", "|S10", 10},
      {"S0", "|S0", 0},
      {"<U12", "<U12", 48},
      {">U1", ">U1", 4},
      {"V16", "|V16", 16},
      {"<M8[ns]", "<M8[ns]", 8},
      {"m8", "<m8", 8},
      {"M8[25s]", "<M8[25s]", 8},
      {">m8[D]", ">m8[D]", 8},
      {"M8[generic]", "<M8[generic]", 8},
  };
  for (const Row& row : rows) {
    CAPTURE(row.in);
    CHECK(canonical(row.in) == row.out);
    CHECK(size_of(row.in) == row.itemsize);
    CHECK(canonical(row.out) == row.out);  // Parsing again changes nothing.
  }
}

TEST_CASE("dtype: structures, padding, sub-arrays, titles, nesting") {
  CHECK(canonical("[('x','<f8'),('','|V4'),('y','i4',(2,3))]") ==
        "[('x', '<f8'), ('', '|V4'), ('y', '<i4', (2, 3))]");
  CHECK(size_of("[('x', '<f8'), ('', '|V4'), ('y', '<i4', (2, 3))]") == 36);
  CHECK(canonical("[('a', '<i2', (3,))]") == "[('a', '<i2', (3,))]");
  CHECK(canonical("[(('title', 'name'), '<i2')]") == "[(('title', 'name'), '<i2')]");
  CHECK(size_of("[('p', [('x', '<f4'), ('y', '<f4')], (10,)), ('n', '|S3')]") == 83);
  CHECK(canonical("[(\"it's\", '<i2')]") == "[(\"it's\", '<i2')]");
  CHECK(canonical("[('a\\'b', '<i2')]") == "[('a\\'b', '<i2')]");
  CHECK(size_of("[]") == 0);
}

TEST_CASE("dtype: what is refused") {
  const std::string deep(9, '[');
  for (const std::string_view text : {"",
                                      "f",
                                      "f3",
                                      "f7",
                                      "i16",
                                      "q8",
                                      "O",
                                      "|O8",
                                      "T",
                                      "[('a', 'O')]",
                                      "[('a', '<f8')",
                                      "[('a', '<f8')] x",
                                      "[('a' '<f8')]",
                                      "[(a, '<f8')]",
                                      "[('a', f8)]",
                                      "<f8 ",
                                      "<f8[ns]",
                                      "M8[parsec]",
                                      "M8[0s]",
                                      "M8[",
                                      "M8[]",
                                      "S",
                                      "S2147483648",
                                      "U536870912",
                                      "<<f8",
                                      "[('a', '<f8', (x,))]",
                                      "[('a', '|V2147483647'), ('b', '|V1')]",
                                      "[('a', '|V65536', (65536,))]",
                                      "['a']",
                                      "[('a\n', '<f8')]",
                                      "[('a",
                                      "c64",
                                      "99999999999f8"}) {
    CAPTURE(text);
    const Result<Dtype> dtype = Dtype::parse(text);
    REQUIRE_FALSE(dtype.has_value());
    CHECK(dtype.error().code == ErrorCode::invalid_argument);
    CHECK(dtype.error().text.starts_with("dtype: "));
  }
  std::string nested = "'<f8'";
  for (int i = 0; i < 7; ++i) nested = "[('a', " + nested + ")]";
  CHECK(Dtype::parse(nested).has_value());
  for (int i = 0; i < 3; ++i) nested = "[('a', " + nested + ")]";
  CHECK_FALSE(Dtype::parse(nested).has_value());
  CHECK_FALSE(Dtype::parse(std::string(kDtypeBytesMax + 1, 'f')).has_value());
}

TEST_CASE("dtype: of C++ types") {
  CHECK(Dtype::of<double>().text() == "<f8");
  CHECK(Dtype::of<const float>().text() == "<f4");
  CHECK(Dtype::of<bool>().text() == "|b1");
  CHECK(Dtype::of<std::int8_t>().text() == "|i1");
  CHECK(Dtype::of<std::uint16_t>().text() == "<u2");
  CHECK(Dtype::of<long>().text() == "<i8");
  CHECK(Dtype::of<std::byte>().text() == "|u1");
  CHECK(Dtype::of<std::complex<float>>().text() == "<c8");
  CHECK(Dtype::of<std::complex<double>>().itemsize() == 16);
  CHECK(Dtype::of<double>() == *Dtype::parse("f8"));
  CHECK_FALSE(Dtype::of<double>() == Dtype::of<float>());
}
