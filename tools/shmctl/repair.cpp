#include "commands.hpp"
#include "connect.hpp"
#include "output.hpp"

namespace shmctl {

using shmstore::AnyArray;
using shmstore::ArrayInfo;

namespace {

/// Has the array alone for a moment: its normal release declares what is in it whole.
Result<void> repair(shmstore::Client& client, const RepairOptions& options) {
  shmstore::AttachOptions attach_options;
  attach_options.access = shmstore::Access::exclusive;
  attach_options.repair = true;
  attach_options.timeout = options.wait;  // for who is repairing it already
  Result<AnyArray> array = attach(client, options.name, attach_options);
  if (!array) return array.error();
  return array->release();
}

}  // namespace

int run_repair(const Globals& globals, const RepairOptions& options) {
  Result<shmstore::Client> client = connect(globals);
  if (!client) return fail(client.error());
  Result<ArrayInfo> info = find_info(*client, options.name);
  if (!info) return fail(info.error());
  const bool broken = info->state == "broken";
  if (broken) {
    if (Result<void> repaired = repair(*client, options); !repaired) {
      return fail(repaired.error());
    }
  }
  if (globals.json) return print_json(admin_on(*client, "info", options.name));
  say(options.name + (broken ? " is usable again, with what is in it" : " was not broken"));
  return kDone;
}

}  // namespace shmctl
