"""For the tests of shmstore with PyCOMPSs: runs programs with the real PyCOMPSs, as far as it is
Python, if the environment variable PYCOMPSS_SRC names its source tree."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

_spec = importlib.util.spec_from_file_location("minicompss_run", HERE / "minicompss" / "run.py")
minicompss = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(minicompss)

_problem = minicompss.why_not(os.environ.get("PYCOMPSS_SRC"))
needs_sources = pytest.mark.skipif(_problem is not None, reason=str(_problem))


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """An importable copy of PyCOMPSs."""
    folder = tmp_path_factory.mktemp("pycompss")
    minicompss.prepare(os.environ["PYCOMPSS_SRC"], folder)
    return folder


@pytest.fixture
def application(daemon, tree, tmp_path):
    """application(name, *arguments) runs programs/NAME as the master of an application; returns
    the CompletedProcess with `facts`: what it printed as JSON, by "what"."""
    runs = []

    def run(name, *arguments, storage="null", workers=2, check=True, paths="", **more):
        app = HERE / "programs" / name
        scratch = tmp_path / f"application{len(runs)}"
        scratch.mkdir()
        environment = minicompss.environment(tree, scratch, app, storage, PYTHONPATH=paths)
        done = subprocess.run(
            minicompss.command(tree, app, arguments, storage),
            env=daemon.environment(**environment, MINICOMPSS_WORKERS=str(workers), **more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            cwd=scratch,
        )
        runs.append(done)
        done.facts = {}
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                fact = json.loads(line)
                done.facts.setdefault(fact.pop("what"), []).append(fact)
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


def python(tree, source, **options):
    """Runs Python source in which `pycompss` can be imported."""
    environment = {**os.environ, **minicompss.environment(tree, tree, HERE / "x.py")}
    return subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True,
        timeout=120, **options,
    )  # fmt: skip
