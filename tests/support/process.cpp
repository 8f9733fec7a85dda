#include "tests/support/process.hpp"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <set>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "tests/support/proc.hpp"

extern char** environ;

namespace shmstore::testing {
namespace {

using Clock = std::chrono::steady_clock;

/// The test's ends of all links. A new child closes them, or it would keep its siblings from
/// noticing that the test is gone. Only the main thread of a test forks.
std::set<int>& open_links() {
  static std::set<int> links;
  return links;
}

struct Ends {
  UniqueFd ours, theirs;
};

Ends make_link() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) {
    throw std::system_error(errno, std::generic_category(), "socketpair");
  }
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

[[noreturn]] void run_body(const Child::Body& body, Link link) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  int code = 99;
  try {
    code = body(link);
  } catch (const std::exception& error) {
    link.say(std::string("exception: ") + error.what());
  }
  ::_exit(code);
}

void become(uid_t uid) {
  if (::setgroups(0, nullptr) != 0 || ::setresgid(uid, uid, uid) != 0 ||
      ::setresuid(uid, uid, uid) != 0) {
    throw std::system_error(errno, std::generic_category(), "setresuid");
  }
  ::prctl(PR_SET_DUMPABLE, 1);  // else /proc/self belongs to root and hides what is tested
}

}  // namespace

int watchdog_seconds() {
  const char* text = std::getenv("SHMSTORE_TEST_WATCHDOG");
  return text != nullptr && *text != '\0' ? std::atoi(text) : 120;
}

bool wait_until(const std::function<bool()>& condition) {
  const auto deadline = Clock::now() + std::chrono::seconds(watchdog_seconds());
  auto pause = std::chrono::microseconds(200);
  while (!condition()) {
    if (Clock::now() > deadline) return false;
    std::this_thread::sleep_for(pause);
    pause = std::min<std::chrono::microseconds>(pause * 2, std::chrono::milliseconds(20));
  }
  return true;
}

bool Link::say(std::string_view text) const {
  return ::send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL) ==
         static_cast<ssize_t>(text.size());
}

std::optional<std::string> Link::hear() const {
  pollfd ready{fd_.get(), POLLIN, 0};
  int found = 0;
  do {
    found = ::poll(&ready, 1, watchdog_seconds() * 1000);
  } while (found < 0 && errno == EINTR);
  if (found <= 0) return std::nullopt;
  std::string text(65536, '\0');
  const ssize_t size = ::recv(fd_.get(), text.data(), text.size(), 0);
  if (size <= 0) return std::nullopt;
  text.resize(static_cast<std::size_t>(size));
  return text;
}

int exit_code_of(int wait_status) {
  return WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

Child Child::fork(const Body& body) {
  Ends ends = make_link();
  const pid_t pid = ::fork();
  if (pid < 0) throw std::system_error(errno, std::generic_category(), "fork");
  if (pid == 0) {
    for (int fd : open_links()) ::close(fd);
    open_links().clear();
    ends.ours.reset();
    run_body(body, Link(std::move(ends.theirs)));
  }
  open_links().insert(ends.ours.get());
  return Child(pid, Link(std::move(ends.ours)));
}

Child Child::fork_as(uid_t uid, const Body& body) {
  return fork([&](Link& link) {
    become(uid);
    return body(link);
  });
}

Child Child::run(const std::vector<std::string>& command,
                 const std::vector<std::string>& environment,
                 const std::function<void()>& before_exec) {
  return fork([&](Link&) {
    std::vector<char*> arguments;
    for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    for (const std::string& setting : environment) ::putenv(const_cast<char*>(setting.c_str()));
    if (before_exec) before_exec();
    ::execv(arguments[0], arguments.data());
    return 127;
  });
}

Child::Child(Child&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), code_(other.code_), link_(std::move(other.link_)) {}

Child::~Child() {
  open_links().erase(link_.fd());
  if (pid_ < 0 || code_) return;
  ::kill(pid_, SIGKILL);
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
}

void Child::kill(int signal) const {
  if (!code_) ::kill(pid_, signal);
}

bool Child::ended() {
  if (code_) return true;
  int status = 0;
  if (::waitpid(pid_, &status, WNOHANG) != pid_) return false;
  code_ = exit_code_of(status);
  return true;
}

int Child::wait() {
  if (!wait_until([this] { return ended(); })) return -1;
  return *code_;
}

bool stop_process(const Child& child) {
  child.kill(SIGSTOP);
  return wait_until([&] { return process_state(child.pid()) == 'T'; });
}

std::string program_folder() {
  char path[4096];
  const ssize_t size = ::readlink("/proc/self/exe", path, sizeof path);
  const std::string program(path, size > 0 ? static_cast<std::size_t>(size) : 0);
  return program.substr(0, program.rfind('/'));
}

std::string find_program(const char* variable, const std::string& name) {
  const char* path = std::getenv(variable);
  return path != nullptr && *path != '\0' ? path : program_folder() + "/" + name;
}

}  // namespace shmstore::testing
