/// Two files belong to a daemon: the socket, which clients find by name, and the lock, which says
/// who may replace the socket. Folders are wiped by others (a tmp cleaner, the end of a login
/// session) and systemd replaces sockets without asking, so a name says nothing about whose file
/// it is: what is removed or believed is compared by device and inode. The inode of a bound socket
/// is not used again while the socket lives.
#include "server/listener.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "server/log.hpp"
#include "server/memfd.hpp"
#include "server/small_file.hpp"
#include "server/wire.hpp"
#include "shmstore/text.hpp"

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
/// sun_path less its zero byte.
constexpr std::size_t kPathBytesMax = sizeof(sockaddr_un::sun_path) - 1;
constexpr int kBacklog = 4096;
constexpr std::size_t kGroupsMax = 65536;
/// How long an ending daemon may take to let go of its lock, or a living one to notice that its
/// socket is gone.
constexpr std::chrono::seconds kPatience{3};
constexpr std::chrono::milliseconds kPause{10};
constexpr int kHelloMs = 100;  // of a client that is refused

Error failed(const std::string& what, int error) {
  const bool denied = error == EACCES || error == EPERM || error == EROFS;
  return make_error(denied ? ErrorCode::permission_denied : ErrorCode::internal,
                    errno_text(what, error));
}

std::string tmp_path() {
  return "/tmp/shmstore-" + std::to_string(::geteuid()) + "/socket";
}

/// The socket's place in a runtime folder, if that is this user's own and short enough. The rules
/// are the client's, see find_places() in client/lookup.cpp.
std::string path_in(std::string runtime) {
  while (runtime.size() > 1 && runtime.back() == '/') runtime.pop_back();
  struct stat status {};
  const bool own = !runtime.empty() && ::stat(runtime.c_str(), &status) == 0 &&
                   S_ISDIR(status.st_mode) && status.st_uid == ::geteuid();
  runtime += "/shmstore/socket";
  return own && runtime.size() <= kPathBytesMax ? runtime : std::string();
}

std::string runtime_path() {
  const char* folder = std::getenv("XDG_RUNTIME_DIR");
  return folder == nullptr || folder[0] != '/' ? std::string() : path_in(folder);
}

std::string login_path() {
  return path_in("/run/user/" + std::to_string(::geteuid()));
}

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() > kPathBytesMax) {
    return make_error(ErrorCode::invalid_argument,
                      "socket: the path has " + std::to_string(path.size()) + " bytes, at most " +
                          std::to_string(kPathBytesMax) + " are allowed: " + path);
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
  const bool ours =
      is_system || path == tmp_path() || path == runtime_path() || path == login_path();
  const mode_t mode = is_system ? 0755 : 0700;
  if (ours && ::mkdir(folder.c_str(), mode) != 0) {
    if (errno != EEXIST) return failed("socket: making folder " + folder, errno);
  } else if (ours && ::chmod(folder.c_str(), mode) != 0) {  // whatever the umask was
    return failed("socket: folder " + folder, errno);
  }
  return check_folder(folder, ours);
}

FileId id_of(const struct stat& status) {
  return {status.st_dev, status.st_ino};
}

std::optional<FileId> file_at(const std::string& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) return std::nullopt;
  return id_of(status);
}

bool same_file(int fd, const std::string& path) {
  struct stat status {};
  return ::fstat(fd, &status) == 0 && file_at(path) == id_of(status);
}

std::string lock_path_of(const std::string& path) {
  return path + ".lock";
}

/// The process that has the lock; empty when nothing says so.
std::string holder_of_lock(const std::string& path) {
  std::string pid = read_small_file(lock_path_of(path)).value_or("");
  while (!pid.empty() && pid.back() == '\n') pid.pop_back();
  return pid;
}

Error in_charge(const std::string& path) {
  const std::string pid = holder_of_lock(path);
  return make_error(ErrorCode::busy, "socket: another shmstored " +
                                         (pid.empty() ? "" : "(pid " + pid + ") ") +
                                         "is in charge of " + path);
}

struct Lock {
  UniqueFd file;
  bool left = false;  // by a daemon that did not end in order
};

/// The lock file goes away with its daemon, while locked: who gets the lock must look whether the
/// file is still the one at its path.
Result<Lock> lock(const std::string& path) {
  const std::string lock_path = lock_path_of(path);
  for (int attempt = 0; attempt < 100; ++attempt) {
    UniqueFd fd(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd.valid()) return failed("socket: lock file " + lock_path, errno);
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) return in_charge(path);
    if (!same_file(fd.get(), lock_path)) continue;
    const std::string pid = std::to_string(::getpid()) + "\n";
    struct stat status {};
    const bool left = ::fstat(fd.get(), &status) == 0 && status.st_size > 0;
    (void)::fchmod(fd.get(), 0600);  // whatever the umask was
    if (::ftruncate(fd.get(), 0) != 0 ||
        ::write(fd.get(), pid.data(), pid.size()) != static_cast<ssize_t>(pid.size())) {
      return failed("socket: writing " + lock_path, errno);
    }
    return Lock{std::move(fd), left};
  }
  return make_error(ErrorCode::busy, "socket: the lock file " + lock_path + " keeps changing");
}

