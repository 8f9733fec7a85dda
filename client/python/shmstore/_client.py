"""Client and Watch: the calls, and Python's arguments made into those of the extension."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, Optional, SupportsIndex, Union, cast

import numpy as np

from . import _arguments, _exclusive, _ext, _opened, _waiting
from ._array import SharedArray, array_on, milliseconds
from ._dtype import dtype_text
from ._errors import InvalidArgument, NotFound, shown
from ._listing import Arrays, Holders

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    from ._hold import Handle

    ShapeLike = Union[SupportsIndex, Sequence[SupportsIndex]]
    Dict = dict[str, Any]
    Dicts = list[Dict]  # Client.list hides the builtin in annotations of the class


class Watch:
    """A stream of events, from ``Client.watch``: an iterator of dicts with the keys ``event``
    (``"created"``, ``"sealed"``, ``"deleted"``, ``"kept"``, ``"unkept"``, ``"broken"``,
    ``"repaired"``; ``"lost"``: some were dropped because nobody read them), ``name``, ``id``,
    ``version``, ``state``, ``uid``.

    Holds a connection of its own until it is garbage. Not for several threads at once, nor for a
    forked child.
    """

    def __init__(self, events: _ext.Watch) -> None:
        self._events = events

    def next(self, timeout: Optional[float] = None) -> Dict:
        """The next event. Waits ``timeout`` seconds for it, None for ever, then raises TimedOut."""
        event: Dict = json.loads(self._events.next(milliseconds(timeout)))
        return event

    def fileno(self) -> int:
        """Descriptor for ``select``: readable when an event may be there."""
        return self._events.fileno()

    def __iter__(self) -> Iterator[Dict]:
        return self

    def __next__(self) -> Dict:
        return self.next()


class Client:
    """A connection to the store, made by ``connect``. The module's functions use a default one.

    Names live in the caller's own namespace; ``~1000/name`` and ``~alice/name`` address another
    user's. ``timeout`` is in seconds, ``None`` waits for ever, 0 not at all; Ctrl-C ends any call
    that waits and leaves nothing behind. Every call gives other threads the interpreter and is one
    round trip unless it says that it waits.

    Threads: calls of several threads overlap. Fork: a child may go on using the client; its first
    call opens a connection of its own. Lifetime: arrays outlive the client. If the daemon goes,
    arrays stay readable; a call tries to reach it again for 10 s (``connect(reconnect=)``).

    Errors that every call may raise, not repeated below: Disconnected (no daemon, or it went
    away), ProtocolError, InvalidArgument (the text names argument and limit), and PermissionDenied
    for arrays and namespaces of others.
    """

    def __init__(self, ext: _ext.Client, path: Optional[str]) -> None:
        """Private: use ``connect``."""
        from . import _once

        _once.register()
        self._ext = ext
        self._path = path

    @property
    def socket_path(self) -> str:
        """Path of the daemon's socket."""
        return self._ext.socket_path

    @property
    def store_id(self) -> int:
        """The random number of the store; another one after its daemon has started anew."""
        return self._ext.store_id

    def __repr__(self) -> str:
        return f"<shmstore.Client {self.socket_path}>"

    # -- making arrays -----------------------------------------------------------------------------

    def create(
        self,
        name: Optional[str],
        shape: ShapeLike,
        dtype: DTypeLike = float,
        *,
        order: str = "C",
        mutable: bool = False,
        keep: bool = False,
        ttl: Optional[float] = None,
        perms: int = 0o600,
        attrs: Optional[Mapping[str, Any]] = None,
        replace: bool = False,
        timeout: Optional[float] = 0,
        late: bool = False,
        hard: bool = False,
    ) -> SharedArray:
        """Makes an uninitialised array that this process writes: a draft, until it is sealed.

        Others see it when it is sealed: at the end of a ``with`` block, which drops it on an
        exception, or by ``w.seal()``. A draft whose creator's process ends is dropped. With
        ``mutable`` it is shared read-write at once, no seal needed.

        name: None makes an anonymous array, reachable by its pickled handle or ``x.shm.id``.
        shape, dtype: as ``numpy.empty``; any dtype but objects and StringDType.
        order: ``"C"`` or ``"F"``.
        keep: the name keeps the array when nobody holds it, until ``delete``, or for ``ttl``
            seconds.
        perms: permission bits of 0o666. An array others may open is sealed ``hard``.
        attrs: a mapping that JSON can say, at most 4096 bytes, for ``info``.
        replace: publish over an older array of this name, atomically, when sealed; its readers keep
            the old one.
        timeout: seconds to wait for room when the store is full.
        late: reserved; no effect.
        hard: seal so that the kernel refuses every further write, this process's included.

        Raises AlreadyExists, NoCapacity, QuotaExceeded. Waits for the daemon to get the memory.
        """
        dims, element, text = _arguments.layout(shape, dtype)
        options = _arguments.options(
            order, mutable, keep, ttl, perms, attrs, replace, timeout, late, hard
        )
        return array_on(self._ext.create(_arguments.name_text(name), text, dims, options))

    def put(
        self,
        name: Optional[str],
        array: ArrayLike,
        *,
        order: Optional[str] = None,
        mutable: bool = False,
        keep: bool = False,
        ttl: Optional[float] = None,
        perms: int = 0o600,
        attrs: Optional[Mapping[str, Any]] = None,
        replace: bool = False,
        timeout: Optional[float] = 0,
        late: bool = False,
        hard: bool = False,
    ) -> SharedArray:
        """Copies ``array`` into the store, seals it and returns it, read-only.

        array: any ndarray or what ``numpy.asarray`` makes one of; subclasses are taken as plain
            data, but masked arrays are not (``share`` keeps masks). One that is in the store
            already is copied. C and F order stay what they are, other layouts become C, unless
            ``order`` says otherwise.

        The other arguments and errors are those of ``create``. With ``mutable`` the result is
        writable and not sealed. The copy runs without the interpreter's lock.
        """
        source = _arguments.source(array)
        text = dtype_text(source.dtype)
        c_order, f_order = source.flags.c_contiguous, source.flags.f_contiguous
        if order is None:
            order = "F" if f_order and not c_order else "C"
        options = _arguments.options(
            order, mutable, keep, ttl, perms, attrs, replace, timeout, late, hard
        )
        if f_order if order == "F" else c_order:
            address = source.__array_interface__["data"][0]
            lease = self._ext.put(
                _arguments.name_text(name),
                text,
                list(source.shape),
                address,
                source.nbytes,
                options,
            )
            return array_on(lease)
        lease = self._ext.create(_arguments.name_text(name), text, list(source.shape), options)
        with array_on(lease) as draft:
            np.copyto(draft, source)
        return draft

    def put_many(
        self, arrays: Mapping[str, ArrayLike], **options: Any
    ) -> dict[str, SharedArray]:
        """``put`` for each item of a mapping; returns the arrays by name.

        The options are those of ``put``, for all. If one fails, those before it are published,
        and gone again unless kept.
        """
        return {name: self.put(name, array, **options) for name, array in arrays.items()}

    def cached(
        self,
        key: str,
        load: Callable[..., Any],
        *,
        shape: Optional[ShapeLike] = None,
        dtype: Optional[DTypeLike] = None,
        order: str = "C",
        ttl: Optional[float] = None,
        perms: int = 0o600,
        attrs: Optional[Mapping[str, Any]] = None,
        timeout: Optional[float] = None,
    ) -> SharedArray:
        """The array named ``key``, read-only, made by ``load`` if there is none: exactly once over
        all processes, while the others wait. The result is kept (for ``ttl`` seconds).

        Without ``shape``, ``load()`` returns the array, which is copied into the store. With
        ``shape`` (and ``dtype``, default float), ``load(out)`` fills ``out`` in place; what it
        returns is ignored.

        If ``load`` raises, the exception goes to its caller and the next waiting process loads;
        likewise if the process dies. ``timeout`` bounds the wait for another process's loader.

        Raises TimedOut, NoCapacity, QuotaExceeded; InvalidArgument when called for the same key
        inside its own ``load``.
        """
        if shape is None and dtype is not None:
            raise InvalidArgument("dtype: needs shape; without it load() returns the array")
        make = _filler(load, shape, dtype) if shape is not None else _loader(load)
        options = _arguments.options(order, ttl=ttl, perms=perms, attrs=attrs, timeout=timeout)
        return array_on(self._ext.cached(_arguments.existing(key), make, options))

    # -- getting arrays ----------------------------------------------------------------------------

    def attach(
        self,
        name: Optional[str] = None,
        mode: str = "r",
        *,
        timeout: Optional[float] = None,
        newer_than: int = 0,
        id: Optional[str] = None,
        exclusive: bool = False,
        repair: bool = False,
    ) -> SharedArray:
        """The array ``name``, or the one with ``id``, without a copy.

        mode: ``"r"`` read-only; ``"r+"`` to write a mutable array, or to fill a draft together with
            its creator; ``"c"`` a private copy-on-write view: writable, changes stay here.
        timeout: bounds the wait for a draft to be sealed, for ``newer_than``, and for those who
            hold a mutable array exclusively. A missing name is NotFound at once.
        newer_than: wait for a version above this one (``x.shm.version``).
        exclusive: with ``"r+"`` of a mutable array: no other process maps it as long as this one
            does. While others hold it, or one has it exclusively, an attach of any mode waits for
            its turn, in order of arrival; with ``timeout=0`` it is Busy, and at once when this
            process itself is in the way (with arrays, not with what ``hold_opened`` holds). Only
            exclusive after exclusive waits within a process too, for its threads. Who maps the
            array already, shared, may map it again before those who wait: threads that overlap keep
            a writer out. The end of the lease hands the array over with all that was written; views
            that are left are private, what is written to them is lost. If the process dies before
            that, the array is *broken*: attach raises Aborted, naming it, until somebody repairs,
            replaces or deletes it. A forked child does not inherit the memory: touching it there
            ends the child by SIGSEGV.
        repair: with ``exclusive``: a broken array, too. Its release declares it whole again.

        Raises NotFound, TimedOut, Busy (the text names who holds it), Aborted (the draft waited for
        was dropped; the array is broken), InvalidArgument (``r+`` of a sealed array, ``exclusive``
        of one that is not mutable). Waits while the array is a draft, but not with ``r+``.
        """
        wait_ms = milliseconds(timeout)
        newer = _arguments.count(newer_than, "newer_than")
        access, repair = _arguments.access_of(mode, exclusive, repair), bool(repair)
        if id is None:
            existing = _arguments.existing(name)
            if exclusive:
                self._out_of_own_way(existing, 0, 0)
            lease = self._ext.attach(existing, access, wait_ms, newer, repair)
            return array_on(_exclusive.note(lease) if exclusive else lease)
        if name is not None or newer != 0:
            raise InvalidArgument("id: cannot be given together with a name or newer_than")
        return self._attach_id(_arguments.array_id(id), 0, mode, timeout, exclusive, repair)

    def _attach_id(
        self,
        id: int,
        store_id: int,
        mode: str,
        timeout: Optional[float],
        exclusive: bool,
        repair: bool,
    ) -> SharedArray:
        access, wait_ms = _arguments.access_of(mode, exclusive, repair), milliseconds(timeout)
        if exclusive:
            self._out_of_own_way(None, id, store_id)
        lease = self._ext.attach_id(id, store_id, access, wait_ms, False, bool(repair))
        return array_on(_exclusive.note(lease) if exclusive else lease)

    def _out_of_own_way(self, name: Optional[str], id: int, store_id: int) -> None:
        """Lets go of what this process holds only for the next handle, before it asks to have an
        array exclusively: it would be in its own way."""
        if not _opened.holds_mutable():
            return
        try:
            number = id if name is None else int(self.info(name)["id"])
        except NotFound:
            return
        if _opened.let_go(store_id or self.store_id, number):
            from . import _connect

            _connect.settle(store_id or self.store_id, self)

    def attach_many(
        self, names: Iterable[str], mode: str = "r", *, timeout: Optional[float] = None
    ) -> dict[str, SharedArray]:
        """``attach`` for each name; returns the arrays by name. ``timeout`` is for each of them."""
        return {name: self.attach(name, mode, timeout=timeout) for name in names}

    def handle(self, array: Any = None, *, id: Optional[str] = None) -> Handle:
        """A handle, which keeps an array alive without mapping it, to be passed on.

        array: one that this process holds, or a name; or ``id=``. Whoever passes a mutable array on
        for others to have exclusively lets go of the array itself (``del x``), and keeps this.

        Raises NotFound, Aborted (a draft that was dropped). Waits for nobody.
        """
        from ._hold import Handle, handle_of

        if isinstance(array, np.ndarray):
            return handle_of(self, array)
        if id is None:
            return Handle(self, self._ext.attach(_arguments.existing(array), "h", 0, 0))
        if array is not None:
            raise InvalidArgument("id: cannot be given together with an array or a name")
        return Handle(self, self._ext.attach_id(_arguments.array_id(id), 0, "h", 0, False))

    #: Ends the lease of an array now; see the function ``release``.
    release = staticmethod(_ext.release)

    # -- names -------------------------------------------------------------------------------------

    def list(self, prefix: str = "") -> Dicts:
        """The arrays one may read whose name begins with ``prefix``, as dicts like ``info``'s: a
        list, which prints as a table.
        """
        return Arrays(self._admin("list", _arguments.prefix(prefix)))

    def info(self, name: Optional[str] = None, *, id: Optional[str] = None) -> Dict:
        """What the store knows about an array: ``id, name, dtype, shape, order, nbytes, state,
        version, perms, uid, leases, kept, ttl_s, created, sealed, attrs, in_flight, broken``; times
        in Unix seconds. ``in_flight``: how many handles were pickled and not opened yet, as far as
        the store can tell. ``broken``: None, or who had a broken array and when it went away:
        ``pid, command, at``; ``gave_up`` if it lives on (an exception), False if it ended.

        Raises NotFound.
        """
        return cast("Dict", self._admin("info", _arguments.target(name, id)))

    def in_flight(self, prefix: str = "") -> Dicts:
        """The arrays of ``list`` whose handles were pickled and not all opened yet: what is on its
        way from one process to another. For people to look at, not to decide by: a handle that is
        opened several times takes several off; one that is lost counts until the hand-over lease
        ends, and so does one that was opened by a process that had the array open, because that
        takes no message to the store (see ``hold_opened``). The lease ends ``grace`` seconds after
        the last handle was pickled or opened.
        """
        return Arrays(info for info in self.list(prefix) if info["in_flight"])

    def broken(self, prefix: str = "") -> Dicts:
        """The arrays of ``list`` that are half-written: a process that had one exclusively died, or
        failed; ``info["broken"]`` says which and when. For the driver of a pool, when a worker has
        died. The store knows of a death when the process is gone: that is after ``shutdown()`` or
        the ``with`` block of the pool, and a little later than its error.
        """
        return Arrays(info for info in self.list(prefix) if info["broken"])

    def exists(self, name: str) -> bool:
        """Whether there is an array of this name, drafts included."""
        return self._ext.exists(_arguments.existing(name))

    def __contains__(self, name: object) -> bool:
        return self.exists(name) if isinstance(name, str) else False

    def holders(
        self, name: Optional[str] = None, *, id: Optional[str] = None
    ) -> Dicts:
        """Who holds an array: dicts of ``pid, command, uid, access, since``; ``access`` also
        ``"x"`` (exclusive) and ``"h"`` (a handle). With pid 0, handles that were pickled and may be
        opened yet: also ``in_flight`` (how many were not) and ``from_pid``. Raises NotFound.
        """
        return Holders(self._admin("holders", _arguments.target(name, id))["holders"])

    def wait(self, name: str, newer_than: int = 0, timeout: Optional[float] = None) -> int:
        """Waits until ``name`` exists, is no draft, and its version is above ``newer_than``;
        returns the version. Raises TimedOut after ``timeout`` seconds.
        """
        return self._ext.wait(
            _arguments.existing(name),
            _arguments.count(newer_than, "newer_than"),
            milliseconds(timeout),
        )

    def watch(self, prefix: str = "") -> Watch:
        """The changes from now on to arrays whose name begins with ``prefix``."""
        if not isinstance(prefix, str):
            raise InvalidArgument(f"prefix: {shown(prefix)} is not a string")
        return Watch(self._ext.watch(_arguments.encodable(prefix)))

    def delete(self, name: Optional[str] = None, *, id: Optional[str] = None) -> None:
        """Takes the name away now; the memory goes with the last holder. Raises NotFound."""
        if id is None:
            self._ext.remove(_arguments.existing(name))
        else:
            self._admin("remove", _arguments.target(name, id))

    def keep(self, name: str, ttl: Optional[float] = None) -> None:
        """Lets the name keep the array when nobody holds it; with ``ttl`` for that many seconds.

        Raises NotFound, NotSealed (a draft).
        """
        self._ext.keep(_arguments.existing(name), milliseconds(ttl, "ttl"))

    def unkeep(self, name: str) -> None:
        """Takes ``keep`` back: the array goes when nobody holds it. Raises NotFound."""
        self._ext.unkeep(_arguments.existing(name))

    def chmod(self, name: str, perms: int) -> None:
        """Changes the permission bits. Narrowing is free; widening needs a hard-sealed or a mutable
        array, else InvalidArgument. Raises NotFound.
        """
        self._ext.chmod(_arguments.existing(name), _arguments.permissions(perms))

    def stats(self) -> Dict:
        """The store's figures: ``capacity, used, pooled, arrays, sessions, fds, fds_max, uptime_s,
        version, uids``; sizes in bytes.
        """
        return cast("Dict", self._admin("status", {}))

    def _admin(self, op: str, request: Dict) -> Any:
        return json.loads(self._ext.admin(op, json.dumps(request)))


def _loader(load: Callable[[], Any]) -> Callable[[_ext.Maker], None]:
    """A loader that copies what ``load()`` returns."""

    def run(maker: _ext.Maker) -> None:
        source = _arguments.source(load())
        np.copyto(array_on(maker.make(dtype_text(source.dtype), list(source.shape))), source)

    return run


def _filler(
    load: Callable[[SharedArray], Any], shape: Any, dtype: Any
) -> Callable[[_ext.Maker], None]:
    """A loader that fills in place."""
    dims, _, text = _arguments.layout(shape, float if dtype is None else dtype)

    def run(maker: _ext.Maker) -> None:
        load(array_on(maker.make(text, dims)))

    return run


_ext.ask_waits(_waiting.is_forsaken)
