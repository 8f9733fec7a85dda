#include "leftovers.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <thread>
#include <utility>

#include "connect.hpp"
#include "dtype_names.hpp"
#include "json.hpp"
#include "processes.hpp"

namespace shmctl {

using shmstore::ArrayInfo;
using shmstore::Client;

namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kPollInterval = std::chrono::milliseconds(5);
constexpr auto kSurvivorGrace = std::chrono::seconds(1);
constexpr auto kSettleTimeMax = std::chrono::seconds(15);

std::uint64_t above(std::uint64_t value, std::uint64_t base) {
  return value > base ? value - base : 0;
}

/// The processes of the command that are still there: descendants of ours, but for the daemon.
std::vector<pid_t> living_descendants(const PrivateDaemon& daemon) {
  while (waitpid(-1, nullptr, WNOHANG) > 0) {
    // What the command left behind ends as our child.
  }
  std::vector<pid_t> living = descendants_of(getpid());
  std::erase(living, daemon.pid());
  return living;
}

std::vector<Survivor> memory_holders(const std::vector<pid_t>& living,
                                     const std::set<ino_t>& segments) {
  std::vector<Survivor> holders;
  for (const pid_t pid : living) {
    const std::uint64_t bytes = held_bytes(pid, segments);
    if (bytes > 0) holders.push_back({pid, command_of(pid), bytes});
  }
  return holders;
}

/// Who holds the listed arrays.
struct Holdings {
  bool alive = true;  ///< Every lease belongs to a living process or a handle under way.
  std::set<std::string> handles;  ///< Ids of arrays that only handles under way hold.
};

Result<Holdings> find_holdings(Client& client, const std::vector<ArrayInfo>& arrays) {
  Holdings found;
  for (const ArrayInfo& info : arrays) {
    if (info.leases == 0) continue;
    Result<std::string> reply = admin_on(client, "holders", "%" + info.id);
    if (!reply && reply.error().code == shmstore::ErrorCode::not_found) {
      found.alive = false;  // it went meanwhile: look again
      continue;
    }
    if (!reply) return reply.error();
    Result<std::vector<shmstore::Holder>> holders = parse_holders(*reply);
    if (!holders) return holders.error();
    bool by_process = info.kept;
    for (const shmstore::Holder& holder : *holders) {
      by_process |= holder.pid != 0;
      if (holder.pid != 0 && !is_alive(static_cast<pid_t>(holder.pid))) found.alive = false;
    }
    if (!by_process && !holders->empty()) found.handles.insert(info.id);
  }
  return found;
}

/// Takes what only handles hold out of what has leaked.
void set_apart(Leftovers& left, const Holdings& holdings) {
  HandedOver& over = left.handed_over;
  std::erase_if(left.listed, [&](const ArrayInfo& info) {
    if (!holdings.handles.contains(info.id)) return false;
    over.bytes += info.nbytes;
    over.leases += info.leases;
    over.listed.push_back(info);
    return true;
  });
  left.arrays = above(left.arrays, over.listed.size());
  left.bytes = above(left.bytes, over.bytes);
  left.leases = above(left.leases, over.leases);
  left.descriptors = above(left.descriptors, over.listed.size());
}

/// The numbers of `status` that matter here.
struct Books {
  std::uint64_t arrays = 0;
  std::uint64_t leases = 0;
  std::uint64_t sessions = 0;
  std::uint64_t used = 0;
  std::uint64_t pinned = 0;   ///< Of arrays that are gone but still mapped.
  std::uint64_t freeing = 0;  ///< Being given back just now.
  std::uint64_t descriptors = 0;
};

Result<Books> read_books(Client& client) {
  const Result<std::string> status = client.admin("status");
  if (!status) return status.error();
  Books books;
  const std::pair<std::string_view, std::uint64_t*> wanted[] = {
      {"arrays", &books.arrays},  {"leases", &books.leases}, {"sessions", &books.sessions},
      {"used", &books.used},      {"pinned", &books.pinned}, {"freeing", &books.freeing},
      {"fds", &books.descriptors}};
  for (const auto& [key, number] : wanted) {
    Result<std::uint64_t> value = json_count_member(*status, key);
    if (!value) return value.error();
    *number = *value;
  }
  return books;
}

/// One look at the store; `settled` says whether it can be the last. There is no gc before it: that
/// would end the hand-overs that count. The daemon asks for freed memory by itself.
Result<Leftovers> look(Client& client, const PrivateDaemon& daemon,
                       std::uint64_t descriptors_before) {
  const std::vector<pid_t> living = living_descendants(daemon);
  Result<std::vector<ArrayInfo>> arrays = client.list();
  if (!arrays) return arrays.error();
  Result<Books> books = read_books(client);
  if (!books) return books.error();

  Leftovers left;
  left.arrays = books->arrays;
  left.listed = std::move(*arrays);
  left.leases = books->leases;
  left.survivors = memory_holders(living, segments_of(daemon.pid()));
  left.bytes = books->pinned;
  for (const ArrayInfo& info : left.listed) left.bytes += info.nbytes;
  // Deleted arrays that somebody holds are in no list.
  if (left.arrays > left.listed.size()) left.bytes = std::max(left.bytes, books->used);
  left.descriptors = above(books->descriptors, descriptors_before);
  Result<Holdings> holdings = find_holdings(client, left.listed);
  if (!holdings) return holdings.error();
  set_apart(left, *holdings);
  const bool sessions_explained = above(books->sessions, 1) <= living.size();
  const bool memory_explained = books->pinned == 0 || !left.survivors.empty();
  left.settled = holdings->alive && sessions_explained && memory_explained && books->freeing == 0;
  return left;
}

std::string array_line(const ArrayInfo& info) {
  std::string text = "  " + label_text(info) + ": " + dtype_for_people(info.dtype) + " " +
                     shape_text(info.shape) + ", " + bytes_text(info.nbytes) + ", " + info.state;
  if (info.kept) text += ", " + kept_text(info);
  if (info.leases > 0) text += ", " + count_text(info.leases, "lease");
  return text;
}

std::string bytes_twice(std::uint64_t bytes) {
  const std::string exact = count_text(bytes, "byte");
  return bytes < 1024 ? exact : exact + " (" + bytes_text(bytes) + ")";
}

}  // namespace

