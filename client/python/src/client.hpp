#pragma once
/// The extension's Client and Watch: thin, positional, milliseconds and texts. shmstore._client
/// turns Python's arguments into these.

#include <nanobind/nanobind.h>

namespace shmstore::python {

void bind_client(nanobind::module_& module);

}  // namespace shmstore::python
