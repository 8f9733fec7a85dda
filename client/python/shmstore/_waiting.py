"""Waits without a limit in threads that nobody waits for any more must not keep a program from
ending: Python joins the threads of executors at its end, and only an answer ends a wait.

Given up are the waits of the default executor of an event loop that is ending: its tasks have been
cancelled, so nobody can get the result. And all of them when the main thread has ended by an
exception, Ctrl-C among them. A program that just comes to the end of its main thread goes on, as
Python does with threads, until what its others wait for is there.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from . import _ext

_registered = False


def is_forsaken() -> bool:
    """Whether nobody can get what this thread waits for. Called in it while it waits."""
    _register()
    frame: Any = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "_worker" and code.co_filename.endswith("thread.py"):
            return _is_ending(frame.f_locals)
        frame = frame.f_back
    return False


def _is_ending(local: dict[str, Any]) -> bool:
    """Of the local variables of an executor's thread: whether it was a loop's, which is ending."""
    reference = local.get("executor_reference")
    executor = reference() if callable(reference) else None
    of_loop = getattr(executor, "_thread_name_prefix", "") == "asyncio"
    return of_loop and bool(getattr(executor, "_shutdown", False))


def _register() -> None:
    # Not before an executor was: what is registered last is called first, and the executors' own
    # function waits for their threads.
    global _registered
    if _registered:
        return
    _registered = True
    register = getattr(threading, "_register_atexit", None)
    try:
        if register is not None:
            register(_at_exit)
    except RuntimeError:  # It is ending already.
        _at_exit()


def _at_exit() -> None:
    if getattr(sys, "last_exc", getattr(sys, "last_value", None)) is not None:
        _ext.give_up_waits()
