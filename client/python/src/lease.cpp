#include "lease.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <utility>

#include "array_type.hpp"
#include "calls.hpp"
#include "options.hpp"

namespace shmstore::python {

namespace {

/// An array that was published and is let go of so soon was not meant to be.
constexpr auto kAtOnce = std::chrono::milliseconds(1);

/// Said once by a process. Asking the store costs those who mean it a round trip, so not for ever.
std::atomic<bool> was_warned{false};
std::atomic<int> times_left{100};

}  // namespace

Lease::Lease(Client client, AnyArray array, From from)
    : client_(std::move(client)),
      array_(std::move(array)),
      mutex_(std::make_unique<std::mutex>()),
      mutex_pid_(getpid()),
      from_(from) {
  id_ = array_.id().raw;
  store_id_ = array_.store_id();
  bytes_ = array_.bytes();
  name_ = array_.name();
  dtype_ = array_.dtype().text();
  shape_.assign(array_.shape().begin(), array_.shape().end());
  order_ = array_.order();
  describe();
  if (state_ != State::draft) note_published();
}

void Lease::note_published() {
  if (from_ == From::unkept && !name_.empty()) published_ = std::chrono::steady_clock::now();
}

/// `shm.put("x", a)` without a variable: the array is gone when the statement is.
bool Lease::is_lost_at_once() const {
  return published_ != std::chrono::steady_clock::time_point{} && valid() && !inherited() &&
         !was_warned && times_left > 0 && Py_IsInitialized() != 0 &&
         std::chrono::steady_clock::now() - published_ < kAtOnce;
}

/// REQUIRES: no exception is set. The lease has ended.
void Lease::warn_if_lost(bool at_once) {
  if (!at_once || times_left.fetch_sub(1) <= 0) return;
  bool there = true;
  {
    NoInterrupt quiet;
    WithoutGil unlocked;
    const Result<bool> found = client_.exists(name_);  // by another's lease, or kept meanwhile
    there = !found || *found;
  }
  if (there || was_warned.exchange(true)) return;
  const int failed = PyErr_WarnFormat(
      PyExc_ResourceWarning, 1,
      "shmstore: array '%s' is gone, because nothing holds it: keep what put or create returns as "
      "long as it is needed, or make it with keep=True",
      name_.c_str());
  if (failed != 0) PyErr_WriteUnraisable(nullptr);
}

Lease::~Lease() {
  // Unmapping a large array takes milliseconds, and the release may have to wait for room in the
  // socket: neither may hold up other threads. An exception may be set: this runs anywhere.
  PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  const bool at_once = is_lost_at_once();
  {
    NoInterrupt quiet;
    WithoutGil unlocked;
    array_ = AnyArray();
  }
  warn_if_lost(at_once);
  PyErr_Restore(type, value, trace);
}

void Lease::describe() {
  version_ = array_.version();
  state_ = array_.state();
  seal_ = array_.sealed();
  access_ = array_.access();
  perms_ = array_.perms();
  creator_ = array_.is_creator();
  // Only handed out as read-only memory unless access allows writing: see get_buffer.
  data_ = const_cast<std::byte*>(array_.data());
}

std::uint64_t Lease::address() const noexcept {
  return reinterpret_cast<std::uintptr_t>(data_);
}

std::optional<std::uint64_t> Lease::offset(std::uint64_t low, std::uint64_t high) const noexcept {
  for (const std::byte* memory : {data_, draft_data_}) {
    const auto start = reinterpret_cast<std::uintptr_t>(memory);
    if (memory != nullptr && start <= low && high <= start + bytes_) return low - start;
  }
  return std::nullopt;
}

const char* Lease::sealed() const noexcept {
  switch (seal_) {
    case Seal::none: return nullptr;
    case Seal::soft: return "soft";
    case Seal::hard: return "hard";
  }
  return nullptr;
}

const char* Lease::opens() const noexcept {
  if (!valid() || inherited()) return "";
  if (state_ == State::sealed && access_ == Access::read) return "r";
  return state_ == State::mutable_ && access_ == Access::write ? "w" : "";
}

nb::tuple Lease::shape() const {
  nb::list dims;
  for (const std::uint64_t dim : shape_) dims.append(dim);
  return nb::tuple(dims);
}

template <class Work>
void Lease::locked(Work&& work) {
  if (mutex_pid_ != getpid()) {
    static_cast<void>(mutex_.release());  // Nobody will ever unlock it.
    mutex_ = std::make_unique<std::mutex>();
    mutex_pid_ = getpid();
  }
  call([&]() -> Result<void> {
    const std::lock_guard held(*mutex_);
    return work();
  });
}

void Lease::seal(bool hard, std::optional<std::int64_t> wait_ms) {
  SealOptions options;
  options.hard = hard;
  options.wait = timeout_of(wait_ms);
  const EndlessWait waits(!wait_ms);
  locked([&] { return array_.seal(options); });
  std::byte* const before = data_;
  describe();
  if (data_ != before) draft_data_ = before;
  note_published();
}

std::uint64_t Lease::handover(bool once) {
  std::uint64_t number = 0;
  locked([&]() -> Result<void> {
    if (!once) return array_.handover();
    Result<std::uint64_t> handle = array_.handover_once();
    if (!handle) return handle.error();
    number = *handle;
    return {};
  });
  return number;
}

void Lease::received(std::uint64_t handle) {
  locked([&]() -> Result<void> {
    array_.received(handle);
    return {};
  });
}

void Lease::abort() {
  if (bytes_ == 0) {
    // That another handle sealed it is written at the map, and there is none. The release says that
    // it is of a draft, and the daemon does not believe that of a sealed array.
    creator_ = false;
    release();
    return;
  }
  bool dropped = false;
  locked([&]() -> Result<void> {
    if (!array_.is_creator()) return {};  // Sealed by another handle: it is not ours to drop.
    dropped = true;
    Result<std::string> gone =
        client_.admin("remove", R"({"id":")" + std::to_string(array_.id().raw) + R"("})");
    if (!gone) return std::move(gone).error();
    return {};
  });
  if (dropped) state_ = State::dying;
  creator_ = false;
}

void Lease::release() {
  data_ = draft_data_ = nullptr;
  locked([&] { return array_.release(); });
}

void Lease::let_go(bool half_written) {
  locked([&] { return array_.let_go(half_written); });
  data_ = nullptr;
}

int Lease::get_buffer(PyObject* self, Py_buffer* view, int flags) {
  auto* lease = nb::inst_ptr<Lease>(self);
  if (!lease->valid()) {
    view->obj = nullptr;
    PyErr_SetString(PyExc_BufferError, "the array has been released");
    return -1;
  }
  const int read_only = lease->access_ == Access::read ? 1 : 0;
  if (PyBuffer_FillInfo(view, self, lease->data_, static_cast<Py_ssize_t>(lease->bytes_), read_only,
                        flags) != 0) {
    return -1;
  }
  ++lease->exports_;
  return 0;
}

void Lease::release_buffer(PyObject* self, Py_buffer*) {
  --nb::inst_ptr<Lease>(self)->exports_;
}

namespace {

constexpr const char* kReleaseDoc =
    R"(Ends the lease of ``x`` now, if nothing else refers to ``x``.

Returns True if it ended: ``x`` is an empty array from then on (shape ``(0,)``), its memory is given
back. Returns False, and changes nothing, while another variable, container, view or buffer refers
to ``x``: the lease then ends with the last of them; also for plain views of a shared array. Again
for the same ``x``: True. An unsealed draft that this process made is aborted.

Raises InvalidArgument for an array that has nothing to do with the store. One round trip.)";

PyType_Slot lease_slots[] = {
    {Py_bf_getbuffer, reinterpret_cast<void*>(&Lease::get_buffer)},
    {Py_bf_releasebuffer, reinterpret_cast<void*>(&Lease::release_buffer)},
    {0, nullptr},
};

/// How often `argument`, with which a function of this module is called, is referred to when one
/// variable, attribute or item does: by that, and by the call. Since 3.14 the call may do without a
/// reference of its own to a local variable.
Py_ssize_t references_of_one(PyObject* argument) noexcept {
#if PY_VERSION_HEX >= 0x030e0000 && !defined(Py_GIL_DISABLED)
  // The interpreter tells it of objects with one reference only.
  const Py_ssize_t references = Py_REFCNT(argument);
  Py_SET_REFCNT(argument, 1);
  const bool counted = PyUnstable_Object_IsUniqueReferencedTemporary(argument) != 0;
  Py_SET_REFCNT(argument, references);
  return counted ? 2 : 1;
#else
  static_cast<void>(argument);
  return 2;
#endif
}

/// The lease at the end of the chain that begins at `array`, or nothing. `alone` tells whether each
/// link is referred to by the one before only.
nb::object chain_end(nb::handle array, bool& alone) {
  nb::object link = nb::borrow(array);
  while (PyObject_TypeCheck(link.ptr(), ndarray_type()) != 0) {
    nb::object next = direct_base(link);
    if (Py_REFCNT(next.ptr()) != 2) alone = false;  // the link before, and `next`
    link = std::move(next);
  }
  return nb::isinstance<Lease>(link) ? link : nb::object();
}

/// Makes an ndarray forget its memory, in place: it becomes an empty array that owns itself.
void make_empty(nb::handle array) {
  nb::object set_state =
      nb::borrow(reinterpret_cast<PyObject*>(ndarray_type())).attr("__setstate__");
  set_state(array, nb::make_tuple(1, nb::make_tuple(0), array.attr("dtype"), false, nb::bytes("")));
}

}  // namespace

