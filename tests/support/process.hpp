#pragma once
/// Other processes of a test: forked children that run a lambda and talk to the test over a link,
/// and programs. A child never reports to doctest: it says what it found and the test checks.

#include <sys/types.h>

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/unique_fd.hpp"

namespace shmstore::testing {

using server::UniqueFd;

/// Longest time that anything in a test is waited for: $SHMSTORE_TEST_WATCHDOG, else two minutes.
/// It ends what hangs; no test expects anything to be faster than it.
int watchdog_seconds();

/// True as soon as `condition()` is, false when the watchdog bites first.
bool wait_until(const std::function<bool()>& condition);

/// One end of a two-way channel of short messages.
class Link {
 public:
  explicit Link(UniqueFd fd) : fd_(std::move(fd)) {}
  /// False when the other side is gone.
  bool say(std::string_view text) const;
  /// The next message. Nothing: the other side is gone, or the watchdog bit.
  [[nodiscard]] std::optional<std::string> hear() const;
  [[nodiscard]] int fd() const { return fd_.get(); }
  void close() { fd_.reset(); }

 private:
  UniqueFd fd_;
};

/// How a process ended: its exit code, or 128 + the signal.
[[nodiscard]] int exit_code_of(int wait_status);

/// A child process; killed and reaped when the object goes.
class Child {
 public:
  using Body = std::function<int(Link&)>;

  /// Forks; the child runs `body` and exits with what it returns (99: an exception, whose text it
  /// says as "exception: …"). It is killed when the thread that made it ends.
  static Child fork(const Body& body);
  /// The same as user `uid` (and group), without supplementary groups. REQUIRES: root.
  static Child fork_as(uid_t uid, const Body& body);
  /// Runs a program. `before_exec` runs in the child, which then must not allocate much.
  static Child run(const std::vector<std::string>& command,
                   const std::vector<std::string>& environment = {},
                   const std::function<void()>& before_exec = {});

  Child(Child&& other) noexcept;
  Child& operator=(Child&&) = delete;
  ~Child();

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] const Link& link() const { return link_; }
  bool say(std::string_view text) const { return link_.say(text); }
  /// The child's next message; "(gone)" when it ended instead.
  [[nodiscard]] std::string hear() const { return link_.hear().value_or("(gone)"); }
  void kill(int signal) const;
  /// Waits for the end; see exit_code_of. A second call returns the same. −1: still running.
  int wait();
  [[nodiscard]] bool ended();

 private:
  Child(pid_t pid, Link link) : pid_(pid), link_(std::move(link)) {}
  pid_t pid_ = -1;
  std::optional<int> code_;
  Link link_;
};

/// Stops a child (SIGSTOP) and returns when the kernel says so.
bool stop_process(const Child& child);

/// The folder of the running test program, where the build also puts shmstored and shmctl.
[[nodiscard]] std::string program_folder();
/// $VARIABLE, else the program `name` beside the test program.
[[nodiscard]] std::string find_program(const char* variable, const std::string& name);

}  // namespace shmstore::testing
