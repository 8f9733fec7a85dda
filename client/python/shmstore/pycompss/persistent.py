"""PyCOMPSs' storage interface: objects that the engine passes by id, not by file.

``PersistentArray`` is an array, ``StorageObject`` a base class for objects with arrays in them.
Made persistent, they have an id (``getID()``), PyCOMPSs sends nothing but the id, and a worker maps
the arrays: the same pages, read-only. The functions at the end of this module are what PyCOMPSs
calls; the package ``storage`` in ``storage_path()`` passes them on.

Persistent objects do not change. A task that writes to one gets an error, from numpy (the
destination is read-only) or from ``StorageObject`` (cannot set), so no task ever sees another
task's half-done work, whichever order they run in; a task that computes something new returns a new
object. Declaring such a parameter INOUT is of no use, and does no harm.

An object lives until it is deleted or the application ends: each application (its main program, and
each worker of PyCOMPSs, with all its processes) marks what it made persistent as its own, and takes
that away in ``finish`` and ``finishWorker``. What an application leaves behind that was killed is
taken away by the next one that starts or ends. An object with an alias belongs to nobody, whatever
the alias is: it stays until somebody deletes it, and ``getByID(alias)`` finds it in a later
application.

Without a store, if the user has not chosen an error, objects are the same for the program but have
no id, and PyCOMPSs passes them by its files; those with an alias are an error all the same.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Optional, cast

import numpy as np

from .. import _connect, sharing
from .._array import SharedArray, array_on, lease_around
from .._errors import InvalidArgument, NotFound
from ..sharing import map_leaves
from ._config import configure, or_without
from ._program import Program

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from typing_extensions import Self

    from .._client import Client

_ARRAY, _OBJECT = "shma", "shmo"  # what an id begins with, and in the attributes
_PART = "part"  # in the attributes of an object's arrays
_BY_FILE = ""  # in the place of the id of what is persistent without a store


# --- arrays ---------------------------------------------------------------------------------------


class PersistentArray(SharedArray):
    """A read-only array of the store that PyCOMPSs passes by its id once it is persistent.

    ``PersistentArray(x)`` copies ``x``, anything ``numpy.asarray`` takes, into the store; with an
    ``alias`` under that name. Views and slices have no id: they are pickled by handle.
    Raises AlreadyExists for an alias that is taken; Disconnected, NoCapacity, QuotaExceeded with an
    alias, and without if ``configure`` was told so.
    """

    __slots__ = ("_id",)

    def __new__(cls, array: ArrayLike, alias: Optional[str] = None) -> Self:
        def stored() -> Any:
            application = _application()
            name, attrs = _named(application, alias, _ARRAY)
            return application.client.put(name, array, attrs=attrs).view(cls)

        if alias is not None:
            return cast("Self", stored())

        def otherwise() -> Any:
            return _by_file(cls, np.array(array))

        return cast("Self", or_without(stored, otherwise, client=_client()))

    def getID(self) -> Optional[str]:
        """The id while it is persistent and in a store, else None."""
        return getattr(self, "_id", None) or None

    def __reduce_ex__(self, protocol: Any) -> Any:
        if getattr(self, "_id", None) == _BY_FILE:
            return _by_file, (type(self), np.asarray(self))
        return super().__reduce_ex__(protocol)

    def makePersistent(self) -> None:
        """Keeps the array until it is deleted or, without an alias, the application ends. Twice is
        fine. Raises InvalidArgument for a view."""
        if getattr(self, "_id", None) is not None:
            return
        lease = lease_around(self)
        if lease is None or not lease.name or lease.shape != self.shape:
            raise InvalidArgument("makePersistent: a view cannot be persistent, only a whole array")
        _application().client.keep(lease.name)
        self._id = _id(_ARRAY, lease.store_id, lease.id)

    def deletePersistent(self) -> None:
        """Takes it out of the store; who holds it keeps it. Twice is fine."""
        identifier = self.getID()
        if identifier is not None:
            del self._id
            _delete(identifier)

    make_persistent = makePersistent
    delete_persistent = deletePersistent


def _by_file(kind: Any, array: Any) -> Any:
    """A PersistentArray without a store."""
    result = np.ndarray.view(array, kind)
    result._id = _BY_FILE
    result.flags.writeable = False
    return result


# --- objects --------------------------------------------------------------------------------------


class StorageObject:
    """Base class for objects that PyCOMPSs passes by id once they are persistent.

    ``makePersistent`` stores what is in ``__dict__``: large arrays (in lists, tuples, dicts and
    dataclasses too) as arrays of the store, the rest pickled. From then on the arrays are read-only
    and attributes cannot be set. The class has to be importable in the workers.
    """

    _shmstore_id: Optional[str] = None

    def getID(self) -> Optional[str]:
        """The id while it is persistent and in a store, else None."""
        return self._shmstore_id or None

    def makePersistent(self, alias: Optional[str] = None) -> None:
        """Stores the object until it is deleted or, without an alias, the application ends. Twice
        is fine. Raises as ``PersistentArray``."""
        if self._shmstore_id is not None:
            return
        if alias is not None:
            self._store(alias)
        else:
            or_without(lambda: self._store(None), self._freeze, client=_client())

    def _freeze(self) -> None:
        """Persistent without a store."""
        self.__dict__.update(map_leaves(dict(self.__dict__), _read_only), _shmstore_id=_BY_FILE)

    def _store(self, alias: Optional[str]) -> None:
        application = _application()
        name, attrs = _named(application, alias, _OBJECT)
        keeper = _Keeper(application.client, name, {**attrs, "pycompss": _PART})
        try:
            state = map_leaves(dict(self.__dict__), keeper.leaf)
            content = np.frombuffer(pickle.dumps((type(self), state), protocol=5), np.uint8)
            stored = application.client.put(name, content, keep=True, attrs=attrs)
        except BaseException:
            keeper.undo()
            raise
        self.__dict__.update(state)
        lease = lease_around(stored)
        assert lease is not None
        self.__dict__["_shmstore_id"] = _id(_OBJECT, lease.store_id, lease.id)

    def deletePersistent(self) -> None:
        """Takes it out of the store; who holds it keeps it. Twice is fine."""
        identifier = self.__dict__.pop("_shmstore_id", None)
        if identifier:
            _delete(identifier)

    make_persistent = makePersistent
    delete_persistent = deletePersistent

    def __setattr__(self, name: str, value: Any) -> None:
        if self._shmstore_id is not None:
            raise AttributeError(
                f"cannot set {name!r}: the {type(self).__name__} {self._shmstore_id}".rstrip()
                + " is persistent, and persistent objects do not change; make a new one"
            )
        super().__setattr__(name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._shmstore_id:
            return getByID, (self._shmstore_id,)
        return super().__reduce_ex__(protocol)


def _large(x: Any) -> bool:
    """Whether x is an array for the store, not one to be pickled with its object."""
    return (
        isinstance(x, np.ndarray) and x.nbytes >= sharing.MIN_BYTES and not x.dtype.hasobject
        and sharing._can_follow(type(x))
    )  # fmt: skip


def _read_only(x: Any) -> Any:
    if not _large(x):
        return x
    result = x.copy(order="K")
    result.flags.writeable = False
    return result


class _Keeper:
    """Puts the large arrays of an object into the store, under names that begin with its name."""

    def __init__(self, client: Client, name: str, attrs: dict[str, Any]) -> None:
        self._client = client
        self._name = name
        self._attrs = attrs
        self._names: list[str] = []

    def leaf(self, x: Any) -> Any:
        if not _large(x):
            # A handle would outlive its array: the object only keeps what it names.
            return np.array(x) if isinstance(x, SharedArray) else x
        name = f"{self._name}.{len(self._names)}"
        try:
            stored = self._client.put(name, np.asarray(x), keep=True, attrs=self._attrs)
        except InvalidArgument:  # a dtype that the store does not know
            return x
        self._names.append(name)
        return sharing._as(type(x), stored, getattr(x, "__dict__", None))

    def undo(self) -> None:
        for name in self._names:
            _remove(self._client, name)


# --- ids ------------------------------------------------------------------------------------------


def _id(kind: str, store: int, array: int) -> str:
    return f"{kind}-{store:016x}-{array}"


def _parsed(identifier: str) -> Optional[tuple[str, int, int]]:
    """(kind, store, array) of an id; None for anything else, which may be an alias."""
    parts = identifier.split("-")
    if len(parts) != 3 or parts[0] not in (_ARRAY, _OBJECT):
        return None
    try:
        return parts[0], int(parts[1], 16), int(parts[2])
    except ValueError:
        return None


def _open(identifier: str) -> Any:
    parsed = _parsed(identifier)
    if parsed is None:
        client = _application().client
        info = client.info(identifier)
        kind = info["attrs"].get("pycompss")
        if kind not in (_ARRAY, _OBJECT):
            raise NotFound(f"storage: {identifier} is an array, but no persistent object")
        parsed = kind, client.store_id, int(info["id"])
    kind, store, number = parsed
    client = _connect.client_of(store, None)
    try:
        lease = client._ext.attach_id(number, store, "r", None, False)
    except NotFound as error:
        raise NotFound(
            f"storage: there is no persistent object {identifier} in the store at "
            f"{client.socket_path} of host {os.uname().nodename}: deleted, the application that "
            f"made it has ended, or it is in the store of another node ({error})"
        ) from None
    if kind == _ARRAY:
        array = array_on(lease).view(PersistentArray)
        array._id = _id(kind, store, number)
        return array
    made, state = pickle.loads(array_on(lease).data)
    result = made.__new__(made)
    result.__dict__.update(state, _shmstore_id=_id(kind, store, number))
    return result


def _delete(identifier: str) -> None:
    parsed = _parsed(identifier)
    assert parsed is not None
    kind, store, number = parsed
    client = _connect.client_of(store, None)
    try:
        name = client.info(id=str(number))["name"]
        client.delete(id=str(number))
    except NotFound:
        return
    if kind == _OBJECT and name:
        for info in client.list(f"{name}."):
            if info["attrs"].get("pycompss") == _PART and info["name"][len(name) + 1 :].isdigit():
                _remove(client, info["name"])


def _remove(client: Client, name: str) -> None:
    try:
        client.delete(name)
    except NotFound:
        pass


# --- applications ---------------------------------------------------------------------------------

_lock = threading.Lock()  # Held while an application begins.
_current: Optional[Program] = None
_socket: Optional[str] = None  # of the storage configuration


def _application() -> Program:
    """The one application, begun with the first call; anew when the daemon was started anew, with
    which everything is gone that was kept. Raises Disconnected."""
    global _current
    known = _current
    if known is not None and known.goes_on():
        return known
    with _lock:
        now = _current
        if now is None or now is known:  # else another thread has begun one
            if now is not None:
                client = now.client
            else:
                client = _connect.default_client() if _socket is None else _connect.connect(_socket)
            now = _current = Program(client)
        return now


def _client() -> Optional[Client]:
    """The application's client, or what will be; None before there is one."""
    if _current is not None:
        return _current.client
    return _connect._default if _socket is None else None


