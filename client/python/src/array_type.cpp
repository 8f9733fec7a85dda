#include "array_type.hpp"

#include "lease.hpp"

// The type is an ndarray that knows views from results: a view of shared memory stays a
// SharedArray, everything computed becomes a plain ndarray. There is no __array_finalize__, which
// would cost every slice; instead the places are covered where numpy makes new arrays of the type:
// ufuncs (__array_wrap__), numpy's functions (__array_function__), indexing by lists and masks
// (__getitem__). Methods that copy are covered in Python (shmstore._array).
//
// Such a new array is recognised by its memory: its own, or that of plain arrays below it.
//
// What refers to what, for an array x, a view of it and a plain view:
//
//   lease  <-  root (a plain ndarray)  <-  x  <-  x[1:]
//                                      <-  numpy.asarray(x)
//
// numpy gives a new view the first base of another type than its own; the root makes plain views
// bypass x, and `.base` of a SharedArray skips the SharedArrays below. So nothing but variables and
// containers of Python leads to x, and release() can tell from reference counts whether there are
// views. Buffers (memoryview) do lead to x and are counted by the lease.

namespace shmstore::python {

namespace {

PyTypeObject* ndarray = nullptr;       // numpy.ndarray
PyTypeObject* array_base = nullptr;    // ArrayBase
PyObject* base_of_ndarray = nullptr;   // the descriptor numpy.ndarray.base
PyObject* name_view = nullptr;         // "view"
PyObject* name_shape = nullptr;        // "shape"
PyObject* ndarray_function = nullptr;  // numpy.ndarray.__array_function__
PyObject* no_index = nullptr;          // ()

/// `result`, or a plain view of it if it is a SharedArray without a lease. Steals and returns a
/// reference; null goes through.
PyObject* plain_result(PyObject* result) {
  if (result == nullptr || PyObject_TypeCheck(result, array_base) == 0) return result;
  nb::object base = direct_base(result);
  while (Py_TYPE(base.ptr()) == ndarray) base = direct_base(base);
  if (!base.is_none()) return result;  // a view: of a SharedArray, or over a lease's root
  PyObject* plain =
      PyObject_CallMethodObjArgs(result, name_view, reinterpret_cast<PyObject*>(ndarray), nullptr);
  Py_DECREF(result);
  return plain;
}

/// SharedArray.base: the first base that is no SharedArray.
PyObject* skipping_base(PyObject* self, void*) {
  nb::object base = direct_base(self);
  while (is_shared_array(base)) base = direct_base(base);
  return base.release().ptr();
}

// Buffers of an array keep it, and only its lease knows of them.

int get_buffer(PyObject* self, Py_buffer* view, int flags) {
  const int failed = ndarray->tp_as_buffer->bf_getbuffer(self, view, flags);
  if (failed == 0) count_buffer(self, 1);
  return failed;
}

void release_buffer(PyObject* self, Py_buffer* view) {
  count_buffer(self, -1);
  if (ndarray->tp_as_buffer->bf_releasebuffer != nullptr) {
    ndarray->tp_as_buffer->bf_releasebuffer(self, view);
  }
}

PyObject* subscript(PyObject* self, PyObject* key) {
  return plain_result(ndarray->tp_as_mapping->mp_subscript(self, key));
}

/// A view that numpy has made plain, as `squeeze` does before it asks, is one of our type again.
/// Zero-dimensional results are scalars, as they are for plain arrays. numpy 2 says when
/// (`return_scalar`); before, always.
PyObject* wrap_result(PyObject* self, PyObject* array, int return_scalar) {
  if (return_scalar <= 0 && Py_TYPE(array) == ndarray && has_lease(array)) {
    return PyObject_CallMethodObjArgs(array, name_view, Py_TYPE(self), nullptr);
  }
  if (return_scalar < 0) {
    PyObject* shape = PyObject_GetAttr(array, name_shape);
    if (shape == nullptr) return nullptr;
    return_scalar = PyTuple_GET_SIZE(shape) == 0 ? 1 : 0;
    Py_DECREF(shape);
  }
  if (return_scalar != 0) return PyObject_GetItem(array, no_index);
  Py_INCREF(array);
  return plain_result(array);
}

/// __array_wrap__(array, context=None, return_scalar=False)
PyObject* array_wrap(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count < 1 || count > 3) {
    PyErr_SetString(PyExc_TypeError, "__array_wrap__ takes one to three arguments");
    return nullptr;
  }
  if (args[0] == self) {  // out= or an operation in place
    Py_INCREF(self);
    return self;
  }
  const int return_scalar = count == 3 ? PyObject_IsTrue(args[2]) : -1;
  if (count == 3 && return_scalar < 0) return nullptr;
  return wrap_result(self, args[0], return_scalar);
}

/// __array_function__(func, types, args, kwargs)
PyObject* array_function(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  PyObject* stack[5] = {self, nullptr, nullptr, nullptr, nullptr};
  if (count != 4) {
    PyErr_SetString(PyExc_TypeError, "__array_function__ takes four arguments");
    return nullptr;
  }
  for (Py_ssize_t i = 0; i < count; ++i) stack[i + 1] = args[i];
  PyObject* result = PyObject_Vectorcall(ndarray_function, stack, 5, nullptr);
  if (result == nullptr || Py_TYPE(result) != ndarray) return plain_result(result);
  return result;
}

/// plain(array) as a function of the module, for the methods covered in Python.
PyObject* plain_of(PyObject*, PyObject* array) {
  Py_INCREF(array);
  return plain_result(array);
}

PyCFunction function_of(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef array_methods[] = {
    {"__array_wrap__", function_of(&array_wrap), METH_FASTCALL,
     "__array_wrap__($self, array, context=None, return_scalar=False, /)\n--\n\n"
     "Results of ufuncs are plain arrays, views of shared memory are not."},
    {"__array_function__", function_of(&array_function), METH_FASTCALL,
     "__array_function__($self, func, types, args, kwargs, /)\n--\n\n"
     "Results of numpy's functions are plain arrays, unless they are views."},
    {nullptr, nullptr, 0, nullptr},
};

PyMethodDef plain_method = {"plain", &plain_of, METH_O,
                            "plain($module, array, /)\n--\n\n"
                            "The array, or a plain view of it if it has no lease."};

PyGetSetDef array_properties[] = {
    {"base", &skipping_base, nullptr, "The array or object that owns the memory.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot array_slots[] = {
    {Py_bf_getbuffer, reinterpret_cast<void*>(&get_buffer)},
    {Py_bf_releasebuffer, reinterpret_cast<void*>(&release_buffer)},
    {Py_tp_getset, array_properties},
    {Py_mp_subscript, reinterpret_cast<void*>(&subscript)},
    {Py_tp_methods, array_methods},
    {Py_tp_doc, const_cast<char*>("Base of shmstore.SharedArray.")},
    {0, nullptr},
};

PyType_Spec array_spec = {"shmstore._ext.ArrayBase", 0, 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
                          array_slots};

nb::object checked(PyObject* object) {
  if (object == nullptr) throw nb::python_error();
  return nb::steal(object);
}

/// Throws when numpy's arrays do not begin as ArrayMemory does.
void check_memory_of(nb::handle numpy) {
  const nb::object whole = numpy.attr("zeros")(3);
  const nb::object part = whole[nb::slice(1, 3, 1)];
  const auto address =
      nb::cast<std::uintptr_t>(part.attr("__array_interface__")["data"][nb::int_(0)]);
  const ArrayMemory& memory = memory_of(part);
  if (memory.ndim != 1 || memory.base != whole.ptr() ||
      reinterpret_cast<std::uintptr_t>(memory.data) != address) {
    throw nb::import_error("shmstore: this numpy's arrays are laid out in an unknown way");
  }
}

}  // namespace

ArrayMemory& memory_of(nb::handle array) noexcept {
  return *reinterpret_cast<ArrayMemory*>(array.ptr());
}

PyTypeObject* ndarray_type() noexcept {
  return ndarray;
}

bool is_shared_array(nb::handle object) noexcept {
  return PyObject_TypeCheck(object.ptr(), array_base) != 0;
}

nb::object direct_base(nb::handle array) {
  return nb::steal(Py_TYPE(base_of_ndarray)
                       ->tp_descr_get(base_of_ndarray, array.ptr(),
                                      reinterpret_cast<PyObject*>(Py_TYPE(array.ptr()))));
}

void bind_array_type(nb::module_& module) {
  nb::object numpy = nb::module_::import_("numpy");
  check_memory_of(numpy);
  nb::object type = numpy.attr("ndarray");
  nb::object function = type.attr("__array_function__");
  nb::object bases = nb::make_tuple(type);
  nb::object base = checked(PyType_FromSpecWithBases(&array_spec, bases.ptr()));
  base_of_ndarray = type.attr("base").inc_ref().ptr();
  name_view = checked(PyUnicode_InternFromString("view")).release().ptr();
  name_shape = checked(PyUnicode_InternFromString("shape")).release().ptr();
  no_index = checked(PyTuple_New(0)).release().ptr();
  module.attr("ArrayBase") = base;
  module.attr("plain") = checked(PyCFunction_New(&plain_method, nullptr));
  ndarray_function = function.release().ptr();
  ndarray = reinterpret_cast<PyTypeObject*>(type.release().ptr());
  array_base = reinterpret_cast<PyTypeObject*>(base.release().ptr());
}

}  // namespace shmstore::python
