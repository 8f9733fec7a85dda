"""Exclusive leases of this process, and their end: let go while arrays on them may still exist, at
the end of a ``with`` block and of the interpreter.

What is half-written must not be taken for whole: a block that ends by an exception, and a program
that does, leave the array broken, as a killed process does.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from typing import Any

from . import _ext

_leases: dict[int, weakref.ref[_ext.Lease]] = {}  # by the object's address: they do not compare
_finalizes_for = 0  # the process that has told multiprocessing


def note(lease: _ext.Lease) -> _ext.Lease:
    """Remembers a lease that was just granted; returns it."""
    address = id(lease)

    def forget(_: Any) -> None:
        _leases.pop(address, None)

    _leases[address] = weakref.ref(lease, forget)
    _tell_multiprocessing()
    return lease


def let_go(lease: _ext.Lease, half_written: bool) -> None:
    """Ends the lease now; arrays on it become private. Raises NoCapacity, Disconnected."""
    _leases.pop(id(lease), None)
    lease.let_go(half_written)


def _let_go_of_all() -> None:
    uncaught = hasattr(sys, "last_value") and not (sys.flags.interactive or hasattr(sys, "ps1"))
    for ref in list(_leases.values()):
        lease = ref()
        # Sealed meanwhile, or released.
        if lease is None or lease.access != "x" or not lease.valid or lease.inherited:
            continue
        try:
            let_go(lease, uncaught)
        except Exception:
            # The end of the process ends the lease as well, and says that it was not let go.
            pass


def _tell_multiprocessing() -> None:
    """Its children end without the interpreter's exit functions, but with its own."""
    global _finalizes_for
    util = sys.modules.get("multiprocessing.util")
    if util is None or _finalizes_for == os.getpid():
        return
    _finalizes_for = os.getpid()
    util.Finalize(None, _let_go_of_all, exitpriority=0)


atexit.register(_let_go_of_all)
