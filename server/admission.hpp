#pragma once
/// The brake before the kernel's: pages of memory files cannot be refused, only killed for. So the
/// store grows only while the machine (MemAvailable) and every control group above the daemon have
/// room beyond a reserve. Accounting of who is charged for what is the quota's business, not this.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "shmstore/error.hpp"

namespace shmstore::server {

/// Room for growth and what bounds it.
struct Room {
  std::uint64_t bytes = 0;
  std::string bound;  ///< "memory of this machine", "control group /a/b"
};

class Admission {
 public:
  /// `root` stands before /proc and /sys; tests put a made-up tree there.
  explicit Admission(std::string root = "");

  /// Memory that this process could ever have: RAM, or the smallest limit of its control groups.
  [[nodiscard]] std::uint64_t total_bytes() const;

  /// Asks the kernel. Any thread.
  [[nodiscard]] Room read_room() const;

  /// Books `bytes` that are about to be backed by pages. The kernel is asked again every
  /// kRereadBytes and before a refusal. Error: no_capacity, text names what bounds it.
  /// finish() once the pages are there or given up. Both on the event loop's thread.
  Result<void> admit(std::uint64_t bytes);
  void finish(std::uint64_t bytes) noexcept;

 private:
  static constexpr std::uint64_t kRereadBytes = std::uint64_t{16} << 20U;

  /// A control group, or one of its ancestors, with a memory controller.
  struct Group {
    std::string name;
    std::string folder;
    bool v2 = false;
  };
  void find_groups();
  void add_ancestors(const std::string& mount, std::string path, bool v2);
  [[nodiscard]] std::optional<std::uint64_t> limit_of(const Group& group) const;
  [[nodiscard]] std::optional<Room> room_of(const Group& group) const;
  void reread();

  const std::string root_;
  std::vector<Group> groups_;
  Room room_;  // as of the last reading, less what was admitted since
  std::uint64_t since_reread_ = kRereadBytes;
  std::uint64_t pending_ = 0;  // admitted, not yet backed (some of it may be)
};

}  // namespace shmstore::server