void count_buffer(nb::handle array, int change) {
  bool alone = true;
  const nb::object end = chain_end(array, alone);
  if (end.is_valid()) nb::inst_ptr<Lease>(end)->count_export(change);
}

bool has_lease(nb::handle array) {
  bool alone = true;
  return chain_end(array, alone).is_valid();
}

void move_array(nb::handle array, nb::handle root) {
  const nb::object base = direct_base(root);
  if (!nb::isinstance<Lease>(base)) return;
  ArrayMemory& memory = memory_of(array);
  const auto* lease = nb::inst_ptr<Lease>(base);
  if (lease->moved(memory.data) == nullptr) return;
  memory.data = lease->moved(memory.data);
  PyObject* const before = std::exchange(memory.base, root.inc_ref().ptr());
  Py_XDECREF(before);
}

bool release_array(nb::handle array) {
  const Py_ssize_t references = Py_REFCNT(array.ptr());
  const bool shared = is_shared_array(array);
  // A plain array may be the root that others hang on.
  bool alone = shared && references <= references_of_one(array.ptr());
  nb::object end = chain_end(array, alone);
  if (!end.is_valid()) {
    if (shared) return true;
    raise(Error{ErrorCode::invalid_argument, "x: is not an array of the store"});
  }
  auto* lease = nb::inst_ptr<Lease>(end);
  if (!alone || lease->exports() != 0) return false;
  make_empty(array);
  try {
    lease->release();
  } catch (nb::python_error& error) {
    // Without a daemon there is nothing left to give back; the memory is unmapped all the same.
    if (!error.matches(PyExc_ConnectionError)) throw;
  }
  return true;
}

