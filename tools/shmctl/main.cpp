// The command line of shmctl: what every subcommand takes and what --help says. Parsing only picks
// an action; it runs when all of the line is known to be right.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <exception>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "commands.hpp"
#include "output.hpp"
#include "shmstore/version.hpp"

namespace shmctl {

namespace {

using Action = std::function<int()>;

/// CLI11's help in fewer words.
class HelpFormatter : public CLI::Formatter {
 public:
  HelpFormatter() { column_width(26); }

  std::string make_option_name(const CLI::Option* option, bool is_positional) const override {
    const std::string name = CLI::Formatter::make_option_name(option, is_positional);
    return CLI::detail::find_and_replace(name, ",", ", ");
  }
  std::string make_option_opts(const CLI::Option* option) const override {
    if (option->get_positional() || option->get_type_size() == 0) return "";
    return " " + option->get_type_name();
  }
  std::string make_usage(const CLI::App* app, std::string name) const override {
    const std::string usage = CLI::Formatter::make_usage(app, std::move(name));
    return CLI::detail::find_and_replace(usage, " CMD...", " -- CMD...");
  }
  std::string make_footer(const CLI::App* app) const override {
    const std::string footer = CLI::Formatter::make_footer(app);
    // The options of shmctl itself are not listed again, but they may stand here as well.
    return app->get_parent() == nullptr ? footer : "Also: --socket PATH, --json\n" + footer;
  }
};

/// The parser with what the actions need; options of subcommands live as long as their actions.
class CommandLine {
 public:
  CommandLine() : app_("Looks into and works on the shared arrays of shmstore.", "shmctl") {
    app_.formatter(std::make_shared<HelpFormatter>());
    app_.set_version_flag("--version", "shmctl " SHMSTORE_VERSION_STRING, "Print the version");
    app_.set_help_flag("-h,--help", "Print this help");
    app_.add_option("--socket", globals_.socket, "The daemon's socket; no other is tried")
        ->type_name("PATH");
    app_.add_flag("--json", globals_.json, "Print JSON");
    app_.fallthrough();
    app_.require_subcommand(1);
    app_.footer(
        "Example: shmctl create grid --shape 3,4 --dtype f8 && shmctl ls\n"
        "Exit status: 0 done, 1 refused, 2 wrong usage, 3 no daemon.");
  }

  /// Parses and runs. Returns the exit status.
  int run(int argc, char** argv);

  void add_look_commands();
  void add_array_commands();
  void add_publish_commands();
  void add_lifetime_commands();
  void add_store_commands();
  void add_other_commands();

 private:
  int refuse(std::string problem);
  CLI::App& add(const std::string& name, const std::string& description,
                const std::string& example) {
    CLI::App& command = *app_.add_subcommand(name, description);
    command.group(group_);
    command.footer("Example: shmctl " + example);
    return command;
  }
  /// A subcommand with options: `function(globals, options)` is its action.
  template <class Options>
  void act(CLI::App& command, const std::shared_ptr<Options>& options,
           int (*function)(const Globals&, const Options&)) {
    command.callback([this, options, function] {
      action_ = [this, options, function] { return function(globals_, *options); };
    });
  }
  void act(CLI::App& command, int (*function)(const Globals&)) {
    command.callback(
        [this, function] { action_ = [this, function] { return function(globals_); }; });
  }

