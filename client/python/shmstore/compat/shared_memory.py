"""``multiprocessing.shared_memory`` over the store: ``SharedMemory``, ``ShareableList`` and
``SharedMemoryManager`` with the same signatures, and no resource tracker.

A block lives until ``unlink()``, and at the latest until its creator's process has ended and nobody
has it open any more; that holds for ``kill -9`` too. A process that only attaches takes nothing
with it when it ends. With ``track=False`` a block lives until ``unlink()``.

Different on purpose:

* ``close()`` never fails and never pulls memory from under a view: NumPy arrays and memoryviews
  made of ``buf`` stay valid, and hold the memory until they are gone.
* A process that ends without ``unlink()`` leaves nothing behind and nothing is printed.
* When a process started by ``multiprocessing`` ends, the blocks that it made are there for another
  60 seconds, so that the parent finds a result by its name. (The tracker holds them as long as the
  parent lives.)
* There is no descriptor, so ``_fd`` is -1; ``_mmap`` is the memoryview that ``buf`` is.
* ``resource_tracker.unregister(block._name, "shared_memory")``, which programs call so that the
  tracker leaves a block alone, makes a block of this process live until ``unlink()``; ``register``
  takes that back. The tracker itself hears nothing of these blocks.
* Names are private to the user and may be longer. Block ``x`` is the store's array ``mp/x``:
  ``shmstore.attach("mp/x", "r+")`` is the same memory.

``ShareableList`` is the interpreter's own, with what it does wrong: it counts characters and not
bytes, and cuts a text that is not ASCII. ``text.encode()`` is kept whole.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import itertools
import os
import secrets
import select
import sys
import threading
import weakref
from multiprocessing import managers, parent_process, resource_tracker, util
from typing import Any, Callable, Optional, cast

from .. import Disconnected, Error, SharedArray, TimedOut, default_client
from .._array import lease_of
from ._names import os_errors, to_store

__all__ = ["ShareableList", "SharedMemory", "SharedMemoryManager"]

_USE_POSIX = True
_SHM_NAME_PREFIX = "/psm_"
_TREE = "mp/"


def _make_filename() -> str:
    """A name that nobody else has thought of."""
    return _SHM_NAME_PREFIX + secrets.token_hex(8)


class SharedMemory:
    """A block of shared memory, made (``create=True``) or attached to by its name.

    name: None, with ``create``, makes one up. size: bytes, for ``create``. track: False lets the
    block live until ``unlink()``, whoever ends.

    Raises FileExistsError, FileNotFoundError, ValueError; OSError (ENOMEM) when the store is full.
    """

    _name: Optional[str] = None
    _array: Optional[SharedArray] = None
    _buf: Optional[memoryview] = None
    _mmap: Optional[memoryview] = None
    _fd = -1
    _size = 0
    _flags = os.O_RDWR
    _mode = 0o600
    _prepend_leading_slash = True

    def __init__(
        self, name: Optional[str] = None, create: bool = False, size: int = 0, *, track: bool = True
    ) -> None:
        if not size >= 0:
            raise ValueError("'size' must be a positive integer")
        if create:
            self._flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
            if size == 0:
                raise ValueError("'size' must be a positive number different from zero")
        if name is None and not self._flags & os.O_EXCL:
            raise ValueError("'name' can only be None if create=True")
        self._array = self._made(size, track) if name is None else self._named(name, size, track)
        self._size = self._array.nbytes
        self._buf = self._mmap = memoryview(cast(Any, self._array))
        _named[str(self._name)] = self

    def _made(self, size: int, track: bool) -> SharedArray:
        while True:
            self._name = _make_filename()
            try:
                return self._create(size, track)
            except FileExistsError:
                continue

    def _named(self, name: str, size: int, track: bool) -> SharedArray:
        self._name = "/" + name if self._prepend_leading_slash else name
        if self._flags & os.O_CREAT:
            try:
                return self._create(size, track)
            except FileExistsError:
                if self._flags & os.O_EXCL:
                    raise
        with os_errors(self._name):
            return default_client().attach(_store_name(self._name), "r+")

    def _create(self, size: int, track: bool) -> SharedArray:
        """Fresh pages, so zeros."""
        name = _store_name(self._name)
        with os_errors(self._name):
            array = default_client().create(
                name, (size,), "u1", mutable=True, keep=not track, perms=self._mode & 0o666
            )
        if track:
            _created.add(array)
        return array

    def __del__(self) -> None:
        try:
            self.close()
        except (OSError, Error):
            pass

    def __reduce__(self) -> Any:
        return self.__class__, (self.name, False, self.size)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.name!r}, size={self.size})"

    @property
    def buf(self) -> Optional[memoryview]:
        """The block's bytes; None after ``close()``."""
        return self._buf

    @property
    def name(self) -> Optional[str]:
        """The name that others attach by."""
        if self._name is not None and self._prepend_leading_slash:
            return self._name[1:] if self._name.startswith("/") else self._name
        return self._name

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self._size

    def close(self) -> None:
        """Gives up this object's access. The block stays, and so does the memory of views."""
        array, self._array, self._buf, self._mmap = self._array, None, None, None
        if array is not None:
            _created.closed(array)

    def unlink(self) -> None:
        """Takes the name away; the memory goes when everybody has closed it.

        Raises FileNotFoundError when it is gone already.
        """
        if self._name is None:
            return
        name = _store_name(self._name)
        with os_errors(self._name):
            default_client().delete(name)
        _created.unlinked(name)


