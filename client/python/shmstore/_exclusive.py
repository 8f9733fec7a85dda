"""Exclusive leases of this process, and their end: let go while arrays on them may still exist, at
the end of a ``with`` block and of the interpreter.

What is half-written must not be taken for whole. So these leave the array broken, as a killed
process does: a block that ends by an exception, a program that does, a child of multiprocessing
that does (or by ``sys.exit`` with a status that is not 0; of a program Python does not tell), and a
thread that does, for what it attached. An exception that somebody catches is not seen: also not
where a ProcessPoolExecutor does, which ends a worker whose initializer fails as any other. Nor is
one of a thread where ``threading.excepthook`` was replaced, by one that does not call the one
before, after the last exclusive attach of the process.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import threading
import weakref
from typing import Any, Callable, NamedTuple, Optional

from . import _ext


class _Held(NamedTuple):
    lease: weakref.ref[_ext.Lease]
    thread: weakref.ref[threading.Thread]  #: which attached


_leases: dict[int, _Held] = {}  # by the object's address: they do not compare
_finalizes_for = 0  # the process that has told multiprocessing
_told_before_fork: Optional[BaseException] = None  # sys.last_value of the parent
_handled_at_fork = (0, 0)  # ids of the exception that the parent was handling, and of its traceback


def note(lease: _ext.Lease) -> _ext.Lease:
    """Remembers a lease that was just granted; returns it."""
    address = id(lease)

    def forget(_: Any) -> None:
        _leases.pop(address, None)

    _leases[address] = _Held(weakref.ref(lease, forget), weakref.ref(threading.current_thread()))
    _tell_multiprocessing()
    _tell_threading()
    return lease


def let_go(lease: _ext.Lease, half_written: bool) -> None:
    """Ends a lease now, of any access; arrays on it become private. ``half_written`` leaves one
    that was held exclusively broken. Raises NoCapacity, Disconnected."""
    _leases.pop(id(lease), None)
    lease.let_go(half_written)


def _let_go_of(held: _Held, half_written: bool) -> None:
    lease = held.lease()
    # Sealed meanwhile, or released.
    if lease is None or lease.access != "x" or not lease.valid or lease.inherited:
        return
    try:
        let_go(lease, half_written)
    except Exception:
        # The end of the process ends the lease as well, and says that it was not let go.
        pass


def _let_go_of_all() -> None:
    failed = _ends_by_exception()
    for held in list(_leases.values()):
        _let_go_of(held, failed)


def _ends_by_exception() -> bool:
    """Whether this process is ending by one that nobody caught; asked while it ends."""
    told = getattr(sys, "last_value", None)
    if told is not None and told is not _told_before_fork:
        return not (sys.flags.interactive or hasattr(sys, "ps1"))
    # multiprocessing finalizes while the exception of its target is under way. A child that was
    # forked by a handler of another exception is below that handler for ever.
    error = sys.exc_info()[1]
    if error is None or (id(error), id(error.__traceback__)) == _handled_at_fork:
        return False
    return _is_failure(error)


def _is_failure(error: Optional[BaseException]) -> bool:
    return not (isinstance(error, SystemExit) and error.code in (None, 0))


# --- the ends that Python's own exit functions do not see -----------------------------------------


def _watch_child(_: Any) -> None:
    """In a child of multiprocessing, before it runs: from Python 3.13 on it finalizes when the
    exception of its target has been printed and is gone, and with it what the target held. (So does
    one whose target imports this package first, which is too late for this.)"""
    process = sys.modules["multiprocessing.process"].current_process()
    if "run" not in vars(process):
        process.run = functools.partial(_run, process.run)


def _run(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except BaseException as error:
        if _is_failure(error):
            for held in list(_leases.values()):
                _let_go_of(held, True)
        raise


def _watch_children() -> None:
    util = sys.modules.get("multiprocessing.util")
    if util is None:
        return
    util.register_after_fork(_watch_child, _watch_child)
    # One that is being spawned has its process object later, and need not ask who is registered.
    process = sys.modules["multiprocessing.process"].current_process()
    spawned = getattr(sys.modules.get("multiprocessing.context"), "SpawnProcess", None)
    if getattr(process, "_inheriting", False) and spawned is not None:
        after = getattr(spawned, "_after_fork", None)
        if after is not None:
            spawned._after_fork = staticmethod(functools.partial(_after_spawn, after))


def _after_spawn(after: Callable[[], Any]) -> None:
    after()
    _watch_child(None)


def _tell_multiprocessing() -> None:
    """Its children end without the interpreter's exit functions, but with its own."""
    global _finalizes_for
    util = sys.modules.get("multiprocessing.util")
    if util is None or _finalizes_for == os.getpid():
        return
    _finalizes_for = os.getpid()
    util.Finalize(None, _finalize, exitpriority=0)


def _finalize() -> None:
    # multiprocessing waits for threads only after this, and they may be writing.
    for held in list(_leases.values()):
        thread = held.thread()
        if thread is None or thread.daemon or thread is threading.current_thread():
            continue
        if thread is not threading.main_thread():
            thread.join()
    _let_go_of_all()


def _tell_threading() -> None:
    """A thread that fails is not the end of the program, but of what it was writing."""
    hook = threading.excepthook
    # Again where the hook was replaced. Whoever did that may call this module's, which was there
    # before: so each has its own that it calls, and no two call each other.
    if not (isinstance(hook, functools.partial) and hook.func is _thread_failed):
        threading.excepthook = functools.partial(_thread_failed, hook)


def _thread_failed(hooked: Callable[[Any], Any], args: Any) -> Any:
    if _is_failure(args.exc_value):
        for held in list(_leases.values()):
            if args.thread is not None and held.thread() is args.thread:
                _let_go_of(held, True)
    return hooked(args)


def _after_fork_in_child() -> None:
    global _told_before_fork, _handled_at_fork
    error = sys.exc_info()[1]
    _told_before_fork = getattr(sys, "last_value", None)
    _handled_at_fork = (id(error), id(error.__traceback__) if error is not None else 0)
    _watch_children()


_watch_children()
atexit.register(_let_go_of_all)
os.register_at_fork(after_in_child=_after_fork_in_child)
