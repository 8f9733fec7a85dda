#pragma once
/// ArrayBase, the compiled base class of shmstore.SharedArray: what has to be fast or cannot be
/// said in Python. Works on numpy's public Python interface, and where that does not suffice on the
/// part of its binary one that is the same in all versions, so one build runs with any numpy.

#include <nanobind/nanobind.h>

#include <cstddef>

namespace shmstore::python {

namespace nb = nanobind;

/// numpy.ndarray.
[[nodiscard]] PyTypeObject* ndarray_type() noexcept;

/// True for instances of ArrayBase, with a lease or without.
[[nodiscard]] bool is_shared_array(nb::handle object) noexcept;

/// What the memory of an ndarray really hangs on: `.base` without ArrayBase's own idea of it.
[[nodiscard]] nb::object direct_base(nb::handle array);

/// The beginning of every ndarray, as numpy's binary interface has it (PyArrayObject_fields).
struct ArrayMemory {
  PyObject_HEAD std::byte* data;
  int ndim;
  Py_ssize_t* shape;
  Py_ssize_t* strides;
  PyObject* base;
};
/// REQUIRES: an ndarray.
[[nodiscard]] ArrayMemory& memory_of(nb::handle array) noexcept;

/// Makes the type. numpy is imported here. Throws when it is not as memory_of() expects.
void bind_array_type(nb::module_& module);

}  // namespace shmstore::python
