"""Runs behaviours.json through the Python package."""

import functools

import numpy as np
import pytest

import shmstore as shm

from driver import Daemon, play, scenarios, seen_of

SCENARIOS = scenarios("python")
CODES = {
    shm.NotFound: "not_found", shm.AlreadyExists: "already_exists",
    shm.PermissionDenied: "permission_denied", shm.NoCapacity: "no_capacity",
    shm.QuotaExceeded: "quota_exceeded", shm.TimedOut: "timed_out", shm.Busy: "busy",
    shm.NotSealed: "not_sealed", shm.Aborted: "aborted", shm.InvalidArgument: "invalid_argument",
    shm.ProtocolError: "protocol_error", shm.Disconnected: "disconnected",
    shm.Internal: "internal",
}


def operation(method):
    """Turns an exception of the package into the step's outcome."""

    @functools.wraps(method)
    def run(self, step):
        try:
            return "ok", method(self, step) or {}
        except shm.Error as error:
            return CODES[type(error)], {}

    return run


def options(step):
    names = ("keep", "replace", "mutable", "order", "hard", "attrs")
    chosen = {name: step[name] for name in names if name in step}
    if "perms" in step:
        chosen["perms"] = int(step["perms"], 8)
    return chosen


class Player:
    def __init__(self, client):
        self.client = client
        self.held = {}
        self.versions = {}

    def _keep_or_drop(self, step, array):
        seen = seen_of(array)
        if "as" in step:
            self.held[step["as"]] = array
        return seen

    def _newer_than(self, step):
        wanted = step.get("newer_than", 0)
        return self.versions[wanted[1:]] if isinstance(wanted, str) else wanted

    @operation
    def put(self, step):
        values = np.full(step["shape"], step["value"], step["dtype"], order=step.get("order", "C"))
        return self._keep_or_drop(step, self.client.put(step["name"], values, **options(step)))

    @operation
    def create(self, step):
        array = self.client.create(step["name"], tuple(step["shape"]), step["dtype"],
                                   **options(step))
        array[...] = step["value"]
        return self._keep_or_drop(step, array)

    @operation
    def read(self, step):
        access = step.get("access", "r")
        return self._keep_or_drop(step, self.client.attach(
            step["name"], mode="r+" if access == "x" else access, timeout=step.get("timeout", 0),
            exclusive=access == "x", repair=step.get("repair", False)))

    @operation
    def look(self, step):
        return seen_of(self.held[step["of"]])

    @operation
    def fill(self, step):
        self.held[step["of"]][...] = step["value"]

    @operation
    def info(self, step):
        info = self.client.info(step["name"])
        if "save_version" in step:
            self.versions[step["save_version"]] = info["version"]
        return {**info, "shape": list(info["shape"])}

    @operation
    def list(self, step):
        return {"names": [info["name"] for info in self.client.list(step.get("prefix", ""))]}

    @operation
    def wait(self, step):
        self.client.wait(step["name"], newer_than=self._newer_than(step), timeout=step["timeout"])

    @operation
    def seal(self, step):
        if "of" in step:
            self.held[step["of"]].seal()
        else:
            self.client.attach(step["name"], mode="r+", timeout=0).seal()

    @operation
    def release(self, step):
        assert self.client.release(self.held.pop(step["of"]))

    @operation
    def let_go(self, step):
        error = KeyError() if step.get("half_written") else None
        self.held.pop(step["of"]).__exit__(type(error) if error else None, error, None)

    @operation
    def abort(self, step):
        del self.held[step["of"]]

    @operation
    def delete(self, step):
        self.client.delete(step["name"])

    @operation
    def keep(self, step):
        self.client.keep(step["name"], ttl=step.get("ttl"))

    @operation
    def unkeep(self, step):
        self.client.unkeep(step["name"])

    @operation
    def chmod(self, step):
        self.client.chmod(step["name"], int(step["perms"], 8))

    @operation
    def cached(self, step):
        if step.get("fails"):
            def load():
                raise KeyError("the loader's own")

            with pytest.raises(KeyError):
                self.client.cached(step["name"], load)
            return {}
        return self._keep_or_drop(step, self.client.cached(
            step["name"], lambda: np.full(step["shape"], step["value"], step["dtype"])))

    @operation
    def selfcheck(self, step):
        assert self.client.selfcheck()["clean"]


@pytest.mark.parametrize("steps", [steps for _, steps in SCENARIOS],
                         ids=[name for name, _ in SCENARIOS])
def test_behaviour(steps):
    with Daemon() as path:
        play(Player(shm.connect(path)), steps)
