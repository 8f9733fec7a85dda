#include "server/admission.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>

using namespace shmstore;
using namespace shmstore::server;

namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;

/// A made-up /proc and /sys.
class Machine {
 public:
  Machine() {
    std::array<char, 32> path = {"/tmp/shmstore-test-XXXXXX"};
    REQUIRE(::mkdtemp(path.data()) != nullptr);
    root_ = path.data();
    memory(16 * kGiB, 8 * kGiB);
  }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  ~Machine() {
    std::error_code ignored;
    fs::remove_all(root_, ignored);
  }

  void write(const std::string& path, const std::string& text) const {
    fs::create_directories(fs::path(root_ + path).parent_path());
    std::ofstream(root_ + path, std::ios::trunc) << text;
  }
  void memory(std::uint64_t total, std::uint64_t available) const {
    write("/proc/meminfo",
          "MemTotal:       " + std::to_string(total / 1024) +
              " kB\nMemFree:  1 kB\nMemAvailable:   " + std::to_string(available / 1024) + " kB\n");
  }
  void v2(const std::string& group, const std::string& limit, std::uint64_t use,
          std::uint64_t cache = 0) const {
    const std::string folder = "/sys/fs/cgroup" + group;
    write(folder + "/memory.max", limit + "\n");
    write(folder + "/memory.current", std::to_string(use) + "\n");
    write(folder + "/memory.stat",
          "anon 5\ninactive_file " + std::to_string(cache) + "\nactive_file 7\n");
  }
  [[nodiscard]] const std::string& root() const { return root_; }

 private:
  std::string root_;
};

constexpr const char* kMountV2 =
    "24 1 0:22 / /proc rw - proc proc rw\n"
    "30 1 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";

}  // namespace

TEST_CASE("admission: the machine's memory less a reserve") {
  const Machine machine;
  const Admission admission(machine.root());
  CHECK(admission.total_bytes() == 16 * kGiB);
  // 5 % of 16 GiB is more than 256 MiB.
  CHECK(admission.read_room().bytes == 8 * kGiB - 16 * kGiB / 20);
  machine.memory(2 * kGiB, kGiB);
  CHECK(admission.read_room().bytes == kGiB - 256 * kMiB);
  machine.memory(2 * kGiB, 100 * kMiB);
  CHECK(admission.read_room().bytes == 0);
}

TEST_CASE("admission: every control group above counts, page cache gives way") {
  const Machine machine;
  machine.write("/proc/self/cgroup", "0::/a/b\n");
  machine.write("/proc/self/mountinfo", kMountV2);
  machine.v2("", "max", 9 * kGiB);
  machine.v2("/a", std::to_string(4 * kGiB), 3 * kGiB, kGiB);
  machine.v2("/a/b", "max", kGiB);
  const Admission admission(machine.root());
  CHECK(admission.total_bytes() == 4 * kGiB);
  const Room room = admission.read_room();
  CHECK(room.bound == "control group /a");
  CHECK(room.bytes == 4 * kGiB - 2 * kGiB - 256 * kMiB);
  // A small group keeps a quarter in reserve, not everything.
  machine.v2("/a/b", std::to_string(400 * kMiB), 100 * kMiB);
  CHECK(admission.read_room().bytes == 200 * kMiB);
}

TEST_CASE("admission: version 1 of control groups, also where only a part of the tree shows") {
  const Machine machine;
  machine.write("/proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/box/job\n0::/\n");
  machine.write("/proc/self/mountinfo",
                "40 1 0:30 /box /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
  const std::string folder = "/sys/fs/cgroup/memory";
  machine.write(folder + "/memory.limit_in_bytes", "9223372036854771712\n");
  machine.write(folder + "/memory.usage_in_bytes", "1000\n");
  machine.write(folder + "/job/memory.limit_in_bytes", std::to_string(kGiB));
  machine.write(folder + "/job/memory.usage_in_bytes", std::to_string(512 * kMiB));
  machine.write(folder + "/job/memory.stat",
                "total_inactive_file " + std::to_string(128 * kMiB) + "\n");
  const Admission admission(machine.root());
  CHECK(admission.total_bytes() == kGiB);
  CHECK(admission.read_room().bytes == kGiB - 384 * kMiB - 256 * kMiB);
}

TEST_CASE("admission: what is admitted and not yet backed counts") {
  const Machine machine;
  machine.memory(2 * kGiB, kGiB);  // room for 768 MiB
  Admission admission(machine.root());
  CHECK(admission.admit(700 * kMiB).has_value());
  const Result<void> full = admission.admit(100 * kMiB);
  REQUIRE_FALSE(full.has_value());
  CHECK(full.error().code == ErrorCode::no_capacity);
  CHECK(full.error().text ==
        "memory: 100 MiB wanted, the memory of this machine has room for 68 MiB beyond its "
        "reserve");
  admission.finish(700 * kMiB);
  CHECK(admission.admit(100 * kMiB).has_value());
}

TEST_CASE("admission: the kernel is asked again after 16 MiB and before a refusal") {
  const Machine machine;
  machine.memory(2 * kGiB, kGiB);
  Admission admission(machine.root());
  CHECK(admission.admit(4096).has_value());
  admission.finish(4096);
  machine.memory(2 * kGiB, 0);
  CHECK(admission.admit(4096).has_value());  // of the room seen before
  admission.finish(4096);
  CHECK_FALSE(admission.admit(17 * kMiB).has_value());
  CHECK_FALSE(admission.admit(4096).has_value());
  machine.memory(2 * kGiB, kGiB);
  CHECK(admission.admit(4096).has_value());
}

TEST_CASE("admission: this machine") {
  const Admission admission;
  CHECK(admission.total_bytes() > 0);
  CHECK(admission.read_room().bytes < admission.total_bytes());
}
