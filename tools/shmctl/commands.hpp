#pragma once
/// The subcommands of shmctl: what the command line gives each, and the function that does it.
/// Each function prints, and returns the exit status: kDone, kRefused, kUsage or kNoDaemon.

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace shmctl {

inline constexpr int kDone = 0;      ///< Done.
inline constexpr int kRefused = 1;   ///< Refused: "error: CODE: text" on stderr.
inline constexpr int kUsage = 2;     ///< The command line itself is wrong.
inline constexpr int kNoDaemon = 3;  ///< No daemon, or it went away.

/// Options that stand before or after any subcommand.
struct Globals {
  std::string socket;  ///< Empty: $SHMSTORE_SOCKET, else the usual places.
  bool json = false;
};

struct LsOptions {
  std::string prefix;
  bool long_format = false;
  bool names_only = false;
};

struct NameOption {
  std::string name;
};

/// How a new array is published; create and import share it.
struct PublishOptions {
  std::string name;
  std::string perms = "0600";
  std::string attrs;
  bool is_mutable = false;
  bool replace = false;
  bool hard = false;
  bool no_keep = false;
  std::optional<std::chrono::milliseconds> ttl;
};

struct CreateOptions {
  PublishOptions publish;
  std::vector<std::uint64_t> shape;
  std::string dtype;
  std::string order = "C";
  std::optional<std::string> fill;
};

struct ImportOptions {
  std::string file;
  PublishOptions publish;
};

struct ExportOptions {
  std::string name;
  std::string file;
};

struct RmOptions {
  std::vector<std::string> names;
};

struct KeepOptions {
  std::string name;
  std::optional<std::chrono::milliseconds> ttl;
};

struct SealOptions {
  std::string name;
  bool hard = false;
  std::chrono::milliseconds wait{0};
};

struct RepairOptions {
  std::string name;
  std::chrono::milliseconds wait{0};
};

struct ChmodOptions {
  std::string perms;
  std::string name;
};

struct WaitOptions {
  std::string name;
  std::optional<std::chrono::milliseconds> timeout;
  std::uint64_t newer_than = 0;
};

struct WatchOptions {
  std::string prefix;
  std::uint64_t count = 0;  ///< Events after which to end; 0: go on.
};

struct TopOptions {
  std::chrono::milliseconds interval{1000};
  std::uint64_t count = 0;  ///< Refreshes after which to end; 0: go on.
};

struct StopOptions {
  bool all = false;  ///< Every daemon of this user.
};

struct RunOptions {
  std::vector<std::string> command;
};

struct CompletionOptions {
  std::string shell;
};

int run_status(const Globals& globals);
int run_ls(const Globals& globals, const LsOptions& options);
int run_info(const Globals& globals, const NameOption& options);
int run_who(const Globals& globals, const NameOption& options);
int run_create(const Globals& globals, const CreateOptions& options);
int run_import(const Globals& globals, const ImportOptions& options);
int run_export(const Globals& globals, const ExportOptions& options);
int run_rm(const Globals& globals, const RmOptions& options);
int run_keep(const Globals& globals, const KeepOptions& options);
int run_unkeep(const Globals& globals, const NameOption& options);
int run_seal(const Globals& globals, const SealOptions& options);
int run_repair(const Globals& globals, const RepairOptions& options);
int run_chmod(const Globals& globals, const ChmodOptions& options);
int run_wait(const Globals& globals, const WaitOptions& options);
int run_watch(const Globals& globals, const WatchOptions& options);
int run_top(const Globals& globals, const TopOptions& options);
int run_gc(const Globals& globals);
int run_doctor(const Globals& globals);
int run_stop(const Globals& globals, const StopOptions& options);
int run_metrics(const Globals& globals);
int run_selfcheck(const Globals& globals);
/// Also returns the status of the command it ran, 128 + signal when that was killed.
int run_run(const Globals& globals, const RunOptions& options);
int run_completion(const CompletionOptions& options);

}  // namespace shmctl
