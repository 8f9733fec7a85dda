"""PyCOMPSs' modules; what to do without a store, and from what size on arrays go there."""

from __future__ import annotations

import importlib
import os
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any, Callable, Optional, TypeVar

from .. import _connect, _errors, sharing

if TYPE_CHECKING:
    from .._client import Client

_Result = TypeVar("_Result")

#: Errors for which PyCOMPSs' own way is taken, if the caller chose so.
NO_STORE = (_errors.Disconnected, _errors.NoCapacity, _errors.QuotaExceeded)


class _Settings:
    min_bytes: int = sharing.MIN_BYTES
    fallback: Optional[bool] = None
    client: Any = None
    wait: Optional[float] = 300
    warned: bool = False


settings = _Settings()


def configure(
    *,
    min_bytes: Optional[int] = None,
    fallback: Optional[bool] = None,
    wait: Optional[float] = None,
    client: Any = None,
) -> None:
    """Sets how arrays are shared in this process; what is not given stays as it is.

    min_bytes: from how many bytes on an array goes through the store; 128 KiB unless set.
    fallback: without a daemon, or when the store is full: True, warn once and pass arrays as
        PyCOMPSs does, which is what happens unless $SHMSTORE_PYCOMPSS_FALLBACK is ``0``; False,
        raise. With True a daemon that went away is looked for every 30 s, not for each array.
    wait: seconds that a task waits for an array which is changed in place while others have it; 300
        unless set. Then it raises TimedOut, naming them.
    client: whose store to use; the default client's unless set.
    """
    if min_bytes is not None:
        settings.min_bytes = min_bytes
    if fallback is not None:
        settings.fallback = fallback
    if wait is not None:
        settings.wait = wait
    if client is not None:
        settings.client = client


def engine(name: str) -> Any:
    """A module of PyCOMPSs. Raises ImportError, naming the package."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        text = f"shmstore.pycompss needs the package pycompss, which cannot be imported ({error})"
        raise ImportError(text) from error


def or_without(
    make: Callable[[], _Result],
    otherwise: Callable[[], _Result],
    falls_back: Optional[bool] = None,
    client: Optional[Client] = None,
) -> _Result:
    """``make()``; without a store ``otherwise()``, after one warning, unless told to raise: here,
    by ``configure``, or by the environment. ``client`` is what ``make`` uses, if there is one."""
    if falls_back is None:
        falls_back = settings.fallback
    if falls_back is None:
        falls_back = os.environ.get("SHMSTORE_PYCOMPSS_FALLBACK", "1") != "0"
    if falls_back and client is not None and _is_absent(client):
        return otherwise()
    try:
        return make()
    except NO_STORE as error:
        if not falls_back:
            raise
        if client is not None and isinstance(error, _errors.Disconnected):
            _absent_until[client.store_id] = time.monotonic() + _ABSENT_S
        if not settings.warned:
            settings.warned = True
            text = f"PyCOMPSs goes on without the store: {error}"
            warnings.warn(text, RuntimeWarning, stacklevel=callers_level())
        return otherwise()


#: Until when a store is not tried again, by its id: a client that has lost its daemon looks for it
#: for some seconds at each call, and there may be a call for each task.
_absent_until: dict[int, float] = {}
_ABSENT_S = 30


def _is_absent(client: Client) -> bool:
    """Whether its store was gone a moment ago."""
    return time.monotonic() < _absent_until.get(client.store_id, 0)


def known_client() -> Optional[Client]:
    """The client to use; None before there is one."""
    return settings.client or _connect._default


def callers_level() -> int:
    """The ``stacklevel`` to warn of the line that called this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals["__name__"].startswith(__package__):
        frame, level = frame.f_back, level + 1
    return level
