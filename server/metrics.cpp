#include "server/metrics.hpp"

#include "shmstore/version.hpp"

namespace shmstore::server {
namespace {

struct Gauge {
  const char* name;
  const char* unit;  // "" or the last part of the name
  const char* help;
  std::uint64_t value;
};

void add_head(std::string& text, const std::string& name, const char* unit, const char* help) {
  text += "# TYPE " + name + " gauge\n";
  if (*unit != '\0') text += "# UNIT " + name + " " + unit + "\n";
  text += "# HELP " + name + " " + help + "\n";
}

void add_users(std::string& text, const MetricsInput& input, const Gauge& gauge,
               std::uint64_t Usage::*field, std::size_t bytes_max) {
  add_head(text, gauge.name, gauge.unit, gauge.help);
  for (const auto& [uid, usage] : *input.users) {
    std::string line = std::string(gauge.name) + "{uid=\"" + std::to_string(uid) + "\"} " +
                       std::to_string(usage.*field) + "\n";
    if (text.size() + line.size() > bytes_max) return;
    text += line;
  }
}

}  // namespace

std::string metrics_text(const MetricsInput& in, std::size_t bytes_max) {
  const Gauge gauges[] = {
      {"shmstore_capacity_bytes", "bytes", "Bytes that all arrays may have together.", in.capacity},
      {"shmstore_used_bytes", "bytes", "Bytes charged.", in.used},
      {"shmstore_record_bytes", "bytes", "Of the bytes charged, those of records of arrays.",
       in.records},
      {"shmstore_pinned_bytes", "bytes", "Freed arrays that a process still maps.", in.pinned},
      {"shmstore_freeing_bytes", "bytes", "On their way back to the kernel.", in.freeing},
      {"shmstore_arrays", "", "Arrays.", in.arrays},
      {"shmstore_sessions", "", "Connected clients.", in.sessions},
      {"shmstore_leases", "", "Leases on arrays.", in.leases},
      {"shmstore_waits", "", "Blocked requests.", in.waits},
      {"shmstore_segments", "", "Memory files.", in.segments},
      {"shmstore_segments_max", "", "Memory files that there are descriptors for.",
       in.segments_max},
      {"shmstore_pinned_segments", "", "Memory files that only a process still holds.",
       in.pinned_segments},
      {"shmstore_open_fds", "", "Open descriptors.", in.descriptors},
      {"shmstore_max_fds", "", "Limit of open descriptors.", in.descriptors_max},
      {"shmstore_uptime_seconds", "seconds", "Since the daemon started.",
       static_cast<std::uint64_t>(in.uptime_s)},
  };
  std::string text =
      "# TYPE shmstore_build info\n# HELP shmstore_build The daemon's version.\n"
      "shmstore_build_info{version=\"" SHMSTORE_VERSION_STRING "\"} 1\n";
  for (const Gauge& gauge : gauges) {
    add_head(text, gauge.name, gauge.unit, gauge.help);
    text += std::string(gauge.name) + " " + std::to_string(gauge.value) + "\n";
  }
  // A third of what is left for each, so that many users do not push out a whole family.
  if (in.users != nullptr) {
    const std::size_t share = (bytes_max - text.size()) / 4;
    add_users(text, in, {"shmstore_user_bytes", "bytes", "Bytes charged to a user.", 0},
              &Usage::bytes, text.size() + share);
    add_users(text, in, {"shmstore_user_arrays", "", "Arrays charged to a user.", 0},
              &Usage::arrays, text.size() + share);
    add_users(text, in, {"shmstore_user_leases", "", "Leases charged to a user.", 0},
              &Usage::leases, text.size() + share);
  }
  return text + "# EOF\n";
}

}  // namespace shmstore::server
