"""How a program leaves nothing behind, however it ends (but by `kill -9`)."""

import atexit
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time

REMOVE_S = 10  # how long others may go on writing into a folder that is to be removed

_folders = set()
_process = os.getpid()
_postponing = 0  # How many blocks are.
_came = []  # Signals, meanwhile.


def on_signals():
    """From now on SIGTERM ends this program as an exception does, as SIGINT does anyway, so that
    the blocks it is in stop their daemons and workers; and both can be `postponed`. Not its forked
    children: those have nothing to stop."""
    handled = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored
        handled.append(signal.SIGINT)
    before = {number: signal.signal(number, _end) for number in handled}

    def in_child():
        global _postponing
        _postponing = 0
        for number, handler in before.items():
            signal.signal(number, handler)

    os.register_at_fork(after_in_child=in_child)


def _end(number, frame):
    if _postponing:
        _came.append(number)
    elif number == signal.SIGINT:
        raise KeyboardInterrupt
    else:
        sys.exit(128 + number)


@contextlib.contextmanager
def postponed():
    """SIGINT and SIGTERM do what they do at the end of the block: a program that they ended right
    after it started a process would not know of it. Elsewhere than in the main thread no signal's
    exception comes anyway. No handler is exchanged: a signal in between would leave one behind."""
    global _postponing
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _postponing += 1
    try:
        yield
    finally:
        _postponing -= 1
        if _came and not _postponing:
            first = _came[0]
            _came.clear()
            signal.raise_signal(first)


def make_folder(place=None):
    """A new folder, which is removed at the end of the program if it is there still."""
    folder = tempfile.mkdtemp(prefix=f"shmstore-examples-{os.getpid()}-", dir=place)
    _folders.add(folder)
    return folder


def remove_folder(folder):
    """Removes it with all that is in it. Others may be removing things in it as well (joblib has a
    process for that), or write a last file."""
    give_up = time.monotonic() + REMOVE_S
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder) or time.monotonic() > give_up:
            break
        time.sleep(0.01)
    _folders.discard(folder)


def _remove_all():
    if os.getpid() == _process:
        for folder in list(_folders):
            remove_folder(folder)


atexit.register(_remove_all)