def _named(application: Program, alias: Optional[str], kind: str) -> tuple[str, dict[str, Any]]:
    """Name and attributes of an object: its application's, or, with an alias, nobody's."""
    if alias is not None:
        return alias, {"pycompss": kind}
    return application.new_name(), application.attrs(kind)


def _end() -> None:
    global _current
    with _lock:
        ended, _current = _current, None
    # A forked child uses its parent's application, and leaves it to the parent to end it.
    if ended is not None and ended.owner == os.getpid():
        ended.end()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)


_YES_NO = {"yes": True, "no": False}


def _configure(path: Optional[str]) -> None:
    """Does what a storage configuration asks for. Its lines: ``socket = PATH``, ``fallback = yes``
    or ``no``; empty ones and those that begin with # count for nothing."""
    global _socket
    _socket = None
    if path is None:
        return
    with open(path) as lines:
        for number, line in enumerate(lines, 1):
            key, _, value = (part.strip() for part in line.partition("="))
            if not key or key.startswith("#"):
                continue
            if key == "socket" and value:
                _socket = value
            elif key == "fallback" and value in _YES_NO:
                configure(fallback=_YES_NO[value])
            else:
                text = f"{path}:{number}: {line.strip()!r} is no `socket = PATH`"
                raise InvalidArgument(f"{text} and no `fallback = yes` or `no`")


