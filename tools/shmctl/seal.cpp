#include "commands.hpp"
#include "connect.hpp"
#include "output.hpp"

namespace shmctl {

using shmstore::AnyArray;
using shmstore::ArrayInfo;

namespace {

/// Joins the writers of the array and seals it.
Result<void> seal(shmstore::Client& client, const SealOptions& options) {
  shmstore::AttachOptions attach_options;
  attach_options.access = shmstore::Access::write;
  attach_options.timeout = options.wait;  // for who has it exclusively
  Result<AnyArray> array = attach(client, options.name, attach_options);
  if (!array) return array.error();
  shmstore::SealOptions seal_options;
  seal_options.hard = options.hard;
  seal_options.wait = options.wait;
  return array->seal(seal_options);
}

}  // namespace

int run_seal(const Globals& globals, const SealOptions& options) {
  Result<shmstore::Client> client = connect(globals);
  if (!client) return fail(client.error());
  Result<ArrayInfo> info = find_info(*client, options.name);
  if (!info) return fail(info.error());
  // Nobody can attach a sealed array for writing; sealing it again is no mistake.
  const bool sealed_before = info->state == "sealed" && !(options.hard && info->sealed != "hard");
  if (!sealed_before) {
    if (Result<void> sealed = seal(*client, options); !sealed) return fail(sealed.error());
  }
  if (globals.json) return print_json(admin_on(*client, "info", options.name));
  say(options.name + (sealed_before ? " was sealed already" : " is sealed"));
  return kDone;
}

}  // namespace shmctl
