"""For the tests of shmstore with PyCOMPSs: runs programs with the real PyCOMPSs, as far as it is
Python, if the environment variable PYCOMPSS_SRC names its source tree, or COMPSS_HOME an installed
COMPSs."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent

_spec = importlib.util.spec_from_file_location("minicompss_run", HERE / "minicompss" / "run.py")
minicompss = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(minicompss)

problem = minicompss.why_not(minicompss.where())
needs_sources = pytest.mark.skipif(problem is not None, reason=str(problem))


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """An importable copy of PyCOMPSs."""
    folder = tmp_path_factory.mktemp("pycompss")
    minicompss.prepare(minicompss.where(), folder)
    return folder


def _run_group(command, **options):
    """As subprocess.run; nothing that the program started is left when this returns. Its output
    goes to files: if it is killed, PyCOMPSs' processes would hold on to pipes."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, start_new_session=True,
            **options,
        )  # fmt: skip
        try:
            process.wait(timeout=120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output = [(file.seek(0), file.read())[1] for file in (out, errors)]
    return subprocess.CompletedProcess(command, process.returncode, *output)


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
        command = minicompss.command(tree, app, arguments, storage)
        done = _run_group(
            command,
            env=daemon.environment(**environment, MINICOMPSS_WORKERS=str(workers), **more),
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
