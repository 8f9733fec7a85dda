#pragma once
/// A real daemon for one test: own folder, own socket, stopped at the end. Its log is shown when
/// the test fails.

#include <sys/types.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "shmstore/client.hpp"
#include "tests/support/process.hpp"

namespace shmstore::testing {

/// A folder below $TMPDIR or /tmp that goes with the object. Other users may look inside.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

struct DaemonOptions {
  std::string capacity = "2GiB";  ///< "": the daemon's own default.
  std::vector<std::string> arguments;
  std::vector<std::string> environment;  ///< "NAME=value"
  std::function<void()> before_exec;     ///< rlimits and the like.
  bool invariants = true;    ///< Check all accounting after every request (slow with many arrays).
  bool wait_ready = true;    ///< Return when a connect succeeds.
  bool open_to_all = false;  ///< Any user may connect.
};

class DaemonFixture {
 public:
  explicit DaemonFixture(DaemonOptions options = {});
  ~DaemonFixture();
  DaemonFixture(const DaemonFixture&) = delete;
  DaemonFixture& operator=(const DaemonFixture&) = delete;

  [[nodiscard]] const std::string& socket() const { return socket_; }
  [[nodiscard]] const TempDir& folder() const { return folder_; }
  [[nodiscard]] pid_t pid() const { return process_->pid(); }
  [[nodiscard]] std::string log() const;
  [[nodiscard]] Child& process() { return *process_; }

  /// Starts the daemon again, after stop() or kill().
  void start();
  /// SIGTERM; returns the exit code.
  int stop();
  void kill();

  /// A client of this daemon; BadResult when that fails.
  [[nodiscard]] Client connect(ConnectOptions options = {}) const;
  [[nodiscard]] Result<Client> try_connect(ConnectOptions options = {}) const;
  /// Lines of `selfcheck`; "" when clean.
  [[nodiscard]] std::string selfcheck() const;
  /// True once the daemon holds no array, no pinned memory, no session but `sessions` known ones,
  /// and says that its books are in order.
  [[nodiscard]] bool settles_empty(std::uint64_t sessions = 0) const;
  /// The daemon's descriptors when no session is left but `sessions` known ones.
  [[nodiscard]] std::size_t settled_fds(std::uint64_t sessions = 0) const;
  /// True once the daemon's descriptors number `count`, an earlier result of settled_fds().
  [[nodiscard]] bool settles_fds(std::size_t count) const;

 private:
  DaemonOptions options_;
  TempDir folder_;
  std::string socket_;
  std::optional<Child> process_;
  bool stopped_ = false;  ///< By the test, which then judges the exit code itself.
};

/// Logs of the daemons that the running test has stopped; the listener in main shows them.
std::vector<std::string>& finished_logs();

}  // namespace shmstore::testing