Result<std::uint64_t> descriptors_in_use(const std::string& socket) {
  Globals globals;
  globals.socket = socket;
  Result<Client> client = connect(globals);
  if (!client) return client.error();
  Result<Books> books = read_books(*client);
  if (!books) return books.error();
  return books->descriptors;
}

Result<Leftovers> find_leftovers(const PrivateDaemon& daemon, std::uint64_t descriptors_before) {
  Globals globals;
  globals.socket = daemon.socket();
  Result<Client> client = connect(globals);
  if (!client) return client.error();
  const auto start = Clock::now();
  for (;;) {
    Result<Leftovers> left = look(*client, daemon, descriptors_before);
    if (!left) return left;
    const auto waited = Clock::now() - start;
    const bool may_still_end = !left->survivors.empty() && waited < kSurvivorGrace;
    if ((left->settled && !may_still_end) || waited > kSettleTimeMax) return left;
    std::this_thread::sleep_for(kPollInterval);
  }
}

std::vector<std::string> leftovers_text(const Leftovers& left, bool colour) {
  std::vector<std::string> lines;
  if (const HandedOver& over = left.handed_over; !over.listed.empty()) {
    lines.push_back(count_text(over.listed.size(), "array") + ", " + bytes_twice(over.bytes) +
                    ", handed over and not taken: freed within the grace time, no leak");
  }
  if (left.nothing()) {
    lines.insert(lines.begin(), paint(Style::green, "nothing leaked", colour));
    return lines;
  }
  lines.push_back(paint(Style::red, "leaked", colour) + " " + count_text(left.arrays, "array") +
                  ", " + bytes_twice(left.bytes) + ", " + count_text(left.leases, "lease") + ", " +
                  count_text(left.descriptors, "descriptor"));
  for (const ArrayInfo& info : left.listed) lines.push_back(array_line(info));
  for (const Survivor& survivor : left.survivors) {
    lines.push_back("  pid " + std::to_string(survivor.pid) + " still holds " +
                    bytes_twice(survivor.bytes) + ": " + survivor.command);
  }
  if (!left.settled) lines.push_back("the daemon still counts processes that have ended");
  return lines;
}

std::string leftovers_json(const Leftovers& left, int exit_status) {
  std::vector<std::string> names;
  for (const ArrayInfo& info : left.listed) {
    names.push_back(json_object({{"id", json_quote(info.id)},
                                 {"name", info.name.empty() ? "null" : json_quote(info.name)},
                                 {"nbytes", std::to_string(info.nbytes)},
                                 {"kept", info.kept ? "true" : "false"},
                                 {"leases", std::to_string(info.leases)}}));
  }
  std::vector<std::string> survivors;
  for (const Survivor& survivor : left.survivors) {
    survivors.push_back(json_object({{"pid", std::to_string(survivor.pid)},
                                     {"command", json_quote(survivor.command)},
                                     {"nbytes", std::to_string(survivor.bytes)}}));
  }
  return json_object({{"exit", std::to_string(exit_status)},
                      {"leaked_arrays", std::to_string(left.arrays)},
                      {"leaked_bytes", std::to_string(left.bytes)},
                      {"leaked_leases", std::to_string(left.leases)},
                      {"leaked_fds", std::to_string(left.descriptors)},
                      {"handed_over_arrays", std::to_string(left.handed_over.listed.size())},
                      {"handed_over_bytes", std::to_string(left.handed_over.bytes)},
                      {"arrays", json_array(names)},
                      {"survivors", json_array(survivors)},
                      {"settled", left.settled ? "true" : "false"}});
}

}  // namespace shmctl
