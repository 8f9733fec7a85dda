"""Pickling by handle.

The handle of an array is ``open(store, id, host, mode, path)``, of a view ``open(…, view)``:

* store, id: numbers that name the array for ever; an array of another store is never met.
* host: the short host name, for the error text only (containers may share a daemon).
* mode: how to attach: ``r``; ``w`` (``r+``); ``W`` (``r+``, but the view was read-only).
* path: the socket, for a receiver that has no client of that store yet. From a client made with
  ``connect(path)`` it is where to connect; from a default client, after ``?``, it is where to look
  if the receiver's default client does not find the store (``_connect.client_of`` has the rule).
  None when the handle would outgrow 200 bytes otherwise, which is with about 100 characters, for
  views 50; the receiver then needs a client of that store.
* view: dtype (None: the array's), shape, offset and strides in bytes.

A handle for one receiver is ``open_once(number, store, id, …)``: see _once. It is told to the
daemon that the receiver has the array when it is mapped, so that a try that fails loses nothing.

The receiver looks for the store among the clients that its process has (after a fork that includes
those of the parent), then by the path and its default client. An array that it has open already it
does not ask for at all: see _opened.
"""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any, Callable, Optional, cast

import numpy as np

from . import _by_value as by_value
from . import _connect, _ext, _opened
from ._array import SharedArray, lease_around, offset_in, view_on
from ._dtype import dtype_of, dtype_text
from ._errors import Aborted, Disconnected, InvalidArgument, NotFound

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._client import Client

    View = tuple[Optional[str], tuple[int, ...], int, tuple[int, ...]]

_HANDLE_BYTES_MAX = 200
_HOST_BYTES_MAX = 16
#: What pickle adds to the pickled arguments: frame, the function's name, memo.
_PICKLE_BYTES = 45


def _host() -> str:
    """Short name of this host, for error texts."""
    return os.uname().nodename.split(".")[0][:_HOST_BYTES_MAX]


#: What an engine does about a handle of another node: gets the error and the arguments of ``open``;
#: returns what stands for the array, or None.
elsewhere: Optional[Callable[[NotFound, tuple[Any, ...]], Any]] = None


def reduce_array(array: SharedArray, protocol: Any, once: bool = False) -> Any:
    """``array.__reduce_ex__(protocol)``. ``once``: what is pickled goes to one receiver."""
    lease = lease_around(array)
    if lease is None or lease.access == "c" or by_value.wanted():
        return _by_value(array, protocol)
    view: Optional[View] = None
    if not _is_whole(array, lease):
        try:
            text = dtype_text(array.dtype)
        except InvalidArgument:  # a selection of fields that has no text
            return _by_value(array, protocol)
        offset = offset_in(lease, array)
        same = text == lease.dtype
        view = (None if same else text, array.shape, offset, array.strides)
    if not once:
        by_value.warn_of_file(lease.name)
    try:
        number = lease.handover(once)
    except (NotFound, Aborted):  # Deleted or replaced: nobody can attach to it any more.
        return _by_value(array, protocol)
    except Disconnected:  # As little; but a copy of what may be written would go unnoticed.
        if lease.state != "sealed":
            raise
        return _by_value(array, protocol)
    path = _connect.handle_path(lease)
    arguments: list[Any] = [lease.store_id, lease.id, _host(), _mode(array, lease), path]
    if view is not None:
        arguments.append(view)
    if len(pickle.dumps((number, *arguments), 2)) + _PICKLE_BYTES > _HANDLE_BYTES_MAX:
        arguments[4] = None
    return (open_once, (number, *arguments)) if number else (open, tuple(arguments))


def _by_value(array: SharedArray, protocol: Any) -> Any:
    return np.asarray(array).__reduce_ex__(protocol)


def _is_whole(array: SharedArray, lease: _ext.Lease) -> bool:
    if array.shape != lease.shape or array.dtype != dtype_of(lease.dtype):
        return False
    if offset_in(lease, array) != 0:
        return False
    return array.flags.f_contiguous if lease.order == "F" else array.flags.c_contiguous


