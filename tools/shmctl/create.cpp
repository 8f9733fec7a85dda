#include <vector>

#include "commands.hpp"
#include "connect.hpp"
#include "dtype_names.hpp"
#include "fill.hpp"
#include "output.hpp"
#include "publish.hpp"

namespace shmctl {

using shmstore::AnyArray;
using shmstore::Client;
using shmstore::Dtype;

int run_create(const Globals& globals, const CreateOptions& options) {
  // Everything that can be wrong with the arguments is found before a daemon is looked for.
  Result<Dtype> dtype = Dtype::parse(dtype_from_numpy(options.dtype));
  if (!dtype) return fail(dtype.error());
  std::vector<std::byte> item(dtype->itemsize());
  if (options.fill) {
    Result<std::vector<std::byte>> parsed = parse_fill(*dtype, *options.fill);
    if (!parsed) return fail(parsed.error());
    item = std::move(*parsed);
  }
  const shmstore::Order order = options.order == "F" ? shmstore::Order::f : shmstore::Order::c;
  Result<shmstore::CreateOptions> client_options = create_options(options.publish, order);
  if (!client_options) return fail(client_options.error());

  Result<Client> client = connect(globals, Autostart::if_missing);
  if (!client) return fail(client.error());
  Result<AnyArray> array =
      client->create_any(options.publish.name, dtype->text(), options.shape, *client_options);
  if (!array) return fail(array.error());
  fill_with({array->writable_data(), array->bytes()}, item);
  return publish(globals, *client, std::move(*array), options.publish, "created");
}

}  // namespace shmctl
