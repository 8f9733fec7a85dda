"""The exceptions: one class per error code of the store, each also the builtin that a Python
programmer expects. And whether the store's ResourceWarnings are shown."""

from __future__ import annotations

import re
import warnings
from collections.abc import MutableSequence
from typing import Any, cast

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Busy",
    "Disconnected",
    "Error",
    "Internal",
    "InvalidArgument",
    "NoCapacity",
    "NotFound",
    "NotSealed",
    "PermissionDenied",
    "ProtocolError",
    "QuotaExceeded",
    "TimedOut",
]


class Error(Exception):
    """Base of all errors of the store. ``str(error)`` is one line for a person, ``error.code`` the
    code as ``shmctl`` and the C++ library spell it."""

    code: str = "error"


class NotFound(Error, FileNotFoundError):
    """No such array, name or handle; also a handle of another or an earlier store."""

    code = "not_found"


class AlreadyExists(Error, FileExistsError):
    """The name is taken, by a draft too, and ``replace`` was not asked for."""

    code = "already_exists"


class PermissionDenied(Error, PermissionError):
    """The array's permissions, or its foreign namespace, do not allow it."""

    code = "permission_denied"


# MemoryError, which makes its instances in a way of its own, has to come first: tblib, as Dask uses
# it, could not unpickle these otherwise.
class NoCapacity(MemoryError, Error):
    """The store is full: bytes, segments, descriptors or address space. The text says how much is
    free and who holds most."""

    code = "no_capacity"


class QuotaExceeded(MemoryError, Error):
    """This user's share of the store is used up."""

    code = "quota_exceeded"


class TimedOut(Error, TimeoutError):
    """The ``timeout`` passed first."""

    code = "timed_out"


class Busy(Error):
    """Somebody else still writes, or holds what was wanted exclusively; the text names the process
    ids."""

    code = "busy"


class NotSealed(Error):
    """The operation needs a sealed array, or one made with ``replace``."""

    code = "not_sealed"


class Aborted(Error):
    """The draft's creator gave up or died; or the array is broken: its exclusive writer did."""

    code = "aborted"


class InvalidArgument(Error, ValueError):
    """The caller's mistake; the text begins with the argument's name and says the limit."""

    code = "invalid_argument"


class ProtocolError(Error):
    """The daemon and this library do not understand each other."""

    code = "protocol_error"


class Disconnected(Error, ConnectionError):
    """No daemon, or it went away. Arrays that are attached stay readable."""

    code = "disconnected"


class Internal(Error):
    """A bug of shmstore."""

    code = "internal"


#: By the numbers of include/shmstore/error.hpp. The extension raises through this table.
BY_CODE: dict[int, type[Error]] = {
    1: NotFound,
    2: AlreadyExists,
    3: PermissionDenied,
    4: NoCapacity,
    5: QuotaExceeded,
    6: TimedOut,
    7: Busy,
    8: NotSealed,
    9: Aborted,
    10: InvalidArgument,
    11: ProtocolError,
    12: Disconnected,
    13: Internal,
}


def shown(value: object) -> str:
    """A bad argument for an error text: its repr, if it has one, and not all of a long one."""
    try:
        text = repr(value)
    except Exception:  # a number too long for Python to write, for example
        text = f"this {type(value).__name__}"
    return text if len(text) <= 80 else text[:79] + "…"


def show_resource_warnings() -> None:
    """Python hides this kind, and ours is for those who begin: an array that is gone at once. Only
    Python's own filter, which is the last, is overruled: the user's are before it, also the same
    one, which Python then moves."""
    filters = cast("MutableSequence[Any]", warnings.filters)
    ours = ("default", re.compile("shmstore: ", re.IGNORECASE), ResourceWarning, None, 0)
    if filters[-1:] == [("ignore", None, ResourceWarning, None, 0)] and ours not in filters:
        filters.insert(len(filters) - 1, ours)
