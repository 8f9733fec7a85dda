"""``pyarrow.plasma`` over the store, for programs that lost it: change the import line only.

``connect``, ``PlasmaClient`` (``create``, ``seal``, ``create_and_seal``, ``put``, ``get``,
``put_raw_buffer``, ``get_buffers``, ``get_metadata``, ``contains``, ``delete``, ``list``,
``evict``, ``hash``, ``subscribe`` and notifications, ``store_capacity``), ``ObjectID``,
``ObjectNotAvailable``, the error classes and ``start_plasma_store``. Object ``id`` is the store's
array ``plasma/<40 hexadecimal digits>``: data, metadata, and the metadata's length in 8 bytes.

Buffers are ``pyarrow.Buffer`` when pyarrow is there, else arrays of bytes with ``to_pybytes()``.

Different on purpose: readers cannot write to sealed objects; ``put`` takes anything that pickle
does, and ``get`` unpickles, so a store must be trusted as much as the code is (it belongs to one
user); a store that is full evicts unreferenced sealed objects of Plasma's only, and not when
``PlasmaClient.evict_when_full`` is False; several threads may use a client.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import socket
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Optional, Union, cast

import numpy as np

from .. import (
    AlreadyExists,
    Disconnected,
    Error,
    NoCapacity,
    NotFound,
    QuotaExceeded,
    SharedArray,
    TimedOut,
    connect as connect_store,
)
from .._array import lease_of
from ._plasma_events import NOTE, Events, Note, unpack_note
from ._plasma_objects import (
    LENGTH,
    TREE,
    ObjectID,
    id_of,
    name_of,
    pickled,
    sizes_of,
    split,
    unpickled,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

try:
    pyarrow: Any = importlib.import_module("pyarrow")
except ImportError:
    pyarrow = None

if TYPE_CHECKING or pyarrow is None:

    class ArrowException(Exception):
        """Base of the errors; pyarrow's own where that is there."""
else:
    ArrowException = pyarrow.lib.ArrowException


__all__ = [
    "ObjectID",
    "ObjectNotAvailable",
    "PlasmaBuffer",
    "PlasmaClient",
    "PlasmaObjectExists",
    "PlasmaObjectNonexistent",
    "PlasmaObjectNotFound",
    "PlasmaStoreFull",
    "connect",
    "start_plasma_store",
]


class PlasmaObjectNotFound(ArrowException):
    """No object with this id, or this client does not hold it."""


PlasmaObjectNonexistent = PlasmaObjectNotFound  # its name until Arrow 0.15


class PlasmaObjectExists(ArrowException):
    """There is an object with this id."""


class PlasmaStoreFull(ArrowException):
    """No room, and nothing left to evict."""


class ObjectNotAvailable:
    """What ``get`` returns (the class itself) for an object that did not come in time."""


class PlasmaBuffer(np.ndarray):
    """Bytes of an object, where there is no pyarrow; ``size`` is their number."""

    def to_pybytes(self) -> bytes:
        """A copy of the bytes."""
        return self.tobytes()


def _buffer(memory: NDArray[Any]) -> Any:
    """What users see of an object's memory; it holds the lease."""
    return memory.view(PlasmaBuffer) if pyarrow is None else pyarrow.py_buffer(memory)


# --- the client -----------------------------------------------------------------------------------


ObjectIDs = list[ObjectID]  # PlasmaClient.list hides the builtin in annotations of the class
Ints = list[int]
Objects = list[Any]


