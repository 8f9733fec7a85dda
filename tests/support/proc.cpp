#include "tests/support/proc.hpp"

#include <dirent.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

namespace shmstore::testing {
namespace {

std::string proc_path(pid_t pid, const char* file) {
  return "/proc/" + std::to_string(pid) + "/" + file;
}

/// The number after `key` in a file of "Key:   123 kB" lines, in bytes; 0 when absent.
std::uint64_t kib_field(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(key)) return std::stoull(line.substr(key.size())) * 1024;
  }
  return 0;
}

template <class Visit>
void each_entry(const std::string& folder, const Visit& visit) {
  DIR* dir = ::opendir(folder.c_str());
  if (dir == nullptr) return;
  while (const dirent* entry = ::readdir(dir)) {
    if (entry->d_name[0] != '.') visit(std::string(entry->d_name));
  }
  ::closedir(dir);
}

bool is_segment(const std::string& path) {
  return path.starts_with("/memfd:shmstore");
}

}  // namespace

std::vector<MapLine> read_maps(pid_t pid) {
  std::vector<MapLine> maps;
  std::ifstream file(proc_path(pid, "maps"));
  for (std::string text; std::getline(file, text);) {
    std::istringstream line(text);
    MapLine map;
    char dash = 0;
    std::string device;
    line >> std::hex >> map.begin >> dash >> map.end >> map.perms >> map.offset >> device >>
        std::dec >> map.inode >> std::ws;
    std::getline(line, map.path);
    maps.push_back(std::move(map));
  }
  return maps;
}

std::optional<MapLine> find_map(pid_t pid, const void* address) {
  const auto wanted = reinterpret_cast<std::uintptr_t>(address);
  for (MapLine& map : read_maps(pid)) {
    if (map.begin <= wanted && wanted < map.end) return std::move(map);
  }
  return std::nullopt;
}

std::vector<MapLine> segment_maps(pid_t pid) {
  std::vector<MapLine> maps = read_maps(pid);
  std::erase_if(maps, [](const MapLine& map) { return !is_segment(map.path); });
  return maps;
}

std::size_t fd_count(pid_t pid) {
  std::size_t count = 0;
  each_entry(proc_path(pid, "fd"), [&](const std::string&) { ++count; });
  return count;
}

std::size_t segment_fd_count() {
  std::size_t count = 0;
  each_entry("/proc/self/fd", [&](const std::string& name) {
    char target[256];
    const std::string link = "/proc/self/fd/" + name;
    const ssize_t size = ::readlink(link.c_str(), target, sizeof target);
    if (size > 0 && is_segment(std::string(target, static_cast<std::size_t>(size)))) ++count;
  });
  return count;
}

std::uint64_t rss_bytes(pid_t pid) {
  return kib_field(proc_path(pid, "status"), "VmRSS:");
}

std::uint64_t shmem_bytes() {
  return kib_field("/proc/meminfo", "Shmem:");
}

char process_state(pid_t pid) {
  std::ifstream file(proc_path(pid, "stat"));
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const std::size_t name_end = text.rfind(')');  // the name may hold blanks and brackets
  return name_end == std::string::npos || name_end + 2 >= text.size() ? '?' : text[name_end + 2];
}

std::vector<pid_t> children_of(pid_t pid) {
  std::vector<pid_t> children;
  each_entry(proc_path(pid, "task"), [&](const std::string& thread) {
    std::ifstream file(proc_path(pid, ("task/" + thread + "/children").c_str()));
    for (pid_t child = 0; file >> child;) children.push_back(child);
  });
  return children;
}

}  // namespace shmstore::testing
