"""Arrays that this process has opened from handles: another handle of one needs no round trip.

An id names an array for ever, a sealed one cannot change, and the lease is held already; so the
lease that is there serves the new array as well. The same goes for a mutable array that is held
``r+``: nobody can seal it meanwhile. A lease is found here as long as something refers to it; with
``hold_opened`` this module does.

Opening also renews the hand-over lease that keeps the array for other receivers, 60 s unless the
sender chose otherwise. That is why the daemon is asked again after ``_ASK_AGAIN_S``.
"""

from __future__ import annotations

import os
import re
import threading
import time
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Optional

from . import _ext
from ._errors import InvalidArgument, shown
from ._root import root_on

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ASK_AGAIN_S = 10

_Key = tuple[int, int, str]  # store, id, mode


class _Opened(weakref.ref):  # type: ignore[type-arg]
    """A lease, weakly, and what is to be known when the next handle of its array comes.

    That is often right after a computation that has emptied the processor's caches, when every
    object touched costs: hence the root is remembered as well, and the order of use is not kept but
    made when something has to go.
    """

    __slots__ = ("granted", "held", "key", "queued", "root", "used")
    key: _Key
    granted: float  #: When the daemon granted the lease.
    used: float  #: When a handle was opened on it last.
    queued: float  #: ``used``, as of when it got its place in ``_held``.
    root: weakref.ref[NDArray[Any]]  #: What whole arrays are made on.
    held: Optional[NDArray[Any]]  #: The root, if it is in ``_held``.


_lock = threading.RLock()  # Collecting garbage may open handles.
_opened: dict[_Key, _Opened] = {}
_held: OrderedDict[_Key, _Opened] = OrderedDict()  # By ``queued``.
_held_bytes = 0
_held_bytes_max = 0  # Set at the end of this file.


def find(store_id: int, id: int, mode: str) -> Optional[NDArray[Any]]:
    """The root on a lease of this process that a handle can be opened on as it is, or None."""
    opened = _opened.get((store_id, id, mode))
    if opened is None:
        return None
    lease: Optional[_ext.Lease] = opened()
    now = time.monotonic()
    if lease is None or lease.opens != mode or now - opened.granted > _ASK_AGAIN_S:
        return None
    root = opened.root()
    if root is None:  # The lease serves views of part of the array only.
        root = root_on(lease)
        opened.root = weakref.ref(root)
    opened.used = now
    if _held_bytes_max and opened.held is None:
        _hold(opened, root, lease.nbytes)
    return root


def note(lease: _ext.Lease, mode: str) -> NDArray[Any]:
    """Remembers a lease that the daemon has just granted for a handle; returns the root on it."""
    root = root_on(lease)
    if lease.opens != mode:
        return root
    opened = _Opened(lease, _forget)
    opened.key = (lease.store_id, lease.id, mode)
    opened.granted = opened.used = opened.queued = time.monotonic()
    opened.root, opened.held = weakref.ref(root), None
    _opened[opened.key] = opened
    if _held_bytes_max:
        _hold(opened, root, lease.nbytes)
    return root


def sealed_here(lease: _ext.Lease) -> None:
    """A mutable array was sealed by this process: it is not to be opened for writing any more."""
    key = (lease.store_id, lease.id, "w")
    _opened.pop(key, None)
    with _lock:
        _drop(key)


def is_open(store_id: int, id: int) -> bool:
    """Whether this process has an array that it got by a handle of this one, or holds it."""
    return any((store_id, id, mode) in _opened for mode in ("r", "w"))


def holds_mutable() -> bool:
    """Whether an array is held that others may want to have exclusively."""
    return any(mode == "w" for _, _, mode in list(_held))


def let_go(store_id: int, id: int) -> bool:
    """Holds a mutable array no longer; returns whether it was held. Its lease ends now, unless
    arrays on it exist."""
    with _lock:
        found = (store_id, id, "w") in _held
        _drop((store_id, id, "w"))
        return found


def hold_opened(max_bytes: int) -> None:
    """From now on this process holds on to arrays that it opened from handles, for the next handle.

    For workers that get the same arrays task after task: the array is there at once, with its
    pages, instead of being attached and mapped anew. Up to ``max_bytes`` of arrays are held, those
    used last, and none that is larger; 0 holds none and lets go of what was held. A process starts
    with 0, or with what $SHMSTORE_HOLD_OPENED says (``1GiB``, or a number of bytes), which is for
    workers that somebody else starts. Held are sealed arrays, and mutable ones that came writable.

    What is held counts as held by this process: the array lives on when everybody else has let go
    of it, a mutable one cannot be sealed or had exclusively by others, and ``release(x)`` returns
    False. Who wants to have one exclusively lets go of what it holds itself for the next handle
    only, and is in its own way only with arrays that it uses. A forked child starts anew. Any
    thread; no round trip.
    """
    global _held_bytes_max
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 0:
        raise InvalidArgument(f"max_bytes: {max_bytes!r} is not a number of bytes")
    with _lock:
        _held_bytes_max = max_bytes
        _make_room()


def _max_of_environment() -> int:
    """What $SHMSTORE_HOLD_OPENED says. Raises InvalidArgument."""
    text = os.environ.get("SHMSTORE_HOLD_OPENED") or "0"
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) ?(?:([KMGT])(?:iB)?)?", text)
    if found is None:
        raise InvalidArgument(
            f"SHMSTORE_HOLD_OPENED: {shown(text)} is not a number of bytes, such as 256MiB"
        )
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))


def _forget(opened: _Opened) -> None:
    if _opened.get(opened.key) is opened:
        _opened.pop(opened.key, None)


def _hold(opened: _Opened, root: NDArray[Any], nbytes: int) -> None:
    global _held_bytes
    if nbytes > _held_bytes_max:  # It would push out all others, and then go itself.
        return
    with _lock:
        _drop(opened.key)
        opened.queued, opened.held = opened.used, root
        _held[opened.key] = opened
        _held_bytes += nbytes
        _make_room()


def _make_room() -> None:
    while _held and (_held_bytes > _held_bytes_max or not _held_bytes_max):
        key, opened = next(iter(_held.items()))
        if opened.used == opened.queued or not _held_bytes_max:
            _drop(key)
        else:  # It was used meanwhile: its place is further back.
            opened.queued = opened.used
            _held.move_to_end(key)


def _drop(key: _Key) -> None:
    global _held_bytes
    opened = _held.pop(key, None)
    if opened is not None:
        lease = opened()
        assert lease is not None and opened.held is not None
        _held_bytes -= lease.nbytes
        opened.held = None


def _after_fork_in_child() -> None:
    global _lock, _held_bytes, _held_bytes_max
    _lock = threading.RLock()
    _opened.clear()
    _held.clear()
    _held_bytes = _held_bytes_max = 0
    _held_bytes_max = _max_of_environment()  # which may raise


_held_bytes_max = _max_of_environment()
os.register_at_fork(after_in_child=_after_fork_in_child)
