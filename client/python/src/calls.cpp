#include "calls.hpp"

#include <atomic>
#include <cstdint>
#include <string>

namespace shmstore::python {

namespace {

std::atomic<std::uint64_t> main_thread{0};
thread_local int quiet_scopes = 0;

}  // namespace

void note_main_thread(std::uint64_t ident) noexcept {
  main_thread = ident;
}

NoInterrupt::NoInterrupt() noexcept {
  ++quiet_scopes;
}
NoInterrupt::~NoInterrupt() {
  --quiet_scopes;
}

bool interrupted() {
  if (quiet_scopes != 0 || PyThread_get_thread_ident() != main_thread) return false;
  const WithGil held;
  return PyErr_Occurred() == nullptr && PyErr_CheckSignals() != 0;
}

void raise(const Error& error) {
  nb::object kind = nb::module_::import_("shmstore._errors")
                        .attr("BY_CODE")[nb::int_(static_cast<std::uint16_t>(error.code))];
  // The text may quote bytes of a name that are not UTF-8.
  nb::object text = nb::steal(PyUnicode_DecodeUTF8(
      error.text.data(), static_cast<Py_ssize_t>(error.text.size()), "backslashreplace"));
  if (!text.is_valid()) throw nb::python_error();
  PyErr_SetObject(kind.ptr(), text.ptr());
  throw nb::python_error();
}

}  // namespace shmstore::python
