#include "publish.hpp"

#include <charconv>
#include <string>

#include "connect.hpp"
#include "dtype_names.hpp"

namespace shmctl {

using shmstore::AnyArray;
using shmstore::Client;
using shmstore::ErrorCode;
using shmstore::make_error;

namespace {

std::string summary(const AnyArray& array, const PublishOptions& options, std::string_view verb) {
  std::string text(verb);
  text += " " + array.name() + ": " + dtype_for_people(array.dtype().text()) + " " +
          shape_text(array.shape()) + ", " + bytes_text(array.bytes()) + ", " +
          std::string(to_string(array.state()));
  if (array.version() > 1) text += ", version " + std::to_string(array.version());
  if (options.no_keep) return text + ", not kept";
  if (!options.ttl) return text + ", kept";
  return text + ", kept for " + span_text(std::chrono::duration<double>(*options.ttl).count());
}

}  // namespace

Result<std::uint16_t> parse_perms(std::string_view text) {
  std::uint16_t perms = 0;
  const char* end = text.data() + text.size();
  const auto [stop, status] = std::from_chars(text.data(), end, perms, 8);
  if (status != std::errc() || stop != end) {
    return make_error(ErrorCode::invalid_argument,
                      "perms: '" + std::string(text) + "' is no octal number such as 0644");
  }
  return perms;
}

Result<shmstore::CreateOptions> create_options(const PublishOptions& options,
                                               shmstore::Order order) {
  Result<std::uint16_t> perms = parse_perms(options.perms);
  if (!perms) return perms.error();
  shmstore::CreateOptions client_options;
  client_options.order = order;
  client_options.is_mutable = options.is_mutable;
  client_options.keep = !options.no_keep;
  client_options.ttl = options.ttl;
  client_options.perms = *perms;
  client_options.attrs = options.attrs;
  client_options.replace = options.replace;
  client_options.hard = options.hard;
  return client_options;
}

int publish(const Globals& globals, Client& client, AnyArray array, const PublishOptions& options,
            std::string_view verb) {
  if (!options.is_mutable) {
    if (Result<void> sealed = array.seal(); !sealed) return fail(sealed.error());
  }
  if (globals.json) {
    const int printed = print_json(admin_on(client, "info", options.name));
    if (printed != kDone) return printed;
  } else {
    say(summary(array, options, verb));
  }
  if (options.no_keep) {
    note("not kept: " + array.name() +
         " ends with this command, unless another process holds it by now");
  }
  if (Result<void> released = array.release(); !released) return fail(released.error());
  return kDone;
}

}  // namespace shmctl
