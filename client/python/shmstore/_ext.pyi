"""Compiled half of shmstore; private."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing


class ArrayBase(numpy.ndarray[Any, numpy.dtype[Any]]):
    """Base of shmstore.SharedArray."""

def plain(array: Any, /) -> Any:
    """The array, or a plain view of it if it has no lease."""

class Lease:
    """
    Owns a lease and its mapping; exports the bytes by the buffer protocol.
    """

    def __buffer__(self, flags: int, /) -> memoryview: ...

    def __release_buffer__(self, buffer: memoryview, /) -> None: ...

    @property
    def valid(self) -> bool: ...

    @property
    def address(self) -> int: ...

    def offset(self, low: int, high: int) -> int | None: ...

    @property
    def id(self) -> int: ...

    @property
    def store_id(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def order(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def perms(self) -> int: ...

    @property
    def version(self) -> int: ...

    @property
    def state(self) -> str: ...

    @property
    def access(self) -> str: ...

    @property
    def sealed(self) -> str | None: ...

    @property
    def creator(self) -> bool: ...

    @property
    def attached(self) -> bool: ...

    @property
    def inherited(self) -> bool: ...

    @property
    def opens(self) -> str: ...

    @property
    def socket_path(self) -> str: ...

    def seal(self, hard: bool, wait_ms: int | None) -> None: ...

    def handover(self, once: bool = False) -> int: ...

    def received(self, handle: int) -> None: ...

    def abort(self) -> None: ...

    def release(self) -> None: ...

    def let_go(self, half_written: bool) -> None: ...

def release(x: numpy.typing.NDArray[Any]) -> bool:
    """
    Ends the lease of ``x`` now, if nothing else refers to ``x``.

    Returns True if it ended: ``x`` is an empty array from then on (shape ``(0,)``), its memory is given
    back. Returns False, and changes nothing, while another variable, container, view or buffer refers
    to ``x``: the lease then ends with the last of them; also for plain views of a shared array. Again
    for the same ``x``: True. An unsealed draft that this process made is aborted.

    Raises InvalidArgument for an array that has nothing to do with the store. One round trip.
    """

def move_array(array: numpy.typing.NDArray[Any], root: numpy.typing.NDArray[Any]) -> None:
    """
    Lets an array of before a seal lie where the lease of ``root`` shows it now.
    """

class Options:
    """The keywords of create, put and cached."""

    def __init__(self, fortran: bool, mutable: bool, keep: bool, ttl_ms: int | None, perms: int, attrs: str, replace: bool, hard: bool, timeout_ms: int | None, late: bool) -> None: ...

class Maker:
    """Makes the draft that a loader of `cached` fills."""

    def make(self, dtype: str, shape: Sequence[int]) -> Lease: ...

class Watch:
    """A stream of events on a connection of its own."""

    def next(self, timeout_ms: int | None) -> str: ...

    def fileno(self) -> int: ...

class Client:
    """A connection to the store."""

    def create(self, name: str, dtype: str, shape: Sequence[int], options: Options) -> Lease: ...

    def put(self, name: str, dtype: str, shape: Sequence[int], address: int, nbytes: int, options: Options) -> Lease: ...

    def attach(self, name: str, mode: str, timeout_ms: int | None, newer_than: int, repair: bool = False) -> Lease: ...

    def attach_id(self, id: int, store_id: int, mode: str, timeout_ms: int | None, from_handle: bool, repair: bool = False, handle: int = 0) -> Lease: ...

    def cached(self, key: str, loader: Callable[[Maker], object], options: Options) -> Lease: ...

    def wait(self, name: str, newer_than: int, timeout_ms: int | None) -> int: ...

    def exists(self, name: str) -> bool: ...

    def remove(self, name: str) -> None: ...

    def keep(self, name: str, ttl_ms: int | None) -> None: ...

    def unkeep(self, name: str) -> None: ...

    def chmod(self, name: str, perms: int) -> None: ...

    def admin(self, op: str, request: str) -> str: ...

    def watch(self, prefix: str) -> Watch: ...

    def ping(self) -> None: ...

    @property
    def store_id(self) -> int: ...

    @property
    def socket_path(self) -> str: ...

def connect(socket: str, autostart: bool | None, grace_ms: int, reconnect_ms: int) -> Client: ...

def resolve_name(name: str) -> str: ...

def ask_waits(is_forsaken: Callable[[], bool]) -> None:
    """
    Names the function that is asked in threads that wait without a limit, now and then.
    """

def give_up_waits() -> None:
    """Ends all waits without a limit but the main thread's."""

def note_main_thread(ident: int) -> None:
    """Tells on which thread Python runs signal handlers."""

__version__: str