def _mode(array: SharedArray, lease: _ext.Lease) -> str:
    if lease.access not in ("r+", "x"):
        return "r"
    if array.flags.writeable:
        return "w"
    return "W" if lease.state == "draft" else "r"


def open(  # noqa: A001 - the name counts in every handle
    store_id: int,
    id: int,
    host: str,
    mode: str,
    path: Optional[str] = None,
    view: Optional[View] = None,
) -> NDArray[Any]:
    """Attaches to the array of a handle; what unpickling calls. No round trip if this process has
    opened a handle of that array and still holds it.

    Raises NotFound, saying why, for an array that is gone or in a store that cannot be reached.
    """
    return open_once(0, store_id, id, host, mode, path, view)


def open_once(
    number: int,
    store_id: int,
    id: int,
    host: str,
    mode: str,
    path: Optional[str] = None,
    view: Optional[View] = None,
) -> NDArray[Any]:
    """``open`` for a handle that has a number, being for one receiver; 0 for one that has none."""
    root = _opened.find(store_id, id, mode)
    if root is not None:
        if number:
            cast("_ext.Lease", root.base).received(number)
    else:
        try:
            root = _opened.note(_attach(number, store_id, id, host, mode, path), mode)
        except NotFound as error:
            found: Any = None
            if elsewhere is not None:
                found = elsewhere(error, (store_id, id, host, mode, path, view))
            if found is None:
                raise
            return cast("NDArray[Any]", found)  # or what the engine has for one
    if view is None:
        array = root.view(SharedArray)
    else:
        text, shape, offset, strides = view
        dtype = root.dtype if text is None else dtype_of(text)
        array = view_on(cast("_ext.Lease", root.base), dtype, shape, offset, strides)
    if mode == "W" and array.flags.writeable:
        array.flags.writeable = False
    return array


def _attach(
    number: int, store_id: int, id: int, host: str, mode: str, path: Optional[str]
) -> _ext.Lease:
    try:
        # An engine that brings arrays from other nodes knows which node this is.
        client = _connect.client_of(store_id, path, assume=elsewhere is None)
    except Disconnected as error:
        raise NotFound(f"handle of array {id}: {_where(host)}, and {error}") from None
    if mode != "r":
        try:
            return client._ext.attach_id(id, store_id, "r+", None, True, handle=number)
        except InvalidArgument:
            pass  # Sealed since it was pickled: nobody writes it any more.
        except NotFound as error:
            gone = _not_found(number, client, store_id, id, host, path, error)
            draft = "if it was a draft, its creator dropped it: share(x) publishes one"
            raise NotFound(f"{gone}; {draft}") from None
    try:
        return client._ext.attach_id(id, store_id, "r", None, True, handle=number)
    except NotFound as error:
        raise _not_found(number, client, store_id, id, host, path, error) from None


def _where(host: str) -> str:
    """Where a handle was made, for error texts."""
    here = _host()
    return f"it was made on host {host}, this is {here}" if host != here else f"made on host {host}"


def _not_found(
    number: int,
    client: Client,
    store_id: int,
    id: int,
    host: str,
    path: Optional[str],
    error: NotFound,
) -> NotFound:
    if client.store_id != store_id:
        was = "" if path is None else path.lstrip("?")
        there = f", which was at {was}" if was not in ("", client.socket_path) else ""
        reason = (
            f"its store is not the one at {client.socket_path}: another one{there}, or an earlier "
            f"run of the daemon; {_where(host)}"
        )
    elif number:
        reason = (
            "expired: a queue, a pipe or Process had pickled it for one receiver, and that one has "
            "had it and let go of it, or its grace time has passed, or the array was deleted or "
            f"replaced ({error})"
        )
    else:
        reason = (
            "expired: everybody let go of it and its grace time has passed, or the array was "
            f"deleted or replaced ({error})"
        )
    return NotFound(f"handle of array {id}: {reason}")