def _store_name(name: Optional[str]) -> str:
    bare = (name or "").lstrip("/")
    if "\0" in bare:
        raise ValueError("embedded null character")
    if not bare:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
    return _TREE + to_store(bare)


# --- blocks that this process created -------------------------------------------------------------


class _Created:
    """Holds the blocks that this process created until they are unlinked, by whomever.

    Once a block is closed here, nothing else would tell this process of an unlink somewhere else,
    and it would hold the memory for ever: a thread watches then.
    """

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._arrays: dict[str, SharedArray] = {}  # by id
        self._watcher: Optional[threading.Thread] = None
        self._hands_over = False

    def add(self, array: SharedArray) -> None:
        with self._lock:
            self._arrays[_id(array)] = array
            if not self._hands_over and parent_process() is not None:
                self._hands_over = True
                util.Finalize(None, self._hand_over, exitpriority=-1)

    def unlinked(self, name: str) -> None:
        with self._lock:
            for id, array in list(self._arrays.items()):
                lease = lease_of(array)
                if lease is not None and lease.name == name:
                    del self._arrays[id]

    def has(self, name: str) -> bool:
        """Whether this process made a block of this name that ends with it."""
        store = _TREE + to_store(name.lstrip("/"))
        leases = [lease_of(array) for array in list(self._arrays.values())]
        return any(lease is not None and lease.name == store for lease in leases)

    def forget(self, array: SharedArray) -> None:
        """Somebody else sees to it now."""
        with self._lock:
            self._arrays.pop(_id(array), None)

    def closed(self, array: SharedArray) -> None:
        if _id(array) not in self._arrays or sys.is_finalizing():
            return
        with self._lock:
            if self._watcher is not None:
                return
            try:
                watch = default_client().watch(_TREE)
                self._watcher = threading.Thread(
                    target=self._watch, args=(watch,), name="shared_memory", daemon=True
                )
                self._watcher.start()
            except (Error, RuntimeError):  # no daemon, or too late for a thread
                self._watcher = None
                return
        self._sweep(set(list(self._arrays)))  # unlinked before the watch began

    def _watch(self, watch: Any) -> None:
        while True:
            # Waits in select, not in the client: it may be left there when the process ends.
            select.select([watch.fileno()], [], [])
            gone: set[str] = set()
            try:
                while True:
                    event = watch.next(0)
                    if event["event"] == "deleted":
                        gone.add(str(event["id"]))
                    elif event["event"] == "lost":
                        gone.update(list(self._arrays))
            except TimedOut:
                self._sweep(gone)
            except Error:  # the daemon is gone, and the names with it
                with self._lock:
                    self._arrays.clear()
                    self._watcher = None
                return

    def _sweep(self, ids: set[str]) -> None:
        """Lets go of those of ``ids`` that have no name any more."""
        for id in ids & self._arrays.keys():
            try:
                if default_client().info(id=id)["state"] != "dying":
                    continue
            except (FileNotFoundError, Disconnected):
                pass
            with self._lock:
                self._arrays.pop(id, None)

    def _hand_over(self) -> None:
        """At the end of a child process: time for the parent to attach."""
        for array in list(self._arrays.values()):
            lease = lease_of(array)
            try:
                if lease is not None and not lease.inherited:
                    lease.handover()
            except Error:
                pass


