#include "client.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "calls.hpp"
#include "lease.hpp"
#include "options.hpp"
#include "shmstore/client.hpp"

namespace shmstore::python {

namespace {

using Shape = std::vector<std::uint64_t>;
using Milliseconds = std::optional<std::int64_t>;
using LeasePointer = std::unique_ptr<Lease>;

std::optional<std::chrono::milliseconds> duration_of(Milliseconds ms) {
  if (!ms) return std::nullopt;
  return std::chrono::milliseconds(*ms);
}

/// The keywords that create and put share, as a Python object: there are too many to pass singly.
struct Options {
  CreateOptions create;
  [[nodiscard]] CachedOptions cached() const {
    CachedOptions options;
    options.ttl = create.ttl;
    options.perms = create.perms;
    options.attrs = create.attrs;
    options.order = create.order;
    options.timeout = create.timeout;
    return options;
  }
};

Options make_options(bool fortran, bool is_mutable, bool keep, Milliseconds ttl_ms,
                     std::uint16_t perms, std::string attrs, bool replace, bool hard,
                     Milliseconds timeout_ms, bool late) {
  Options options;
  options.create.order = fortran ? Order::f : Order::c;
  options.create.is_mutable = is_mutable;
  options.create.keep = keep;
  options.create.ttl = duration_of(ttl_ms);
  options.create.perms = perms;
  options.create.attrs = std::move(attrs);
  options.create.replace = replace;
  options.create.hard = hard;
  options.create.timeout = timeout_of(timeout_ms);
  options.create.late = late;
  return options;
}

/// `mode` is an access as to_string() spells it.
AttachOptions attach_options(std::string_view mode, Milliseconds timeout_ms,
                             std::uint64_t newer_than, bool repair) {
  AttachOptions options;
  for (Access access : {Access::write, Access::copy, Access::exclusive, Access::hold}) {
    if (mode == to_string(access)) options.access = access;
  }
  options.repair = repair;
  options.timeout = timeout_of(timeout_ms);
  options.newer_than = newer_than;
  return options;
}

Client connect(const std::string& socket, std::optional<bool> autostart, std::int64_t grace_ms,
               std::int64_t reconnect_ms) {
  ConnectOptions options;
  options.socket = socket;
  options.autostart = autostart;
  options.grace = std::chrono::milliseconds(grace_ms);
  options.reconnect_for = std::chrono::milliseconds(reconnect_ms);
  options.interrupted = &interrupted;
  return call([&] { return Client::connect(options); });
}

using From = Lease::From;

LeasePointer lease_of(const Client& client, AnyArray array, From from = From::other) {
  return std::make_unique<Lease>(client, std::move(array), from);
}

/// What is made without `keep` lives as long as its lease.
From made_by(const Options& options) {
  return options.create.keep ? From::other : From::unkept;
}

LeasePointer create(Client& self, std::string_view name, std::string_view dtype, const Shape& shape,
                    const Options& options) {
  return lease_of(self, call([&] { return self.create_any(name, dtype, shape, options.create); }),
                  made_by(options));
}

LeasePointer put(Client& self, std::string_view name, std::string_view dtype, const Shape& shape,
                 std::uint64_t address, std::uint64_t bytes, const Options& options) {
  const std::span<const std::byte> source(reinterpret_cast<const std::byte*>(address), bytes);
  return lease_of(self,
                  call([&] { return self.put_any(name, dtype, shape, source, options.create); }),
                  made_by(options));
}

LeasePointer attach(Client& self, std::string_view name, std::string_view mode,
                    Milliseconds timeout_ms, std::uint64_t newer_than, bool repair) {
  const AttachOptions options = attach_options(mode, timeout_ms, newer_than, repair);
  const EndlessWait waits(!timeout_ms);
  return lease_of(self, call([&] { return self.attach_any(name, options); }), From::attach);
}

LeasePointer attach_id(Client& self, std::uint64_t id, std::uint64_t store_id,
                       std::string_view mode, Milliseconds timeout_ms, bool from_handle,
                       bool repair, std::uint64_t handle) {
  const AttachOptions options = attach_options(mode, timeout_ms, 0, repair);
  const EndlessWait waits(!timeout_ms);
  AnyArray array =
      call([&] { return self.attach_id(ArrayId{id}, store_id, options, from_handle, handle); });
  return lease_of(self, std::move(array), from_handle ? From::other : From::attach);
}

/// What the loader of `cached` gets to make its draft with; useless once the loader has returned.
class Maker {
 public:
  Maker(Client& client, const Client::MakeDraft& make) noexcept : client_(&client), make_(&make) {}