void bind_lease(nb::module_& module) {
  nb::class_<Lease>(module, "Lease", nb::type_slots(lease_slots), nb::is_weak_referenceable(),
                    "Owns a lease and its mapping; exports the bytes by the buffer protocol.")
      .def_prop_ro("valid", &Lease::valid)
      .def_prop_ro("address", &Lease::address)
      .def("offset", &Lease::offset, nb::arg("low"), nb::arg("high"))
      .def_prop_ro("id", &Lease::id)
      .def_prop_ro("store_id", &Lease::store_id)
      .def_prop_ro("name", &Lease::name)
      .def_prop_ro("dtype", &Lease::dtype)
      .def_prop_ro("shape", &Lease::shape, nb::sig("def shape(self) -> tuple[int, ...]"))
      .def_prop_ro("order", &Lease::order)
      .def_prop_ro("nbytes", &Lease::bytes)
      .def_prop_ro("perms", &Lease::perms)
      .def_prop_ro("version", &Lease::version)
      .def_prop_ro("state", &Lease::state)
      .def_prop_ro("access", &Lease::access)
      .def_prop_ro("sealed", &Lease::sealed, nb::sig("def sealed(self) -> str | None"))
      .def_prop_ro("creator", &Lease::creator)
      .def_prop_ro("attached", &Lease::attached)
      .def_prop_ro("inherited", &Lease::inherited)
      .def_prop_ro("opens", &Lease::opens)
      .def_prop_ro("socket_path", &Lease::socket_path)
      .def("seal", &Lease::seal, nb::arg("hard"), nb::arg("wait_ms").none())
      .def("handover", &Lease::handover, nb::arg("once") = false)
      .def("received", &Lease::received, nb::arg("handle"))
      .def("abort", &Lease::abort)
      .def("release", &Lease::release)
      .def("let_go", &Lease::let_go, nb::arg("half_written"));
  module.def("release", &release_array, nb::arg("x"),
             nb::sig("def release(x: numpy.typing.NDArray[typing.Any]) -> bool"), kReleaseDoc);
  module.def("move_array", &move_array, nb::arg("array"), nb::arg("root"),
             nb::sig("def move_array(array: numpy.typing.NDArray[typing.Any], "
                     "root: numpy.typing.NDArray[typing.Any]) -> None"),
             "Lets an array of before a seal lie where the lease of ``root`` shows it now.");
}

}  // namespace shmstore::python
