"""When arrays of the store are pickled with their data; and the warning about handles in files.

A handle is for a process that runs now. In a file it outlives the array, so a program that writes
one is told, once. Nobody tells an object that is pickled where it goes. But the pickler was made a
moment ago, and the garbage collector knows it and what it writes to. Looking mostly takes up to
half a millisecond. After the first 50 looks it is done at most every 100 ms, and takes at most a
hundredth of the time. Where there are more than 20,000 young objects, as where the collector is
disabled, they are not looked through. Not seen are files that somebody writes from a pickle in
memory, except by the modules in ``_WRITERS``, those without a name, and anything on builds of
Python that have no generations of garbage.
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
_LOOKS_FREE = 50  #: The first ones have no limit of time: a program may write its file early.
_LOOK_SHARE = 100  #: For so many times as long as a look took there is none.
_YOUNG_MAX = 20_000

#: Functions that pickle into memory for a file, by module.
_WRITERS = {"shelve": "__setitem__", "torch.serialization": "save"}

_PICKLERS = (pickle.Pickler, pickle._Pickler)

_wanted: ContextVar[bool] = ContextVar("shmstore.by_value", default=False)
_looks = 0
_look_again = 0.0
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
    """A handle of an array is to be pickled: warns, once, if it goes to a file. Under ``-W error``
    this raises, so nothing is to be held for the handle yet."""
    global _warned
    # PyCOMPSs hands everything over in files, and opens them in time.
    if _warned or "pycompss" in sys.modules:
        return
    path = _look()
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


def _look() -> Optional[str]:
    global _looks, _look_again
    begin = time.monotonic()
    if _looks >= _LOOKS_FREE and begin < _look_again:
        return None
    _looks += 1
    path = _file_of_pickler() or _file_of_writer()
    end = time.monotonic()
    _look_again = end + max(_LOOK_AGAIN_S, _LOOK_SHARE * (end - begin))
    return path


def _file_of_pickler() -> Optional[str]:
    if gc.get_count()[0] > _YOUNG_MAX:
        return None
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
    found: list[Any] = []
    with contextlib.suppress(Exception):
        found.append(pickler._file_write)  # of the one in Python
    for one in found or gc.get_referents(pickler):
        # No file, or one that is closed; and a file of the user's may raise whatever it likes.
        with contextlib.suppress(Exception):
            path = _path_written(one)
            if path is not None:
                return path
    return None


def _path_written(write: Any) -> Optional[str]:
    if write.__name__ != "write":
        return None
    file = write.__self__
    if getattr(file, "_rolled", True) is False:  # SpooledTemporaryFile: fileno would make a file
        return None
    fd = file.fileno()
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink == 0:
        return None
    return os.readlink(f"/proc/self/fd/{fd}")


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
