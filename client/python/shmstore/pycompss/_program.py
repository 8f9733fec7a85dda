"""What a program of PyCOMPSs has in the store, which goes when the program ends, however it ends.

Every array says by its attributes which program made it; what its name is does not count, because
users choose names. A marker, an array that only one process holds, tells others that the program
lives. At its end the program takes its arrays away; what one leaves behind that was killed is taken
away by the next one that begins. Otherwise names would stay taken, and memory would, until the last
handle that may be on its way has expired.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
import threading
import uuid
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from .. import _connect, _errors
from .._array import lease_around

if TYPE_CHECKING:
    from .._client import Client

_PREFIX = "pycompss/"
_TOKEN = re.compile("[0-9a-f]{16}")


class Program:
    """A running program, and what it has in one store; from now until ``end``."""

    def __init__(self, client: Client) -> None:
        """Takes away what programs have left that were killed."""
        self.client = client
        self.owner = os.getpid()
        self.token = uuid.uuid4().hex[:16]
        self._marker: Any = client.put(_PREFIX + self.token, np.array([self.owner]))
        lease = lease_around(self._marker)
        assert lease is not None
        self.store = lease.store_id
        sweep(client)

    def goes_on(self) -> bool:
        """Whether its store is the client's still; a daemon that was started anew does not know of
        the program. Raises Disconnected."""
        return _store_now(self.client) == self.store

    def new_name(self) -> str:
        """A name that nothing else has."""
        return f"{_PREFIX}{self.token}/{uuid.uuid4().hex[:16]}"

    def attrs(self, kind: str) -> dict[str, Any]:
        """For an array of this kind that goes with the program."""
        return {"pycompss": kind, "program": self.token}

    def end(self) -> None:
        """Takes away what it has. Without the daemon there is nothing."""
        self._marker = None
        try:
            # One that does not wait for a daemon that is gone, nor starts another.
            client = _connect._connect(self.client.socket_path, 60, False, 0)
            sweep(client, self.token)
        except _errors.Error:
            pass  # The next program does it.


def _store_now(client: Client) -> int:
    """The store that the daemon has now; the client itself only learns of another with a call."""
    client._ext.ping()
    return client.store_id


def sweep(client: Client, ended: str = "") -> None:
    """Takes away what programs left that are over, as the one with the token ``ended`` is."""
    living: dict[str, bool] = {}
    for info in client.list():
        token = maker(info)
        if token is None:
            continue
        if token not in living:
            # The list is no snapshot: a program may have begun since.
            living[token] = token != ended and client.exists(_PREFIX + token)
        if not living[token]:
            try:
                client.delete(id=info["id"])
            except _errors.NotFound:
                pass


def maker(info: dict[str, Any]) -> Optional[str]:
    """The token of the program that an array goes with; None for all others."""
    if info["name"] and info["name"].startswith("~"):  # in another user's namespace
        return None
    attrs = info["attrs"]
    token = attrs.get("program")
    if "pycompss" in attrs and isinstance(token, str) and _TOKEN.fullmatch(token):
        return token
    return None


def process_of(client: Client, token: str) -> Optional[str]:
    """The process of a program, as text; None if it has ended."""
    try:
        holders = client.holders(_PREFIX + token)
    except _errors.NotFound:
        return None
    return next((f"pid {one['pid']}, {one['command']}" for one in holders), None)


# --- the main program -----------------------------------------------------------------------------

_lock = threading.Lock()
_mine: dict[int, Program] = {}  # by store; they end with this process


def main_program(client: Client) -> Optional[Program]:
    """The program that this process is, begun with the first call; None in a worker, whose arrays
    may outlive it."""
    if _is_worker():
        return None
    store = _store_now(client)
    with _lock:
        program = _mine.get(store)
        if program is None:
            program = Program(client)
            _mine[program.store] = program
    return program if program.owner == os.getpid() else None


def _is_worker() -> bool:
    context = sys.modules.get("pycompss.util.context")
    if context is not None and context.CONTEXT.in_worker():
        return True
    processes = sys.modules.get("multiprocessing.process")
    return processes is not None and processes.parent_process() is not None


def _end() -> None:
    for program in list(_mine.values()):
        if program.owner == os.getpid():
            program.end()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_end)
