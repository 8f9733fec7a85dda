"""``task``: PyCOMPSs' decorator, and parameters that travel through the store."""

from __future__ import annotations

import functools
import inspect
import weakref
from typing import Any, Callable, Optional, cast

import numpy as np

from .. import sharing
from ..sharing import map_leaves
from ._config import engine, or_as_it_is, settings

_api = engine("pycompss.api.api")
_parameter = engine("pycompss.api.parameter")
_engine_task = engine("pycompss.api.task").task
_tracker = engine("pycompss.runtime.management.object_tracker").OT
_context = engine("pycompss.util.context").CONTEXT

#: Key of a parameter's dictionary: recurrent and read-only, worth keeping in the store.
RRO = "recurrent_read_only"

_DIRECTION = _parameter.Direction

#: Types of parameters that carry objects into a task, as PyCOMPSs spells them.
_IN_TYPES = ("IN", "COLLECTION", "COLLECTION_IN", "DICT_COLLECTION", "DICT_COLLECTION_IN")


def task(*args: Any, **specs: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """PyCOMPSs' ``@task``. A parameter's dictionary may have the key ``RRO``:

        @task(a={Type: IN, RRO: True}, blocks={Type: COLLECTION_IN, RRO: True}, returns=1)

    The arrays in that argument (in lists, tuples, dicts and dataclasses too) are put into the store
    when a call is submitted, as ``shmstore.share`` does it; the tasks get the same pages,
    read-only. The same object is put there once, however many tasks it is passed to, as long as its
    contents stay the same: they are compared at each call, which is one pass over memory; an array
    whose ``writeable`` flag is off is not compared. So a task always sees what the array holds when
    the task is submitted, and later changes by the owner do no harm.

    Passed on as PyCOMPSs does: what is too small, of object dtype, the result of a task that the
    main program has not waited for, and what was an argument of a task without ``RRO`` before
    (PyCOMPSs then goes by its own file). So is everything without a store; see ``configure``.
    PyCOMPSs keeps what was shared until ``compss_delete_object`` of this module, or the end.

    Only for parameters that are read: ValueError at decoration for others. Called outside of a
    PyCOMPSs application the function is simply called.
    """
    engine_specs, shared = _split(specs)
    decorate = _engine_task(*args, **engine_specs)
    if not shared:
        return cast("Callable[[Callable[..., Any]], Callable[..., Any]]", decorate)

    def replaced(name: Optional[str], value: Any) -> Any:
        return _shared(value, collection=shared[name]) if name in shared else value

    def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
        inner = decorate(function)
        name_of = _Names(function)

        @functools.wraps(inner)
        def call(*args: Any, **kwargs: Any) -> Any:
            if _submits(kwargs):
                args = tuple(
                    replaced(name_of.position(index), value) for index, value in enumerate(args)
                )
                kwargs = {
                    name: replaced(name_of.keyword(name), value) for name, value in kwargs.items()
                }
            return inner(*args, **kwargs)

        return call

    return decorator


def compss_delete_object(*objects: Any) -> Any:
    """PyCOMPSs' ``compss_delete_object``, for what ``task`` shared of these objects as well. The
    tasks that read it should have run: the store keeps it for another minute only."""
    for x in objects:
        shared, _ = sharing._known(x)
        for one in (shared, _carriers.get(id(shared), _nothing)()):
            if one is not None and one is not x:
                _api.compss_delete_object(one)
    return _api.compss_delete_object(*objects)


# --- the decorator's arguments --------------------------------------------------------------------


def _split(specs: dict[str, Any]) -> tuple[dict[str, Any], dict[Optional[str], bool]]:
    """The arguments for PyCOMPSs' decorator; and the parameters to share, with whether PyCOMPSs
    takes each as a collection, of which it passes every element by itself."""
    engine: dict[str, Any] = {}
    shared: dict[Optional[str], bool] = {}
    for name, spec in specs.items():
        if isinstance(spec, dict) and RRO in spec:
            spec = dict(spec)
            if spec.pop(RRO):
                shared[name] = _check_read(name, spec) != "IN"
            direction = getattr(spec.get(_DIRECTION), "key", None)
            if direction is not None:  # `Direction: IN`; PyCOMPSs takes the number only
                spec[_DIRECTION] = getattr(_parameter.DIRECTION, direction)
        engine[name] = spec
    return engine, shared


def _check_read(name: str, spec: dict[str, Any]) -> str:
    """The parameter's type."""
    kind = getattr(spec.get(_parameter.Type), "key", "IN")
    read = _parameter.DIRECTION.IN
    direction = spec.get(_DIRECTION, read)
    if kind not in _IN_TYPES or getattr(direction, "key", direction) not in ("IN", read):
        raise ValueError(
            f"{name}: RRO is for parameters that are read, of type {', '.join(_IN_TYPES)}; "
            f"this one is {kind}"
        )
    return str(kind)


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

    @staticmethod
    def _only(parameters: Any, kind: Any) -> Optional[str]:
        return next((p.name for p in parameters if p.kind == kind), None)

    def position(self, index: int) -> Optional[str]:
        return self._positional[index] if index < len(self._positional) else self._rest

    def keyword(self, name: str) -> Optional[str]:
        return name if name in self._named else self._keywords


# --- a call ---------------------------------------------------------------------------------------


def _submits(kwargs: dict[str, Any]) -> bool:
    """Whether this call makes a task, rather than running one, or the plain function."""
    if _context.in_master():
        return True
    nested = _context.in_worker() and _context.is_nesting_enabled()
    return bool(nested and "compss_key" not in kwargs)


def _shared(value: Any, collection: bool) -> Any:
    """The argument to submit in place of ``value``."""
    # What PyCOMPSs knows may have been changed by a task since: it knows which version is meant.
    if _tracker.is_tracked(value):
        return value
    sharer = sharing._Sharer(settings.min_bytes, settings.client)

    def leaf(x: Any) -> Any:
        if collection and _tracker.is_tracked(x):
            return x
        shared = sharer.leaf(x)
        if not _pickled_otherwise(shared):
            return shared
        if shared is x and not (isinstance(x, np.ndarray) and sharing.in_store(x)):
            return x
        return _carried(shared)

    return or_as_it_is(lambda: map_leaves(value, leaf), value)


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
