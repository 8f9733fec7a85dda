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


def on_sigterm():
    """From now on SIGTERM ends this program as an exception does, so that the blocks it is in stop
    their daemons and workers. Not its forked children: those have nothing to stop."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


@contextlib.contextmanager
def postponed():
    """SIGINT and SIGTERM do what they do at the end of the block: a program that they ended right
    after it started a process would not know of it. Elsewhere than in the main thread no signal's
    exception comes anyway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []
    before = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


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
