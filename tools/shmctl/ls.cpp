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
  if (info.state == "dying" || info.state == "broken") return Style::red;
  return info.state == "mutable" ? Style::cyan : Style::plain;
}

/// "0640" → "rwr---": owner, group, others; arrays have no execute bits.
std::string perms_text(const std::string& octal) {
  std::string text;
  for (std::size_t i = octal.size() < 3 ? 0 : octal.size() - 3; i < octal.size(); ++i) {
    const unsigned bits = static_cast<unsigned>(octal[i] - '0');
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
               {"VER", Align::right},
               {"KEPT", Align::left},
               {"DTYPE", Align::left, true, true},
               {"SHAPE", Align::left, true, true},
               {"NAME", Align::left, true}});
  for (const ArrayInfo& info : arrays) {
    const std::string state = info.sealed == "hard" ? "hard" : info.state;
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

/// "~alice/sim/" → the request for names with "sim/" in the name space of alice.
Result<std::string> list_request(const std::string& prefix) {
  if (!prefix.starts_with('~')) return json_object({{"prefix", json_quote(prefix)}});
  const std::size_t slash = std::min(prefix.find('/'), prefix.size());
  Result<std::string> resolved =
      shmstore::Client::resolve_name(prefix.substr(0, slash) + "/any");  // "~1000/any"
  if (!resolved) return resolved.error();
  const std::string uid = resolved->substr(1, resolved->find('/') - 1);
  const std::string rest = slash == prefix.size() ? "" : prefix.substr(slash + 1);
  return json_object({{"prefix", json_quote(rest)}, {"uid", uid}});
}

int print_list_json(shmstore::Client& client, const LsOptions& options) {
  Result<std::string> request = list_request(options.prefix);
  return print_json(request ? client.admin("list", *request) : request);
}

}  // namespace

int run_ls(const Globals& globals, const LsOptions& options) {
  if (options.prefix.starts_with('/')) {  // no name does; a shell may have expanded ~user/
    Result<std::string> why = shmstore::Client::resolve_name(
        options.prefix + (options.prefix.ends_with('/') ? "any" : ""));
    if (!why) return fail(why.error());
  }
  Result<shmstore::Client> client = connect(globals);
  if (!client) return fail(client.error());
  if (globals.json) return print_list_json(*client, options);
  Result<std::vector<ArrayInfo>> arrays = client->list(options.prefix);
  if (!arrays) return fail(arrays.error());
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
