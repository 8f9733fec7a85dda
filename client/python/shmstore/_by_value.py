"""When arrays of the store are pickled with their data; and the warning about handles in files.

A handle is for a process that runs now. In a file it outlives the array, so a program that writes
one is told, once. Nobody tells an object that is pickled where it goes. But the pickler was made a
moment ago, and the garbage collector knows it and what it writes to. Looking takes up to half a
millisecond, so it is done at most every 100 ms. Not seen are files that somebody writes from a
pickle in memory, except by the modules in ``_WRITERS``, and anything on builds of Python that have
no generations of garbage.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import stat
import sys
import time
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Optional

_LOOK_AGAIN_S = 0.1

#: Functions that pickle into memory for a file, by module.
_WRITERS = {"shelve": "__setitem__", "torch.serialization": "save"}

_PICKLERS = (pickle.Pickler, pickle._Pickler)

_wanted: ContextVar[bool] = ContextVar("shmstore.by_value", default=False)
_looked = 0.0
_warned = False


@contextlib.contextmanager
def by_value() -> Iterator[None]:
    """A context in which arrays of the store are pickled with their data, not as handles.

    For files: ``with shm.by_value(): pickle.dump(x, file)``; ``joblib.dump``, ``torch.save`` and
    ``shelve`` likewise. What is unpickled is a plain array. ``x.dump`` and ``dumps`` do so anyway.
    It holds for this thread or asyncio task only: what a pool pickles in threads of its own is sent
    by handle. Also a decorator.
    """
    token = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(token)


def wanted() -> bool:
    """Whether this is in ``by_value``."""
    return _wanted.get()


def warn_of_file(name: Optional[str]) -> None:
    """A handle of an array is being pickled: warns, once, if it goes to a file."""
    global _looked, _warned
    now = time.monotonic()
    # PyCOMPSs hands everything over in files, and opens them in time.
    if _warned or now - _looked < _LOOK_AGAIN_S or "pycompss" in sys.modules:
        return
    _looked = now
    path = _file_of_pickler() or _file_of_writer()
    if path is None:
        return
    _warned = True
    what = f"array {name!r}" if name else "an array"
    warnings.warn(
        f"shmstore: what is written to {path} is a handle of {what}, not its data: nobody "
        "can open it when the array or its daemon is gone; "
        "`with shmstore.by_value():` writes the data",
        UserWarning,
        stacklevel=_frames_of_this_package(),
    )


def _file_of_pickler() -> Optional[str]:
    for generation in (0, 1):
        # The youngest are last.
        for found in reversed(gc.get_objects(generation)):
            # By type: an object may make its __class__ up only when it is asked for it.
            if issubclass(type(found), _PICKLERS):
                path = _regular_file(found)
                if path is not None:
                    return path
    return None


def _regular_file(pickler: Any) -> Optional[str]:
    """The path of the file that a pickler writes to, if it is one in a file system."""
    writes = getattr(pickler, "_file_write", None)  # of the one in Python
    for write in gc.get_referents(pickler) if writes is None else (writes,):
        if getattr(write, "__name__", None) != "write":
            continue
        try:
            fd = write.__self__.fileno()
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return os.readlink(f"/proc/self/fd/{fd}")
        except (AttributeError, OSError, ValueError, TypeError):  # no file, or one that is closed
            continue
    return None


def _file_of_writer() -> Optional[str]:
    frame: Any = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__")
        if module in _WRITERS and frame.f_code.co_name == _WRITERS[module]:
            return f"a file by {module}"
        frame = frame.f_back
    return None


def _frames_of_this_package() -> int:
    """The stack level of the program's own line, for a warning of the caller's."""
    level, frame = 1, sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("shmstore."):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    return level
