"""shmstore: NumPy arrays shared by unrelated processes of one machine, without copies.

    import shmstore as shm, numpy as np

    a = shm.put("grid", np.arange(12.).reshape(3, 4))    # copied in, sealed, read-only
    with shm.create("field", (1024, 1024), "f8") as w:   # filled in place, then sealed
        w[:] = 0
    x = shm.attach("grid")                               # in any process: the same memory

Arrays are ``SharedArray``, a subclass of ``numpy.ndarray``: they live while somebody holds them or
their name is kept, and are given back by the kernel's own means when a process is killed.

The functions of this module are the methods of a default ``Client``, which connects at the first
call: to ``$SHMSTORE_SOCKET``, else the system's daemon, else the user's own, which is started if
there is none. It may be used from any thread and goes on working in a forked child.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Callable, Optional, TypeVar

from ._array import SharedArray, Shm
from ._by_value import by_value
from ._client import Client, Watch
from ._connect import connect, default_client
from ._errors import (
    Aborted,
    AlreadyExists,
    Busy,
    Disconnected,
    Error,
    Internal,
    InvalidArgument,
    NoCapacity,
    NotFound,
    NotSealed,
    PermissionDenied,
    ProtocolError,
    QuotaExceeded,
    TimedOut,
)
from ._errors import show_resource_warnings as _show_resource_warnings
from ._ext import __version__, release
from ._hold import Handle
from ._opened import hold_opened
from .persist import load, save
from .sharing import (
    empty,
    empty_like,
    full,
    full_like,
    ones,
    ones_like,
    share,
    zeros,
    zeros_like,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    from ._client import Dict, Dicts, ShapeLike

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Busy",
    "Client",
    "Disconnected",
    "Error",
    "Handle",
    "Internal",
    "InvalidArgument",
    "NoCapacity",
    "NotFound",
    "NotSealed",
    "PermissionDenied",
    "ProtocolError",
    "QuotaExceeded",
    "SharedArray",
    "Shm",
    "TimedOut",
    "Watch",
    "__version__",
    "attach",
    "attach_many",
    "broken",
    "by_value",
    "cached",
    "chmod",
    "connect",
    "create",
    "default_client",
    "delete",
    "empty",
    "empty_like",
    "exists",
    "full",
    "full_like",
    "handle",
    "hold_opened",
    "holders",
    "in_flight",
    "info",
    "keep",
    "list",
    "load",
    "ones",
    "ones_like",
    "put",
    "put_many",
    "release",
    "save",
    "share",
    "stats",
    "unkeep",
    "wait",
    "watch",
    "zeros",
    "zeros_like",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _documented(function: _Function) -> _Function:
    """Takes over the documentation of the method of the same name."""
    function.__doc__ = getattr(Client, function.__name__).__doc__
    return function


@_documented
def create(
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
    return default_client().create(
        name,
        shape,
        dtype,
        order=order,
        mutable=mutable,
        keep=keep,
        ttl=ttl,
        perms=perms,
        attrs=attrs,
        replace=replace,
        timeout=timeout,
        late=late,
        hard=hard,
    )


@_documented
def put(
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
    return default_client().put(
        name,
        array,
        order=order,
        mutable=mutable,
        keep=keep,
        ttl=ttl,
        perms=perms,
        attrs=attrs,
        replace=replace,
        timeout=timeout,
        late=late,
        hard=hard,
    )


@_documented
def put_many(arrays: Mapping[str, ArrayLike], **options: Any) -> dict[str, SharedArray]:
    return default_client().put_many(arrays, **options)


@_documented
def cached(
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
    return default_client().cached(
        key,
        load,
        shape=shape,
        dtype=dtype,
        order=order,
        ttl=ttl,
        perms=perms,
        attrs=attrs,
        timeout=timeout,
    )


@_documented
def attach(
    name: Optional[str] = None,
    mode: str = "r",
    *,
    timeout: Optional[float] = None,
    newer_than: int = 0,
    id: Optional[str] = None,
    exclusive: bool = False,
    repair: bool = False,
) -> SharedArray:
    return default_client().attach(
        name,
        mode,
        timeout=timeout,
        newer_than=newer_than,
        id=id,
        exclusive=exclusive,
        repair=repair,
    )


@_documented
def attach_many(
    names: Iterable[str], mode: str = "r", *, timeout: Optional[float] = None
) -> dict[str, SharedArray]:
    return default_client().attach_many(names, mode, timeout=timeout)


@_documented
def handle(array: Any = None, *, id: Optional[str] = None) -> Handle:
    return default_client().handle(array, id=id)


@_documented
def in_flight(prefix: str = "") -> Dicts:
    return default_client().in_flight(prefix)


@_documented
def broken(prefix: str = "") -> Dicts:
    return default_client().broken(prefix)


@_documented
def list(prefix: str = "") -> Dicts:
    return default_client().list(prefix)


@_documented
def info(name: Optional[str] = None, *, id: Optional[str] = None) -> Dict:
    return default_client().info(name, id=id)


@_documented
def exists(name: str) -> bool:
    return default_client().exists(name)


@_documented
def holders(name: Optional[str] = None, *, id: Optional[str] = None) -> Dicts:
    return default_client().holders(name, id=id)


@_documented
def wait(name: str, newer_than: int = 0, timeout: Optional[float] = None) -> int:
    return default_client().wait(name, newer_than, timeout)


@_documented
def watch(prefix: str = "") -> Watch:
    return default_client().watch(prefix)


@_documented
def delete(name: Optional[str] = None, *, id: Optional[str] = None) -> None:
    default_client().delete(name, id=id)


@_documented
def keep(name: str, ttl: Optional[float] = None) -> None:
    default_client().keep(name, ttl)


@_documented
def unkeep(name: str) -> None:
    default_client().unkeep(name)


@_documented
def chmod(name: str, perms: int) -> None:
    default_client().chmod(name, perms)


@_documented
def stats() -> Dict:
    return default_client().stats()


def __getattr__(name: str) -> Any:
    # Not imported before they are used: other libraries, and stand-ins for them.
    if name in ("compat", "dask", "joblib", "proxystore", "ray"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _finish() -> None:
    # What users see in tracebacks and pickles is the package, not its files.
    for name in __all__:
        member = globals()[name]
        if isinstance(member, type) and member is not SharedArray:
            member.__module__ = __name__
    _show_resource_warnings()


_finish()