bool answers(const sockaddr_un& address) {
  const UniqueFd probe = make_socket();
  return ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ||
         errno == EAGAIN;
}

/// Whether who has the lock listens at the path, and not a service manager.
bool holder_listens(const std::string& path) {
  const Result<sockaddr_un> address = address_of(path);
  const UniqueFd probe = make_socket();
  ucred listener{};
  socklen_t bytes = sizeof listener;
  return address &&
         ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address) ==
             0 &&
         ::getsockopt(probe.get(), SOL_SOCKET, SO_PEERCRED, &listener, &bytes) == 0 &&
         std::to_string(listener.pid) == holder_of_lock(path);
}

/// A daemon that has the lock and does not answer is about to end, or to take the path back.
Result<Lock> lock_patiently(const std::string& path, const sockaddr_un& address,
                            std::chrono::milliseconds patience) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  for (;;) {
    Result<Lock> locked = lock(path);
    if (locked || locked.error().code != ErrorCode::busy || answers(address)) return locked;
    if (std::chrono::steady_clock::now() > deadline) return locked;
    (void)::poll(nullptr, 0, static_cast<int>(kPause.count()));
  }
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
  if (answers(address)) {
    return make_error(ErrorCode::busy, "socket: somebody listens on " + path + " already");
  }
  if (::unlink(path.c_str()) != 0) return failed("socket: removing the stale " + path, errno);
  return {};
}

/// Closes what waits to be accepted: these clients look again.
void turn_away_all(int listener) {
  for (;;) {
    const UniqueFd socket(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    if (!socket.valid() && errno != EINTR && errno != ECONNABORTED) return;
  }
}

/// The name of a socket that does not listen yet: not longer than a socket's path may be.
std::string early_path_of(const std::string& path) {
  std::string early = path + kEarlySuffix;
  if (early.size() <= kPathBytesMax) return early;
  early = path;
  early.back() = early.back() == '~' ? '_' : '~';
  return early;
}

/// Under another name first: whoever sees the socket at its path can connect to it.
Result<FileId> bind_and_listen(int socket, const std::string& path) {
  const std::string early_path = early_path_of(path);
  const Result<sockaddr_un> address = address_of(early_path);
  if (!address) return address.error();
  (void)::unlink(early_path.c_str());  // of a daemon that died right here
  // 0600 from its first moment on; there is no other thread yet that would make files.
  const mode_t before = ::umask(0177);
  const int bound = ::bind(socket, reinterpret_cast<const sockaddr*>(&*address), sizeof *address);
  const int error = errno;
  ::umask(before);
  if (bound != 0) return failed("socket: binding " + early_path, error);
  const std::optional<FileId> file = file_at(early_path);
  if (!file || (path == kSystemPath && ::chmod(early_path.c_str(), 0666) != 0) ||
      ::listen(socket, kBacklog) != 0 || ::rename(early_path.c_str(), path.c_str()) != 0) {
    const int why = errno;
    (void)::unlink(early_path.c_str());
    return failed("socket: listening on " + path, why);
  }
  return *file;
}

std::string command_of(std::int64_t pid) {
  std::string command = read_small_file("/proc/" + std::to_string(pid) + "/comm").value_or("?");
  if (!command.empty() && command.back() == '\n') command.pop_back();
  return printable(command);
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
  for (std::string path : {runtime_path(), login_path()}) {
    if (!path.empty()) return path;
  }
  return tmp_path();
}

Result<Listener> Listener::open(const std::string& path) {
  return open(path, kPatience);
}

Result<Listener> Listener::open(const std::string& path, std::chrono::milliseconds patience) {
  const Result<sockaddr_un> address = address_of(path);
  if (!address) return address.error();
  if (Result<void> prepared = prepare_folder(path); !prepared) return prepared.error();
  Result<Lock> locked = lock_patiently(path, *address, patience);
  if (!locked) return locked.error();
  Listener listener;
  listener.path_ = path;
  listener.lock_ = std::move(locked->file);
  if (locked->left) listener.new_since_ = std::time(nullptr);
  if (Result<void> removed = remove_stale(path, *address); !removed) return removed.error();
  if (Result<void> bound = listener.bind(); !bound) return bound.error();
  return listener;
}

Result<void> Listener::bind() {
  socket_ = make_socket();
  if (!socket_.valid()) return failed("socket", errno);
  refuse_descriptors(socket_.get());
  const Result<FileId> file = bind_and_listen(socket_.get(), path_);
  if (!file) {
    socket_.reset();
    return file.error();
  }
  file_ = *file;
  return {};
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
  Listener listener;
  listener.adopted_ = true;
  sockaddr_un address{};
  socklen_t length = sizeof address;
  if (::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0) {
    listener.path_.assign(address.sun_path, ::strnlen(address.sun_path, sizeof address.sun_path));
  }
  const int flags = ::fcntl(socket.get(), F_GETFL);
  (void)::fcntl(socket.get(), F_SETFL, flags | O_NONBLOCK);
  refuse_descriptors(socket.get());
  listener.socket_ = std::move(socket);
  if (listener.path_.empty()) return listener;  // abstract: no file, no lock
  listener.file_ = file_at(listener.path_);
  return await_predecessor(std::move(listener));
}

/// The service manager replaces a socket by its own without asking whose it was. A daemon that was
/// there before has the lock, and takes the path back if it has anything that clients need.
Result<Listener> Listener::await_predecessor(Listener listener) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    Result<Lock> locked = lock(listener.path_);
    if (locked) {
      listener.lock_ = std::move(locked->file);
      if (locked->left) listener.new_since_ = std::time(nullptr);
    }
    // Where the manager's folder is closed to the daemon there is no lock, nor a predecessor.
    if (locked || locked.error().code != ErrorCode::busy) return listener;
    if (!listener.in_place() || holder_listens(listener.path_)) {
      turn_away_all(listener.socket_.get());
      return make_error(ErrorCode::aborted, locked.error().text + ": this one is not needed");
    }
    if (std::chrono::steady_clock::now() > deadline) {
      log(LogLevel::warning, "two stores", {{"text", locked.error().text + ", but not reached"}});
      return listener;
    }
    (void)::poll(nullptr, 0, static_cast<int>(kPause.count()));
  }
}

