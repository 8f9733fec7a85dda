// Which socket a client takes: the order of places, and what counts as absent.
#include "client/lookup.hpp"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>

#include "client/autostart.hpp"
#include "client/fork.hpp"
#include "client/owned_fd.hpp"

namespace {

using namespace shmstore;
using namespace shmstore::client_internal;
namespace fs = std::filesystem;

class Folder {
 public:
  Folder() {
    REQUIRE(prepare_for_fork());
    std::string pattern = (fs::temp_directory_path() / "shmstore-lookup-XXXXXX").string();
    REQUIRE(mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~Folder() { fs::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// Answers hello with a store id; or closes the first connections without an answer.
class Listener {
 public:
  Listener(const std::string& path, std::uint64_t store_id, int closes = 0)
      : fd_(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    REQUIRE(bind(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(listen(fd_.get(), 8) == 0);
    thread_ = std::thread([this, store_id, closes] { serve(store_id, closes); });
  }
  ~Listener() {
    shutdown(fd_.get(), SHUT_RDWR);
    thread_.join();
  }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

 private:
  void serve(std::uint64_t store_id, int closes) {
    for (;;) {
      const OwnedFd session(accept(fd_.get(), nullptr, nullptr));
      if (!session.valid()) return;
      if (closes-- > 0) continue;
      std::byte request[256];
      if (recv(session.get(), request, sizeof request, 0) <= 0) continue;
      struct {
        protocol::FrameHeader header;
        protocol::HelloReply hello;
      } reply;
      reply.header.op = static_cast<std::uint16_t>(protocol::Op::hello);
      reply.header.flags = protocol::kFlagReply;
      reply.header.request = 1;
      reply.hello.store_id = store_id;
      send(session.get(), &reply, sizeof reply, MSG_NOSIGNAL);
    }
  }
  OwnedFd fd_;
  std::thread thread_;
};

/// A socket that nobody listens on.
void leave_stale_socket(const std::string& path) {
  const Listener listener(path, 0);
}

Places places_in(const Folder& folder) {
  Places places;
  places.system = folder / "system";
  places.user_folder = folder / "user";
  fs::create_directory(places.user_folder);
  return places;
}

}  // namespace

TEST_CASE("a given path is final") {
  const Folder folder;
  Places places = places_in(folder);
  const Listener user(places.user_folder + "/socket", 3);
  places.given = folder / "given";
  const Result<Found> none = look_up(places, true, {});
  REQUIRE_FALSE(none.has_value());
  CHECK(none.error().code == ErrorCode::disconnected);
  CHECK(none.error().text.find(places.given) != std::string::npos);
  const Listener given(places.given, 1);
  CHECK(look_up(places, false, {}).value().hello.store_id == 1);
}

TEST_CASE("the system's socket comes before the user's") {
  const Folder folder;
  const Places places = places_in(folder);
  const Listener user(places.user_folder + "/socket", 3);
  Result<Found> found = look_up(places, false, {});
  REQUIRE(found.has_value());
  CHECK(found->hello.store_id == 3);
  CHECK(found->candidate.origin == Origin::user);
  const Listener system(places.system, 2);
  found = look_up(places, false, {});
  REQUIRE(found.has_value());
  CHECK(found->hello.store_id == 2);
  CHECK(found->candidate.origin == Origin::system);
}

TEST_CASE("a stale system socket is no reason to take another store") {
  const Folder folder;
  const Places places = places_in(folder);
  const Listener user(places.user_folder + "/socket", 3);
  leave_stale_socket(places.system);
  const Result<Found> found = look_up(places, false, {});
  REQUIRE_FALSE(found.has_value());
  CHECK(found.error().code == ErrorCode::disconnected);
}

TEST_CASE("nothing there, or a stale user socket, and no autostart: disconnected") {
  const Folder folder;
  const Places places = places_in(folder);
  CHECK(look_up(places, false, {}).error().code == ErrorCode::disconnected);
  leave_stale_socket(places.user_folder + "/socket");
  CHECK(look_up(places, false, {}).error().code == ErrorCode::disconnected);
}

TEST_CASE("a daemon that closes before it answers is looked up anew") {
  const Folder folder;
  const Places places = places_in(folder);
  {
    const Listener user(places.user_folder + "/socket", 3, 4);
    CHECK(look_up(places, false, {}).value().hello.store_id == 3);
  }
  fs::remove(places.user_folder + "/socket");
  const Listener user(places.user_folder + "/socket", 3, 1000);
  CHECK(look_up(places, false, {}).error().code == ErrorCode::disconnected);
}

TEST_CASE("an interrupted look-up ends") {
  const Folder folder;
  const Places places = places_in(folder);
  leave_stale_socket(places.system);
  std::atomic<int> asked{0};
  const Result<Found> found = look_up(places, false, [&] { return ++asked > 2; });
  REQUIRE_FALSE(found.has_value());
  CHECK(found.error().code == ErrorCode::aborted);
  CHECK(asked == 3);
}

TEST_CASE("a path that is too long is the caller's mistake") {
  Places places;
  places.given = "/tmp/" + std::string(200, 'x');
  places.given_by_variable = true;
  const Error error = look_up(places, false, {}).error();
  CHECK(error.code == ErrorCode::invalid_argument);
  CHECK(error.text.find(places.given) != std::string::npos);
  CHECK(error.text.find("$SHMSTORE_SOCKET") != std::string::npos);
}

TEST_CASE("the user's folder follows XDG_RUNTIME_DIR only where it is ours and short enough") {
  const Folder folder;
  const char* old = getenv("XDG_RUNTIME_DIR");
  const std::string kept = old == nullptr ? "" : old;
  const std::string login = "/run/user/" + std::to_string(geteuid());
  struct stat status {};
  const bool logged_in = stat(login.c_str(), &status) == 0 && status.st_uid == geteuid();
  const std::string temporary = "/tmp/shmstore-" + std::to_string(geteuid());
  const std::string fallback = logged_in ? login + "/shmstore" : temporary;
  for (const char* end : {"", "/", "//"}) {
    setenv("XDG_RUNTIME_DIR", (folder.path() + end).c_str(), 1);
    CHECK(find_places("").user_folder == folder / "shmstore");
    CHECK(find_places("").other_folders.empty());
  }
  setenv("XDG_RUNTIME_DIR", (folder / "missing").c_str(), 1);
  CHECK(find_places("").user_folder == fallback);
  CHECK(find_places("/x").given == "/x");
  unsetenv("XDG_RUNTIME_DIR");
  CHECK(find_places("").user_folder == fallback);
  CHECK(find_places("").other_folders.size() == (logged_in ? 1 : 0));
  // The longest folder in which a socket has room, and one byte more.
  constexpr std::size_t kMost = kPathBytesMax - 16;  // "/shmstore/socket"
  const std::string longest = folder / std::string(kMost - folder.path().size() - 1, 'x');
  for (const std::string& runtime : {longest, longest + "x"}) {
    fs::create_directory(runtime);
    setenv("XDG_RUNTIME_DIR", runtime.c_str(), 1);
    CHECK(find_places("").user_folder == (runtime == longest ? longest + "/shmstore" : fallback));
  }
  if (old == nullptr) {
    unsetenv("XDG_RUNTIME_DIR");
  } else {
    setenv("XDG_RUNTIME_DIR", kept.c_str(), 1);
  }
}

TEST_CASE("a store at another place of the user is found before a new one is started") {
  const Folder folder;
  Places places = places_in(folder);
  places.other_folders = {folder / "other"};
  fs::create_directory(folder / "other");
  CHECK(stores_beside(places, places.user_folder + "/socket").empty());
  const Listener other(folder / "other/socket", 5);
  Result<Found> found = look_up(places, false, {});
  REQUIRE(found.has_value());
  CHECK(found->hello.store_id == 5);
  const Listener user(places.user_folder + "/socket", 3);
  CHECK(look_up(places, false, {}).value().hello.store_id == 3);
  CHECK(stores_beside(places, places.user_folder + "/socket") ==
        std::vector<std::string>{folder / "other/socket"});
}

TEST_CASE("no daemon is started in a folder that is a symlink") {
  const Folder folder;
  fs::create_directory(folder / "real");
  fs::create_directory_symlink(folder / "real", folder / "link");
  const Result<Found> found = start_daemon(folder / "link", {});
  REQUIRE_FALSE(found.has_value());
  CHECK(found.error().text.find("link") != std::string::npos);
}

TEST_CASE("a daemon that cannot start is quoted") {
  const Folder folder;
  const char* old = getenv("SHMSTORE_DAEMON");
  const std::string kept = old == nullptr ? "" : old;
  setenv("SHMSTORE_DAEMON", (folder / "missing").c_str(), 1);
  CHECK(start_daemon(folder / "user", {}).error().text.find("SHMSTORE_DAEMON") !=
        std::string::npos);
  const std::string script = folder / "fails";
  FILE* file = fopen(script.c_str(), "w");
  REQUIRE(file != nullptr);
  fputs("#!/bin/sh\necho \"no luck with $2\" >&2\nexit 1\n", file);
  fclose(file);
  chmod(script.c_str(), 0700);
  setenv("SHMSTORE_DAEMON", script.c_str(), 1);
  const Result<Found> found = start_daemon(folder / "user", {});
  REQUIRE_FALSE(found.has_value());
  CHECK(found.error().code == ErrorCode::disconnected);
  CHECK(found.error().text.find("no luck with " + (folder / "user/socket")) != std::string::npos);
  if (old == nullptr) {
    unsetenv("SHMSTORE_DAEMON");
  } else {
    setenv("SHMSTORE_DAEMON", kept.c_str(), 1);
  }
}
