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
        command = [_program(), "--socket", socket, "--log-level", "warning"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            _wait_until_it_answers(process, socket)
            yield socket
        finally:
            process.terminate()
            process.wait()


def _program():
    beside = Path(sys.executable).parent / "shmstored"
    found = os.environ.get("SHMSTORED") or (str(beside) if beside.exists() else None)
    found = found or shutil.which("shmstored")
    if not found:
        sys.exit(f"shmstored was found neither beside {sys.executable} nor on PATH")
    return found


def _wait_until_it_answers(process, socket):
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
