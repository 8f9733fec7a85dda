"""shmctl as its users have it: every test runs the real program against a daemon of its own.

Programs: $SHMCTL and $SHMSTORED, else those beside this Python. The daemon checks its invariants
after each request, and its books have to be clean at the end of each test.
"""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import pytest

PATIENCE = 60  # seconds until a condition that has to come true counts as failed


def wait_until(condition, what="the condition"):
    """Waits for condition() to be true and returns its value."""
    deadline = time.monotonic() + PATIENCE
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come true in {PATIENCE} s"
        time.sleep(0.002)  # tidy: allow(sleep) because this is wait_until


def program(variable, name):
    path = os.environ.get(variable) or os.path.join(sysconfig.get_path("scripts"), name)
    if not os.access(path, os.X_OK):
        pytest.exit(f"{path} is missing (set {variable})", returncode=2)
    return path


SHMCTL = program("SHMCTL", "shmctl")
SHMSTORED = program("SHMSTORED", "shmstored")


def environment(**changes):
    """What the tests' programs see: nothing of this machine's stores, no colours, UTF-8."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SHMSTORE_")}
    clean.update(SHMSTORE_DAEMON=SHMSTORED, LC_ALL="C.UTF-8", TERM="xterm-256color", **changes)
    return clean


def shmctl(*arguments, rc=0, stdin=b"", env=None):
    """Runs shmctl; returns what it printed on stdout (text) and stderr."""
    done = subprocess.run(
        [SHMCTL, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        env=environment() if env is None else env,
        timeout=PATIENCE * 2,
        check=False,
    )
    errors = done.stderr.decode()
    assert done.returncode == rc, f"shmctl {arguments}: {done.returncode}, not {rc}: {errors}"
    return done.stdout.decode(errors="surrogateescape"), errors


class Store:
    """A private daemon, and shmctl on its socket."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.socket = str(self.folder / "socket")
        self.log = open(self.folder / "log", "wb")
        self.process = subprocess.Popen(
            [SHMSTORED, "--socket", self.socket],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            env=environment(SHMSTORE_SELFCHECK="1"),
        )
        wait_until(self._answers, "the daemon's start")

    def _answers(self):
        assert self.process.poll() is None, (self.folder / "log").read_text()
        done = subprocess.run(
            [SHMCTL, "--socket", self.socket, "status"], capture_output=True, check=False
        )
        return done.returncode == 0

    def ctl(self, *arguments, rc=0, stdin=b""):
        """Standard output of `shmctl ARGUMENTS` as text."""
        return shmctl("--socket", self.socket, *arguments, rc=rc, stdin=stdin)[0]

    def json(self, *arguments, rc=0):
        """Standard output of `shmctl ARGUMENTS --json`, parsed."""
        return json.loads(self.ctl(*arguments, "--json", rc=rc))

    def refused(self, *arguments, stdin=b""):
        """The code and text of the error, when the status is 1."""
        return self.error(1, *arguments, stdin=stdin)

    def error(self, rc, *arguments, stdin=b""):
        out, errors = shmctl("--socket", self.socket, *arguments, rc=rc, stdin=stdin)
        assert out == ""
        assert errors.startswith("error: ") and errors.endswith("\n") and errors.count("\n") == 1
        code, text = errors[len("error: ") : -1].split(": ", 1)
        return code, text

    def python(self, code, *arguments):
        """A Python process with the store; its stdin and stdout are pipes. Ends with the test."""
        child = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(SHMSTORE_SOCKET=self.socket),
            text=True,
        )
        self.children.append(child)
        return child

    def holder(self, expression):
        """A process that evaluates `expression` (shm, np), holds the value and waits."""
        code = (
            "import sys, numpy as np, shmstore as shm\n"
            f"value = {expression}\n"
            "print('ready', flush=True)\n"
            "sys.stdin.read()\n"
        )
        child = self.python(code)
        assert child.stdout.readline() == "ready\n"
        return child

    children = ()

    def stop(self):
        for child in self.children:
            child.kill()
            child.wait()
            child.stdin.close()
            child.stdout.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(PATIENCE)
        self.log.close()


@pytest.fixture
def store(request):
    with tempfile.TemporaryDirectory(prefix="shmctl-test-") as folder:
        store = Store(folder)
        store.children = []
        try:
            yield store
            if store.process.poll() is None:
                assert store.ctl("selfcheck") == "selfcheck: clean\n"
        finally:
            store.stop()
            sys.stdout.write((Path(folder) / "log").read_text())


def let_go(child):
    """Ends a process of Store.holder()."""
    child.stdin.close()
    assert child.wait(PATIENCE) == 0
