"""SharedArray: an ndarray whose memory is in the store."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

import numpy as np

from . import _by_value, _exclusive, _ext, _opened
from ._errors import InvalidArgument, shown
from ._root import buffer_of, root_on

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self


class Shm(NamedTuple):
    """What the store knows about an array, as of the last call through it: ``x.shm``.

    A snapshot: it keeps nothing alive and does not change.
    """

    id: str  #: Names the array in its store for ever; a decimal number.
    name: Optional[str]  #: None for anonymous arrays; ``~uid/name`` in another user's namespace.
    version: int  #: Grows with every array published under the name; 0 for a draft.
    state: str  #: ``"draft"``, ``"sealed"``, ``"mutable"``, ``"broken"`` or ``"dying"``.
    access: str  #: ``"r"``, ``"r+"``, ``"c"`` or ``"x"`` (exclusive).
    perms: int  #: Permission bits, as ``0o600``.
    nbytes: int  #: Bytes of the whole array, of which this may be a view.
    sealed: Optional[str]  #: ``"soft"``, ``"hard"``, or None while it can be written.

    def __repr__(self) -> str:
        shown = (
            f"{field}={value:#o}" if field == "perms" else f"{field}={value!r}"
            for field, value in zip(self._fields, self)
        )
        return f"Shm({', '.join(shown)})"


def lease_of(array: Any) -> Optional[_ext.Lease]:
    """The lease at the end of the chain of bases, or None."""
    base = array.base
    while base is not None:
        if isinstance(base, _ext.Lease):
            return base
        # memoryviews name their object differently; anything else that has a base names it so.
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return None


def extent(array: NDArray[Any]) -> tuple[int, int]:
    """First address and address past the last byte that the array's elements occupy."""
    low: int = array.__array_interface__["data"][0]
    if array.size == 0:
        return low, low
    high = low + array.itemsize
    for dim, stride in zip(array.shape, array.strides):
        if stride < 0:
            low += (dim - 1) * stride
        else:
            high += (dim - 1) * stride
    return low, high


def lease_around(array: NDArray[Any]) -> Optional[_ext.Lease]:
    """The lease that all bytes of the array lie in, or None."""
    lease = lease_of(array)
    if lease is None or not lease.valid:
        return None
    return None if lease.offset(*extent(array)) is None else lease


def offset_in(lease: _ext.Lease, array: NDArray[Any]) -> int:
    """Where the first element of an array of this lease is, in bytes."""
    address: int = array.__array_interface__["data"][0]
    offset = lease.offset(address, address + (array.nbytes > 0))
    assert offset is not None
    return offset


def become_reader(array: NDArray[Any], lease: _ext.Lease) -> None:
    """After the seal of ``lease``: lets an array of its draft lie in the read-only memory, so that
    code that does not ask whether an array may be written cannot change what others read."""
    before = array.base
    array.flags.writeable = False
    # The root too: an array may be made writable again while its base is.
    if isinstance(before, np.ndarray):
        before.flags.writeable = False
    _ext.move_array(array, root_on(lease))


def array_on(lease: _ext.Lease) -> SharedArray:
    """The whole array of a lease."""
    return root_on(lease).view(SharedArray)


def view_on(
    lease: _ext.Lease,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    offset: int,
    strides: tuple[int, ...],
) -> SharedArray:
    """Part of a lease's memory; offset and strides in bytes. Raises ValueError outside of it."""
    root = np.ndarray.__new__(np.ndarray, shape, dtype, buffer_of(lease), offset, strides)
    return root.view(SharedArray)


