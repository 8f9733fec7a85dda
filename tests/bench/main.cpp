// store_bench SOCKET DAEMON_PID quick|full: measures a running daemon and prints one flat JSON
// object. tests/bench/run.py starts the daemon, adds Python's part and prints the table.
//
// Workloads, in this order, each interleaved in blocks with the floor it is compared with:
//   round trips      64 B ping-pong with a bare process ↔ ping, on one core, then on two
//   small operations create, attach, release of 4 KiB ↔ attach of 1 GiB (two cores)
//   bandwidth        put of S bytes ↔ warm memcpy of S ↔ a fresh memfd of S, filled or written
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string_view>

#include "tests/bench/store_side.hpp"

int main(int argc, char** argv) {
  using namespace shmstore;
  using namespace shmstore::bench;
  if (argc != 4) {
    std::fprintf(stderr, "usage: store_bench SOCKET DAEMON_PID quick|full\n");
    return 2;
  }
  try {
    ConnectOptions options;
    options.socket = argv[1];
    Client client = Client::connect(options).value();
    Plan plan;
    plan.daemon = std::atoi(argv[2]);
    if (std::string_view(argv[3]) == "full") {
      plan.blocks = 60;
      plan.large_blocks = 10;
      plan.more_sizes = true;
    }
    Report report;
    measure_round_trips(client, plan, report);
    measure_small_operations(client, plan, report);
    measure_bandwidth(client, plan, report);
    std::printf("%s\n", report.json().c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "store_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