  CLI::App app_;
  std::string group_;
  Globals globals_;
  Action action_;
};

/// Seconds, fractions allowed; more than a hundred years is a mistake.
std::chrono::milliseconds parse_seconds(const std::string& option, const std::string& text) {
  double value = -1;
  const auto [stop, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || stop != text.data() + text.size() || !(value >= 0 && value <= 4e9)) {
    throw CLI::ValidationError(option, "'" + text + "' is no number of seconds");
  }
  return std::chrono::milliseconds(static_cast<std::int64_t>(value * 1000));
}

template <class Target>
CLI::Option* add_seconds(CLI::App& command, const std::string& name, Target& target,
                         const std::string& description) {
  const auto take = [&target, name](const std::string& text) {
    target = parse_seconds(name, text);
  };
  return command.add_option_function<std::string>(name, take, description)->type_name("SECONDS");
}

CLI::Option* add_count(CLI::App& command, const std::string& name, std::uint64_t& target,
                       const std::string& description) {
  const auto take = [&target, name](const std::string& text) {
    const char* end = text.data() + text.size();
    const auto [stop, status] = std::from_chars(text.data(), end, target);
    if (status != std::errc() || stop != end) {
      throw CLI::ValidationError(name, "'" + text + "' is no number from 0 on");
    }
  };
  return command.add_option_function<std::string>(name, take, description)->type_name("N");
}

CLI::Option* add_name(CLI::App& command, std::string& target) {
  return command.add_option("NAME", target, "The array: NAME, ~USER/NAME, or %ID as ls has it")
      ->required();
}

/// "3,4", "(3, 4)", "3x4"; "()" is one item.
std::string parse_shape(const std::string& text, std::vector<std::uint64_t>& shape) {
  std::string body = text;
  std::erase(body, ' ');
  if (body.size() >= 2 && body.front() == '(' && body.back() == ')') {
    body = body.substr(1, body.size() - 2);
  } else if (body.empty()) {
    return "is empty; () is the shape of one item";
  }
  std::replace(body.begin(), body.end(), 'x', ',');
  if (body.size() > 1 && body.back() == ',') body.pop_back();
  shape.clear();
  std::string_view rest = body;
  while (!rest.empty()) {
    const std::size_t comma = std::min(rest.find(','), rest.size());
    std::uint64_t dim = 0;
    const auto [stop, status] = std::from_chars(rest.data(), rest.data() + comma, dim);
    if (status != std::errc() || stop != rest.data() + comma) {
      return "'" + text + "' is no shape such as 3,4";
    }
    shape.push_back(dim);
    if (comma + 1 == rest.size()) return "'" + text + "' is no shape such as 3,4";
    rest.remove_prefix(std::min(comma + 1, rest.size()));
  }
  return "";
}

std::string check_octal(const std::string& text) {
  const bool octal =
      !text.empty() && text.size() <= 5 && text.find_first_not_of("01234567") == std::string::npos;
  return octal ? "" : "'" + text + "' is no octal number such as 0644";
}

/// CLI::IsMember without the list that it adds to the help.
CLI::Validator one_of(std::set<std::string> words) {
  return {[words = std::move(words)](const std::string& text) {
            if (words.contains(text)) return std::string();
            std::string all;
            for (const std::string& word : words) all += (all.empty() ? "" : ", ") + word;
            return "'" + text + "' is none of " + all;
          },
          ""};
}

/// --perms, --attrs, … of create and import.
void add_publish_options(CLI::App& command, PublishOptions& options) {
  command.add_flag("--mutable", options.is_mutable, "Shared read-write at once, not sealed");
  command.add_option("--perms", options.perms, "Who may open it, octal (default 0600)")
      ->check(CLI::Validator(check_octal, ""))
      ->type_name("PERMS");
  command.add_option("--attrs", options.attrs, "A JSON object to go with it")->type_name("JSON");
  command.add_flag("--replace", options.replace, "Publish over an older version");
  command.add_flag("--hard", options.hard, "Seal so that the kernel refuses every change");
  CLI::Option* ttl = add_seconds(command, "--ttl", options.ttl, "Keep it this long only");
  command
      .add_flag("--no-keep", options.no_keep, "It ends with this command, unless others hold it")
      ->excludes(ttl);
}

}  // namespace

void CommandLine::add_look_commands() {
  group_ = "Look";
  act(add("status", "The store: memory, arrays, users", "status"), &run_status);

  auto ls = std::make_shared<LsOptions>();
  CLI::App& ls_command = add("ls", "List arrays", "ls -l sim/");
  ls_command.add_option("PREFIX", ls->prefix, "Only names that begin with this");
  CLI::Option* names =
      ls_command.add_flag("-1,--names", ls->names_only, "Names only, one on a line");
  ls_command.add_flag("-l,--long", ls->long_format, "Owner, permissions, version, kept or not")
      ->excludes(names);
  act(ls_command, ls, &run_ls);

  auto info = std::make_shared<NameOption>();
  CLI::App& info_command = add("info", "All about one array", "info sim/grid");
  add_name(info_command, info->name);
  act(info_command, info, &run_info);

  auto who = std::make_shared<NameOption>();
  CLI::App& who_command = add("who", "Processes that hold an array", "who sim/grid");
  add_name(who_command, who->name);
  act(who_command, who, &run_who);

  auto watch = std::make_shared<WatchOptions>();
  CLI::App& watch_command = add("watch", "Print events as they happen", "watch sim/");
  watch_command.add_option("PREFIX", watch->prefix, "Only names that begin with this");
  add_count(watch_command, "-n,--count", watch->count, "End after this many events");
  act(watch_command, watch, &run_watch);

  auto top = std::make_shared<TopOptions>();
  CLI::App& top_command = add("top", "Watch users and arrays, full screen; q ends it", "top");
  add_seconds(top_command, "-i,--interval", top->interval, "Time between refreshes (default 1)");
  add_count(top_command, "-n,--count", top->count, "End after this many refreshes");
  act(top_command, top, &run_top);
}

void CommandLine::add_publish_commands() {
  group_ = "Arrays";
  auto create = std::make_shared<CreateOptions>();
  CLI::App& create_command = add("create", "Make an array, of zeros or of one value",
                                 "create sim/grid --shape 3,4 --dtype f8 --fill 0.5");
  add_name(create_command, create->publish.name);
  create_command
      .add_option_function<std::string>(
          "--shape",
          [create](const std::string& text) {
            const std::string problem = parse_shape(text, create->shape);
            if (!problem.empty()) throw CLI::ValidationError("--shape", problem);
          },
          "Dimensions: 3,4; () for one item")
      ->required()
      ->type_name("SHAPE");
  create_command.add_option("--dtype", create->dtype, "As numpy spells it: f8, int32, M8[ns], …")
      ->required()
      ->type_name("DTYPE");
  create_command.add_option("--fill", create->fill, "Value of all items (default zero)")
      ->type_name("VALUE");
  create_command.add_option("--order", create->order, "C (default) or F")
      ->check(one_of({"C", "F"}))
      ->type_name("ORDER");
  add_publish_options(create_command, create->publish);
  act(create_command, create, &run_create);

  auto import = std::make_shared<ImportOptions>();
  CLI::App& import_command =
      add("import", "Make an array from a .npy file", "import grid.npy sim/grid");
  import_command.add_option("FILE", import->file, "The file; - is standard input")->required();
  add_name(import_command, import->publish.name);
  add_publish_options(import_command, import->publish);
  act(import_command, import, &run_import);
}

void CommandLine::add_array_commands() {
  auto exporting = std::make_shared<ExportOptions>();
  CLI::App& export_command =
      add("export", "Write an array to a .npy file", "export sim/grid grid.npy");
  add_name(export_command, exporting->name);
  export_command.add_option("FILE", exporting->file, "The file; - is standard output")->required();
  act(export_command, exporting, &run_export);

  auto rm = std::make_shared<RmOptions>();
  CLI::App& rm_command = add("rm", "Delete arrays: the name now, the memory with its last holder",
                             "rm sim/grid sim/mask");
  rm_command.add_option("NAME", rm->names, "The arrays")->required();
  act(rm_command, rm, &run_rm);

  auto seal = std::make_shared<SealOptions>();
  CLI::App& seal_command = add("seal", "Make an array unchangeable", "seal sim/grid --hard");
  add_name(seal_command, seal->name);
  seal_command.add_flag("--hard", seal->hard, "So that the kernel refuses every change");
  add_seconds(seal_command, "--wait", seal->wait, "Wait this long for other writers (default 0)");
  act(seal_command, seal, &run_seal);

  auto repair = std::make_shared<RepairOptions>();
  CLI::App& repair_command =
      add("repair", "Make a broken array usable again, as it is", "repair sim/grid");
  add_name(repair_command, repair->name);
  add_seconds(repair_command, "--wait", repair->wait,
              "Wait this long for who repairs it already (default 0)");
  act(repair_command, repair, &run_repair);

  auto chmod = std::make_shared<ChmodOptions>();
  CLI::App& chmod_command = add("chmod", "Change who may open an array", "chmod 0644 sim/grid");
  chmod_command.add_option("PERMS", chmod->perms, "Octal bits of 0666")
      ->required()
      ->check(CLI::Validator(check_octal, ""));
  add_name(chmod_command, chmod->name);
  act(chmod_command, chmod, &run_chmod);
}

void CommandLine::add_lifetime_commands() {
  auto keep = std::make_shared<KeepOptions>();
  CLI::App& keep_command =
      add("keep", "Keep an array when nobody holds it", "keep sim/grid --ttl 3600");
  add_name(keep_command, keep->name);
  add_seconds(keep_command, "--ttl", keep->ttl, "For this long (default: until it is deleted)");
  act(keep_command, keep, &run_keep);

  auto unkeep = std::make_shared<NameOption>();
  CLI::App& unkeep_command =
      add("unkeep", "Let an array go with its last holder", "unkeep sim/grid");
  add_name(unkeep_command, unkeep->name);
  act(unkeep_command, unkeep, &run_unkeep);

  auto wait = std::make_shared<WaitOptions>();
  CLI::App& wait_command =
      add("wait", "Wait until an array is there and ready", "wait sim/grid --timeout 10");
  add_name(wait_command, wait->name);
  add_seconds(wait_command, "--timeout", wait->timeout, "Give up after this long");
  add_count(wait_command, "--newer-than", wait->newer_than, "Wait for a version above this one")
      ->type_name("VERSION");
  act(wait_command, wait, &run_wait);
}

void CommandLine::add_store_commands() {
  group_ = "Store";
  act(add("gc", "Give unused memory back to the system", "gc"), &run_gc);
  act(add("doctor", "Check the machine and the daemon, and say what to do", "doctor"), &run_doctor);
  act(add("metrics", "Counters in OpenMetrics text", "metrics"), &run_metrics);
  act(add("selfcheck", "Let the daemon check its own books", "selfcheck"), &run_selfcheck);

  auto stop = std::make_shared<StopOptions>();
  CLI::App& stop_command = add("stop", "End the daemon; its arrays go with it", "stop");
  stop_command.add_flag("--all", stop->all, "All daemons of this user, wherever they listen");
  act(stop_command, stop, &run_stop);
}

void CommandLine::add_other_commands() {
  group_ = "Other";
  auto run = std::make_shared<RunOptions>();
  CLI::App& run_command = add("run", "Run a command with a private store and say what it leaked",
                              "run -- python job.py");
  run_command.add_option("CMD", run->command, "The command and its arguments, after --")
      ->required();
  act(run_command, run, &run_run);

  auto completion = std::make_shared<CompletionOptions>();
  CLI::App& completion_command = add("completion", "Print the completion script of a shell",
                                     "completion bash > ~/.bash_completion.d/shmctl");
  completion_command.add_option("SHELL", completion->shell, "bash, zsh or fish")
      ->required()
      ->check(one_of({"bash", "zsh", "fish"}));
  completion_command.callback(
      [this, completion] { action_ = [completion] { return run_completion(*completion); }; });
}

/// The line is wrong: says why, and where to read more.
int CommandLine::refuse(std::string problem) {
  const std::vector<CLI::App*> given = app_.get_subcommands();
  const std::vector<std::string> rest = app_.remaining();
  if (given.empty() && rest.empty()) {
    std::fputs(app_.help().c_str(), stderr);
    return kUsage;
  }
  // An option of the command was taken for one of ours.
  if (!given.empty() && given.front()->get_name() == "run" && !rest.empty()) {
    problem = "put -- before the command";
  }
  if (given.empty()) problem = "there is no subcommand '" + rest.front() + "'";
  const std::string program = "shmctl " + (given.empty() ? "" : given.front()->get_name() + " ");
  const std::string text = paint(Style::red, "error:", colour_wanted(stderr)) +
                           " usage: " + problem + "; see " + program + "--help\n";
  std::fputs(text.c_str(), stderr);
  return kUsage;
}

int CommandLine::run(int argc, char** argv) {
  try {
    app_.parse(argc, argv);
  } catch (const CLI::Success& success) {  // --help, --version
    app_.exit(success);
    return finish_output(kDone);
  } catch (const CLI::ParseError& error) {
    return refuse(error.what());
  }
  return finish_output(action_());
}

}  // namespace shmctl

int main(int argc, char** argv) {
  try {
    shmctl::CommandLine line;
    line.add_look_commands();
    line.add_publish_commands();
    line.add_array_commands();
    line.add_lifetime_commands();
    line.add_store_commands();
    line.add_other_commands();
    return line.run(argc, argv);
  } catch (const std::exception& exception) {  // Out of memory, or a bug of ours.
    return shmctl::fail({shmstore::ErrorCode::internal, exception.what()});
  }
}
