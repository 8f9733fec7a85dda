"""``task``: PyCOMPSs' decorator, and parameters that travel through the store."""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
import weakref
from typing import Any, Callable, Optional

import numpy as np

from .. import sharing
from .._array import lease_around
from ..sharing import map_leaves
from ._config import callers_level, engine, known_client, or_without, settings
from ._in_files import FileTicket, changing
from ._in_place import InPlace, InPlaceArray, Ticket, peek, writing

_api = engine("pycompss.api.api")
_parameter = engine("pycompss.api.parameter")
_engine_task = engine("pycompss.api.task").task
_tracker = engine("pycompss.runtime.management.object_tracker").OT
_context = engine("pycompss.util.context").CONTEXT
_Future = engine("pycompss.runtime.management.classes").Future
_deserialize = engine("pycompss.util.serialization.serializer").deserialize_from_file

#: Key of a parameter's dictionary: recurrent and read-only, worth keeping in the store.
RRO = "recurrent_read_only"

#: Key of a parameter's dictionary: an array from ``in_place`` that the task changes where it is.
Shared = "shared_in_place"

_DIRECTION = _parameter.Direction
_IGNORED = "on_failure: with Shared, what a failed task left cannot be ignored"

#: Types of parameters that carry objects into a task, as PyCOMPSs spells them.
_IN_TYPES = ("IN", "COLLECTION", "COLLECTION_IN", "DICT_COLLECTION", "DICT_COLLECTION_IN")


