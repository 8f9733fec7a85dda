#pragma once
/// The object at the end of an array's `.base` chain: it owns the lease and the mapping.

#include <nanobind/nanobind.h>

#include <sys/types.h>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "shmstore/client.hpp"

namespace shmstore::python {

namespace nb = nanobind;

/// Owns one AnyArray and exports its bytes by the buffer protocol.
///
/// Two kinds of members: those that describe the array are read and written under the GIL only and
/// never wait; `array_` is used under `mutex_` and without the GIL, because its calls do. The
/// destructor runs in whatever thread drops the last reference.
class Lease {
 public:
  /// How the lease came to be, for the one that the user gets.
  enum class From : std::uint8_t {
    other,
    attach,
    unkept
  };
  Lease(Client client, AnyArray array, From from = From::other);
  ~Lease();
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  // -- what it is; under the GIL ----------------------------------------------------------------
  [[nodiscard]] bool valid() const noexcept { return data_ != nullptr; }
  [[nodiscard]] std::uint64_t address() const noexcept;
  /// Where the bytes from `low` to before `high` are in the array: in the memory that it shows, or
  /// in that of before it was sealed. Nothing: elsewhere.
  [[nodiscard]] std::optional<std::uint64_t> offset(std::uint64_t low,
                                                    std::uint64_t high) const noexcept;
  /// Where what was at `before` the seal is now; null for what was not in the array.
  [[nodiscard]] std::byte* moved(const std::byte* before) const noexcept {
    const bool inside = draft_data_ != nullptr && before >= draft_data_ &&
                        before - draft_data_ <= static_cast<std::ptrdiff_t>(bytes_);
    return inside ? data_ + (before - draft_data_) : nullptr;
  }
  [[nodiscard]] std::uint64_t id() const noexcept { return id_; }
  [[nodiscard]] std::uint64_t store_id() const noexcept { return store_id_; }
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] const std::string& dtype() const noexcept { return dtype_; }
  [[nodiscard]] nb::tuple shape() const;
  [[nodiscard]] const char* order() const noexcept { return order_ == Order::f ? "F" : "C"; }
  [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }
  [[nodiscard]] std::uint16_t perms() const noexcept { return perms_; }
  [[nodiscard]] std::uint64_t version() const noexcept { return version_; }
  [[nodiscard]] const char* state() const noexcept { return to_string(state_).data(); }
  [[nodiscard]] const char* access() const noexcept { return to_string(access_).data(); }
  [[nodiscard]] const char* sealed() const noexcept;  ///< Null when not sealed.
  [[nodiscard]] bool creator() const noexcept { return creator_; }
  [[nodiscard]] bool inherited() const noexcept { return array_.inherited(); }
  /// The mode of those handles that can be opened on this lease as it is, with no round trip, or
  /// "": nobody can change a sealed array, and nobody can seal a mutable one that is held `r+`.
  [[nodiscard]] const char* opens() const noexcept;
  [[nodiscard]] std::string socket_path() const { return client_.socket_path(); }
  /// Got by `attach`: the end of a `with` block lets go of it.
  [[nodiscard]] bool attached() const noexcept { return from_ == From::attach; }

  // -- what it does; blocks, gives the GIL back -------------------------------------------------
  void seal(bool hard, std::optional<std::int64_t> wait_ms);
  /// The number of a handle for one receiver (`once`), or 0.
  std::uint64_t handover(bool once);
  /// This process has what that handle named.
  void received(std::uint64_t handle);
  /// Drops the draft: the name is free now, the memory goes with this object.
  void abort();
  /// Ends the lease and unmaps. REQUIRES: nobody uses the memory any more.
  void release();
  /// Ends the lease; the memory stays, private where it was writable, for the arrays that are left.
  void let_go(bool half_written);

  /// The type's Py_bf_… slots.
  static int get_buffer(PyObject* self, Py_buffer* view, int flags);
  static void release_buffer(PyObject* self, Py_buffer* view);
  /// Buffers of this object and of SharedArrays on it that are out.
  [[nodiscard]] std::int64_t exports() const noexcept { return exports_; }
  void count_export(int change) noexcept { exports_ += change; }

 private:
  template <class Work>
  void locked(Work&& work);
  void describe();
  void note_published();
  [[nodiscard]] bool is_lost_at_once() const;
  void warn_if_lost(bool at_once);

  Client client_;
  AnyArray array_;
  std::unique_ptr<std::mutex> mutex_;
  pid_t mutex_pid_;  ///< In a forked child the mutex may be held by a thread that is not there.

  std::byte* data_ = nullptr;
  std::byte* draft_data_ = nullptr;  ///< Of before the seal; stays valid for what points there.
  std::uint64_t id_ = 0, store_id_ = 0, bytes_ = 0, version_ = 0;
  std::int64_t exports_ = 0;
  std::string name_, dtype_;
  std::vector<std::uint64_t> shape_;
  Order order_ = Order::c;
  std::uint16_t perms_ = 0;
  State state_ = State::draft;
  Seal seal_ = Seal::none;
  Access access_ = Access::read;
  bool creator_ = false;
  From from_;
  std::chrono::steady_clock::time_point published_{};  ///< Unkept, by this object; else zero.
};

/// Counts a buffer of `array` that is given out (1) or comes back (-1) on the lease under it, if
/// any.
void count_buffer(nb::handle array, int change);

/// Whether the memory of `array` is that of a lease, valid or not.
bool has_lease(nb::handle array);

/// After the array's seal: lets `array`, an ndarray that lies in the memory of before, lie at the
/// same place of what the lease of `root` shows now, and be based on `root`. In place, because
/// callers refer to it. Nothing happens to an array that lies elsewhere.
void move_array(nb::handle array, nb::handle root);

/// Ends the lease under `array`, a SharedArray, if nothing but the caller refers to it: no other
/// name or container, no view of it, no buffer. `array` is empty then. False: nothing was changed.
/// Raises InvalidArgument for what has nothing to do with the store.
bool release_array(nb::handle array);

void bind_lease(nb::module_& module);

}  // namespace shmstore::python
