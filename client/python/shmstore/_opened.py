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
import threading
import time
import weakref
from collections import OrderedDict
from typing import Any, Optional

from . import _ext
from ._errors import InvalidArgument

_ASK_AGAIN_S = 10

#: In which state an array stays what it is while it is held, by the mode of its handle.
_LASTING = {"r": "sealed", "w": "mutable"}

_Key = tuple[int, int, str]  # store, id, mode


class _Opened(weakref.ref):  # type: ignore[type-arg]
    """A lease, weakly, and when the daemon granted it."""

    __slots__ = ("granted", "key")
    key: _Key
    granted: float


_lock = threading.RLock()  # Collecting garbage may open handles.
_opened: dict[_Key, _Opened] = {}
_held: OrderedDict[_Key, _ext.Lease] = OrderedDict()  # The latest used at the end.
_held_bytes = 0
_held_bytes_max = 0


def find(store_id: int, id: int, mode: str) -> Optional[_ext.Lease]:
    """A lease of this process that a handle can be opened on as it is, or None."""
    key = (store_id, id, mode)
    found = _opened.get(key)
    if found is None or time.monotonic() - found.granted > _ASK_AGAIN_S:
        return None
    lease: Optional[_ext.Lease] = found()
    if lease is None or not lease.valid or lease.inherited or lease.state != _LASTING[mode]:
        return None
    if _held_bytes_max:
        _hold(key, lease)
    return lease


def note(lease: _ext.Lease, mode: str) -> _ext.Lease:
    """Remembers a lease that the daemon has just granted for a handle; returns it."""
    if lease.state != _LASTING.get(mode) or (mode == "w") != (lease.access == "r+"):
        return lease
    key = (lease.store_id, lease.id, mode)
    opened = _Opened(lease, _forget)
    opened.key, opened.granted = key, time.monotonic()
    _opened[key] = opened
    if _held_bytes_max:
        _hold(key, lease)
    return lease


def sealed_here(lease: _ext.Lease) -> None:
    """A mutable array was sealed by this process: it is not to be opened for writing any more."""
    key = (lease.store_id, lease.id, "w")
    _opened.pop(key, None)
    with _lock:
        _drop(key)


def is_open(store_id: int, id: int) -> bool:
    """Whether this process has an array that it got by a handle of this one, or holds it."""
    return any((store_id, id, mode) in _opened for mode in _LASTING)


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
    used last; 0, the state at the start, holds none and lets go of what was held. Held are sealed
    arrays, and mutable ones that came writable.

    What is held counts as held by this process: the array lives on when everybody else has let go
    of it, a mutable one cannot be sealed or had exclusively by others, and ``release(x)`` returns
    False. Who wants to have one exclusively lets go of what it holds itself for the next handle
    only, and is in its own way only with arrays that it uses. A forked child starts with none. Any
    thread; no round trip.
    """
    global _held_bytes_max
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 0:
        raise InvalidArgument(f"max_bytes: {max_bytes!r} is not a number of bytes")
    with _lock:
        _held_bytes_max = max_bytes
        _make_room()


def _forget(opened: Any) -> None:
    if _opened.get(opened.key) is opened:
        _opened.pop(opened.key, None)


def _hold(key: _Key, lease: _ext.Lease) -> None:
    global _held_bytes
    with _lock:
        if _held.get(key) is lease:
            _held.move_to_end(key)
            return
        _drop(key)
        _held[key] = lease
        _held_bytes += lease.nbytes
        _make_room()


def _make_room() -> None:
    while _held and (_held_bytes > _held_bytes_max or not _held_bytes_max):
        _drop(next(iter(_held)))


def _drop(key: _Key) -> None:
    global _held_bytes
    lease = _held.pop(key, None)
    if lease is not None:
        _held_bytes -= lease.nbytes


def _after_fork_in_child() -> None:
    global _lock, _held_bytes, _held_bytes_max
    _lock = threading.RLock()
    _opened.clear()
    _held.clear()
    _held_bytes = _held_bytes_max = 0


os.register_at_fork(after_in_child=_after_fork_in_child)
