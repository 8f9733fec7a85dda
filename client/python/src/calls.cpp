#include "calls.hpp"

#include <atomic>
#include <cstdint>
#include <string>
#include <utility>

namespace shmstore::python {

namespace {

std::atomic<std::uint64_t> main_thread{0};
thread_local int quiet_scopes = 0;
thread_local int endless_waits = 0;
thread_local bool given_up = false;
std::atomic<bool> all_given_up{false};
PyObject* is_forsaken = nullptr;  ///< A function; null: nobody is.

/// Of a thread that is not the main one.
bool gives_up() {
  if (endless_waits == 0) return false;
  if (!all_given_up && is_forsaken != nullptr) {
    const WithGil held;
    const nb::object answer =
        nb::steal(or_stop_for_good([] { return PyObject_CallNoArgs(is_forsaken); }));
    if (!answer.is_valid()) PyErr_Clear();
    given_up = answer.is_valid() && answer.ptr() == Py_True;
  }
  given_up = given_up || all_given_up;
  return given_up;
}

}  // namespace

EndlessWait::EndlessWait(bool endless) noexcept : endless_(endless) {
  if (endless_) ++endless_waits;
  given_up = false;
}

EndlessWait::~EndlessWait() {
  if (endless_) --endless_waits;
  given_up = false;
}

void bind_waits(nb::module_& module) {
  module.def(
      "ask_waits", [](nb::object function) { is_forsaken = function.release().ptr(); },
      nb::arg("is_forsaken"),
      nb::sig("def ask_waits(is_forsaken: collections.abc.Callable[[], bool]) -> None"),
      "Names the function that is asked in threads that wait without a limit, now and then.");
  module.def(
      "give_up_waits", [] { all_given_up = true; },
      "Ends all waits without a limit but the main thread's.");
}

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
  if (quiet_scopes != 0) return false;
  if (PyThread_get_thread_ident() != main_thread) return gives_up();
  const WithGil held;
  return PyErr_Occurred() == nullptr && PyErr_CheckSignals() != 0;
}

void raise(const Error& error) {
  if (error.code == ErrorCode::aborted && std::exchange(given_up, false)) {
    raise({ErrorCode::disconnected,
           "the wait was given up: the program, or the event loop that it was for, is ending"});
  }
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
