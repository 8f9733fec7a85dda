#pragma once
/// The edge of the API: nothing that a call of the library throws gets past it.

#include <cxxabi.h>

#include <exception>
#include <new>
#include <utility>

#include "shmstore/error.hpp"

namespace shmstore::client_internal {

/// Runs `body`, which returns a Result; running out of memory becomes no_capacity, anything else
/// that is thrown internal. (Texts are short enough to need no memory.)
template <class Body>
auto guarded(Body&& body) -> decltype(body()) {
  try {
    return std::forward<Body>(body)();
  } catch (const abi::__forced_unwind&) {
    throw;  // pthread_exit within a callback: must not be swallowed.
  } catch (const std::bad_alloc&) {
    return make_error(ErrorCode::no_capacity, "out of memory");
  } catch (...) {
    return make_error(ErrorCode::internal, "exception");
  }
}

}  // namespace shmstore::client_internal