  /// A lease of its own on the draft, so that what the loader keeps of it stays readable.
  LeasePointer make(std::string_view dtype, const Shape& shape) {
    if (make_ == nullptr) {
      raise(Error{ErrorCode::invalid_argument, "make: the loader has returned"});
    }
    AnyArray second = call([&]() -> Result<AnyArray> {
      Result<AnyArray*> draft = (*make_)(dtype, shape);
      if (!draft) return std::move(draft).error();
      AttachOptions options;
      options.access = Access::write;
      return client_->attach_id((*draft)->id(), 0, options);
    });
    id_ = second.id();
    return lease_of(*client_, std::move(second));
  }

  void finish() noexcept { make_ = nullptr; }
  /// The draft that was made, or the invalid id.
  [[nodiscard]] ArrayId id() const noexcept { return id_; }

 private:
  Client* client_;
  const Client::MakeDraft* make_;
  ArrayId id_;
};

/// Calls `loader(maker)` under the GIL. If it raises, the exception stays set in this thread and
/// `failed` is true; the draft is dropped at once, whoever still looks at it.
bool run_loader(Client& client, nb::handle loader, const Client::MakeDraft& make) {
  ArrayId drop;
  bool failed = false;
  {
    const WithGil held;
    auto owned = std::make_unique<Maker>(client, make);
    Maker* maker = owned.get();
    nb::object object = nb::cast(std::move(owned));
    PyObject* done =
        or_stop_for_good([&] { return PyObject_CallOneArg(loader.ptr(), object.ptr()); });
    maker->finish();
    failed = done == nullptr;
    Py_XDECREF(done);
    drop = maker->id();
  }
  if (failed && drop.raw != 0) {
    static_cast<void>(client.admin("remove", R"({"id":")" + std::to_string(drop.raw) + R"("})"));
  }
  return !failed;
}

LeasePointer cached(Client& self, std::string_view key, nb::handle loader, const Options& options) {
  const auto load = [&](const Client::MakeDraft& make) -> Result<void> {
    if (run_loader(self, loader, make)) return {};
    return make_error(ErrorCode::aborted, "the loader raised");
  };
  const EndlessWait waits(!options.create.timeout);
  return lease_of(self, call([&] { return self.cached_any(key, load, options.cached()); }));
}

std::uint64_t wait(Client& self, std::string_view name, std::uint64_t newer_than,
                   Milliseconds timeout_ms) {
  const EndlessWait waits(!timeout_ms);
  return call([&] { return self.wait(name, newer_than, timeout_of(timeout_ms)); });
}

nb::object next_event(Watch& watch, Milliseconds timeout_ms) {
  const EndlessWait waits(!timeout_ms);
  const Event event = call([&] { return watch.next(timeout_of(timeout_ms)); });
  return nb::str(event.json.data(), event.json.size());
}

void bind_watch(nb::module_& module) {
  nb::class_<Watch>(module, "Watch", "A stream of events on a connection of its own.")
      .def("next", &next_event, nb::arg("timeout_ms").none(),
           nb::sig("def next(self, timeout_ms: int | None) -> str"))
      .def("fileno", &Watch::native_handle);
}

void bind_options(nb::module_& module) {
  nb::class_<Options>(module, "Options", "The keywords of create, put and cached.")
      .def(
          "__init__",
          [](Options* self, bool fortran, bool is_mutable, bool keep, Milliseconds ttl_ms,
             std::uint16_t perms, std::string attrs, bool replace, bool hard,
             Milliseconds timeout_ms, bool late) {
            new (self) Options(make_options(fortran, is_mutable, keep, ttl_ms, perms,
                                            std::move(attrs), replace, hard, timeout_ms, late));
          },
          nb::arg("fortran"), nb::arg("mutable"), nb::arg("keep"), nb::arg("ttl_ms").none(),
          nb::arg("perms"), nb::arg("attrs"), nb::arg("replace"), nb::arg("hard"),
          nb::arg("timeout_ms").none(), nb::arg("late"));
  nb::class_<Maker>(module, "Maker", "Makes the draft that a loader of `cached` fills.")
      .def("make", &Maker::make, nb::arg("dtype"), nb::arg("shape"));
}

}  // namespace

void bind_client(nb::module_& module) {
  bind_options(module);
  bind_watch(module);
  nb::class_<Client>(module, "Client", "A connection to the store.")
      .def("create", &create, nb::arg("name"), nb::arg("dtype"), nb::arg("shape"),
           nb::arg("options"))
      .def("put", &put, nb::arg("name"), nb::arg("dtype"), nb::arg("shape"), nb::arg("address"),
           nb::arg("nbytes"), nb::arg("options"))
      .def("attach", &attach, nb::arg("name"), nb::arg("mode"), nb::arg("timeout_ms").none(),
           nb::arg("newer_than"), nb::arg("repair") = false)
      .def("attach_id", &attach_id, nb::arg("id"), nb::arg("store_id"), nb::arg("mode"),
           nb::arg("timeout_ms").none(), nb::arg("from_handle"), nb::arg("repair") = false,
           nb::arg("handle") = 0)
      .def("cached", &cached, nb::arg("key"), nb::arg("loader"), nb::arg("options"),
           nb::sig("def cached(self, key: str, "
                   "loader: collections.abc.Callable[[Maker], object], "
                   "options: Options) -> Lease"))
      .def("wait", &wait, nb::arg("name"), nb::arg("newer_than"), nb::arg("timeout_ms").none())
      .def(
          "exists",
          [](Client& self, std::string_view name) {
            return call([&] { return self.exists(name); });
          },
          nb::arg("name"))
      .def(
          "remove",
          [](Client& self, std::string_view name) { call([&] { return self.remove(name); }); },
          nb::arg("name"))
      .def(
          "keep",
          [](Client& self, std::string_view name, Milliseconds ttl_ms) {
            call([&] { return self.keep(name, duration_of(ttl_ms)); });
          },
          nb::arg("name"), nb::arg("ttl_ms").none())
      .def(
          "unkeep",
          [](Client& self, std::string_view name) { call([&] { return self.unkeep(name); }); },
          nb::arg("name"))
      .def(
          "chmod",
          [](Client& self, std::string_view name, std::uint16_t perms) {
            call([&] { return self.chmod(name, perms); });
          },
          nb::arg("name"), nb::arg("perms"))
      .def(
          "admin",
          [](Client& self, std::string_view op, std::string_view request) {
            return call([&] { return self.admin(op, request); });
          },
          nb::arg("op"), nb::arg("request"))
      .def(
          "watch",
          [](Client& self, std::string_view prefix) {
            return call([&] { return self.watch(prefix); });
          },
          nb::arg("prefix"))
      .def("ping", [](Client& self) { call([&] { return self.ping(); }); })
      .def_prop_ro("store_id", &Client::store_id)
      .def_prop_ro("socket_path", [](const Client& self) { return self.socket_path(); });
  module.def("connect", &connect, nb::arg("socket"), nb::arg("autostart").none(),
             nb::arg("grace_ms"), nb::arg("reconnect_ms"));
  module.def(
      "resolve_name",
      [](std::string_view name) { return call([&] { return Client::resolve_name(name); }); },
      nb::arg("name"));
}

}  // namespace shmstore::python
