#include "server/listener.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "server/memfd.hpp"
#include "server/small_file.hpp"

#ifndef SO_PEERGROUPS
#define SO_PEERGROUPS 59
#endif
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif
#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83
#endif

namespace shmstore::server {
namespace {

constexpr const char* kSystemPath = "/run/shmstore/socket";
constexpr const char* kEarlySuffix = ".new";
constexpr int kBacklog = 4096;
constexpr std::size_t kGroupsMax = 65536;

Error failed(const std::string& what, int error) {
  const bool denied = error == EACCES || error == EPERM || error == EROFS;
  return make_error(denied ? ErrorCode::permission_denied : ErrorCode::internal,
                    errno_text(what, error));
}

std::string tmp_path() {
  return "/tmp/shmstore-" + std::to_string(::geteuid()) + "/socket";
}

std::string runtime_path() {
  const char* folder = std::getenv("XDG_RUNTIME_DIR");
  if (folder == nullptr || folder[0] != '/') return {};
  return std::string(folder) + "/shmstore/socket";
}

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return make_error(ErrorCode::invalid_argument,
                      "socket: the path is too long, at most 103 bytes are allowed: " + path);
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

UniqueFd make_socket() {
  return UniqueFd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

/// A folder where others could swap the socket for theirs is no place for one.
Result<void> check_folder(const std::string& folder, bool ours) {
  struct stat status {};
  if (::lstat(folder.c_str(), &status) != 0) return failed("socket: folder " + folder, errno);
  const auto refuse = [&folder](const char* why) {
    return make_error(ErrorCode::permission_denied, "socket: folder " + folder + " " + why);
  };
  // A path that somebody has chosen may lead through a link of his; a well-known one may not.
  if (!ours) {
    return ::stat(folder.c_str(), &status) == 0 && S_ISDIR(status.st_mode)
               ? Result<void>()
               : refuse("is not a folder");
  }
  if (S_ISLNK(status.st_mode)) return refuse("is a symbolic link");
  if (!S_ISDIR(status.st_mode)) return refuse("is not a folder");
  if (status.st_uid != ::geteuid()) return refuse("belongs to another user");
  if ((status.st_mode & 022U) != 0) return refuse("can be written to by others");
  return {};
}

Result<void> prepare_folder(const std::string& path) {
  const std::string folder = folder_of(path);
  const bool is_system = path == kSystemPath;
  const bool ours = is_system || path == tmp_path() || path == runtime_path();
  if (ours && ::mkdir(folder.c_str(), is_system ? 0755 : 0700) != 0 && errno != EEXIST) {
    return failed("socket: making folder " + folder, errno);
  }
  return check_folder(folder, ours);
}

bool same_file(int fd, const std::string& path) {
  struct stat by_fd {};
  struct stat by_path {};
  return ::fstat(fd, &by_fd) == 0 && ::stat(path.c_str(), &by_path) == 0 &&
         by_fd.st_dev == by_path.st_dev && by_fd.st_ino == by_path.st_ino;
}

/// The lock file goes away with its daemon, while locked: who gets the lock must look whether the
/// file is still the one at its path.
Result<UniqueFd> lock(const std::string& path) {
  const std::string lock_path = path + ".lock";
  for (int attempt = 0; attempt < 100; ++attempt) {
    UniqueFd fd(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd.valid()) return failed("socket: lock file " + lock_path, errno);
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
      std::string pid = read_small_file(lock_path).value_or("");
      while (!pid.empty() && pid.back() == '\n') pid.pop_back();
      return make_error(ErrorCode::busy, "socket: another shmstored " +
                                             (pid.empty() ? "" : "(pid " + pid + ") ") +
                                             "is in charge of " + path);
    }
    if (!same_file(fd.get(), lock_path)) continue;
    const std::string pid = std::to_string(::getpid()) + "\n";
    if (::ftruncate(fd.get(), 0) != 0 ||
        ::write(fd.get(), pid.data(), pid.size()) != static_cast<ssize_t>(pid.size())) {
      return failed("socket: writing " + lock_path, errno);
    }
    return fd;
  }
  return make_error(ErrorCode::busy, "socket: the lock file " + lock_path + " keeps changing");
}

/// With the lock in hand: removes the socket of a dead daemon, not of one that holds no lock here
/// (activated by a service manager), nor anything that is no socket.
Result<void> remove_stale(const std::string& path, const sockaddr_un& address) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) {
    return errno == ENOENT ? Result<void>() : failed("socket: " + path, errno);
  }
  if (!S_ISSOCK(status.st_mode)) {
    return make_error(ErrorCode::invalid_argument, "socket: " + path + " is not a socket");
  }
  const UniqueFd probe = make_socket();
  if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ||
      errno == EAGAIN) {
    return make_error(ErrorCode::busy, "socket: somebody listens on " + path + " already");
  }
  if (::unlink(path.c_str()) != 0) return failed("socket: removing the stale " + path, errno);
  return {};
}

