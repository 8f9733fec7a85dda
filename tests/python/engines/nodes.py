"""Two nodes on one machine: two daemons. What the tests of the engines have in common."""

import contextlib
import signal

from conftest import Daemon, wait_until


@contextlib.contextmanager
def two_daemons(make_folder):
    """Two running daemons; at the end each must be clean and alive."""
    with contextlib.ExitStack() as stack:
        daemons = []
        for name in ("a", "b"):
            daemons.append(Daemon(make_folder(name)))
            stack.callback(daemons[-1].stop, signal.SIGKILL)
        yield daemons
        for daemon in daemons:
            assert daemon.selfcheck()["clean"]
            assert daemon.stop() == 0


def ids(daemon):
    """The arrays that a store has, anonymous ones too."""
    return {array["id"] for array in daemon.client().list()}


def empty(daemon, apart_from=frozenset()):
    """Waits until nothing is left, apart from older arrays: a pickled handle may have a minute to
    go. The accounting must be clean."""
    wait_until(lambda: ids(daemon) <= apart_from, "the end of all arrays")
    if not apart_from:
        wait_until(lambda: daemon.client().stats()["used"] == 0, "the return of all memory")
    report = daemon.selfcheck()
    assert report["clean"], report
