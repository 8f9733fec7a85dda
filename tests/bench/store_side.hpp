#pragma once
/// The store's operations as tools/bench measures them. Each function adds its keys to the report.

#include <sys/types.h>

#include <cstddef>

#include "shmstore/client.hpp"
#include "tests/bench/samples.hpp"

namespace shmstore::bench {

struct Plan {
  pid_t daemon = 0;
  int blocks = 10;       ///< Interleaved blocks of kPerBlock.
  int large_blocks = 3;  ///< Rounds of what moves a GiB.
  bool more_sizes = false;
};

/// An empty operation beside the floor's ping-pong: `_1core` and, where there are two, `_2core`.
void measure_round_trips(Client& client, const Plan& plan, Report& report);

/// create, attach, release of 4 KiB; attach of 1 GiB interleaved with that of 4 KiB; release of
/// 1 GiB after touching every page.
void measure_small_operations(Client& client, const Plan& plan, Report& report);

/// put of S bytes beside a warm memcpy and a fresh memfd of S bytes, filled and written.
void measure_bandwidth(Client& client, const Plan& plan, Report& report);

}  // namespace shmstore::bench
