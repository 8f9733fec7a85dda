#include "commands.hpp"
#include "connect.hpp"
#include "output.hpp"

namespace shmctl {

using shmstore::AnyArray;
using shmstore::ArrayInfo;

namespace {

/// Joins the writers of the array and seals it. One that is sealed softly has no writers to join.
Result<void> seal(shmstore::Client& client, const SealOptions& options, bool softly_sealed) {
  shmstore::AttachOptions attach_options;
  attach_options.access = softly_sealed ? shmstore::Access::read : shmstore::Access::write;
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
  const bool sealed = info->state == "sealed";
  const bool sealed_before = sealed && !(options.hard && info->sealed != "hard");
  if (!sealed_before) {
    if (Result<void> done = seal(*client, options, sealed); !done) return fail(done.error());
  }
  if (globals.json) return print_json(admin_on(*client, "info", options.name));
  say(options.name + (sealed_before ? " was sealed already" : " is sealed"));
  return kDone;
}

}  // namespace shmctl
