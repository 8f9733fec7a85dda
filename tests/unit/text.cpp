#include "shmstore/text.hpp"

#include <doctest/doctest.h>

using shmstore::printable;
using shmstore::utf8_length;

TEST_CASE("text: what a terminal would obey, or nobody can read, becomes a question mark") {
  CHECK(printable("python3 -c 'x'") == "python3 -c 'x'");
  CHECK(printable("K\xc3\xa4se \xe2\x82\xac \xf0\x9f\xa7\x80") ==
        "K\xc3\xa4se \xe2\x82\xac \xf0\x9f\xa7\x80");
  CHECK(printable("a\x1b[31mb\a\n\x7f") == "a?[31mb???");
  CHECK(printable("a\xc2\x9b"
                  "31m") == "a?31m");  // The C1 form of ESC [
  CHECK(printable("\xff\xfe"
                  "a\xc3") == "??a?");
  CHECK(printable("\xed\xa0\x80") == "???");  // A surrogate.
  CHECK(printable(std::string_view("\0", 1)) == "?");
  CHECK(printable("") == "");
  CHECK(utf8_length("\xc0\x80") == 0);
  CHECK(utf8_length("\xe2\x82") == 0);
}
