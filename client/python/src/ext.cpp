// The module shmstore._ext. Not an interface: shmstore's Python files are its only user.

#include <nanobind/nanobind.h>

#include "array_type.hpp"
#include "calls.hpp"
#include "client.hpp"
#include "lease.hpp"
#include "shmstore/version.hpp"

namespace nb = nanobind;

NB_MODULE(_ext, module) {
  // Arrays that live until the interpreter is gone are given back by the end of the process.
  nb::set_leak_warnings(false);
  module.doc() = "Compiled half of shmstore; private.";
  module.attr("__version__") = SHMSTORE_VERSION_STRING;

  shmstore::python::bind_array_type(module);
  shmstore::python::bind_lease(module);
  shmstore::python::bind_client(module);
  shmstore::python::bind_waits(module);
  module.def("note_main_thread", &shmstore::python::note_main_thread, nb::arg("ident"),
             "Tells on which thread Python runs signal handlers.");
}