def _begin() -> None:
    """Without a store, if that is no error, nothing: it is asked for again with each object."""
    or_without(_application, lambda: None, client=_client())


# --- what PyCOMPSs calls --------------------------------------------------------------------------


def init(config_file_path: Optional[str] = None, **_: Any) -> None:
    """In the main program, before the first task. Without a store it warns, or raises Disconnected
    if the user has chosen so."""
    _end()
    _configure(config_file_path)
    _begin()


def finish(**_: Any) -> None:
    """In the main program, at its end: what it kept without an alias is deleted."""
    _end()


def initWorker(config_file_path: Optional[str] = None, **_: Any) -> None:
    """In a worker, before it forks the processes that run tasks."""
    init(config_file_path)


def finishWorker(**_: Any) -> None:
    """In a worker, when its processes have ended: what they kept without an alias is deleted."""
    finish()


def initWorkerPostFork() -> None:
    """In each process that runs tasks. Connections are made anew after a fork by themselves; this
    makes one now, so that a missing store is noticed before the first task."""
    or_without(lambda: _application().client.stats(), dict, client=_client())


def finishWorkerPostFork() -> None:
    """In each process that runs tasks, at its end. Nothing to do: the kernel tells the store."""


def getByID(*identifiers: str) -> Any:
    """The object of an id or an alias; a list for several. Raises NotFound, saying why."""
    objects: Sequence[Any] = [_open(identifier) for identifier in identifiers]
    return objects[0] if len(objects) == 1 else objects


def makePersistent(obj: Any, *alias: str) -> None:
    """``obj.makePersistent(alias)``."""
    obj.makePersistent(*alias)


def deletePersistent(obj: Any) -> None:
    """``obj.deletePersistent()``."""
    obj.deletePersistent()


class TaskContext:
    """Around each task. Nothing to do: what a task makes persistent is stored at once, and what it
    was given does not change."""

    def __init__(self, logger: Any, values: Any, config_file_path: Optional[str] = None) -> None:
        self.logger = logger
        self.values = values  # PyCOMPSs replaces them when the task has run
        self.config_file_path = config_file_path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        pass
