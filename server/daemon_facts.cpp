/// Handles name the store's id: one that was there before would open another store's arrays.

#include "server/daemon_facts.hpp"

#include <sys/random.h>
#include <unistd.h>

#include <cstdlib>
#include <string_view>
#include <utility>

namespace shmstore::server {
namespace {

std::uint64_t random_number() {
  std::uint64_t number = 0;
  while (number == 0) {
    if (::getrandom(&number, sizeof number, 0) != ssize_t{sizeof number}) std::abort();
  }
  return number;
}

}  // namespace

DaemonFacts facts_of(const DescriptorBudget& budget, bool exact_probe, std::string note) {
  DaemonFacts facts;
  facts.store_id = random_number();
  facts.pid = ::getpid();
  facts.uid = ::geteuid();
  facts.started_s = static_cast<double>(read_clock().boot_ms) / 1000;
  facts.descriptors = [] { return open_descriptors(); };
  facts.descriptors_max = budget.descriptors_max;
  facts.exact_probe = exact_probe;
  facts.note = std::move(note);
  return facts;
}

Selfcheck selfcheck_wanted() {
  const char* wish = std::getenv("SHMSTORE_SELFCHECK");
  if (wish != nullptr) return std::string_view(wish) == "0" ? Selfcheck::off : Selfcheck::always;
#ifdef NDEBUG
  return Selfcheck::off;
#else
  return Selfcheck::sometimes;
#endif
}

}  // namespace shmstore::server
