"""Every test has a daemon of its own, on a socket of its own; it is stopped by its process id.

The daemon checks its invariants after each request (SHMSTORE_SELFCHECK), and at the end of each
test the store's accounting has to be clean. Its log is shown when the test fails.

Programs: `shmstored` is $SHMSTORED, else the one beside this Python. Larger sizes, as the store
promises them, run with SHMSTORE_TEST_FULL=1.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import hypothesis
import pytest

import shmstore
from shmstore import _connect

pytest_plugins = ["hangs"]

hypothesis.settings.register_profile("shmstore", database=None, deadline=None, print_blob=True)
hypothesis.settings.load_profile("shmstore")

FULL = os.environ.get("SHMSTORE_TEST_FULL") == "1"
PATIENCE = 60  # seconds until a condition that has to come true counts as failed
PROGRAMS = Path(__file__).parent / "programs"


def wait_until(condition, what="the condition"):
    """Waits for condition() to be true and returns its value."""
    deadline = time.monotonic() + PATIENCE
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come true in {PATIENCE} s"
        time.sleep(0.002)  # tidy: allow(sleep) because this is wait_until


def daemon_program():
    program = os.environ.get("SHMSTORED") or os.path.join(
        sysconfig.get_path("scripts"), "shmstored"
    )
    if not os.access(program, os.X_OK):
        pytest.exit(f"no daemon: {program} is missing (set SHMSTORED)", returncode=2)
    return program


class Daemon:
    """A private daemon."""

    def __init__(self, folder: Path, *arguments: str):
        self.folder = folder
        # A socket's path has at most 107 bytes.
        self.socket = str(folder / "socket")
        if len(self.socket) > 100:
            self.socket = os.path.join(tempfile.mkdtemp(prefix="shm-test-"), "socket")
        self.arguments = arguments
        self.start()

    def start(self):
        self.log_path = self.folder / "daemon.log"
        environment = dict(os.environ, SHMSTORE_SELFCHECK="1")
        command = [daemon_program(), "--socket", self.socket, *self.arguments]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        wait_until(self._answers, "the daemon's start")

    def _answers(self):
        assert self.process.poll() is None, f"the daemon ended:\n{self.log_path.read_text()}"
        try:
            self.client()
        except shmstore.Disconnected:
            return False
        return True

    def client(self, **options):
        return shmstore.connect(self.socket, **options)

    def environment(self, **more):
        """For programs whose default client is to be this daemon's."""
        return dict(os.environ, SHMSTORE_SOCKET=self.socket, SHMSTORE_AUTOSTART="0", **more)

    def selfcheck(self):
        return json.loads(self.client()._ext.admin("selfcheck", "{}"))

    def stop(self, how=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(PATIENCE)


@pytest.fixture
def daemon(tmp_path, request):
    """A running daemon."""
    daemon = Daemon(tmp_path)
    try:
        yield daemon
        if daemon.process.poll() is None:
            report = daemon.selfcheck()
            assert report["clean"], report
            assert daemon.stop() == 0
        else:
            assert request.node.get_closest_marker("kills_daemon"), "the daemon died"
    finally:
        daemon.stop(signal.SIGKILL)
        if getattr(request.node, "failed_call", False):
            print("daemon's log:\n" + daemon.log_path.read_text(errors="replace")[-8000:])


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if call.when == "call" and outcome.get_result().failed:
        item.failed_call = True


def pytest_configure(config):
    config.addinivalue_line("markers", "kills_daemon: the daemon does not live until the end")


@pytest.fixture
def client(daemon):
    """A client of the test's daemon."""
    return daemon.client()


@pytest.fixture
def shm(daemon, monkeypatch):
    """The module, its default client being one of the test's daemon."""
    monkeypatch.setenv("SHMSTORE_SOCKET", daemon.socket)
    monkeypatch.setattr(_connect, "_default", None)
    return shmstore


class Program:
    """A Python program in tests/python/programs, run as a process of its own."""

    def __init__(self, daemon, name, *arguments, **popen):
        popen.setdefault("env", daemon.environment())
        self.process = subprocess.Popen(
            [sys.executable, "-u", str(PROGRAMS / name), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **popen,
        )

    @property
    def pid(self):
        return self.process.pid

    def line(self):
        """Its next line, as it stands; fails when it has ended instead."""
        text = self.process.stdout.readline()
        assert text, f"the program ended with {self.process.wait(PATIENCE)}"
        return text.rstrip("\n")

    def json(self):
        return json.loads(self.line())

    def say(self, text="go"):
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def kill(self):
        self.process.kill()
        self.process.wait(PATIENCE)

    def finish(self):
        """Closes its input and waits for it; returns the exit status and the rest it printed."""
        rest, _ = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, rest


@pytest.fixture
def program(daemon):
    """program(name, *arguments) starts one; what is left at the end is killed."""
    started = []

    def start(name, *arguments, **popen):
        started.append(Program(daemon, name, *arguments, **popen))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.kill()
        one.process.stdin.close()
        one.process.stdout.close()


@pytest.fixture
def script(daemon):
    """script(text, *arguments) runs Python source in a process of its own to its end; returns the
    CompletedProcess. The default client is one of the test's daemon."""

    def run(text, *arguments, **options):
        options.setdefault("env", daemon.environment())
        return subprocess.run(
            [sys.executable, "-c", text, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE * 2,
            **options,
        )

    return run
