"""Runs behaviours.json through shmctl."""

import json
import re
import subprocess

import numpy as np
import pytest

from driver import Daemon, play, program, scenarios, seen_of

SCENARIOS = scenarios("shmctl")


class Player:
    def __init__(self, socket, folder):
        self.socket = socket
        self.folder = folder
        self.versions = {}

    def _run(self, *arguments):
        """(outcome, parsed JSON or None)"""
        done = subprocess.run(
            [program("SHMCTL", "shmctl"), "--socket", self.socket, "--json", *map(str, arguments)],
            capture_output=True, text=True)
        if done.returncode == 0:
            text = done.stdout.strip()
            return "ok", json.loads(text) if text else None
        assert done.returncode == 1, f"{arguments}: exit {done.returncode}: {done.stderr}"
        code = re.match(r"error: (\w+): .+", done.stderr)
        assert code, f"{arguments}: {done.stderr!r}"
        return code.group(1), None

    def put(self, step):
        shape = ",".join(map(str, step["shape"]))
        command = ["create", step["name"], "--shape", shape, "--dtype", step["dtype"],
                   f"--fill={step['value']}"]
        command += [f"--{flag}" for flag in ("mutable", "replace", "hard") if step.get(flag)]
        command += [] if step.get("keep") else ["--no-keep"]
        for option in ("order", "perms"):
            command += ["--" + option, step[option]] if option in step else []
        command += ["--attrs", json.dumps(step["attrs"])] if "attrs" in step else []
        return self._run(*command)[0], {}

    def read(self, step):
        file = self.folder / "read.npy"
        done, _ = self._run("export", step["name"], file)
        return done, seen_of(np.load(file)) if done == "ok" else {}

    def info(self, step):
        done, info = self._run("info", step["name"])
        if "save_version" in step:
            self.versions[step["save_version"]] = info["version"]
        return done, info

    def list(self, step):
        done, arrays = self._run("ls", *([step["prefix"]] if "prefix" in step else []))
        return done, {"names": [info["name"] for info in arrays]}

    def wait(self, step):
        newer_than = step.get("newer_than", 0)
        if isinstance(newer_than, str):
            newer_than = self.versions[newer_than[1:]]
        return self._run("wait", step["name"], "--timeout", step["timeout"],
                         "--newer-than", newer_than)[0], {}

    def keep(self, step):
        ttl = ["--ttl", step["ttl"]] if "ttl" in step else []
        return self._run("keep", step["name"], *ttl)[0], {}

    def chmod(self, step):
        return self._run("chmod", step["perms"], step["name"])[0], {}

    def selfcheck(self, step):
        done, answer = self._run("selfcheck")
        return done if answer and answer["clean"] else "(not clean)", {}

    def delete(self, step):
        return self._run("rm", step["name"])[0], {}

    def unkeep(self, step):
        return self._run("unkeep", step["name"])[0], {}

    def seal(self, step):
        return self._run("seal", step["name"])[0], {}


@pytest.mark.parametrize("steps", [steps for _, steps in SCENARIOS],
                         ids=[name for name, _ in SCENARIOS])
def test_behaviour(steps, tmp_path):
    with Daemon() as path:
        play(Player(path, tmp_path), steps)
