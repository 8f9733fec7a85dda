#include "server/descriptors.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>

#include "server/unique_fd.hpp"

using namespace shmstore::server;

TEST_CASE("descriptors: the parts are within the whole") {
  for (std::uint64_t whole : {0U, 10U, 64U, 65U, 70U, 128U, 1'024U, 20'000U, 1'048'576U}) {
    CAPTURE(whole);
    const DescriptorBudget budget = divide_descriptors(whole);
    CHECK(budget.descriptors_max == whole);
    CHECK(budget.connections_max >= 1);
    if (whole >= 128) {
      CHECK(2 * budget.connections_max + budget.segments_max < whole);
      CHECK(budget.segments_max > whole / 4);
    }
  }
}

TEST_CASE("descriptors: open ones are counted") {
  const std::uint64_t before = open_descriptors();
  const UniqueFd one(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  CHECK(open_descriptors() == before + 1);
}
