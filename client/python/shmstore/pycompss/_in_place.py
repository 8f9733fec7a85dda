"""Arrays that tasks change where they are, one task after the other.

The main program makes one with ``in_place`` and passes it to parameters marked ``Shared``. It holds
the array without mapping it; a task gets a writable ndarray, and while it runs nobody else maps the
array. So nothing is copied, whichever worker the next task runs on.

PyCOMPSs does not know that there is only one copy. To run more at once it gives each version of an
object a file of its own, and lets a task that reads version 2 run while another makes version 3.
Therefore each handle says which version it means, and the array which one it holds (a number behind
its elements, counted up by each writer): a reader that comes too late gets an error, not the newer
contents; so does a writer that is run again although it has written already. A writer that fails or
dies leaves the array broken in the store: who opens it next, by whatever means, gets an error that
names it.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import sys
import time
import traceback
import weakref
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

import numpy as np

from .. import _connect, _errors, _ext
from .._array import SharedArray, lease_of, milliseconds, view_on
from .._dtype import dtype_of, dtype_text
from .._root import buffer_of
from ._config import known_client, or_without, settings
from ._program import Program, main_program, maker, process_of, sweep

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from .._client import Client

_KIND = "in place"  # in the attributes
_HEADER_BYTES = 64  # behind the elements; its first word: how many have written


class Ticket(NamedTuple):
    """What a handle says: which array, how it is laid out, and which version of it is meant."""

    store: int
    id: int
    path: Optional[str]
    name: str
    dtype: str
    shape: tuple[int, ...]
    fortran: bool
    version: int

    @property
    def strides(self) -> tuple[int, ...]:
        steps, step = [], dtype_of(self.dtype).itemsize
        for dim in self.shape if self.fortran else self.shape[::-1]:
            steps.append(step)
            step *= dim
        return tuple(steps if self.fortran else steps[::-1])

    @property
    def header(self) -> int:
        """Where the header begins."""
        nbytes = dtype_of(self.dtype).itemsize * math.prod(self.shape)
        return -(-nbytes // _HEADER_BYTES) * _HEADER_BYTES

    def __str__(self) -> str:
        return f"array {self.name!r}" if self.name else f"array {self.id}"


class InPlaceArray(SharedArray):
    """What a task gets for an array made by ``in_place``: an ndarray, writable for a parameter
    marked ``Shared``, read-only for others. Its views and slices are pickled by value."""

    __slots__ = ("_ticket",)
    _ticket: Ticket

    def __reduce_ex__(self, protocol: Any) -> Any:
        ticket = getattr(self, "_ticket", None)
        lease = lease_of(self)
        if ticket is None or lease is None:
            return np.array(self).__reduce_ex__(protocol)
        lease.handover()
        return opened, (tuple(ticket),)


class InPlace:
    """An array that tasks change in place, as the main program holds it; made by ``in_place``.

    ``compss_wait_on`` gives a new one for the version that the last task made.
    """

    __slots__ = ("__weakref__", "_hold", "_ticket")

    def __init__(self, ticket: Ticket) -> None:
        """Private: use ``in_place``."""
        self._ticket = ticket
        self._hold = _attach(ticket, "h", 0)

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an ndarray."""
        return self._ticket.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """As of an ndarray."""
        return dtype_of(self._ticket.dtype)

    def _label(self) -> str:
        return str(self._ticket)

    def __repr__(self) -> str:
        return f"<shmstore.pycompss.InPlace {self._label()}, {self.dtype} {self.shape}>"

    def read(self) -> NDArray[Any]:
        """The array, mapped read-only; as long as this exists, tasks that change it wait.

        Waits for a task that has it. Raises NotFound if tasks have changed it since (then
        ``compss_wait_on`` is missing), Aborted if one of them failed or died half-way.
        """
        lease = _versioned(self._ticket, "r")
        _reading[self._ticket.store, self._ticket.id] = lease
        return _array(self._ticket, lease)

    def is_read(self) -> bool:
        """Whether something that ``read`` gave exists in this process."""
        return (self._ticket.store, self._ticket.id) in _reading

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        return np.array(self.read(), dtype=dtype)

    def change(self, function: Callable[[NDArray[Any]], Any]) -> None:
        """Calls ``function`` with the array, writable, while nobody else has it. Nothing may refer
        to the array afterwards. If that fails, the array is half-written. Errors as ``read``, and
        Busy while this process itself reads it; RuntimeError if it was passed to a task and not
        waited for since."""
        tracker = sys.modules.get("pycompss.runtime.management.object_tracker")
        if tracker is not None and tracker.OT.is_tracked(self):
            raise RuntimeError(f"{self._label()} is an argument of tasks: compss_wait_on it first")
        with self.writing() as arrays:
            function(arrays.pop())

    @contextlib.contextmanager
    def writing(self) -> Iterator[list[InPlaceArray]]:
        """Private."""
        with writing([self._ticket]) as arrays:
            yield arrays
        self._ticket = self._ticket._replace(version=self._ticket.version + 1)

    def __reduce__(self) -> Any:
        self._hold.handover()
        return opened, (tuple(self._ticket),)


