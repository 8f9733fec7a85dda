#pragma once
/// How the extension calls the C++ client: without the GIL, with Ctrl-C, and with errors turned
/// into the exceptions of shmstore._errors.

#include <nanobind/nanobind.h>
#include <unistd.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "shmstore/error.hpp"

namespace shmstore::python {

namespace nb = nanobind;

/// Runs `work`, which takes the GIL or runs Python. While one thread takes the interpreter down,
/// Python before 3.14 ends every other thread that comes for the GIL, by unwinding its stack: that
/// cannot go through C++ frames, so such a thread stops here for good instead.
template <class Work>
auto or_stop_for_good(Work&& work) noexcept {
  try {
    return std::forward<Work>(work)();
  } catch (...) {
    // Only the end of the thread comes here: `work` is C code.
    for (;;) pause();
  }
}

/// Gives the GIL back for a scope.
class WithoutGil {
 public:
  WithoutGil() noexcept : state_(PyEval_SaveThread()) {}
  ~WithoutGil() {
    or_stop_for_good([this] { PyEval_RestoreThread(state_); });
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

/// Takes the GIL for a scope, in a thread of Python's that had given it back.
class WithGil {
 public:
  WithGil() noexcept : held_(or_stop_for_good([] { return PyGILState_Ensure(); })) {}
  ~WithGil() { PyGILState_Release(held_); }
  WithGil(const WithGil&) = delete;
  WithGil& operator=(const WithGil&) = delete;

 private:
  PyGILState_STATE held_;
};

/// Notes which thread Python treats as the main one: only there do signal handlers run.
/// To be called at import and in a forked child.
void note_main_thread(std::uint64_t ident) noexcept;

/// ConnectOptions::interrupted: runs Python's signal handlers; true if one raised (the exception
/// is then set in this thread). Called without the GIL.
[[nodiscard]] bool interrupted();

/// While one is alive, this thread waits without a limit, if `endless`. Threads other than the main
/// one cannot be interrupted, but such a wait is given up when nobody can get its result any more:
/// otherwise it would keep the program from ending.
class EndlessWait {
 public:
  explicit EndlessWait(bool endless) noexcept;
  ~EndlessWait();
  EndlessWait(const EndlessWait&) = delete;
  EndlessWait& operator=(const EndlessWait&) = delete;

 private:
  bool endless_;
};

/// What such waits ask, and what ends them all.
void bind_waits(nb::module_& module);

/// While one is alive, interrupted() is false on this thread: destructors cannot raise.
class NoInterrupt {
 public:
  NoInterrupt() noexcept;
  ~NoInterrupt();
  NoInterrupt(const NoInterrupt&) = delete;
  NoInterrupt& operator=(const NoInterrupt&) = delete;
};

/// Raises `error` as its exception class.
[[noreturn]] void raise(const Error& error);

/// Runs `work`, which returns a Result, without the GIL. Raises its error, or the exception that
/// was set on the way (KeyboardInterrupt, or what a loader raised); else returns the value.
template <class Work>
auto call(Work&& work) {
  auto result = [&] {
    WithoutGil unlocked;
    return std::forward<Work>(work)();
  }();
  using Value = std::remove_reference_t<decltype(result)>;
  if (PyErr_Occurred() != nullptr) {
    // Whatever was granted must not be given back under the GIL.
    PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
    PyErr_Fetch(&type, &value, &trace);
    {
      WithoutGil unlocked;
      result = Value(Error{ErrorCode::aborted, {}});
    }
    PyErr_Restore(type, value, trace);
    throw nb::python_error();
  }
  if (!result) raise(result.error());
  if constexpr (!std::is_same_v<Value, Result<void>>) return std::move(*result);
}

}  // namespace shmstore::python