class PlasmaClient:
    """A connection to a store; made by ``connect``."""

    #: Whether objects that nobody holds are deleted, oldest first, to make room for new ones.
    evict_when_full = True

    def __init__(self, store: Any, store_socket_name: str) -> None:
        """Private: use ``connect``."""
        self._connection: Any = store  # None after ``disconnect``
        self._socket_name = store_socket_name
        self._lock = threading.Lock()
        self._drafts: dict[ObjectID, SharedArray] = {}
        self._events: Optional[Events] = None
        self._evicting = threading.Lock()
        self._oldest: deque[str] = deque()  # ids that a listing found to be without references

    @property
    def store_socket_name(self) -> str:
        """The socket's path, as given to ``connect``."""
        return self._socket_name

    @property
    def _store(self) -> Any:
        store = self._connection
        if store is None:
            raise OSError(errno.EBADF, "this client has disconnected", self._socket_name)
        return store

    # -- making objects ----------------------------------------------------------------------------

    def create(self, object_id: ObjectID, data_size: int, metadata: Any = b"") -> Any:
        """A new object of ``data_size`` bytes, as a buffer to fill before ``seal``.

        Raises PlasmaObjectExists, PlasmaStoreFull.
        """
        draft = self._draft(object_id, data_size, bytes(metadata))
        with self._lock:
            connected = self._connection is not None
            if connected:
                self._drafts[object_id] = draft
        if not connected:  # another thread was faster, and did not know of this draft
            _abort(draft)
            self._store  # noqa: B018 - raises
        return _buffer(draft[:data_size])

    def _draft(self, object_id: ObjectID, data_size: int, metadata: bytes) -> SharedArray:
        size = data_size + len(metadata) + LENGTH.size
        sizes = {"metadata_size": len(metadata)}
        while True:
            try:
                draft: SharedArray = self._store.create(
                    name_of(object_id), (size,), "u1", keep=True, attrs=sizes
                )
                break
            except AlreadyExists as error:
                raise PlasmaObjectExists(str(error)) from None
            except (NoCapacity, QuotaExceeded) as error:
                if not self.evict_when_full or not self._evicted(size):
                    raise PlasmaStoreFull(str(error)) from None
        tail = metadata + LENGTH.pack(len(metadata))
        draft[data_size:] = np.frombuffer(tail, np.uint8)
        return draft

    def seal(self, object_id: ObjectID) -> None:
        """Publishes an object that this client created; it cannot change any more.

        Raises PlasmaObjectNotFound for any other.
        """
        with self._lock:
            self._store  # noqa: B018 - raises after disconnect(), which drops the drafts
            draft = self._drafts.pop(object_id, None)
        if draft is None:
            raise PlasmaObjectNotFound(f"{object_id!r} is not an unsealed object of this client")
        draft.seal()

    def create_and_seal(self, object_id: ObjectID, data: Any, metadata: Any = b"") -> None:
        """A new object with these bytes. Raises as ``create``."""
        source = np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)
        with self._draft(object_id, source.size, bytes(metadata)) as draft:
            draft[: source.size] = source

    def put_raw_buffer(
        self,
        value: Any,
        object_id: Optional[ObjectID] = None,
        metadata: Any = b"",
        memcopy_threads: int = 6,
    ) -> ObjectID:
        """Stores the bytes of ``value``, anything with the buffer protocol; returns the id."""
        target = object_id or ObjectID.from_random()
        self.create_and_seal(target, memoryview(value).cast("B"), metadata)
        return target

    def put(
        self,
        value: Any,
        object_id: Optional[ObjectID] = None,
        memcopy_threads: int = 6,
        serialization_context: Any = None,
    ) -> ObjectID:
        """Stores a Python object, by pickle; returns the id. Arrays in it are read in place later.

        ``serialization_context`` must be None: pyarrow has no such contexts any more.
        """
        _no_context(serialization_context)
        target = object_id or ObjectID.from_random()
        parts = pickled(value)
        size = parts[-1][0] + parts[-1][1].nbytes
        with self._draft(target, size, b"") as draft:
            for offset, part in parts:
                draft[offset : offset + part.nbytes] = np.frombuffer(part, np.uint8)
        return target

    # -- getting objects ---------------------------------------------------------------------------

    def get(
        self,
        object_ids: Union[ObjectID, Sequence[ObjectID]],
        timeout_ms: int = -1,
        serialization_context: Any = None,
    ) -> Any:
        """The Python object with this id, or a list of them for a list of ids.

        Waits for objects that are not there, ``timeout_ms`` in all, -1 for ever; for those that do
        not come there is ``ObjectNotAvailable``. NumPy arrays are read-only and not copied.
        """
        _no_context(serialization_context)
        if not isinstance(object_ids, Sequence):
            return self.get([object_ids], timeout_ms)[0]
        return [
            ObjectNotAvailable if memory is None else unpickled(split(memory)[0])
            for memory in self._attached(object_ids, timeout_ms)
        ]

    def get_buffers(
        self, object_ids: Sequence[ObjectID], timeout_ms: int = -1, with_meta: bool = False
    ) -> list[Any]:
        """The objects' bytes, None for those that do not come in time; waits as ``get``.

        With ``with_meta``, tuples of metadata (bytes) and data.
        """
        found: Objects = []
        for memory in self._attached(object_ids, timeout_ms):
            data, metadata = (None, None) if memory is None else split(memory)
            shown = None if data is None else _buffer(data)
            if with_meta:
                found.append((None if metadata is None else metadata.tobytes(), shown))
            else:
                found.append(shown)
        return found

    def get_metadata(self, object_ids: Sequence[ObjectID], timeout_ms: int = -1) -> list[Any]:
        """The objects' metadata as buffers, None for those that do not come in time."""
        attached = self._attached(object_ids, timeout_ms)
        return [None if memory is None else _buffer(split(memory)[1]) for memory in attached]

    def _attached(
        self, object_ids: Sequence[ObjectID], timeout_ms: int
    ) -> list[Optional[SharedArray]]:
        deadline = None if timeout_ms < 0 else time.monotonic() + timeout_ms / 1000
        return [self._attach(name_of(object_id), deadline) for object_id in object_ids]

    def _attach(self, name: str, deadline: Optional[float]) -> Optional[SharedArray]:
        """Waits for the name to come, which ``attach`` alone does not."""
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                array: SharedArray = self._store.attach(name, timeout=left)
                return array
            except TimedOut:
                return None
            except Error as error:
                # Not there, or its creator gave up: another one may come.
                if error.code not in ("not_found", "aborted") or left == 0:
                    if error.code in ("not_found", "aborted"):
                        return None
                    raise
            try:
                self._store.wait(name, timeout=left)
            except TimedOut:
                return None

    def contains(self, object_id: ObjectID) -> bool:
        """Whether the object is there and sealed."""
        try:
            self._store.wait(name_of(object_id), timeout=0)
        except TimedOut:
            return False
        return True

    def hash(self, object_id: ObjectID) -> bytes:
        """Eight bytes that depend on data and metadata only. Raises PlasmaObjectNotFound."""
        [memory] = self._attached([object_id], 0)
        if memory is None:
            raise PlasmaObjectNotFound(f"{object_id!r} is not there")
        return hashlib.blake2b(cast(Any, memory), digest_size=8).digest()

    # -- the store ---------------------------------------------------------------------------------

    def delete(self, object_ids: Sequence[ObjectID]) -> None:
        """Deletes sealed objects; the memory of one that is in use goes with its last user."""
        for object_id in object_ids:
            if self.contains(object_id):
                try:
                    self._store.delete(name_of(object_id))
                except NotFound:
                    pass

    def evict(self, num_bytes: int) -> int:
        """Deletes sealed objects that nobody holds, oldest first, until ``num_bytes`` or more are
        free; returns how many bytes were."""
        return sum(self._evicted(num_bytes))

    def _evicted(self, num_bytes: int) -> list[int]:
        """The sizes of the objects that were deleted."""
        with self._evicting:
            return self._evict_oldest(num_bytes)

    def _evict_oldest(self, num_bytes: int) -> list[int]:
        done: list[int] = []
        listed = False
        while num_bytes > 0:
            if not self._oldest:
                if listed:
                    break
                listed = True
                self._oldest.extend(self._unreferenced())
                continue
            try:
                entry = self._store.info(id=self._oldest.popleft())
                if entry["state"] != "sealed" or entry["leases"] != 0:
                    continue
                self._store.delete(id=entry["id"])
            except NotFound:
                continue
            done.append(entry["nbytes"] - LENGTH.size)
            num_bytes -= done[-1]
        return done

    def _unreferenced(self) -> Iterator[str]:
        """Ids of the objects that may be evicted, the oldest first."""
        free = [
            (entry["sealed"], int(entry["id"]), entry["id"])
            for entry in self._store.list(TREE)
            if entry["state"] == "sealed" and entry["leases"] == 0
        ]
        return (id for _, _, id in sorted(free))

    def list(self) -> dict[ObjectID, dict[str, Any]]:
        """The objects: ``data_size``, ``metadata_size``, ``ref_count``, ``create_time`` (Unix
        seconds), ``construct_duration`` (seconds, -1 while it lasts), ``state`` (``"created"`` or
        ``"sealed"``)."""
        found = {}
        for entry in self._store.list(TREE):
            object_id = id_of(entry["name"])
            if object_id is None:
                continue
            sealed = entry["state"] != "draft"
            data_size, metadata_size = sizes_of(entry)
            found[object_id] = {
                "data_size": data_size,
                "metadata_size": metadata_size,
                "ref_count": entry["leases"],
                "create_time": int(entry["created"]),
                "construct_duration": int(entry["sealed"] - entry["created"]) if sealed else -1,
                "state": "sealed" if sealed else "created",
            }
        return found

    def store_capacity(self) -> int:
        """The store's capacity in bytes."""
        return int(self._store.stats()["capacity"])

    def debug_string(self) -> str:
        """The store's figures as text."""
        return "\n".join(f"{key}: {value}" for key, value in self._store.stats().items())

    def disconnect(self) -> None:
        """Drops unsealed objects and notifications. Buffers stay valid; every other call raises
        OSError from then on, a second ``disconnect`` does nothing."""
        with self._lock:
            self._connection = None
            drafts, self._drafts = [*self._drafts.values()], {}
            events, self._events = self._events, None
        for draft in drafts:
            _abort(draft)
        if events is not None:
            events.close()

    # -- notifications -----------------------------------------------------------------------------

    def subscribe(self) -> None:
        """From now on, notes which objects are sealed and deleted; see the next methods."""
        events = Events(self._store)
        with self._lock:
            connected = self._connection is not None
            if connected:
                self._events = events
        if not connected:
            events.close()
            self._store  # noqa: B018 - raises

    def get_next_notification(self) -> Note:
        """Waits for the next: id, data size and metadata size; -1 and -1 for a deleted object."""
        return self._subscribed().next()

    def get_notification_socket(self) -> socket.socket:
        """A socket to read notifications from, or to ``select`` on: for each, its length in 8
        bytes, then what ``decode_notifications`` takes."""
        return self._subscribed().connection()

    def decode_notifications(self, buf: Any) -> tuple[ObjectIDs, Ints, Ints]:
        """The ids, data sizes and metadata sizes in a message of the notification socket."""
        notes = [unpack_note(part) for part in NOTE.iter_unpack(bytes(buf))]
        return [n[0] for n in notes], [n[1] for n in notes], [n[2] for n in notes]

    def _subscribed(self) -> Events:
        if self._events is None:
            raise ArrowException("not subscribed")
        return self._events


