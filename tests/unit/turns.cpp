// Users take turns by time, not by how many sessions they have or how many requests they send.
#include "server/turns.hpp"

#include <doctest/doctest.h>

#include <string>

using namespace shmstore::server;

namespace {

/// Work that takes time: each item is a letter, and what serving one costs.
struct Bench {
  Turns<char> turns;
  int now = 0;
  std::string served;

  template <class Serve>
  void turn(int length, Serve serve) {
    const int until = now + length;
    turns.give_one(serve, [&] { return now >= until; });
  }
};

}  // namespace

TEST_CASE("turns: a user with a hundred sessions has one turn, then the others have theirs") {
  Bench bench;
  for (int i = 0; i < 100; ++i) bench.turns.add(1000, 'a');
  bench.turns.add(1001, 'b');
  bench.turns.add(1002, 'c');
  const auto serve = [&](char item) {
    bench.served += item;
    ++bench.now;
    bench.turns.add(item == 'a' ? 1000 : item == 'b' ? 1001 : 1002, item);  // there is always more
  };
  for (int i = 0; i < 6; ++i) bench.turn(3, serve);
  CHECK(bench.served == "aaabbbcccaaabbbccc");
}

TEST_CASE("turns: what takes longer than a turn is one turn") {
  Bench bench;
  for (int i = 0; i < 3; ++i) bench.turns.add(1000, 'a');
  for (int i = 0; i < 4; ++i) bench.turns.add(1001, 'b');
  const auto serve = [&](char item) {
    bench.served += item;
    bench.now += item == 'a' ? 50 : 5;
  };
  while (!bench.turns.empty()) bench.turn(10, serve);
  CHECK(bench.served == "abbabba");
}

TEST_CASE("turns: who comes while another is served is next, and within a user none is left out") {
  Bench bench;
  for (char item : {'1', '2', '3'}) bench.turns.add(1000, item);
  const auto serve = [&](char item) {
    bench.served += item;
    ++bench.now;
    if (item == 'x') return;
    bench.turns.add(1000, item);
    if (bench.served.size() == 2) bench.turns.add(7, 'x');
  };
  for (int i = 0; i < 4; ++i) bench.turn(2, serve);
  CHECK(bench.served == "12x3123");
}
