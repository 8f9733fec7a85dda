#include <algorithm>
#include <vector>

#include "commands.hpp"
#include "connect.hpp"
#include "dtype_names.hpp"
#include "json.hpp"
#include "output.hpp"
#include "table.hpp"

namespace shmctl {

using shmstore::ArrayInfo;

namespace {

Style state_style(const ArrayInfo& info) {
  if (info.state == "draft") return Style::yellow;
  if (info.state == "dying") return Style::red;
  return info.state == "mutable" ? Style::cyan : Style::plain;
}

/// "0640" → "rw-r-----", without the execute bits, which arrays do not have: "rw-r---".
std::string perms_text(const std::string& octal) {
  std::string text;
  for (std::size_t i = octal.size() < 3 ? 0 : octal.size() - 3; i < octal.size(); ++i) {
    const unsigned bits = static_cast<unsigned>(octal[i] - '0');
    if (!text.empty()) text += ' ';
    text += (bits & 4U) != 0 ? 'r' : '-';
    text += (bits & 2U) != 0 ? 'w' : '-';
  }
  return text;
}

Table short_table(const std::vector<ArrayInfo>& arrays) {
  Table table({{"NAME", Align::left, true},
               {"DTYPE", Align::left, true},
               {"SHAPE", Align::left, true},
               {"SIZE", Align::right},
               {"STATE", Align::left},
               {"HELD", Align::right},
               {"AGE", Align::right}});
  for (const ArrayInfo& info : arrays) {
    table.add({{label_text(info)},
               {dtype_for_people(info.dtype)},
               {shape_text(info.shape)},
               {bytes_text(info.nbytes)},
               {info.state, state_style(info)},
               {grouped_text(info.leases)},
               {age_text(info.created)}});
  }
  return table;
}

Table long_table(const std::vector<ArrayInfo>& arrays) {
  Table table({{"PERMS", Align::left},
               {"OWNER", Align::left, true},
               {"HELD", Align::right},
               {"SIZE", Align::right},
               {"AGE", Align::right},
               {"STATE", Align::left},
               {"VERSION", Align::right},
               {"KEPT", Align::left},
               {"DTYPE", Align::left, true},
               {"SHAPE", Align::left, true},
               {"NAME", Align::left, true}});
  for (const ArrayInfo& info : arrays) {
    std::string state = info.state;
    if (info.sealed == "hard") state += ", hard";
    std::string kept = "no";
    if (info.kept) kept = info.ttl_s ? span_text(*info.ttl_s) : "yes";
    table.add({{perms_text(info.perms)},
               {user_text(info.uid)},
               {grouped_text(info.leases)},
               {bytes_text(info.nbytes)},
               {age_text(info.created)},
               {state, state_style(info)},
               {grouped_text(info.version)},
               {kept},
               {dtype_for_people(info.dtype)},
               {shape_text(info.shape) + (info.order == "F" ? " F" : "")},
               {label_text(info)}});
  }
  return table;
}

int print_names(const std::vector<ArrayInfo>& arrays) {
  for (const ArrayInfo& info : arrays) {
    if (!info.name.empty()) say(info.name);
  }
  return kDone;
}

int print_list_json(shmstore::Client& client, const LsOptions& options) {
  (void)options;
  return print_json(client.admin("list", "{}"));
}

}  // namespace

int run_ls(const Globals& globals, const LsOptions& options) {
  Result<shmstore::Client> client = connect(globals);
  if (!client) return fail(client.error());
  if (globals.json) return print_list_json(*client, options);
  Result<std::vector<ArrayInfo>> arrays = client->list(options.prefix);
  if (!arrays) return fail(arrays.error());
  std::sort(arrays->begin(), arrays->end(),
            [](const ArrayInfo& a, const ArrayInfo& b) { return a.name < b.name; });
  if (options.names_only) return print_names(*arrays);
  if (arrays->empty()) {
    say(options.prefix.empty() ? "no arrays" : "no arrays under " + options.prefix);
    return kDone;
  }
  (options.long_format ? long_table(*arrays) : short_table(*arrays)).print();
  std::uint64_t bytes = 0;
  for (const ArrayInfo& info : *arrays) bytes += info.nbytes;
  say(paint(Style::dim, count_text(arrays->size(), "array") + ", " + bytes_text(bytes),
            colour_wanted(stdout)));
  return kDone;
}

}  // namespace shmctl
