"""Private daemons: one for each "node". On one machine nodes are told apart by their sockets."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import shmstore as shm

from tasks import ending

START_S = 20  # how long a daemon may take until it answers


@contextlib.contextmanager
def started(count, here=True):
    """Starts `count` daemons and stops them at the end; gives the sockets. The first is that of
    this process and of the children that are not told otherwise; unless `here` is false: then
    this process is on none of the nodes."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(_daemon()) for _ in range(count)]
        before = os.environ.get("SHMSTORE_SOCKET")
        os.environ["SHMSTORE_SOCKET"] = sockets[0] if here else f"{sockets[0]}-not-here"
        try:
            yield sockets
        finally:
            if before is None:
                del os.environ["SHMSTORE_SOCKET"]
            else:
                os.environ["SHMSTORE_SOCKET"] = before


@contextlib.contextmanager
def _daemon():
    with tempfile.TemporaryDirectory(prefix="shmstore-node-") as folder:
        socket = f"{folder}/socket"
        command = [program("shmstored"), "--socket", socket, "--log-level", "warning"]
        with contextlib.ExitStack() as stack:
            with ending.postponed():
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
                stack.callback(_stop, process)
            wait_until_it_answers(process, socket)
            yield socket


def _stop(process):
    process.terminate()
    process.wait()


def program(name):
    """Path of shmstored or shmctl: beside this Python, else on PATH."""
    beside = Path(sys.executable).parent / name
    found = os.environ.get(name.upper()) or (str(beside) if beside.exists() else shutil.which(name))
    if not found:
        sys.exit(f"{name} was found neither beside {sys.executable} nor on PATH")
    return found


def wait_until_it_answers(process, socket):
    """Ends the program if the daemon ends; raises Disconnected if it takes too long."""
    give_up = time.monotonic() + START_S
    while True:
        try:
            shm.connect(socket)
            return
        except shm.Disconnected:
            if process.poll() is not None:
                sys.exit(f"shmstored ended with status {process.returncode}")
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)