def task(*args: Any, **specs: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """PyCOMPSs' ``@task``. A parameter's dictionary may have the key ``RRO`` or ``Shared``:

        @task(a={Type: IN, RRO: True}, blocks={Type: COLLECTION_IN, RRO: True}, returns=1)
        @task(c={Type: INOUT, Shared: True})

    With ``RRO``, for parameters that are read, the arrays in that argument (in lists, tuples, dicts
    and dataclasses too) are put into the store when a call is submitted, as ``shmstore.share`` does
    it; the tasks get the same pages, read-only. The same object is put there once, however many
    tasks it is passed to, as long as its contents stay the same: they are compared at each call,
    which is one pass over memory; an array whose ``writeable`` flag is off is not compared. So a
    task always sees what the array holds when the task is submitted, and later changes by the owner
    do no harm.

    Passed by value, as a copy that is made when the contents have changed: what is too small, and
    everything without a store; see ``configure``. Passed on as PyCOMPSs does, which does not notice
    that the owner has changed it: what is of object dtype or pickles in its own way, and what was
    an argument of a task without ``RRO`` before (PyCOMPSs then goes by its own file); so are the
    results of tasks that the main program has not waited for. PyCOMPSs keeps what was shared or
    copied until ``compss_delete_object`` of this module, or the end.

    With ``Shared`` the argument is what ``in_place`` made, TypeError for others. The task gets an
    ndarray of the same memory that the main program made, writable, and while it runs nobody else
    has it; it must not keep a reference. If the task fails or its process dies, the array is
    half-written, and who opens it next (the task itself, when it is run again) gets Aborted, naming
    the array. A reader that runs too late for its version gets NotFound; see ``InPlace``. Without a
    store ``in_place`` makes what PyCOMPSs passes by its files; the task gets a copy then.

    ValueError at decoration for marks that make no sense, or name no parameter. Called outside of a
    PyCOMPSs application the function is simply called.
    """
    marks = _Marks(specs)
    decorate = _engine_task(*args, **marks.specs)

    def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
        inner = decorate(function)
        name_of = _Names(function)
        name_of.check(marks)

        @functools.wraps(inner)
        def call(*args: Any, **kwargs: Any) -> Any:
            if marks.in_place and kwargs.get("on_failure") == "IGNORE":  # from @on_failure
                raise ValueError(_IGNORED)
            if "compss_key" in kwargs and _context.in_worker():
                return _run(inner, marks, args, kwargs)
            if marks.in_place:
                _check_once(marks, name_of, args, kwargs)
            change = _submitted if _submits() else _called
            with contextlib.ExitStack() as after:
                args = tuple(
                    change(marks, name_of.position(index), value, after)
                    for index, value in enumerate(args)
                )
                kwargs = {
                    name: change(marks, name_of.keyword(name), value, after)
                    for name, value in kwargs.items()
                }
                try:
                    return inner(*args, **kwargs)
                finally:
                    del args, kwargs

        return call

    return decorator


def compss_delete_object(*objects: Any) -> Any:
    """PyCOMPSs' ``compss_delete_object``, for what ``task`` shared of these objects as well. The
    tasks that read it should have run: the store keeps it for another minute only."""
    for x in objects:
        passed = [_copy_of(x)]
        for shared in sharing.results(x):
            passed += [shared, _carriers.get(id(shared), _nothing)()]
        for one in passed:
            if one is not None and one is not x:
                _api.compss_delete_object(one)
    return _api.compss_delete_object(*objects)


# --- the decorator's arguments --------------------------------------------------------------------


class _Marks:
    """The decorator's arguments for PyCOMPSs, and which parameters are marked."""

    def __init__(self, specs: dict[str, Any]) -> None:
        self.specs: dict[str, Any] = {}
        #: Those with RRO; whether PyCOMPSs takes it as a collection, and passes each element.
        self.read: dict[Optional[str], bool] = {}
        self.in_place: set[Optional[str]] = set()
        for name, spec in specs.items():
            self.specs[name] = self._spec(name, spec) if isinstance(spec, dict) else spec
        if self.in_place and specs.get("on_failure") == "IGNORE":
            raise ValueError(_IGNORED)

    def _spec(self, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        read, in_place = spec.get(RRO), spec.get(Shared)
        if read is None and in_place is None:
            return spec
        result = {key: value for key, value in spec.items() if key not in (RRO, Shared)}
        kind = _kind(result)
        if read:
            if kind not in _IN_TYPES:
                types = ", ".join(_IN_TYPES)
                raise ValueError(f"{name}: RRO is for parameters of type {types}, not {kind}")
            self.read[name] = kind != "IN"
        if in_place:
            if kind != "INOUT":
                raise ValueError(f"{name}: Shared is for parameters of type INOUT, not {kind}")
            self.in_place.add(name)
        direction = getattr(result.get(_DIRECTION), "key", None)
        if direction is not None:  # `Direction: IN`; PyCOMPSs takes the number only
            result[_DIRECTION] = getattr(_parameter.DIRECTION, direction)
        return result


def _kind(spec: dict[str, Any]) -> str:
    """A parameter's type, with its direction if that is given and says otherwise."""
    kind = str(getattr(spec.get(_parameter.Type), "key", "IN"))
    if _DIRECTION not in spec:
        return kind
    direction = spec[_DIRECTION]
    for name in ("IN", "OUT", "INOUT", "CONCURRENT", "COMMUTATIVE", "IN_DELETE"):
        if direction == getattr(_parameter.DIRECTION, name):
            direction = name
    direction = str(getattr(direction, "key", direction))
    if kind == "IN":
        return direction
    return kind if kind.endswith(direction) or direction == "IN" else f"{kind} {direction}"


class _Names:
    """Which parameter a positional or keyword argument of a call belongs to."""

    def __init__(self, function: Callable[..., Any]) -> None:
        parameters = inspect.signature(function).parameters.values()
        self._positional = [
            p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        self._named = {p.name for p in parameters}
        self._rest = self._only(parameters, inspect.Parameter.VAR_POSITIONAL)
        self._keywords = self._only(parameters, inspect.Parameter.VAR_KEYWORD)

    def check(self, marks: _Marks) -> None:
        """ValueError for marks on parameters that the function does not have, or not as such."""
        for name in (*marks.read, *marks.in_place):
            if name not in self._named:
                raise ValueError(f"{name}: RRO or Shared, but the function has no such parameter")
        for name in marks.in_place.intersection({self._rest, self._keywords}):
            stars = "*" if name == self._rest else "**"
            raise ValueError(f"{name}: PyCOMPSs takes {stars}{name} as IN; Shared needs INOUT")

    @staticmethod
    def _only(parameters: Any, kind: Any) -> Optional[str]:
        return next((p.name for p in parameters if p.kind == kind), None)

    def position(self, index: int) -> Optional[str]:
        return self._positional[index] if index < len(self._positional) else self._rest

    def keyword(self, name: str) -> Optional[str]:
        return name if name in self._named else self._keywords


# --- a call ---------------------------------------------------------------------------------------


def _submits() -> bool:
    """Whether this call makes a task, rather than calling the plain function."""
    return bool(_context.in_master() or _context.in_worker() and _context.is_nesting_enabled())


def _check_once(marks: _Marks, name_of: _Names, args: Any, kwargs: dict[str, Any]) -> None:
    """ValueError for an array that two parameters change."""
    given = [(name_of.position(index), value) for index, value in enumerate(args)]
    given += [(name_of.keyword(name), value) for name, value in kwargs.items()]
    changed: dict[int, Optional[str]] = {}
    for name, value in given:
        if name not in marks.in_place or not isinstance(value, InPlace):
            continue
        if id(value) in changed:
            raise ValueError(f"{name}: is the same array as {changed[id(value)]}")
        changed[id(value)] = name


def _submitted(marks: _Marks, name: Optional[str], value: Any, _: contextlib.ExitStack) -> Any:
    """The argument to submit in place of ``value``."""
    if name in marks.in_place and not isinstance(value, (InPlace, _Future)):
        raise TypeError(_no_in_place(name, value))
    if name in marks.in_place and isinstance(value, InPlace) and value.is_read():
        text = "the main program has what read() gave; tasks that change the array wait for that"
        warnings.warn(f"{name}: {text}", RuntimeWarning, stacklevel=callers_level())
    return _shared(value, collection=marks.read[name]) if name in marks.read else value


def _called(marks: _Marks, name: Optional[str], value: Any, after: contextlib.ExitStack) -> Any:
    """The argument for the plain function."""
    if name not in marks.in_place:
        return value.read() if isinstance(value, InPlace) else value
    if isinstance(value, InPlaceArray):
        return value  # Called by a task that has it.
    if not isinstance(value, InPlace):
        raise TypeError(_no_in_place(name, value))
    return after.enter_context(value.writing()).pop()


def _no_in_place(name: Optional[str], value: Any) -> str:
    return f"{name}: Shared needs an array made by in_place(), not {type(value).__name__}"


def _run(inner: Callable[..., Any], marks: _Marks, args: Any, kwargs: dict[str, Any]) -> Any:
    """In a worker: runs the task, which alone has the arrays that it changes."""
    if not marks.in_place:
        return inner(*args, **kwargs)
    tickets, files = [], []
    for parameter in args:
        name = getattr(parameter, "name", "").replace("#kwarg_", "")
        if name in marks.in_place:
            path = parameter.file_name.original_path
            ticket = peek(functools.partial(_deserialize, path, kwargs["compss_logger"]))
            if isinstance(ticket, FileTicket):
                files.append(ticket)
            elif isinstance(ticket, Ticket):
                tickets.append(ticket)
            else:
                raise TypeError(_no_in_place(name, ticket))
    with changing(files), writing(tickets) as arrays:
        arrays.clear()
        try:
            return inner(*args, **kwargs)
        finally:
            for parameter in args:  # What they hold has been written to files.
                if hasattr(parameter, "content"):
                    parameter.content = None


def _shared(value: Any, collection: bool) -> Any:
    """The argument to submit in place of ``value``."""
    # What PyCOMPSs knows may have been changed by a task since: it knows which version is meant.
    if _tracker.is_tracked(value):
        return value
    sharer = sharing._Sharer(settings.min_bytes, settings.client)

    def leaf(x: Any) -> Any:
        if collection and _tracker.is_tracked(x):
            return x
        shared = in_store(x)
        return _as_it_is_now(x) if shared is x else shared

    def in_store(x: Any) -> Any:
        lease = lease_around(x) if isinstance(x, np.ndarray) else None
        if lease is not None and lease.state == "mutable":
            # The task is to see what it holds now, not what it will hold.
            return sharer.once(x, sharer._copy, sharing._same_array)
        shared = sharer.leaf(x)
        if not _pickled_otherwise(shared):
            return shared
        if shared is x and not (isinstance(x, np.ndarray) and sharing.in_store(x)):
            return x
        return _carried(shared)

    def by_value(x: Any) -> Any:
        return x if collection and _tracker.is_tracked(x) else _as_it_is_now(x)

    return or_without(
        lambda: map_leaves(value, leaf),
        lambda: map_leaves(value, by_value),
        client=known_client(),
    )


#: By the id of arrays that go by value: the array, and its copy that PyCOMPSs has.
_copies: dict[int, tuple[weakref.ref[Any], weakref.ref[Any]]] = {}


def _copy_of(x: Any) -> Any:
    original, copied = _copies.get(id(x), (_nothing, _nothing))
    return copied() if original() is x else None


def _as_it_is_now(x: Any) -> Any:
    """A copy of an array that goes by value, the same as long as the contents are: PyCOMPSs goes by
    identity, and would send the contents of an earlier call."""
    if not isinstance(x, np.ndarray) or x.dtype.hasobject:
        return x
    lease = lease_around(x)
    if sharing.in_store(x) and lease is not None and lease.state != "mutable":
        return x
    masked = type(x) is np.ma.MaskedArray
    if not masked and not sharing._can_follow(type(x)):
        return x
    known = _copy_of(x)
    if known is not None and (sharing._same_masked if masked else sharing._same_array)(x, known):
        return known
    result = x.copy(order="K")
    if not masked and hasattr(result, "__dict__"):
        result.__dict__.update(x.__dict__)
    key = id(x)
    _copies[key] = weakref.ref(x, lambda _: _copies.pop(key, None)), weakref.ref(result)
    return result


#: PyCOMPSs does not pickle what belongs to these packages.
_NOT_PICKLED = {"numpy", "cupy", "pyarrow"}


def _pickled_otherwise(x: Any) -> bool:
    return not _NOT_PICKLED.isdisjoint(type(x).__module__.split("."))


class _Carrier:
    """Comes out of pickle as what it carries: an object of the store, by handle."""

    __slots__ = ("__weakref__", "value")

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return _unpacked, (self.value,)


def _unpacked(value: Any) -> Any:
    return value


_carriers: dict[int, weakref.ref[_Carrier]] = {}  # By the id of what they carry, hold and keep.


def _nothing() -> None:
    return None


def _carried(shared: Any) -> _Carrier:
    """What carries ``shared``, the same each time: PyCOMPSs goes by identity."""
    known = _carriers.get(id(shared), _nothing)()
    if known is not None:
        return known
    carrier, key = _Carrier(shared), id(shared)
    _carriers[key] = weakref.ref(carrier, lambda _: _carriers.pop(key, None))
    return carrier
