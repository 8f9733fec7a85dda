#include "processes.hpp"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <sstream>

#include "shmstore/text.hpp"
#include "table.hpp"

namespace shmctl {

namespace {

constexpr std::string_view kMemoryFile = "/memfd:shmstore";

std::string proc_path(pid_t pid, std::string_view file) {
  return "/proc/" + std::to_string(pid) + "/" + std::string(file);
}

/// The names in a folder; none when it cannot be read (the process has ended).
std::vector<std::string> names_in(const std::string& folder) {
  const std::unique_ptr<DIR, int (*)(DIR*)> open(opendir(folder.c_str()), &closedir);
  std::vector<std::string> names;
  while (open != nullptr) {
    const dirent* entry = readdir(open.get());
    if (entry == nullptr) break;
    names.emplace_back(entry->d_name);
  }
  return names;
}

std::optional<pid_t> pid_from(std::string_view name) {
  pid_t pid = 0;
  const auto [stop, status] = std::from_chars(name.data(), name.data() + name.size(), pid);
  if (status != std::errc() || stop != name.data() + name.size()) return std::nullopt;
  return pid;
}

/// The parent, unless the process is a zombie or gone.
std::optional<pid_t> living_parent(pid_t pid) {
  std::ifstream file(proc_path(pid, "stat"));
  std::string line;
  std::getline(file, line);
  // "pid (command) state ppid …"; the command may contain anything, so count from its end.
  const std::size_t close = line.rfind(')');
  if (close == std::string::npos) return std::nullopt;
  std::istringstream rest(line.substr(close + 1));
  char state = 0;
  pid_t parent = 0;
  if (!(rest >> state >> parent) || state == 'Z' || state == 'X') return std::nullopt;
  return parent;
}

bool is_segment(std::string_view path, ino_t inode, const std::set<ino_t>& segments) {
  return path.starts_with(kMemoryFile) && (segments.empty() || segments.contains(inode));
}

/// Each memory file among the open descriptors of a process: inode and bytes.
std::map<ino_t, std::uint64_t> open_segments(pid_t pid, const std::set<ino_t>& segments) {
  std::map<ino_t, std::uint64_t> found;
  const std::string folder = proc_path(pid, "fd");
  for (const std::string& name : names_in(folder)) {
    const std::string path = folder + "/" + name;
    std::array<char, 256> target{};
    const ssize_t length = readlink(path.c_str(), target.data(), target.size());
    struct stat status {};
    if (length <= 0 || stat(path.c_str(), &status) != 0) continue;
    const std::string_view link(target.data(), static_cast<std::size_t>(length));
    if (!is_segment(link, status.st_ino, segments)) continue;
    found[status.st_ino] = static_cast<std::uint64_t>(status.st_size);
  }
  return found;
}

}  // namespace

std::vector<pid_t> descendants_of(pid_t root) {
  std::multimap<pid_t, pid_t> children;
  for (const std::string& name : names_in("/proc")) {
    const std::optional<pid_t> pid = pid_from(name);
    const std::optional<pid_t> parent = pid ? living_parent(*pid) : std::nullopt;
    if (parent) children.emplace(*parent, *pid);
  }
  std::vector<pid_t> found;
  std::vector<pid_t> open = {root};
  while (!open.empty()) {
    const pid_t parent = open.back();
    open.pop_back();
    const auto [first, last] = children.equal_range(parent);
    for (auto child = first; child != last; ++child) {
      found.push_back(child->second);
      open.push_back(child->second);
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

bool is_alive(pid_t pid) {
  return living_parent(pid).has_value();
}

std::string command_of(pid_t pid) {
  std::ifstream file(proc_path(pid, "cmdline"), std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  while (!text.empty() && text.back() == '\0') text.pop_back();
  std::replace(text.begin(), text.end(), '\0', ' ');
  return cut_text(shmstore::printable(text), 60);
}

std::set<ino_t> segments_of(pid_t daemon) {
  std::set<ino_t> inodes;
  for (const auto& [inode, bytes] : open_segments(daemon, {})) inodes.insert(inode);
  return inodes;
}

std::uint64_t held_bytes(pid_t pid, const std::set<ino_t>& segments) {
  std::map<ino_t, std::uint64_t> held = open_segments(pid, segments);
  std::ifstream maps(proc_path(pid, "maps"));
  std::map<ino_t, std::uint64_t> mapped;
  for (std::string line; std::getline(maps, line);) {
    // "start-end perms offset dev inode  path"
    std::istringstream fields(line);
    std::uint64_t start = 0;
    std::uint64_t end = 0;
    std::uint64_t offset = 0;
    char dash = 0;
    std::string perms;
    std::string device;
    ino_t inode = 0;
    std::string path;
    fields >> std::hex >> start >> dash >> end >> perms >> offset >> device >> std::dec >> inode >>
        path;
    if (!fields || !is_segment(path, inode, segments)) continue;
    // A segment may be mapped twice (inherited and attached), or in pieces.
    mapped[inode] = std::max(mapped[inode], offset + (end - start));
  }
  for (const auto& [inode, bytes] : mapped) held.emplace(inode, bytes);
  std::uint64_t total = 0;
  for (const auto& [inode, bytes] : held) total += bytes;
  return total;
}

}  // namespace shmctl
