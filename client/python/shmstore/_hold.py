"""Handles: arrays that are kept alive and passed on, but not mapped.

Pickled, a handle is ``open_handle(store, id, host, path, number)``; see _handle.py for what these
are. The number is left out of one that may be opened by many.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from . import _connect, _ext, _handle
from ._array import SharedArray, lease_around
from ._dtype import dtype_of
from ._errors import Disconnected, InvalidArgument, NotFound
from ._handle import _host, _not_found, _where

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from ._client import Client


class Handle:
    """Keeps an array of the store alive without mapping it; from ``handle``.

    For whoever passes an array on: a mutable array can be had exclusively by others while this
    process has nothing but its handle. Small when pickled, with a hand-over lease like an array;
    the receiver gets a handle of its own, which keeps the array as long as it lives.

    ``id``, ``name``, ``dtype``, ``shape``, ``order``, ``nbytes`` are those of the array. Handles of
    the same array are equal. A ``with`` block releases at its end. Threads: any. Fork: a child may
    use what it inherited; only the parent's end of it counts.
    """

    __slots__ = ("_client", "_lease", "__weakref__")

    def __init__(self, client: Client, lease: _ext.Lease) -> None:
        """Private: use ``handle``."""
        self._client = client
        self._lease = lease

    @property
    def id(self) -> str:
        """Names the array in its store for ever; a decimal number."""
        return str(self._lease.id)

    @property
    def name(self) -> Optional[str]:
        """As it was when the handle was made; None for anonymous arrays."""
        return self._lease.name or None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the array's elements."""
        return dtype_of(self._lease.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self._lease.shape

    @property
    def order(self) -> str:
        """``"C"`` or ``"F"``."""
        return self._lease.order

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self._lease.nbytes

    def attach(
        self,
        mode: str = "r",
        *,
        timeout: Optional[float] = None,
        exclusive: bool = False,
        repair: bool = False,
    ) -> SharedArray:
        """The array itself; arguments and errors as those of the function ``attach``."""
        return self._client._attach_id(
            self._lease.id, self._lease.store_id, mode, timeout, exclusive, repair
        )

    def info(self) -> dict[str, Any]:
        """What the store knows about the array, as the function ``info``; one round trip."""
        request = json.dumps({"id": self.id, "store_id": str(self._lease.store_id)})
        found: dict[str, Any] = json.loads(self._client._ext.admin("info", request))
        return found

    def release(self) -> None:
        """Lets go of the array now; a second call does nothing. One round trip."""
        self._lease.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.release()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Handle):
            return NotImplemented
        mine, its = self._lease, other._lease
        return (mine.store_id, mine.id) == (its.store_id, its.id)

    def __hash__(self) -> int:
        return hash((self._lease.store_id, self._lease.id))

    def __repr__(self) -> str:
        what = repr(self.name) if self.name else f"array {self.id}"
        return f"<shmstore.Handle {what} {self.dtype} {self.shape}>"

    def __reduce__(self) -> Any:
        from . import _once

        _once.register()
        return reduce_handle(self)


def reduce_handle(handle: Handle, once: bool = False) -> Any:
    """``handle.__reduce__()``. ``once``: what is pickled goes to one receiver."""
    lease = handle._lease
    number = lease.handover(once)
    arguments = (lease.store_id, lease.id, _host(), _connect.handle_path(lease))
    return open_handle, (*arguments, number) if number else arguments


def handle_of(client: Client, array: Any) -> Handle:
    """The handle of an array that this process holds."""
    lease = lease_around(array)
    if lease is None:
        raise InvalidArgument("x: is not an array of the store")
    if lease.store_id != client.store_id:
        client = _connect.client_of(lease.store_id, None)
    return _hold(client, lease.store_id, lease.id)


def open_handle(
    store_id: int, id: int, host: str, path: Optional[str] = None, number: int = 0
) -> Handle:
    """A handle for the receiver of a pickled one; what unpickling calls.

    Raises NotFound, saying why, for an array that is gone or in a store that cannot be reached.
    """
    try:
        client = _connect.client_of(store_id, path, assume=_handle.elsewhere is None)
    except Disconnected as error:
        raise NotFound(f"handle of array {id}: {_where(host)}, and {error}") from None
    try:
        return _hold(client, store_id, id, True, number)
    except NotFound as error:
        raise _not_found(number, client, store_id, id, host, path, error) from None


def _hold(
    client: Client, store_id: int, id: int, received: bool = False, number: int = 0
) -> Handle:
    return Handle(client, client._ext.attach_id(id, store_id, "h", 0, received, handle=number))
