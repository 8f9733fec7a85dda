#include <cstdio>

#include "commands.hpp"
#include "connect.hpp"
#include "output.hpp"
#include "table.hpp"

namespace shmctl {

using shmstore::Event;

namespace {

std::string padded(std::string_view text, std::size_t width) {
  std::string out(text);
  if (out.size() < width) out.append(width - out.size(), ' ');
  return out;
}

Style style_of(const Event& event) {
  if (event.event == "deleted" || event.event == "broken") return Style::red;
  if (event.event == "lost") return Style::yellow;
  return event.event == "sealed" ? Style::green : Style::cyan;
}

void print_event(const Event& event, bool colour) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const std::string clock = time_text(std::chrono::duration<double>(now).count()).substr(11);
  std::string line = paint(Style::dim, clock, colour) + "  " +
                     paint(style_of(event), padded(event.event, 8), colour) + "  ";
  if (event.event == "lost") {
    line += "some events were dropped: this watch was too slow";
  } else {
    line += event.name.empty() ? "%" + event.id : event.name;
    if (event.version > 0) line += "  version " + std::to_string(event.version);
  }
  say(line);
}

}  // namespace

int run_watch(const Globals& globals, const WatchOptions& options) {
  Result<shmstore::Client> client = connect(globals);
  if (!client) return fail(client.error());
  Result<shmstore::Watch> watch = client->watch(options.prefix);
  if (!watch) return fail(watch.error());
  const bool colour = colour_wanted(stdout);
  for (std::uint64_t seen = 0; options.count == 0 || seen < options.count; ++seen) {
    Result<Event> event = watch->next();
    if (!event) return fail(event.error());
    if (globals.json) {
      say(event->json);
    } else {
      print_event(*event, colour);
    }
    // Whoever reads the other end of a pipe wants it now. A reader that left ends the watch.
    if (std::fflush(stdout) != 0) return kRefused;
  }
  return kDone;
}

}  // namespace shmctl
