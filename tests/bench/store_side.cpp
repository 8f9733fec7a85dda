#include "tests/bench/store_side.hpp"

#include <unistd.h>

#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "tests/bench/floors.hpp"

namespace shmstore::bench {
namespace {

constexpr int kPerBlock = 300;
constexpr std::uint64_t kKib = 1024;
constexpr std::uint64_t kMib = 1024 * kKib;
constexpr std::uint64_t kGib = 1024 * kMib;

CreateOptions kept() {
  CreateOptions options;
  options.keep = true;
  return options;
}

AnyArray create(Client& client, const std::string& name, std::uint64_t bytes,
                const CreateOptions& options = {}) {
  const std::uint64_t shape[] = {bytes};
  return client.create_any(name, "|u1", shape, options).value();
}

/// A kept array that this process does not hold.
void publish(Client& client, const std::string& name, std::uint64_t bytes) {
  AnyArray draft = create(client, name, bytes, kept());
  draft.seal().value();
  draft.release().value();
}

void touch_every_page(const AnyArray& array) {
  volatile std::byte sink{};
  for (std::uint64_t at = 0; at < array.bytes(); at += 4096) sink = array.data()[at];
  static_cast<void>(sink);
}

/// A memcpy that the compiler cannot leave out.
void copy_bytes(std::span<std::byte> target, std::span<const std::byte> source) {
  std::memcpy(target.data(), source.data(), source.size());
  asm volatile("" : : "r"(target.data()) : "memory");
}

/// Client on the first processor, daemon (and ping-pong) on the first or the second.
void place(const Plan& plan, std::size_t cores) {
  pin(::getpid(), 0);
  pin(plan.daemon, cores - 1);
}

void round_trips(Client& client, const Plan& plan, std::size_t cores, Report& report) {
  const PingPong floor;
  place(plan, cores);
  pin(floor.pid(), cores - 1);
  Samples floor_us, rpc_us;
  for (int i = 0; i < kPerBlock; ++i) {  // warm-up
    floor.round_trip();
    client.ping().value();
  }
  for (int block = 0; block < plan.blocks; ++block) {
    floor_us.begin_block();
    rpc_us.begin_block();
    for (int i = 0; i < kPerBlock; ++i) {
      floor_us.add(microseconds([&] { floor.round_trip(); }));
    }
    for (int i = 0; i < kPerBlock; ++i) {
      rpc_us.add(microseconds([&] { client.ping().value(); }));
    }
  }
  const std::string suffix = "_" + std::to_string(cores) + "core";
  report.samples("floor_rpc_us" + suffix, floor_us);
  report.samples("rpc_us" + suffix, rpc_us);
  report.value("rpc_ratio" + suffix, rpc_us.ratio_to(floor_us));
}

struct Size {
  const char* name;
  std::uint64_t bytes;
  int per_block;
};

void bandwidth(Client& client, const Plan& plan, const Size& size, Report& report) {
  const std::vector<std::byte> source(size.bytes, std::byte{1});
  std::vector<std::byte> target(size.bytes, std::byte{2});  // both warm
  const std::uint64_t shape[] = {size.bytes};
  const auto gbps = [&](double us) { return static_cast<double>(size.bytes) / us / 1000; };
  Samples put, copy, cold, written;
  const int blocks = size.bytes >= kGib ? plan.large_blocks : plan.blocks;
  for (int block = 0; block < blocks; ++block) {
    put.begin_block();
    copy.begin_block();
    cold.begin_block();
    written.begin_block();
    for (int i = 0; i < size.per_block; ++i) {
      copy.add(gbps(microseconds([&] { copy_bytes(target, source); })));
    }
    for (int i = 0; i < size.per_block; ++i) {
      cold.add(gbps(microseconds([&] { fill_cold_memfd(source); })));
    }
    for (int i = 0; i < size.per_block; ++i) {
      written.add(gbps(microseconds([&] { write_cold_memfd(source); })));
    }
    for (int i = 0; i < size.per_block; ++i) {
      AnyArray array;
      put.add(
          gbps(microseconds([&] { array = client.put_any("", "|u1", shape, source).value(); })));
      array.release().value();
    }
  }
  const std::string name = size.name;
  report.samples("put_" + name + "_gbps", put);
  report.samples("memcpy_" + name + "_gbps", copy);
  report.samples("fill_cold_" + name + "_gbps", cold);
  report.samples("write_cold_" + name + "_gbps", written);
}

}  // namespace

void measure_round_trips(Client& client, const Plan& plan, Report& report) {
  for (std::size_t cores = 1; cores <= std::min<std::size_t>(2, processors()); ++cores) {
    round_trips(client, plan, cores, report);
  }
}

void measure_small_operations(Client& client, const Plan& plan, Report& report) {
  place(plan, std::min<std::size_t>(2, processors()));
  publish(client, "bench/4KiB", 4 * kKib);
  publish(client, "bench/1GiB", kGib);
  Samples create_us, attach_us, release_us, attach_large_us, release_large_us;
  for (int block = 0; block < plan.blocks; ++block) {
    for (Samples* samples : {&create_us, &attach_us, &release_us, &attach_large_us}) {
      samples->begin_block();
    }
    for (int i = 0; i < kPerBlock; ++i) {
      AnyArray array;
      create_us.add(microseconds([&] { array = create(client, "", 4 * kKib); }));
      array.release().value();
    }
    for (int i = 0; i < kPerBlock; ++i) {
      AnyArray small, large;
      attach_us.add(microseconds([&] { small = client.attach_any("bench/4KiB").value(); }));
      release_us.add(microseconds([&] { small.release().value(); }));
      attach_large_us.add(microseconds([&] { large = client.attach_any("bench/1GiB").value(); }));
      large.release().value();
    }
  }
  release_large_us.begin_block();
  for (int i = 0; i < 3 * plan.large_blocks; ++i) {
    AnyArray large = client.attach_any("bench/1GiB").value();
    touch_every_page(large);
    release_large_us.add(microseconds([&] { large.release().value(); }));
  }
  client.remove("bench/1GiB").value();
  client.remove("bench/4KiB").value();
  report.samples("create_us", create_us);
  report.samples("attach_us", attach_us);
  report.samples("release_us", release_us);
  report.samples("attach_1GiB_us", attach_large_us);
  report.samples("release_1GiB_us", release_large_us);
}

void measure_bandwidth(Client& client, const Plan& plan, Report& report) {
  unpin(::getpid());
  unpin(plan.daemon);
  std::vector<Size> sizes = {{"1MiB", kMib, 10}, {"64MiB", 64 * kMib, 1}, {"1GiB", kGib, 1}};
  if (plan.more_sizes) {
    sizes.insert(sizes.begin(), {{"64KiB", 64 * kKib, 100}, {"256KiB", 256 * kKib, 50}});
    sizes.insert(sizes.end() - 1, {{"16MiB", 16 * kMib, 5}, {"256MiB", 256 * kMib, 1}});
  }
  for (const Size& size : sizes) bandwidth(client, plan, size, report);
}

}  // namespace shmstore::bench
