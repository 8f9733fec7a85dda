"""What the adapters for engines of several nodes (Dask, Ray) have in common.

A *node* is a store: all processes that reach the same daemon. Two daemons on one machine are two
nodes, whatever the host's name.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, cast

import numpy as np

from . import _connect, _errors
from ._array import SharedArray, lease_around
from ._dtype import dtype_of, dtype_text
from .sharing import in_store, plain, share

if TYPE_CHECKING:
    from typing import Literal

    from numpy.typing import NDArray

    from ._client import Client

#: Bytes that are on their way at a time: what a receiver needs on top of the array itself.
CHUNK_BYTES = 16 * 1024 * 1024

#: Errors that mean: this node has no store for the array.
NO_STORE = (_errors.Disconnected, _errors.NoCapacity, _errors.QuotaExceeded)


class Spec(NamedTuple):
    """An array that is brought to nodes. Plain values only: it crosses as msgpack and pickle."""

    name: str  #: Its name in the stores that it is copied to.
    shape: tuple[int, ...]
    dtype: str  #: As ``dtype_text``.
    order: str  #: ``"C"`` or ``"F"``.
    nbytes: int
    at: Optional[tuple[int, int]]  #: Store and array id where it is already, under another name.

    @classmethod
    def of(cls, fields: Any) -> Spec:
        """From a tuple or list of its fields, as it arrives."""
        name, shape, dtype, order, nbytes, at = fields
        return cls(name, tuple(shape), dtype, order, nbytes, None if at is None else tuple(at))


def spec_of(name: str, x: NDArray[Any]) -> Spec:
    """Raises InvalidArgument for a dtype that the store does not know."""
    order = "F" if x.flags.f_contiguous and not x.flags.c_contiguous else "C"
    lease = lease_around(x)
    at = (lease.store_id, lease.id) if lease is not None and is_whole(x) else None
    return Spec(name, x.shape, dtype_text(x.dtype), order, x.nbytes, at)


def is_whole(x: NDArray[Any]) -> bool:
    """Whether x is a complete sealed array of the store, which its id names."""
    lease = lease_around(x)
    if lease is None or not in_store(x) or lease.state != "sealed":
        return False
    order = "F" if x.flags.f_contiguous and not x.flags.c_contiguous else "C"
    same = x.shape == lease.shape and x.dtype == dtype_of(lease.dtype)
    return same and x.nbytes == lease.nbytes and (order == lease.order or x.ndim < 2)


def share_whole(x: NDArray[Any]) -> NDArray[Any]:
    """x in this node's store; views and arrays that may change are copied."""
    shared: NDArray[Any] = share(x, 0)
    return shared if is_whole(shared) else default_client().put(None, shared)


def contiguous(x: NDArray[Any]) -> NDArray[Any]:
    """x as a plain array in C or F order; a copy only where it is neither."""
    x = plain(np.asanyarray(x))
    return x if x.flags.c_contiguous or x.flags.f_contiguous else np.ascontiguousarray(x)


def flat(x: NDArray[Any]) -> NDArray[np.uint8]:
    """The memory of a contiguous array, as bytes in the order in which they lie there."""
    x = plain(x)
    return (x if x.flags.c_contiguous else x.T).reshape(-1).view(np.uint8)


def bytes_of(x: NDArray[Any]) -> memoryview:
    """The same as a memoryview."""
    return memoryview(cast(Any, flat(x)))


def array_of(spec: Spec, memory: Any = None) -> NDArray[Any]:
    """An array like that of ``spec`` outside the store: on ``memory``, or uninitialised."""
    order = cast("Literal['C', 'F']", spec.order)
    return np.ndarray(spec.shape, dtype_of(spec.dtype), memory, order=order)


def find(client: Client, spec: Spec, timeout: Optional[float] = 0) -> Optional[SharedArray]:
    """The array of ``spec`` if this node has it; ``timeout`` is for one that is being filled."""
    try:
        if spec.at is not None and spec.at[0] == client.store_id:
            return client.attach(id=str(spec.at[1]))
        return client.attach(spec.name, timeout=timeout)
    except (_errors.NotFound, _errors.Aborted, _errors.TimedOut):
        return None


def find_or_begin(client: Client, spec: Spec) -> tuple[SharedArray, bool]:
    """The array of ``spec`` on this node, or a draft (then True) that the caller has to fill and
    seal. Waits while another process fills it; if that one dies, the next takes over."""
    dtype = dtype_of(spec.dtype)
    while True:
        found = find(client, spec, None)
        if found is not None:
            return found, False
        try:
            return client.create(spec.name, spec.shape, dtype, order=spec.order), True
        except _errors.AlreadyExists:
            pass  # Another process was faster.


def default_client() -> Client:
    """The client of this process's node. Raises one of NO_STORE's Disconnected."""
    return _connect.default_client()


def node_text(client: Client) -> str:
    """Names a node to people."""
    return f"{os.uname().nodename}:{client.socket_path}"
