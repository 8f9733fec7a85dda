"""A ProxyStore connector over the store.

    from proxystore.store import Store
    from shmstore.proxystore import StoreConnector, serializer, deserializer

    with Store("arrays", StoreConnector(), serializer=serializer,
               deserializer=deserializer, register=True) as store:
        proxy = store.proxy(x)              # any process of this node resolves it

What is put becomes a kept array of bytes in the store, ``proxystore/…``, until it is evicted or the
connector is closed with ``clear``. With the serializer of this module a resolved array is the
store's memory itself, no copy, and an array that is in the store already is put as its handle.
"""

from __future__ import annotations

import pickle
import struct
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

try:
    import proxystore.serialize as _serialize
except ImportError as error:
    raise ImportError(f"shmstore.proxystore needs proxystore ({error})") from error

import numpy as np

from . import _connect, _errors
from ._client import Client

__all__ = ["StoreConnector", "StoreKey", "deserializer", "serializer"]

#: Begins what ``serializer`` wrote; ProxyStore's own marks have two letters and a line's end.
_MARK = b"shmstore"

#: Where the pieces begin: numpy and vector instructions like their memory aligned.
_ALIGNMENT = 64


class StoreKey(NamedTuple):
    """Key of an object: the name of its array."""

    name: str


class StoreConnector:
    """Objects as arrays of bytes in the store of this node.

    path: the daemon's socket; None: the default client's. The other processes that use a key have
        to reach the same daemon; ``config`` passes ``path`` on.
    prefix: of the names.
    ttl: seconds that an object is kept when nobody maps it; None: until it is evicted.

    ``get`` returns a read-only memoryview of the shared memory, no copy, valid as long as it is
    held. Threads: any. Errors are the store's: NoCapacity, QuotaExceeded, Disconnected.
    """

    def __init__(
        self, path: Optional[str] = None, prefix: str = "proxystore/", ttl: Optional[float] = None
    ) -> None:
        self.path = path
        self.prefix = prefix
        self.ttl = ttl
        self._client: Optional[Client] = None

    def __enter__(self) -> StoreConnector:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"StoreConnector(path={self.path!r}, prefix={self.prefix!r}, ttl={self.ttl!r})"

    def _store(self) -> Client:
        if self._client is None:
            if self.path is None:
                self._client = _connect.default_client()
            else:
                self._client = _connect.connect(self.path)
        return self._client

    def config(self) -> dict[str, Any]:
        """The arguments that make an equal connector."""
        return {"path": self.path, "prefix": self.prefix, "ttl": self.ttl}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> StoreConnector:
        return cls(**config)

    def close(self, clear: bool = False) -> None:
        """``clear``: evicts all objects under the prefix, whoever put them. Twice is fine."""
        if clear:
            for array in self._store().list(self.prefix):
                self.evict(StoreKey(array["name"]))
        self._client = None

    def new_key(self, obj: Any = None) -> StoreKey:
        """A key for an object that ``set`` will bring."""
        return StoreKey(f"{self.prefix}{uuid.uuid4().hex}")

    def put(self, obj: Any) -> StoreKey:
        """Copies bytes, or anything with a buffer, into the store, once."""
        key = self.new_key()
        self.set(key, obj)
        return key

    def set(self, key: StoreKey, obj: Any) -> None:
        """``put`` under a key of ``new_key``. Raises AlreadyExists for one that was set."""
        source = np.frombuffer(obj, np.uint8) if memoryview(obj).nbytes else np.empty(0, np.uint8)
        self._store().put(key.name, source, keep=True, ttl=self.ttl)

    def put_batch(self, objs: Sequence[Any]) -> list[StoreKey]:
        return [self.put(obj) for obj in objs]

    def get(self, key: StoreKey) -> Optional[memoryview]:
        """The bytes, or None for a key that was not set yet or was evicted."""
        try:
            found = self._store().attach(key.name, timeout=0)
        except (_errors.NotFound, _errors.TimedOut, _errors.Aborted):
            return None
        return memoryview(np.asarray(found))  # type: ignore[arg-type]

    def get_batch(self, keys: Sequence[StoreKey]) -> list[Optional[memoryview]]:
        return [self.get(key) for key in keys]

    def exists(self, key: StoreKey) -> bool:
        return self._store().exists(key.name)

    def evict(self, key: StoreKey) -> None:
        """Takes the key away; the memory goes with the last process that maps it."""
        try:
            self._store().delete(key.name)
        except _errors.NotFound:
            pass


def serializer(obj: Any) -> bytearray:
    """For ``Store(serializer=…)``: the object pickled, the memory of its arrays apart and aligned.

    An array that is in the store already is pickled as its handle: it has to be held by somebody
    until it is resolved.
    """
    pieces: list[Any] = [b""]
    pieces[0] = pickle.dumps(obj, 5, buffer_callback=lambda piece: pieces.append(piece.raw()))
    head = struct.pack(f"<8sQ{len(pieces)}Q", _MARK, len(pieces), *map(len, pieces))
    places, end = _places(len(head), [len(piece) for piece in pieces])
    out = bytearray(end)
    out[: len(head)] = head
    for place, piece in zip(places, pieces):
        out[place : place + len(piece)] = piece
    return out


def deserializer(data: Any) -> Any:
    """For ``Store(deserializer=…)``: what ``serializer`` wrote, arrays being read-only and in the
    memory of ``data``; and what ProxyStore's own serializer wrote."""
    view = memoryview(data).cast("B")
    if view[: len(_MARK)] != _MARK:
        return _serialize.deserialize(data)
    [count] = struct.unpack_from("<Q", view, 8)
    sizes = struct.unpack_from(f"<{count}Q", view, 16)
    places, _ = _places(16 + 8 * count, sizes)
    pickled, *buffers = (
        view[place : place + size].toreadonly() for place, size in zip(places, sizes)
    )
    return pickle.loads(pickled, buffers=buffers)


def _places(start: int, sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where pieces of these sizes begin, and where the last one ends."""
    places = []
    for size in sizes:
        start += -start % _ALIGNMENT
        places.append(start)
        start += size
    return places, start