def connect(store_socket_name: str, num_retries: int = -1) -> PlasmaClient:
    """A client of the store at this socket. Tries ``num_retries`` times, 0.1 s apart, 50 if -1.

    Raises OSError when there is none.
    """
    tries = 50 if num_retries < 0 else num_retries
    pause = threading.Event()
    while True:
        try:
            return PlasmaClient(connect_store(store_socket_name), store_socket_name)
        except Disconnected:
            tries -= 1
            if tries <= 0:
                raise
        pause.wait(0.1)


def _abort(draft: SharedArray) -> None:
    """Drops a draft, also if its buffer is still there."""
    lease = lease_of(draft)
    if lease is not None:
        with suppress(Error):  # deleted by somebody else, or the daemon is gone
            lease.abort()


def _no_context(context: Any) -> None:
    if context is not None:
        raise TypeError("serialization_context: pyarrow has none any more; pickle takes any class")


# --- a store of one's own -------------------------------------------------------------------------


@contextmanager
def start_plasma_store(
    plasma_store_memory: int,
    use_valgrind: bool = False,
    use_profiler: bool = False,
    plasma_directory: Optional[str] = None,
    use_hugepages: bool = False,
    external_store: Optional[str] = None,
) -> Iterator[tuple[str, Any]]:
    """Starts a private daemon with this capacity in bytes; yields its socket's path and its
    process, and stops it at the end. Memory is never a file, so ``plasma_directory`` and
    ``use_hugepages`` change nothing; what asks for another program raises ValueError.
    """
    if use_valgrind or use_profiler or external_store is not None:
        raise ValueError("use_valgrind, use_profiler and external_store are not to be had")
    program = os.environ.get("SHMSTORE_DAEMON") or os.path.join(
        sysconfig.get_path("scripts"), "shmstored"
    )
    with tempfile.TemporaryDirectory(prefix="plasma-") as folder:
        path = os.path.join(folder, "plasma.sock")
        command = [program, "--socket", path, "--capacity", str(plasma_store_memory)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            connect(path)
            yield path, process
        finally:
            process.terminate()
            process.wait()