def in_place(
    array: ArrayLike,
    *,
    name: Optional[str] = None,
    replace: bool = False,
    fallback: Optional[bool] = None,
    client: Optional[Client] = None,
) -> InPlace:
    """Copies ``array`` into the store, for tasks to change there.

    To be passed to parameters ``{Type: INOUT, Shared: True}``, which get it writable, and to others
    that read it. ``name`` is its name in the store, and in errors; who else opens it by that name
    may see it before it is filled. The array goes with the main program that made it, in whatever
    way that ends; one that a worker made goes with its last holder.

    replace: take the name from an older array: who maps that keeps it; tasks that were to get it
        get NotFound.
    fallback: without a daemon, or when the store is full: True, warn once and make one that
        PyCOMPSs passes by its files, each task changing a copy; False, raise; None, as
        ``configure`` was told.

    Raises InvalidArgument for a dtype that the store does not know; AlreadyExists, saying who has
    the name and what to do; Disconnected, NoCapacity, QuotaExceeded without fallback.
    """
    source = np.asarray(array)
    text = dtype_text(source.dtype)

    def stored() -> InPlace:
        store = client or settings.client or _connect.default_client()
        return _stored(source, text, name, replace, store)

    def otherwise() -> InPlace:
        from ._in_files import in_files

        return in_files(source, name)

    return or_without(stored, otherwise, fallback, client or known_client())


def _stored(
    source: NDArray[Any], text: str, name: Optional[str], replace: bool, client: Client
) -> InPlace:
    fortran = bool(source.flags.f_contiguous and not source.flags.c_contiguous)
    ticket = Ticket(0, 0, None, name or "", text, source.shape, fortran, 0)
    memory = _create(client, name, ticket.header + _HEADER_BYTES, replace)
    lease = lease_of(memory)
    assert lease is not None
    # Which store that is was known to nobody before: its daemon may have been started anew.
    path = _connect.handle_path(lease)
    ticket = ticket._replace(store=lease.store_id, id=lease.id, path=path)
    _header(ticket, lease)[0] = 0
    np.copyto(view_on(lease, source.dtype, source.shape, 0, ticket.strides), source)
    result = InPlace(ticket)
    del lease
    _ext.release(memory)
    return result


def _create(client: Client, name: Optional[str], nbytes: int, replace: bool) -> SharedArray:
    program = main_program(client)
    attrs = None if program is None else program.attrs(_KIND)

    def create() -> SharedArray:
        return client.create(
            name, (nbytes,), np.uint8, mutable=True, attrs=attrs, replace=replace
        )

    try:
        return create()
    except _errors.AlreadyExists:
        sweep(client)  # Maybe a program has been killed just now.
    try:
        return create()
    except _errors.AlreadyExists as error:
        assert name is not None
        raise _errors.AlreadyExists(f"{error}; {_who_has(client, name, program)}") from None


def _who_has(client: Client, name: str, program: Optional[Program]) -> str:
    """What to do about a name that is taken."""
    advice = "choose another name, or take this one with replace=True"
    try:
        token = maker(client.info(name))
    except _errors.NotFound:
        return "it is free now"
    if token is None:
        return advice
    if program is not None and token == program.token:
        return f"this program has made it already: {advice}"
    process = process_of(client, token)
    if process is None:
        return "it is free now"
    return f"it belongs to a program that runs ({process}): wait for its end, or {advice}"


# --- opening --------------------------------------------------------------------------------------


def _attach(ticket: Ticket, mode: str, wait: Optional[float]) -> _ext.Lease:
    try:
        client = _connect.client_of(ticket.store, ticket.path)
        wait_ms = milliseconds(wait)
        return client._ext.attach_id(ticket.id, ticket.store, mode, wait_ms, True)
    except _errors.Aborted:
        text = f"{ticket} is half-written: {_who_left(client, ticket)}"
        raise _errors.Aborted(text) from None
    except (_errors.NotFound, _errors.Disconnected) as error:
        raise _errors.NotFound(
            f"{ticket} is gone, or not on host {os.uname().nodename}: {error}"
        ) from None
    except (_errors.TimedOut, _errors.Busy) as error:
        raise type(error)(f"{ticket} is in use: {error}") from None


def _who_left(client: Client, ticket: Ticket) -> str:
    """What became of the task that had a broken array."""
    try:
        broken = client.info(id=str(ticket.id))["broken"]
    except _errors.Error:  # It has been deleted meanwhile, for example.
        broken = None
    if broken is None:
        return "the task that had it did not finish"
    what = "task that had it failed" if broken["gave_up"] else "process that had it died"
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(broken["at"]))
    return f"the {what} (pid {broken['pid']}, {broken['command']}, {at})"


def _versioned(ticket: Ticket, mode: str) -> _ext.Lease:
    """A lease on the version that is meant."""
    lease = _attach(ticket, mode, settings.wait)
    version = int(_header(ticket, lease)[0])
    if version != ticket.version:
        raise _errors.NotFound(
            f"version {ticket.version} of {ticket} is gone: it was changed in place, and is at "
            f"version {version} now. What reads a version has to run before the next is made: call "
            f"compss_wait_on or compss_barrier in between"
        )
    return lease


