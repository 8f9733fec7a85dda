"""A plugin of pytest: a test that hangs fails, with the stacks of all threads and of its children,
instead of taking the whole run with it.

A phase of a test (set-up, call, end) may take LIMIT seconds, which is more than any of them waits
for a single condition; $SHMSTORE_TEST_LIMIT sets another number. Where the main thread does not
come back to Python for it, the run ends after a minute more. After a hang the run ends without the
handlers of exit, which would wait for what hung, and takes its child processes along.
"""

import contextlib
import faulthandler
import os
import signal
import sys
from pathlib import Path

import pytest

LIMIT = float(os.environ.get("SHMSTORE_TEST_LIMIT", "300"))
MORE = 60  # seconds until the run is ended from outside of Python

_own = os.getpid()
_hung = False


def pytest_configure(config):
    global _stderr
    _stderr = os.dup(2)  # where pytest does not capture it
    # Forked children inherit the handler, so they can be asked for their stacks as well.
    faulthandler.register(signal.SIGUSR1, file=_stderr, all_threads=True)


def pytest_unconfigure(config):
    faulthandler.unregister(signal.SIGUSR1)
    if _hung and os.getpid() == _own:
        for child in descendants(_own):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        config.get_terminal_writer().flush()
        sys.stdout.flush()
        os._exit(1)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_setup(item):
    yield from _limited(item, "set-up")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    yield from _limited(item, "call")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_teardown(item):
    yield from _limited(item, "end")


def _limited(item, phase):
    def fail(number, frame):
        global _hung
        if os.getpid() != _own:  # a forked child's own alarm
            faulthandler.dump_traceback(_stderr, all_threads=True)
            os._exit(128 + number)
        _hung = True
        os.write(_stderr, f"\n{item.nodeid} hangs in its {phase}\n".encode())
        faulthandler.dump_traceback(_stderr, all_threads=True)
        for child in descendants(_own):
            _show(child)
        pytest.fail(f"hung: its {phase} took more than {LIMIT:g} s; stderr has all stacks")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    faulthandler.dump_traceback_later(LIMIT + MORE, exit=True, file=_stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _show(pid):
    """A line about a process, and its Python stacks if it was forked from this one."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        folder = Path(f"/proc/{pid}")
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        status = dict(
            line.split(":", 1) for line in (folder / "status").read_text().splitlines()
        )
        os.write(_stderr, f"\nprocess {pid} ({status['State'].strip()}): {command}\n".encode())
        if int(status["SigCgt"], 16) >> (signal.SIGUSR1 - 1) & 1:
            os.kill(pid, signal.SIGUSR1)


def descendants(pid):
    """Ids of the processes that a process started, and that these did."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in list(Path(f"/proc/{pid}/task").iterdir()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for child in map(int, (task / "children").read_text().split()):
                    found += [child, *descendants(child)]
    return found
