// Which file may be started as the daemon: whose it is, and who could exchange it.
#include "client/program.hpp"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace {

using namespace shmstore;
using namespace shmstore::client_internal;
namespace fs = std::filesystem;

/// A folder of this user's alone, with a program in `bin`.
class Home {
 public:
  Home() {
    std::string pattern = (fs::temp_directory_path() / "shmstore-program-XXXXXX").string();
    REQUIRE(mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
    fs::create_directory(*this / "bin");
    allow("bin", 0755);
    std::ofstream(program()) << "#!/bin/sh\n";
    allow("bin/shmstored", 0755);
  }
  ~Home() { fs::remove_all(path_); }
  Home(const Home&) = delete;
  Home& operator=(const Home&) = delete;
  [[nodiscard]] std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  [[nodiscard]] std::string program() const { return *this / "bin/shmstored"; }
  void allow(const std::string& name, mode_t mode) const {
    REQUIRE(chmod((*this / name).c_str(), mode) == 0);
  }

 private:
  std::string path_;
};

std::string verdict(const std::string& path, Owners owners = Owners::own) {
  const Result<OwnedFd> file = open_program(path, owners);
  return file ? "ok" : std::string(to_string(file.error().code)) + ": " + file.error().text;
}

bool refused(const std::string& path, Owners owners = Owners::own) {
  return verdict(path, owners).starts_with("permission_denied");
}

}  // namespace

TEST_CASE("a program of one's own is opened, through links as well") {
  const Home home;
  CHECK(verdict(home.program()) == "ok");
  CHECK(verdict(home / "bin/../bin/./shmstored") == "ok");
  fs::create_symlink("bin/shmstored", home / "link");
  fs::create_symlink(home / "link", home / "far");
  CHECK(verdict(home / "far") == "ok");
  fs::create_symlink("round", home / "round");
  for (const char* none : {"bin", "none", "none/shmstored", "bin/shmstored/x", "round", ""}) {
    CHECK(verdict(home / none).starts_with("not_found"));
  }
  home.allow("bin/shmstored", 0644);
  CHECK(verdict(home.program()).starts_with("not_found"));
}

TEST_CASE("a program that others can exchange is refused") {
  const Home home;
  for (const Owners owners : {Owners::own, Owners::any}) {
    home.allow("bin/shmstored", 0757);
    CHECK(refused(home.program(), owners));
    home.allow("bin/shmstored", 0755);
    for (const mode_t mode : {0757U, 01777U, 01757U}) {
      home.allow("bin", mode);
      CHECK(refused(home.program(), owners));
    }
    home.allow("bin", 0755);
    home.allow("", 0757);
    CHECK(refused(home.program(), owners));
    home.allow("", 01757);  // passed through, as /tmp is
    CHECK(verdict(home.program(), owners) == "ok");
    home.allow("", 0755);
  }
}

TEST_CASE("a link that others can exchange is refused") {
  const Home home;
  fs::create_directory(home / "shared");
  fs::create_symlink(home.program(), home / "shared/shmstored");
  CHECK(verdict(home / "shared/shmstored") == "ok");
  for (const mode_t mode : {0777U, 01777U}) {
    home.allow("shared", mode);
    CHECK(refused(home / "shared/shmstored"));
  }
  fs::create_symlink("shared/shmstored", home / "outer");
  CHECK(refused(home / "outer"));
}

TEST_CASE("a program of another user is refused unless it is named") {
  if (geteuid() != 0) return;  // nobody else can give files away
  const Home home;
  const uid_t other = 54321;
  REQUIRE(chown(home.program().c_str(), other, other) == 0);
  CHECK(refused(home.program()));
  CHECK(verdict(home.program(), Owners::any) == "ok");
  REQUIRE(chown(home.program().c_str(), 0, 0) == 0);
  REQUIRE(chown((home / "bin").c_str(), other, other) == 0);
  CHECK(refused(home.program()));
  REQUIRE(chown((home / "bin").c_str(), 0, other) == 0);
  CHECK(verdict(home.program()) == "ok");
  home.allow("bin", 0775);  // a group of others
  CHECK(refused(home.program()));
}

TEST_CASE("what was looked at is what is executed") {
  const Home home;
  Result<OwnedFd> file = open_program(home.program(), Owners::own);
  REQUIRE(file.has_value());
  const std::string marker = home / "marker";
  const auto write_script = [&](const std::string& path, const std::string& text) {
    std::ofstream(path) << "#!/bin/sh\nprintf " << text << " > " << marker << "\n";
    REQUIRE(chmod(path.c_str(), 0755) == 0);
  };
  write_script(home.program(), "checked");
  const Program program{home.program(), std::move(*file)};
  fs::rename(home.program(), home / "moved");
  write_script(home.program(), "exchanged");
  const pid_t child = fork();
  if (child == 0) {
    std::string name = "shmstored";
    char* const arguments[] = {name.data(), nullptr};
    execute_program(program, arguments, environ);
    _exit(1);
  }
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(status == 0);
  std::string text;
  std::ifstream(marker) >> text;
  CHECK(text == "checked");
}