def _header(ticket: Ticket, lease: _ext.Lease) -> NDArray[np.uint64]:
    return np.ndarray.__new__(np.ndarray, (1,), np.uint64, buffer_of(lease), ticket.header)


def _array(ticket: Ticket, lease: _ext.Lease) -> InPlaceArray:
    whole = view_on(lease, dtype_of(ticket.dtype), ticket.shape, 0, ticket.strides)
    result = whole.view(InPlaceArray)
    result._ticket = ticket
    return result


#: The last that ``InPlace.read`` gave, by store and id.
_reading: weakref.WeakValueDictionary[tuple[int, int], _ext.Lease] = weakref.WeakValueDictionary()

#: The arrays that the task which runs in this process writes, by store and id.
_writing: dict[tuple[int, int], InPlaceArray] = {}
_peeking = False


class _Found(BaseException):  # PyCOMPSs catches each Exception while it opens a file
    def __init__(self, ticket: Any) -> None:
        super().__init__(ticket)
        self.ticket = ticket


def opened(fields: tuple[Any, ...]) -> Any:
    """What unpickling calls: the array in a task, an ``InPlace`` in the main program."""
    ticket = Ticket(*fields)
    found(ticket)
    held = _writing.get((ticket.store, ticket.id))
    if held is not None:
        return held
    context = sys.modules.get("pycompss.util.context")
    if context is not None and context.CONTEXT.in_worker():
        return _array(ticket, _versioned(ticket, "r"))
    return InPlace(ticket)


def peek(open_handle: Callable[[], Any]) -> Any:
    """The ticket of the handle that ``open_handle()`` unpickles; what it returns, if that is none.
    Nothing that comes after the ticket is read."""
    global _peeking
    _peeking = True
    try:
        return open_handle()
    except _Found as there:
        return there.ticket
    finally:
        _peeking = False


def found(ticket: Any) -> None:
    """What unpickling calls for a ticket: ends there if that is all ``peek`` wants to know."""
    if _peeking:
        raise _Found(ticket)


@contextlib.contextmanager
def writing(tickets: Iterable[Ticket]) -> Iterator[list[InPlaceArray]]:
    """Inside the block this process alone has the arrays. They are handed over at the end; after an
    exception they are broken. Nothing may refer to them when the block has come to its end: if
    something does, that is a RuntimeError, and the array is deleted, since it cannot be taken away
    from who has it."""
    wanted = {(ticket.store, ticket.id): ticket for ticket in tickets}
    arrays: list[InPlaceArray] = []
    leases: dict[Ticket, weakref.ref[_ext.Lease]] = {}
    begun = False
    try:
        # In one order everywhere: two tasks that want the same two arrays do not block each other.
        for key in sorted(wanted):
            _writing[key] = _turn(wanted[key], leases)
        arrays += [_writing[key] for key in wanted]
        begun = True
        yield arrays
        _count_up(leases)
    except BaseException as error:
        # Before anything else: with the last reference to an array it would count as whole.
        if begun:
            _give_up(leases)
        # The frames that the exception has gone through refer to the arrays as well.
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        arrays.clear()
        for ticket in leases:  # not those of a task that this one runs in
            _writing.pop((ticket.store, ticket.id), None)
        if any(lease() is not None for lease in leases.values()):
            gc.collect()
        _take_back(leases)


def _turn(ticket: Ticket, leases: dict[Ticket, weakref.ref[_ext.Lease]]) -> InPlaceArray:
    """The array for this process alone. Its lease is added to ``leases``."""
    try:
        lease = _versioned(ticket, "x")
    except _errors.Busy:
        gc.collect()  # Maybe something that this process has forgotten is in its own way.
        lease = _versioned(ticket, "x")
    ticket = ticket._replace(version=ticket.version + 1)
    leases[ticket] = weakref.ref(lease)
    return _array(ticket, lease)


def _count_up(leases: dict[Ticket, weakref.ref[_ext.Lease]]) -> None:
    for ticket, reference in leases.items():
        lease = reference()
        if lease is not None:
            _header(ticket, lease)[0] = ticket.version


def _give_up(leases: dict[Ticket, weakref.ref[_ext.Lease]]) -> None:
    """Leaves the arrays broken."""
    for reference in leases.values():
        lease = reference()
        if lease is None:
            continue
        try:
            lease.let_go(True)
        except _errors.Error:
            # The lease's end, or the end of the process, leaves it broken all the same.
            pass


def _take_back(leases: dict[Ticket, weakref.ref[_ext.Lease]]) -> None:
    """Deletes the arrays that something refers to still; RuntimeError if there are any."""
    kept = []
    for ticket, reference in leases.items():
        lease = reference()
        if lease is not None and lease.valid:
            kept.append(str(ticket))
            with contextlib.suppress(_errors.Error):  # It has been deleted already, for example.
                _connect.client_of(ticket.store, ticket.path).delete(id=str(ticket.id))
    if kept:
        raise RuntimeError(
            f"{', '.join(kept)}: the task that changed it in place has ended, but its process "
            f"refers to it still. So it was deleted"
        )
