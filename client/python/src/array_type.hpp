#pragma once
/// ArrayBase, the compiled base class of shmstore.SharedArray: what has to be fast or cannot be
/// said in Python. Works on numpy's public Python interface, so one build runs with any numpy.

#include <nanobind/nanobind.h>

namespace shmstore::python {

namespace nb = nanobind;

/// numpy.ndarray.
[[nodiscard]] PyTypeObject* ndarray_type() noexcept;

/// True for instances of ArrayBase, with a lease or without.
[[nodiscard]] bool is_shared_array(nb::handle object) noexcept;

/// What the memory of an ndarray really hangs on: `.base` without ArrayBase's own idea of it.
[[nodiscard]] nb::object direct_base(nb::handle array);

/// Makes the type. numpy is imported here.
void bind_array_type(nb::module_& module);

}  // namespace shmstore::python