def milliseconds(seconds: Any, field: str = "timeout") -> Optional[int]:
    """Seconds, None for ever, as whole milliseconds, rounded up."""
    if seconds is None:
        return None
    try:
        value = float(seconds)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{field}: {shown(seconds)} is not a number of seconds") from None
    except OverflowError:  # an integer beyond every float
        value = float("inf")
    if not 0 <= value <= 1e12:
        raise InvalidArgument(f"{field}: {shown(seconds)} is not between 0 and 1e12 seconds")
    return -int(-value * 1000 // 1)


class _NumpysModule(str):
    """The name of a module, which says that it equals ``numpy``.

    torch and others convert arrays whose ``type(x).__module__`` is that, subclasses or not; pickle
    and import see the name itself.
    """

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True or other == "numpy"

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __reduce__(self) -> Any:
        return str, (str(self),)


class SharedArray(_ext.ArrayBase):
    """An ndarray whose memory is in the store.

    ``put``, ``create``, ``attach`` and ``cached`` return it. It holds a lease: the memory stays, in
    this process and in the store, as long as this array or any view of it exists; ``del`` or
    garbage collection ends the lease, ``release(x)`` does at once. Slices and views are
    SharedArrays; results of computations, copies, selections by lists or masks are plain ndarrays.
    Whatever has no lease has ``.shm is None``.

    Pickling sends a handle of at most 200 bytes instead of the data (for views up to four
    dimensions) and takes a hand-over lease, so that the array lives for the receiver for the
    client's ``grace``, 60 s unless set, even if the sender lets go. Opening a handle begins the
    time anew: there may be more who open it. (Up to 10 s less, and not at all with a shorter grace,
    where a process has the array open and does not ask the store.) Only what multiprocessing's
    queues, pipes and pools carry has one receiver, and lives no longer than that one wants. The
    receiver gets the same memory: a draft it can write to, a mutable array writable if this view
    is, otherwise a read-only array. Pickled by value: what has no lease, private copies (mode
    ``"c"``), and arrays that were deleted or replaced, or are sealed and outlived their daemon:
    nobody can attach to these any more. What others may write and the daemon is gone: Disconnected.
    ``copy.copy`` and ``copy.deepcopy`` give plain ndarrays.

    A ``with`` block seals a draft that this process created when it ends, or drops it on an
    exception. It lets go of an array that was attached, in any mode: this process does not hold it
    any more, what is left of it is private and not to be written, and ``.shm`` is None. One that
    was attached exclusively is handed over, or left broken on an exception. For other arrays (from
    ``put``, ``cached``, a pickle) the end of the block does nothing. At the end of the interpreter
    exclusive arrays are handed over as well, but left broken by an uncaught exception; so is what a
    thread attached that ends by one. An exception that somebody catches is not seen without a
    ``with`` block: the array is handed over like any that nobody refers to any more.

    Threads: like any ndarray. Fork: a child reads what it inherited; nothing it does with it ends
    the parent's lease.
    """

    __slots__ = ()

    #: Results of computations are plain: any other subclass may say better what becomes of it.
    __array_priority__ = -100.0

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """ndarray, which ``type(x)`` is a subclass of. ``joblib.hash`` goes by this: arrays with
        the same contents are the same arguments to a cached function. So does
        ``functools.singledispatch``, which chooses what is registered for ndarray; and
        ``x.__class__ = …`` raises AttributeError: ``x.view(kind)`` makes another class of it."""
        return np.ndarray if type(self) is SharedArray else type(self)

    @property
    def shm(self) -> Optional[Shm]:
        """What the store knows about the array (``Shm``), or None without a lease."""
        lease = lease_around(self)
        if lease is None:
            return None
        return Shm(
            str(lease.id),
            lease.name or None,
            lease.version,
            lease.state,
            lease.access,
            lease.perms,
            lease.nbytes,
            lease.sealed,
        )

    def seal(self, hard: bool = False, wait: Optional[float] = 0) -> Self:
        """Publishes a draft, or ends the writing of a mutable array; returns this array, read-only.

        The whole array is sealed, also through a view. This array lies in read-only memory from
        now on: code that ignores numpy's flag ends the process by SIGSEGV. Views taken before stay
        where they were and keep numpy's flag: writing through them may change a soft-sealed array,
        never a ``hard`` one. ``wait``: seconds to wait for other processes that hold it ``r+``,
        None for ever. Twice is fine.

        Raises Busy (the text names the other writers), Aborted (the draft's creator is gone),
        PermissionDenied, InvalidArgument (not held ``r+``, or no lease), NoCapacity (no address
        space for the read-only memory). One round trip.
        """
        lease = lease_around(self)
        if lease is None:
            raise InvalidArgument("x: is not an array of the store")
        lease.seal(hard, milliseconds(wait, "wait"))
        _opened.sealed_here(lease)
        become_reader(self, lease)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        lease = lease_of(self)
        if lease is None or not lease.valid or lease.inherited:
            return
        if lease.creator and lease.state == "draft":
            self._end_draft(lease, kind is None)
        elif lease.attached:
            self._end_attached(lease, kind is not None)

    def _end_draft(self, lease: _ext.Lease, whole: bool) -> None:
        if whole:
            self.seal()
            return
        try:
            lease.abort()
        except Exception:
            # The block's own exception is the one to show; the draft goes with the array.
            pass

    def _end_attached(self, lease: _ext.Lease, failed: bool) -> None:
        try:
            _exclusive.let_go(lease, half_written=failed)
        except Exception:
            # With an exception of its own, the block's is the one to show.
            if not failed:
                raise
        if lease.access in ("r+", "x"):
            self._set_read_only()

    def _set_read_only(self) -> None:
        self.flags.writeable = False
        # The root too: an array may be made writable again while its base is.
        if isinstance(self.base, np.ndarray):
            self.base.flags.writeable = False

    def __reduce_ex__(self, protocol: Any) -> Any:
        from . import _once
        from ._handle import reduce_array

        _once.register()
        return reduce_array(self, protocol)

    def __reduce__(self) -> Any:
        return self.__reduce_ex__(2)

    def dump(self, file: Any) -> None:
        """numpy's: pickles the array with its data, into a file."""
        with _by_value.by_value():
            np.ndarray.dump(self, file)

    def dumps(self) -> bytes:
        """numpy's: the array pickled with its data."""
        with _by_value.by_value():
            return np.ndarray.dumps(self)

    def __copy__(self) -> NDArray[Any]:  # type: ignore[override]
        return np.array(self, copy=True, order="K")

    def __deepcopy__(self, memo: Any) -> NDArray[Any]:  # type: ignore[override]
        return np.array(self, copy=True, order="K")


SharedArray.__module__ = _NumpysModule("shmstore")


def _returning_plain(name: str) -> Callable[..., Any]:
    """numpy's method ``name``; a result that is no view is a plain array."""
    method = getattr(np.ndarray, name)

    @functools.wraps(method)
    def plain_method(self: NDArray[Any], *args: Any, **kwargs: Any) -> Any:
        return _ext.plain(method(self, *args, **kwargs))

    return plain_method


for _name in (
    "argmax argmin argpartition argsort astype byteswap choose compress conj conjugate copy "
    "cumprod cumsum diagonal dot flatten ravel repeat reshape round searchsorted take"
).split():
    setattr(SharedArray, _name, _returning_plain(_name))