/// Under another name first: whoever sees the socket at its path can connect to it.
Result<void> bind_and_listen(int socket, const std::string& path) {
  const std::string early_path = path + kEarlySuffix;
  const Result<sockaddr_un> address = address_of(early_path);
  if (!address) return address.error();
  (void)::unlink(early_path.c_str());  // of a daemon that died right here
  // 0600 from its first moment on; there is no other thread yet that would make files.
  const mode_t before = ::umask(0177);
  const int bound = ::bind(socket, reinterpret_cast<const sockaddr*>(&*address), sizeof *address);
  const int error = errno;
  ::umask(before);
  if (bound != 0) return failed("socket: binding " + early_path, error);
  if ((path == kSystemPath && ::chmod(early_path.c_str(), 0666) != 0) ||
      ::listen(socket, kBacklog) != 0 || ::rename(early_path.c_str(), path.c_str()) != 0) {
    const int why = errno;
    (void)::unlink(early_path.c_str());
    return failed("socket: listening on " + path, why);
  }
  return {};
}

std::string command_of(std::int64_t pid) {
  std::string command = read_small_file("/proc/" + std::to_string(pid) + "/comm").value_or("?");
  while (!command.empty() && command.back() == '\n') command.pop_back();
  return command;
}

std::vector<std::uint32_t> groups_of(int socket) {
  std::vector<std::uint32_t> groups(64);
  while (true) {
    auto bytes = static_cast<socklen_t>(groups.size() * sizeof(std::uint32_t));
    if (::getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &bytes) == 0) {
      groups.resize(bytes / sizeof(std::uint32_t));
      return groups;
    }
    if (errno != ERANGE || groups.size() >= kGroupsMax) return {};
    groups.resize(kGroupsMax);
  }
}

UniqueFd process_of(int socket, pid_t pid) {
  int fd = -1;
  socklen_t bytes = sizeof fd;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &fd, &bytes) == 0) return UniqueFd(fd);
  if (errno != ENOPROTOOPT || pid <= 0) return {};
  return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
}

}  // namespace

std::string default_socket_path() {
  const char* given = std::getenv("SHMSTORE_SOCKET");
  if (given != nullptr && given[0] != '\0') return given;
  if (::geteuid() == 0) return kSystemPath;
  std::string runtime = runtime_path();
  return runtime.empty() ? tmp_path() : runtime;
}

Result<Listener> Listener::open(const std::string& path) {
  const Result<sockaddr_un> address = address_of(path);
  if (!address) return address.error();
  if (Result<void> prepared = prepare_folder(path); !prepared) return prepared.error();
  Result<UniqueFd> locked = lock(path);
  if (!locked) return locked.error();
  Listener listener(path, {}, std::move(*locked));
  if (Result<void> removed = remove_stale(path, *address); !removed) {
    // Not ours to remove: only the lock file goes.
    (void)::unlink((path + ".lock").c_str());
    listener.lock_.reset();
    return removed.error();
  }
  listener.socket_ = make_socket();
  if (!listener.socket_.valid()) return failed("socket", errno);
  refuse_descriptors(listener.native_handle());
  if (Result<void> bound = bind_and_listen(listener.native_handle(), path); !bound) {
    listener.socket_.reset();
    return bound.error();
  }
  return listener;
}

Result<Listener> Listener::adopt(UniqueFd socket) {
  int type = 0;
  int listening = 0;
  socklen_t bytes = sizeof type;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_TYPE, &type, &bytes) != 0 ||
      type != SOCK_SEQPACKET ||
      ::getsockopt(socket.get(), SOL_SOCKET, SO_ACCEPTCONN, &listening, &bytes) != 0 ||
      listening != 1) {
    return make_error(ErrorCode::invalid_argument,
                      "socket: the one handed over is not a listening SOCK_SEQPACKET socket");
  }
  sockaddr_un address{};
  socklen_t length = sizeof address;
  std::string path;
  if (::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0) {
    path.assign(address.sun_path, ::strnlen(address.sun_path, sizeof address.sun_path));
  }
  const int flags = ::fcntl(socket.get(), F_GETFL);
  (void)::fcntl(socket.get(), F_SETFL, flags | O_NONBLOCK);
  refuse_descriptors(socket.get());
  return Listener(std::move(path), std::move(socket), {});
}

Listener::~Listener() {
  if (!lock_.valid()) return;
  // The socket first: while the lock is held nobody else makes one at this path.
  if (socket_.valid()) (void)::unlink(path_.c_str());
  (void)::unlink((path_ + ".lock").c_str());
}

void refuse_descriptors(int socket) noexcept {
  const int off = 0;
  (void)::setsockopt(socket, SOL_SOCKET, SO_PASSRIGHTS, &off, sizeof off);
}

Result<Peer> peer_of(int socket) {
  ucred credentials{};
  socklen_t bytes = sizeof credentials;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) != 0) {
    return failed("peer", errno);
  }
  Peer peer;
  peer.process = process_of(socket, credentials.pid);
  // Kernels differ in how they say that the process has been waited for already.
  if (!peer.process.valid() && (errno == ESRCH || errno == EINVAL)) return failed("peer", errno);
  peer.identity.pid = credentials.pid;
  peer.identity.uid = credentials.uid;
  peer.identity.gid = credentials.gid;
  peer.identity.groups = groups_of(socket);
  peer.identity.command = command_of(credentials.pid);
  return peer;
}

}  // namespace shmstore::server
