// The way to the program is walked folder by folder with descriptors, and what is executed is the
// file that was looked at: a path that is checked first and opened afterwards can be exchanged in
// between. Every step of the way has to be out of others' reach, because who can rename one folder
// on it decides what all below is.
#include "client/program.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <deque>
#include <optional>
#include <string_view>
#include <utility>

namespace shmstore::client_internal {

namespace {

constexpr std::string_view kProgram = "shmstored";
constexpr int kLinksMax = 40;  // As the kernel.

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? std::string() : path.substr(0, slash);
}

/// Folder of the running program.
std::string program_folder() {
  std::array<char, PATH_MAX> path{};
  const ssize_t bytes = readlink("/proc/self/exe", path.data(), path.size());
  if (bytes <= 0 || static_cast<std::size_t>(bytes) == path.size()) return {};
  return folder_of(std::string(path.data(), static_cast<std::size_t>(bytes)));
}

/// Folder of the file that this code was loaded from: libshmstore.so, if it was linked that way.
std::string library_folder() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&find_daemon_program), &info) == 0) return {};
  return info.dli_fname == nullptr ? std::string() : folder_of(info.dli_fname);
}

const char* named_program() {
  const char* given = secure_getenv("SHMSTORE_DAEMON");
  return given != nullptr && *given != '\0' ? given : nullptr;
}

/// The group that many distributions make for each user, with no other member.
bool is_private_group(gid_t gid) {
  std::array<char, 4096> user_text{};
  std::array<char, 16384> group_text{};
  passwd user{};
  group entry{};
  passwd* found_user = nullptr;
  group* found = nullptr;
  if (getpwuid_r(geteuid(), &user, user_text.data(), user_text.size(), &found_user) != 0 ||
      getgrgid_r(gid, &entry, group_text.data(), group_text.size(), &found) != 0 ||
      found_user == nullptr || found == nullptr) {
    return false;
  }
  if (user.pw_gid != gid || std::strcmp(user.pw_name, entry.gr_name) != 0) return false;
  for (char** member = entry.gr_mem; *member != nullptr; ++member) {
    if (std::strcmp(*member, user.pw_name) != 0) return false;
  }
  return true;
}

bool others_write(const struct stat& status) {
  if ((status.st_mode & 0002U) != 0) return true;
  return (status.st_mode & 0020U) != 0 && status.st_gid != 0 && !is_private_group(status.st_gid);
}

Error no_program(const std::string& path) {
  return make_error(ErrorCode::not_found, path + " is no program");
}

Error refused(const std::string& what, const std::string& why) {
  return make_error(ErrorCode::permission_denied, what + " " + why);
}

/// The way to one file.
class Walk {
 public:
  explicit Walk(Owners owners) : owners_(owners) {
    trusted_ = {0, geteuid()};
    for (const char* mine : {"/", "/proc/self/exe"}) {
      struct stat status {};
      if (stat(mine, &status) == 0) trusted_.push_back(status.st_uid);
    }
  }
  Result<OwnedFd> open(const std::string& path);

 private:
  Result<void> enter(OwnedFd folder, const struct stat& status, std::string path);
  Result<void> follow(const OwnedFd& link, const struct stat& status);
  [[nodiscard]] Result<void> check_owner(const struct stat& status, const std::string& what) const;
  void push(std::string_view path);

  const Owners owners_;
  std::vector<uid_t> trusted_;
  std::deque<std::string> rest_;
  OwnedFd folder_;
  std::string folder_path_;
  bool sticky_ = false;  ///< Others may put files into the folder, but not touch what is there.
  int links_ = 0;
};

void Walk::push(std::string_view path) {
  std::deque<std::string> parts;
  while (!path.empty()) {
    const std::size_t slash = std::min(path.find('/'), path.size());
    const std::string_view part = path.substr(0, slash);
    if (!part.empty() && part != ".") parts.emplace_back(part);
    path.remove_prefix(std::min(slash + 1, path.size()));
  }
  rest_.insert(rest_.begin(), parts.begin(), parts.end());
}

Result<void> Walk::check_owner(const struct stat& status, const std::string& what) const {
  const bool known = std::find(trusted_.begin(), trusted_.end(), status.st_uid) != trusted_.end();
  if (known || owners_ == Owners::any) return {};
  return refused(what, "belongs to user " + std::to_string(status.st_uid));
}

Result<void> Walk::enter(OwnedFd folder, const struct stat& status, std::string path) {
  const std::string what = "folder " + (path.empty() ? "/" : path);
  if (Result<void> owner = check_owner(status, what); !owner) return owner;
  const bool shared = others_write(status);
  if (shared && (status.st_mode & S_ISVTX) == 0) {
    return refused(what, "can be written to by others");
  }
  sticky_ = shared;
  folder_ = std::move(folder);
  folder_path_ = std::move(path);
  return {};
}

