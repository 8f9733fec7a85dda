/// Page cache counts as use of a control group although it gives way; the inactive part of it is
/// taken off, as the kernel's own reclaim would take it first.

#include "server/admission.hpp"

#include <algorithm>
#include <charconv>
#include <limits>
#include <string_view>
#include <utility>

#include "server/small_file.hpp"

namespace shmstore::server {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20U;
constexpr std::uint64_t kReserveBytes = 256 * kMiB;
constexpr std::uint64_t kUnlimited = std::uint64_t{1} << 60U;  // v1 says "no limit" by a huge one

std::optional<std::uint64_t> number(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end == text.data()) return std::nullopt;
  return value;
}

std::optional<std::uint64_t> number_in(const std::string& path) {
  const std::optional<std::string> text = read_small_file(path);
  return text ? number(*text) : std::nullopt;
}

/// The number after `key` in lines of "key number" or "key: number kB".
std::optional<std::uint64_t> keyed_number(std::string_view text, std::string_view key) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = text.substr(at, end - at);
    if (line.substr(0, key.size()) == key && line.size() > key.size() &&
        (line[key.size()] == ' ' || line[key.size()] == ':')) {
      return number(line.substr(key.size() + 1));
    }
    at = end + 1;
  }
  return std::nullopt;
}

/// What is left alone: 5 % or 256 MiB, whichever is more, but no more than a quarter.
std::uint64_t reserve_of(std::uint64_t total) {
  return std::max(total / 20, std::min(kReserveBytes, total / 4));
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find(separator, at), text.size());
    parts.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

bool has_word(std::string_view list, std::string_view word) {
  const auto words = split(list, ',');
  return std::find(words.begin(), words.end(), word) != words.end();
}

/// One line of /proc/self/mountinfo: "36 35 98:0 ROOT POINT options… - TYPE SOURCE SUPER".
struct Mount {
  std::string_view root, point, type, super;
};
std::optional<Mount> parse_mount(std::string_view line) {
  const auto fields = split(line, ' ');
  const auto dash = std::find(fields.begin(), fields.end(), "-");
  if (fields.size() < 6 || fields.end() - dash < 4) return std::nullopt;
  return Mount{fields[3], fields[4], dash[1], dash[3]};
}

}  // namespace

Admission::Admission(std::string root) : root_(std::move(root)) {
  find_groups();
}

/// Lines of /proc/self/cgroup are "0::/path" (v2) or "4:memory:/path" (v1).
void Admission::find_groups() {
  const std::string memberships = read_small_file(root_ + "/proc/self/cgroup").value_or("");
  const std::string mounts =
      read_small_file(root_ + "/proc/self/mountinfo", std::size_t{4} << 20U).value_or("");
  for (std::string_view membership : split(memberships, '\n')) {
    const auto parts = split(membership, ':');
    if (parts.size() < 3) continue;
    const bool v2 = parts[0] == "0" && parts[1].empty();
    if (!v2 && !has_word(parts[1], "memory")) continue;
    for (std::string_view line : split(mounts, '\n')) {
      const std::optional<Mount> mount = parse_mount(line);
      if (!mount || mount->type != (v2 ? "cgroup2" : "cgroup")) continue;
      if (!v2 && !has_word(mount->super, "memory")) continue;
      // In a container the mount may show a part of the tree only.
      std::string_view path = parts[2];
      if (mount->root != "/" && path.substr(0, mount->root.size()) == mount->root) {
        path.remove_prefix(mount->root.size());
      }
      add_ancestors(root_ + std::string(mount->point), std::string(path), v2);
      break;
    }
  }
}

void Admission::add_ancestors(const std::string& mount, std::string path, bool v2) {
  while (true) {
    while (!path.empty() && path.back() == '/') path.pop_back();
    groups_.push_back({path.empty() ? "/" : path, mount + path, v2});
    if (path.empty()) return;
    path.erase(path.rfind('/'));
  }
}

std::optional<std::uint64_t> Admission::limit_of(const Group& group) const {
  const auto limit =
      number_in(group.folder + (group.v2 ? "/memory.max" : "/memory.limit_in_bytes"));
  if (!limit || *limit >= kUnlimited) return std::nullopt;
  return limit;
}

std::optional<Room> Admission::room_of(const Group& group) const {
  const std::optional<std::uint64_t> limit = limit_of(group);
  const auto usage =
      number_in(group.folder + (group.v2 ? "/memory.current" : "/memory.usage_in_bytes"));
  if (!limit || !usage) return std::nullopt;
  const std::string stat = read_small_file(group.folder + "/memory.stat").value_or("");
  const std::uint64_t cache =
      keyed_number(stat, group.v2 ? "inactive_file" : "total_inactive_file").value_or(0);
  const std::uint64_t taken = *usage - std::min(*usage, cache) + reserve_of(*limit);
  return Room{*limit - std::min(*limit, taken), "control group " + group.name};
}

std::uint64_t Admission::total_bytes() const {
  const std::string meminfo = read_small_file(root_ + "/proc/meminfo").value_or("");
  std::uint64_t total = keyed_number(meminfo, "MemTotal").value_or(0) * 1024;
  for (const Group& group : groups_) {
    if (const auto limit = limit_of(group)) total = total == 0 ? *limit : std::min(total, *limit);
  }
  return total;
}

Room Admission::read_room() const {
  Room room{std::numeric_limits<std::uint64_t>::max(), "nothing"};
  const std::string meminfo = read_small_file(root_ + "/proc/meminfo").value_or("");
  const auto available = keyed_number(meminfo, "MemAvailable");
  if (available) {
    const std::uint64_t reserve = reserve_of(keyed_number(meminfo, "MemTotal").value_or(0) * 1024);
    const std::uint64_t bytes = *available * 1024;
    room = {bytes - std::min(bytes, reserve), "memory of this machine"};
  }
  for (const Group& group : groups_) {
    std::optional<Room> of_group = room_of(group);
    if (of_group && of_group->bytes < room.bytes) room = std::move(*of_group);
  }
  return room;
}

void Admission::reread() {
  room_ = read_room();
  // Memory admitted before may not show in the kernel's figures yet: counting it twice for a
  // moment errs on the safe side.
  room_.bytes -= std::min(room_.bytes, pending_);
  since_reread_ = 0;
}

Result<void> Admission::admit(std::uint64_t bytes) {
  if (since_reread_ >= kRereadBytes || bytes >= kRereadBytes - since_reread_ ||
      bytes > room_.bytes) {
    reread();
  }
  if (bytes > room_.bytes) {
    return make_error(ErrorCode::no_capacity,
                      "memory: " + std::to_string(bytes / kMiB) + " MiB wanted, the " +
                          room_.bound + " has room for " + std::to_string(room_.bytes / kMiB) +
                          " MiB beyond its reserve");
  }
  room_.bytes -= bytes;
  since_reread_ += bytes;
  pending_ += bytes;
  return {};
}

void Admission::finish(std::uint64_t bytes) noexcept {
  pending_ -= std::min(pending_, bytes);
}

}  // namespace shmstore::server
