"""The clients of this process: connecting, the default client, and finding the one for a handle."""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
import weakref
from typing import Any, Optional

from . import _ext
from ._array import milliseconds
from ._client import Client
from ._errors import Disconnected, Error, InvalidArgument

_GRACE_MS_MAX = 3_600_000

#: Before the path in a handle: it is what the sender's default client found.
_ASSUMED = "?"

_lock = threading.Lock()  # Held while connecting; the tables below change under it.
_default: Optional[Client] = None
_clients: list[weakref.ref[Client]] = []  # Replaced, never changed: read without the lock.
_paths: frozenset[str] = frozenset()  # Sockets that connect() was told, here or by a sender.
_for_handles: dict[str, Client] = {}  # Made for handles; they stay for the next handle.


def connect(
    path: Optional[str] = None,
    *,
    grace: float = 60,
    autostart: Optional[bool] = None,
    reconnect: float = 10,
) -> Client:
    """A client of the daemon at the socket ``path``.

    path: final when given: no other store is tried and none is started. None: ``$SHMSTORE_SOCKET``,
        which is final too, else the system's daemon, else the user's own, which is started if there
        is none.
    grace: seconds that a pickled array lives for its receiver; at most an hour.
    autostart: whether to start a daemon; None: unless ``$SHMSTORE_AUTOSTART`` is ``0``.
    reconnect: seconds to try to reach a daemon that was lost.

    Raises Disconnected, PermissionDenied (the socket's mode, or the daemon refuses this user),
    ProtocolError. Waits for the daemon to start.
    """
    global _paths
    socket = _socket(path)
    client = _connect(socket, grace, autostart, reconnect)
    if socket:
        with _lock:
            _paths |= {socket}
    return client


def default_client() -> Client:
    """The client that the module's functions use; connects at the first call."""
    return _default if _default is not None else _make_default(None)


def explicit_path(lease: _ext.Lease) -> Optional[str]:
    """The socket of a lease if somebody told ``connect`` of it, so that a default client would not
    find it; else None."""
    path = lease.socket_path
    if path not in _paths or path == os.environ.get("SHMSTORE_SOCKET"):
        return None
    return path


def handle_path(lease: _ext.Lease) -> str:
    """The socket of a lease as a handle names it: after ``?`` if the sender was not told by
    ``connect``. ``client_of`` takes both."""
    return explicit_path(lease) or _ASSUMED + lease.socket_path


def client_of(store_id: int, path: Optional[str], assume: bool = True) -> Client:
    """The client for a handle of this store: any client of it, else one at ``path``, else the
    default one, which then says what is wrong. A daemon is not started: it would know nothing.

    A path after ``?`` is what the sender's default client found. It comes after the receiver's own
    default client, and only for a receiver that may be on the sender's node all the same
    (``_may_assume``); ``assume`` false: for none.
    """
    for client in _living():
        if client.store_id == store_id:
            return client
    if path is not None and not path.startswith(_ASSUMED):
        return _client_at(path, told=True)
    assumed = path[len(_ASSUMED) :] if path is not None and assume and _may_assume() else None
    try:
        client = _default if _default is not None else _make_default(False)
    except Disconnected:
        if assumed is None:
            raise
        return _client_at(assumed, told=False)
    if assumed is None or client.store_id == store_id:
        return client
    try:
        return _client_at(assumed, told=False)
    except Error:
        return client  # which names the store that this process has


def settle(store_id: int, but: Client) -> None:
    """Waits until the store has read what other clients of this process sent before. What ``but``
    sends comes after what it has sent anyway."""
    for client in _living():
        if client is not but and client.store_id == store_id:
            client._ext.ping()


def _may_assume() -> bool:
    """Whether this process may be on another node than its default client's: ``$SHMSTORE_SOCKET``
    says where it is, except for what multiprocessing starts. That is on its parent's node, but gets
    the environment of a fork server, which may have been started long before."""
    if not os.environ.get("SHMSTORE_SOCKET"):  # empty is unset to the library, too
        return True
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


def _living() -> list[Client]:
    return [client for client in (ref() for ref in _clients) if client is not None]


def _client_at(path: str, told: bool) -> Client:
    """A client made for handles, unless there is one at this socket. ``told``: ``connect`` was told
    the path, by whoever made the handle; so it is what handles from here say, too."""
    global _paths
    if not told:
        _check_owner(path)
    for client in _living():
        if path in (client._path, client.socket_path):
            return client
    with _lock:
        client_there = _for_handles.get(path)
    if client_there is None:
        client_there = _connect(path, 60, None, 10)
        with _lock:
            client_there = _for_handles.setdefault(path, client_there)
            if told:
                _paths |= {path}
    return client_there


def _check_owner(path: str) -> None:
    """Raises Disconnected unless the socket is root's or this user's. The library believes whoever
    answers at a path that it is given; this one nobody here gave, and it may be from long ago: a
    folder in /tmp is anybody's when its owner has gone."""
    try:
        owner = os.lstat(path).st_uid
    except OSError:  # connecting says why
        return
    if owner not in (0, os.geteuid()):
        raise Disconnected(
            f"socket {path}: belongs to user {owner}, who is not to be trusted because of a handle;"
            " a store of another user needs $SHMSTORE_SOCKET or connect(path)"
        )


def _make_default(autostart: Optional[bool]) -> Client:
    global _default
    client = _connect("", 60, autostart, 10)
    with _lock:
        if _default is None:
            _default = client
        return _default


def _connect(socket: str, grace: Any, autostart: Optional[bool], reconnect: Any) -> Client:
    global _clients
    grace_ms, reconnect_ms = milliseconds(grace, "grace"), milliseconds(reconnect, "reconnect")
    if grace_ms is None or grace_ms > _GRACE_MS_MAX:
        raise InvalidArgument(f"grace: {grace!r} is more than an hour")
    if reconnect_ms is None:
        raise InvalidArgument("reconnect: must not be None")
    _name_daemon()
    client = Client(_ext.connect(socket, autostart, grace_ms, reconnect_ms), socket or None)
    with _lock:
        _clients = [ref for ref in _clients if ref() is not None] + [weakref.ref(client)]
    return client


def _socket(path: Any) -> str:
    if path is None:
        return ""
    try:
        text = os.fsdecode(path)
    except TypeError:
        text = ""
    if not text or "\0" in text:
        raise InvalidArgument(f"path: {path!r} is not a path")
    return os.path.abspath(text)


def _name_daemon() -> None:
    """Lets the library find the daemon that was installed with this package."""
    program = os.path.join(sysconfig.get_path("scripts"), "shmstored")
    if "SHMSTORE_DAEMON" not in os.environ and os.access(program, os.X_OK):
        os.environ["SHMSTORE_DAEMON"] = program


def _after_fork_in_child() -> None:
    # Clients go on: the library connects anew at the child's first call.
    global _lock
    _lock = threading.Lock()
    _ext.note_main_thread(threading.get_ident())


_ext.note_main_thread(threading.main_thread().ident or threading.get_ident())
os.register_at_fork(after_in_child=_after_fork_in_child)