Result<void> Walk::follow(const OwnedFd& link, const struct stat& status) {
  std::array<char, PATH_MAX> target{};
  const ssize_t bytes = readlinkat(link.get(), "", target.data(), target.size());
  if (bytes <= 0 || static_cast<std::size_t>(bytes) == target.size() || ++links_ > kLinksMax) {
    return no_program(folder_path_ + "/" + rest_.front());
  }
  Result<void> owner = check_owner(status, "link " + folder_path_ + "/" + rest_.front());
  if (!owner) return owner;
  rest_.pop_front();
  const std::string_view text(target.data(), static_cast<std::size_t>(bytes));
  push(text);
  if (!text.starts_with('/')) return {};
  folder_.reset();
  return {};
}

Result<OwnedFd> Walk::open(const std::string& path) {
  push(path);
  while (!rest_.empty()) {
    struct stat status {};
    if (!folder_.valid()) {
      OwnedFd root(::open("/", O_PATH | O_DIRECTORY | O_CLOEXEC));
      if (!root.valid() || fstat(root.get(), &status) != 0) return no_program(path);
      if (Result<void> entered = enter(std::move(root), status, ""); !entered) {
        return entered.error();
      }
    }
    const std::string at = folder_path_ + "/" + rest_.front();
    OwnedFd next(openat(folder_.get(), rest_.front().c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
    if (!next.valid() || fstat(next.get(), &status) != 0) return no_program(path);
    if (sticky_ && !S_ISDIR(status.st_mode)) {
      return refused("folder " + folder_path_, "is everybody's: no place for a program");
    }
    Result<void> done;
    if (S_ISLNK(status.st_mode)) {
      done = follow(next, status);
    } else if (S_ISDIR(status.st_mode)) {
      rest_.pop_front();
      done = enter(std::move(next), status, at);
    } else if (rest_.size() == 1 && S_ISREG(status.st_mode) && (status.st_mode & 0111U) != 0) {
      if (others_write(status)) return refused(at, "can be written to by others");
      if (Result<void> owner = check_owner(status, at); !owner) return owner.error();
      return next;
    } else {
      return no_program(path);
    }
    if (!done) return done.error();
  }
  return no_program(path);
}

}  // namespace

std::vector<std::string> daemon_candidates() {
  std::vector<std::string> paths;
  if (const char* given = named_program(); given != nullptr) {
    paths.emplace_back(given);
    return paths;
  }
  // A relative folder of $PATH is another one for each working folder.
  const auto add = [&](const std::string& folder) {
    if (folder.starts_with('/')) paths.push_back(folder + "/" + std::string(kProgram));
  };
  const std::string beside = program_folder();
  add(beside);
  if (!beside.empty()) add(beside + "/../sbin");
  if (const std::string folder = library_folder(); !folder.empty()) add(folder + "/../bin");
  const char* path = secure_getenv("PATH");
  std::string_view rest = path == nullptr ? "" : path;
  while (!rest.empty()) {
    const std::size_t colon = rest.find(':');
    add(std::string(rest.substr(0, colon)));
    rest = colon == rest.npos ? std::string_view{} : rest.substr(colon + 1);
  }
  return paths;
}

Result<OwnedFd> open_program(const std::string& path, Owners owners) {
  if (access(path.c_str(), X_OK) != 0) return no_program(path);
  if (path.starts_with('/')) return Walk(owners).open(path);
  std::array<char, PATH_MAX> folder{};
  if (getcwd(folder.data(), folder.size()) == nullptr) return no_program(path);
  return Walk(owners).open(std::string(folder.data()) + "/" + path);
}

Result<Program> find_daemon_program() {
  const char* named = named_program();
  std::string objections;
  for (const std::string& path : daemon_candidates()) {
    Result<OwnedFd> file = open_program(path, named != nullptr ? Owners::any : Owners::own);
    // Above the standard ones, which the daemon gets new.
    if (file) return Program{path, OwnedFd(fcntl(file->get(), F_DUPFD_CLOEXEC, 3))};
    if (file.error().code == ErrorCode::not_found) continue;
    objections += "; " + path + " is not started: " + file.error().text;
  }
  if (named != nullptr && objections.empty()) {
    return make_error(ErrorCode::disconnected,
                      "$SHMSTORE_DAEMON is " + std::string(named) + ", which is no program");
  }
  if (named != nullptr) {
    return make_error(ErrorCode::disconnected, "$SHMSTORE_DAEMON: " + objections.substr(2));
  }
  const std::string advice =
      objections.empty() ? "; $SHMSTORE_DAEMON can name it" : "; $SHMSTORE_DAEMON can name one";
  return make_error(
      ErrorCode::disconnected,
      "no program shmstored beside this one, in ../sbin or in $PATH" + objections + advice);
}

void execute_program(const Program& program, char* const* arguments,
                     char* const* environment) noexcept {
  execveat(program.file.get(), "", arguments, environment, AT_EMPTY_PATH);
  if (errno != ENOENT) return;
  // A script: its interpreter opens the descriptor by its number.
  fcntl(program.file.get(), F_SETFD, 0);
  execveat(program.file.get(), "", arguments, environment, AT_EMPTY_PATH);
}

}  // namespace shmstore::client_internal