void Listener::swap(Listener& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(socket_, other.socket_);
  std::swap(lock_, other.lock_);
  std::swap(file_, other.file_);
  std::swap(adopted_, other.adopted_);
  std::swap(new_since_, other.new_since_);
}

std::string Listener::note() const {
  if (!new_since_) return {};
  std::array<char, 32> text{};
  std::tm parts{};
  (void)std::strftime(text.data(), text.size(), "%F %T", ::localtime_r(&*new_since_, &parts));
  return std::string("; this store is new since ") + text.data() +
         ", the daemon before it was killed";
}

bool Listener::has_lock_file() const {
  return lock_.valid() && same_file(lock_.get(), lock_path_of(path_));
}

bool Listener::in_place() const {
  return !file_ || file_at(path_) == file_;
}

Result<void> Listener::rebind() {
  if (!has_lock_file()) {
    Result<Listener> fresh = open(path_, std::chrono::milliseconds(0));
    if (!fresh) return fresh.error();
    swap(*fresh);  // what was ours has no file left that its destructor could remove
    return {};
  }
  struct stat status {};
  if (::lstat(path_.c_str(), &status) == 0 && !S_ISSOCK(status.st_mode)) {
    return make_error(ErrorCode::invalid_argument, "socket: " + path_ + " is not a socket");
  }
  UniqueFd before = std::move(socket_);
  Result<void> bound = bind();
  if (!bound) socket_ = std::move(before);
  return bound;
}

bool Listener::open_to_others() const {
  struct stat status {};
  if (path_.empty() || ::stat(path_.c_str(), &status) != 0) return true;
  return (status.st_mode & 022U) != 0 || status.st_uid != ::geteuid();
}

Listener::~Listener() {
  // The socket first: while the lock is held nobody else makes one at this path. Whoever's lock
  // file it is, that is whose the socket's path is too.
  if (!has_lock_file()) return;
  if (!adopted_ && socket_.valid() && file_ && file_at(path_) == file_) {
    (void)::unlink(path_.c_str());
  }
  (void)::unlink(lock_path_of(path_).c_str());
}

void refuse_waiting(int listener, const Error& reason) {
  FrameWriter writer;
  protocol::FrameHeader hello;
  hello.op = static_cast<std::uint16_t>(protocol::Op::hello);
  hello.request = 1;
  write_error(writer, hello, reason);
  const int flags = ::fcntl(listener, F_GETFL);
  (void)::fcntl(listener, F_SETFL, flags | O_NONBLOCK);
  for (;;) {
    const UniqueFd socket(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    if (!socket.valid() && errno != EINTR && errno != ECONNABORTED) return;
    if (!socket.valid()) continue;
    const Bytes frame = writer.frame();
    (void)::send(socket.get(), frame.data(), frame.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    // Closed at once with its hello unread, the client would see a reset in place of the answer.
    (void)::shutdown(socket.get(), SHUT_WR);
    pollfd ready{socket.get(), POLLIN, 0};
    std::array<char, 256> text{};
    if (::poll(&ready, 1, kHelloMs) > 0) (void)!::recv(socket.get(), text.data(), text.size(), 0);
  }
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
