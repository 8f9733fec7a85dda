#include <string>

#include "commands.hpp"
#include "connect.hpp"
#include "dtype_names.hpp"
#include "output.hpp"

namespace shmctl {

using shmstore::ArrayInfo;

namespace {

class Sheet {
 public:
  void line(std::string_view label, const std::string& text) const {
    std::string padded(label);
    padded.resize(kLabelColumns, ' ');
    say(paint(Style::dim, padded, colour_) + text);
  }

 private:
  static constexpr std::size_t kLabelColumns = 10;
  bool colour_ = colour_wanted(stdout);
};

std::string dtype_text(const ArrayInfo& info) {
  const std::string readable = dtype_for_people(info.dtype);
  const bool structured = info.dtype.starts_with('[');
  return structured || readable == info.dtype ? info.dtype : readable + "  " + info.dtype;
}

std::string state_text(const ArrayInfo& info) {
  std::string text = info.state;
  if (info.sealed == "soft") text += " (only the process that made it could still change it)";
  if (info.sealed == "hard") text += " (nobody can change it)";
  if (info.broken) {
    text += ": pid " + std::to_string(info.broken->pid) + " (" + info.broken->command +
            ") had it exclusively until " + time_text(info.broken->at) + ", " +
            age_text(info.broken->at) + " ago";
  }
  return text;
}

void print_info(const ArrayInfo& info) {
  const Sheet sheet;
  say(paint(Style::bold, label_text(info), colour_wanted(stdout)));
  sheet.line("id", info.id);
  sheet.line("dtype", dtype_text(info));
  sheet.line("shape", shape_text(info.shape) + (info.order == "F" ? ", Fortran order" : ""));
  sheet.line("size", bytes_text(info.nbytes) +
                         (info.nbytes < 1024 ? "" : " (" + grouped_text(info.nbytes) + " bytes)"));
  sheet.line("state", state_text(info));
  sheet.line("version", info.version == 0 ? "none yet" : std::to_string(info.version));
  sheet.line("owner", user_text(info.uid) + ", perms " + info.perms);
  sheet.line("held by", info.leases == 0 ? "nobody" : count_text(info.leases, "lease"));
  if (info.in_flight > 0) sheet.line("in flight", count_text(info.in_flight, "handle"));
  sheet.line("kept", !info.kept   ? "no: it goes with its last holder"
                     : info.ttl_s ? "for " + span_text(*info.ttl_s) + " more"
                                  : "until it is deleted");
  sheet.line("created", time_text(info.created) + ", " + age_text(info.created) + " ago");
  if (info.sealed_at) {
    sheet.line("sealed", time_text(*info.sealed_at) + ", " + age_text(*info.sealed_at) + " ago");
  }
  if (!info.attrs.empty() && info.attrs != "{}") sheet.line("attrs", info.attrs);
}

}  // namespace

int run_info(const Globals& globals, const NameOption& options) {
  Result<shmstore::Client> client = connect(globals);
  if (!client) return fail(client.error());
  if (globals.json) return print_json(admin_on(*client, "info", options.name));
  Result<ArrayInfo> info = find_info(*client, options.name);
  if (!info) return fail(info.error());
  print_info(*info);
  return kDone;
}

}  // namespace shmctl