def _id(array: SharedArray) -> str:
    lease = lease_of(array)
    return "" if lease is None else str(lease.id)


_created = _Created()


# --- the tracker ----------------------------------------------------------------------------------
#
# Programs that know what the tracker gets wrong take their blocks from it by name. It has never
# heard of these, and would print a KeyError.

_named: weakref.WeakValueDictionary[str, SharedMemory] = weakref.WeakValueDictionary()


def _around(function: Callable[[str, str], Any], keeps: bool) -> Callable[[str, str], Any]:
    """A function of the tracker, which leaves the blocks of this module to it."""

    @functools.wraps(function)
    def tracked(name: str, rtype: str) -> Any:
        if rtype != "shared_memory" or name not in _named and not _created.has(name):
            return function(name, rtype)
        if _created.has(name):
            store, client = _store_name(name), default_client()
            with contextlib.suppress(Error):  # it was unlinked
                client.keep(store) if keeps else client.unkeep(store)
        return None

    return tracked


cast(Any, resource_tracker).register = _around(resource_tracker.register, False)
cast(Any, resource_tracker).unregister = _around(resource_tracker.unregister, True)


# --- lists ----------------------------------------------------------------------------------------


def _own_copy_of_stdlib() -> Any:
    """The interpreter's module once more, working on the SharedMemory above.

    So ShareableList is, to the last detail, that of the Python it runs in.
    """
    spec = importlib.util.find_spec("multiprocessing.shared_memory")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.SharedMemory = SharedMemory
    return module


ShareableList = _own_copy_of_stdlib().ShareableList
ShareableList.__module__ = __name__


# --- the manager ----------------------------------------------------------------------------------

_serial = itertools.count()


class _Held:
    """The blocks of one manager, held by its server process: they end with it."""

    def __init__(self, name: str) -> None:
        self.shared_memory_context_name = name
        self._blocks: dict[str, SharedMemory] = {}

    @property
    def segment_names(self) -> list[str]:
        return list(self._blocks)

    def register_segment(self, name: str) -> None:
        self._blocks[name] = SharedMemory(name)

    def destroy_segment(self, name: str) -> None:
        block = self._blocks.pop(name)
        block.close()
        try:
            block.unlink()
        except FileNotFoundError:
            pass

    def unlink(self) -> None:
        for name in self.segment_names:
            self.destroy_segment(name)


class _Server(managers.SharedMemoryServer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shared_memory_context = _Held(f"shm_{os.getpid()}_{next(_serial)}")


class SharedMemoryManager(managers.SharedMemoryManager):
    """A manager whose server process holds the blocks and lists made by it; ``shutdown()``, the end
    of the ``with`` block, or the end of the server in any way gives all of them back."""

    _Server = _Server

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        managers.BaseManager.__init__(self, *args, **kwargs)  # starts no resource tracker

    def SharedMemory(self, size: int) -> Any:  # noqa: N802 - the name is given
        """A new block of ``size`` bytes."""
        return self._tracked(lambda: SharedMemory(None, create=True, size=size))

    def ShareableList(self, sequence: Any) -> Any:  # noqa: N802 - the name is given
        """A new list with the items of ``sequence``."""
        return self._tracked(lambda: ShareableList(sequence))

    def _tracked(self, make: Callable[[], Any]) -> Any:
        """What ``make`` makes, held by the server from then on."""
        base, of_managers = cast(Any, self), cast(Any, managers)
        with base._Client(base._address, authkey=base._authkey) as connection:
            made = make()
            block = getattr(made, "shm", made)
            try:
                of_managers.dispatch(connection, None, "track_segment", (block.name,))
            except BaseException:
                block.unlink()
                raise
        _created.forget(block._array)
        return made
