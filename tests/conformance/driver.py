"""What the Python and shmctl drivers of behaviours.json share: a private daemon per scenario, and
the loop over steps."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent


def scenarios(driver):
    """(name, steps) of what `driver` can express."""
    behaviours = json.loads((HERE / "behaviours.json").read_text())
    return [(scenario["name"], [step for step in scenario["steps"]
                                if driver in step.get("only", [driver])])
            for scenario in behaviours["scenarios"] if driver in scenario["drivers"]]


def program(variable, name):
    """$VARIABLE, else beside this Python, else on PATH, else in the release build."""
    candidates = [os.environ.get(variable), pathlib.Path(sys.prefix) / "bin" / name,
                  shutil.which(name), HERE.parents[1] / "build" / "release" / "bin" / name]
    for candidate in candidates:
        if candidate and pathlib.Path(candidate).exists():
            return str(candidate)
    raise FileNotFoundError(f"{name}: set {variable}")


class Daemon:
    """A shmstored with its own folder; a context manager whose value is the socket's path."""

    def __init__(self, capacity="64MiB"):
        self.capacity = capacity

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="shmtest-")
        path = os.path.join(self.folder.name, "socket")
        self.log = open(os.path.join(self.folder.name, "log"), "w+")
        self.process = subprocess.Popen(
            [program("SHMSTORED", "shmstored"), "--socket", path, "--capacity", self.capacity],
            stderr=self.log, env={**os.environ, "SHMSTORE_SELFCHECK": "1"})
        while not self._answers(path):
            if self.process.poll() is not None:
                self.log.seek(0)
                raise RuntimeError("the daemon did not start: " + self.log.read())
            time.sleep(0.002)
        return path

    @staticmethod
    def _answers(path):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            try:
                probe.connect(path)
            except OSError:
                return False
            return True

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait()
        self.log.seek(0)
        log = self.log.read()
        self.log.close()
        self.folder.cleanup()
        assert code == 0, f"the daemon ended with {code}:\n{log}"


def play(player, steps):
    """Runs the steps; a player's method returns (outcome, what was seen)."""
    for step in steps:
        done, seen = getattr(player, step["do"])(step)
        assert done == step.get("error", "ok"), f"{step}: {done}"
        if done == "ok":
            for key, wanted in step.get("expect", {}).items():
                assert seen.get(key, "(missing)") == wanted, f"{step}: {key} is {seen.get(key)!r}"


def one_value(array):
    """The value of all items, None for an empty array."""
    if array.size == 0:
        return None
    values = set(array.ravel().tolist())
    return values.pop() if len(values) == 1 else "(several)"


def seen_of(array):
    return {"dtype": array.dtype.str, "shape": list(array.shape), "value": one_value(array)}
