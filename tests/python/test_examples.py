"""The programs in examples/: every engine that is installed, every way of the data, small."""

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE, daemon_program, wait_until
from hangs import descendants
from pycompss_tree import application, needs_sources, tree  # noqa: F401 - fixtures

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

SMALL = {
    "matmul.py": ("--blocks", "3", "--edge", "40"),
    "kmeans.py": ("--fragments", "3", "--mib", "0.05", "--rounds", "3"),
}
ENGINES = ("pool", "joblib", "dask", "ray")
NEEDS = {"pool": "shmstore", "joblib": "joblib", "dask": "distributed", "ray": "ray"}


def example(name, *arguments, **environment):
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE * 4,
        env={**os.environ, "SHMSTORED": daemon_program(), **environment},
    )


def need(engine):
    if importlib.util.find_spec(NEEDS[engine]) is None:
        pytest.skip(f"{engine} is not installed")


CASES = [
    (engine, way)
    for engine in ENGINES
    for way in ("store", "copy", "file")
    if way != "file" or engine == "pool"  # files are the same everywhere
]


@pytest.mark.parametrize("engine, way", CASES)
@pytest.mark.parametrize("name", SMALL)
def test_computes_what_one_process_computes(name, engine, way):
    need(engine)
    done = example(name, "--backend", engine, "--data", way, *SMALL[name])
    assert done.returncode == 0, done.stderr
    assert "are equal, bit for bit" in done.stdout


@needs_sources
@pytest.mark.parametrize("way", ["store", "copy"])
@pytest.mark.parametrize("name", SMALL)
def test_pycompss(application, name, way):  # noqa: F811
    done = application(EXAMPLES / name, "--backend", "pycompss", "--data", way, *SMALL[name])
    assert "are equal, bit for bit" in done.stdout


@pytest.mark.parametrize("engine", ["dask"])
def test_every_block_crosses_once_to_each_node(engine):
    need(engine)
    done = example("kmeans.py", "--backend", engine, "--data", "store", *SMALL["kmeans.py"])
    assert done.returncode == 0, done.stderr
    assert "2 private daemons" in done.stdout
    assert re.search(r"every block crossed the wire once for each node", done.stdout), done.stdout


def test_a_node_has_a_worker():
    need("dask")
    options = ("kmeans.py", "--backend", "dask", "--data", "store", *SMALL["kmeans.py"])
    done = example(*options, "--nodes", "3")
    assert done.returncode == 2 and "--nodes 3: needs as many --workers, here 2" in done.stderr
    done = example(*options, "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "once for each node (1)" in done.stdout


def test_a_wrong_result_is_told(tmp_path):
    """The check is one: a kernel that adds something makes it fail."""
    text = (
        "import sys; sys.path.insert(0, sys.argv[1]); from tasks import kernels, programs\n"
        "program = programs.Matmul(8, 2, 2, 2); right, _ = program.expected()\n"
        "from tasks import command; wrong = {n: x + (n[1] == 1) for n, x in right.items()}\n"
        "print(command.check(program, right), command.check(program, wrong))"
    )
    command = [sys.executable, "-c", text, str(EXAMPLES)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 1" and "WRONG: 2 arrays differ" in done.stdout


def test_an_engine_that_is_missing_is_named(tmp_path):
    (tmp_path / "joblib.py").write_text("raise ImportError('No module named joblib')")
    done = example("matmul.py", "--backend", "joblib", PYTHONPATH=str(tmp_path))
    assert done.returncode == 3 and done.stdout.count("\n") == 1
    assert "joblib: No module named joblib. tools/setup --extras" in done.stderr


@pytest.mark.parametrize(
    "name, arguments, words",
    [
        ("matmul.py", ("--backend", "pool", "--nodes", "2"), "one node only"),
        ("matmul.py", ("--workers", "0"), "from 1 to 1000000"),
        ("matmul.py", ("--backend", "spark"), "invalid choice"),
        ("matmul.py", ("--edge", "9" * 20), "from 1 to 1000000"),
        ("matmul.py", ("--edge", "1000000"), "the machine has"),
        ("kmeans.py", ("--mib", "nan"), "--mib: must be more than 0 and at most 1000000 MiB"),
        ("kmeans.py", ("--mib", "inf"), "--mib: must be"),
        ("kmeans.py", ("--mib", "-1"), "--mib: must be"),
        ("kmeans.py", ("--mib", "0"), "--mib: must be"),
        ("kmeans.py", ("--mib", "1e6", "--fragments", "1000"), "the machine has"),
        ("quantise", ("--mib", "9" * 20), "the machine has"),
        ("../tests/bench/apps", ("--repetitions", "-1"), "from 1 to 1000000"),
    ],
)
def test_bad_options(name, arguments, words):
    done = example(name, *arguments)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


ENDED = [
    (engine, way, number)
    for engine, way in (("pool", "file"), ("joblib", "store"), ("dask", "store"))
    for number in (signal.SIGINT, signal.SIGTERM)
]


@pytest.mark.parametrize("engine, way, number", ENDED)
def test_nothing_is_left_by_a_program_that_is_ended(engine, way, number, tmp_path):
    need(engine)
    command = [sys.executable, "-u", str(EXAMPLES / "kmeans.py"), "--backend", engine]
    process = subprocess.Popen(
        [*command, "--data", way, *SMALL["kmeans.py"][:4], "--rounds", "1000000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # signals are for this process alone
        env={**os.environ, "SHMSTORED": daemon_program(), "TMPDIR": str(tmp_path)},
    )

    def places():
        names = f"shmstore-examples-{process.pid}-*"
        return [*tmp_path.glob("shmstore-*"), *Path("/dev/shm").glob(names)]

    try:
        wanted = {"pool": 1, "joblib": 2, "dask": 2}[engine]
        wait_until(lambda: len(places()) >= wanted, "the program's folders")
        daemons = {"pool": 0, "joblib": 1, "dask": 2}[engine]
        wait_until(lambda: len(descendants(process.pid)) > daemons, "its workers")
        children = descendants(process.pid)
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.stderr.close()
    assert process.returncode != 0 and places() == [], errors
    wait_until(lambda: not any(is_alive(child) for child in children), "the end of its children")


ENDED_AT_ONCE = """
import os, signal, subprocess, sys, time
sys.path.insert(0, sys.argv[1])
from tasks import ending, nodes

class Popen(subprocess.Popen):  # its caller has not got the process yet
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        print(self.pid, flush=True)
        while not os.path.exists(arguments[0][2]):  # its socket
            time.sleep(0.01)
        os.kill(os.getpid(), int(sys.argv[2]))

subprocess.Popen = Popen
ending.on_signals()
with nodes.started(1):
    print("it went on")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_program_that_is_ended_at_the_start_of_a_daemon_stops_it(number, tmp_path):
    printed = tmp_path / "printed"  # a pipe would be held open by the daemon
    with printed.open("w") as out:
        done = subprocess.run(
            [sys.executable, "-c", ENDED_AT_ONCE, str(EXAMPLES), str(int(number))],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, "SHMSTORED": daemon_program()},
        )
    assert done.returncode != 0
    pid = int(printed.read_text().split()[0])
    try:
        assert not is_alive(pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


BETWEEN = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from tasks import ending

numbers = (signal.SIGINT, signal.SIGTERM)
ending.on_signals()
before = [signal.getsignal(number) for number in numbers]
exchange = signal.signal
def and_sigterm(number, handler):
    found = exchange(number, handler)
    os.kill(os.getpid(), signal.SIGTERM)
    return found
signal.signal = and_sigterm
try:
    with ending.postponed():
        pass
except SystemExit:
    pass
assert [signal.getsignal(number) for number in numbers] == before
for number, kind in zip(numbers, (KeyboardInterrupt, SystemExit)):
    reached = False
    try:
        with ending.postponed():
            os.kill(os.getpid(), number)
            reached = True
        print("it went on")
    except kind:
        print(reached)
"""


def test_no_signal_leaves_the_others_postponed():
    done = subprocess.run(
        [sys.executable, "-c", BETWEEN, str(EXAMPLES)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "True\nTrue\n"), done.stderr


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


FAILING = """
import numpy as np, shmstore
from tasks import data, kernels

def multiply(c):
    c[:3] = -1
    raise KeyError("half-way")

kernels.multiply = multiply
store = data.Store()
c = store.output(np.zeros(10))
try:
    data.perform("multiply", [c], ())
except KeyError:
    pass
try:
    store.array(c)
except shmstore.Aborted as error:
    print(error)
"""


def test_what_a_failed_kernel_left_is_named(daemon):
    environment = daemon.environment(PYTHONPATH=str(EXAMPLES))
    done = subprocess.run(
        [sys.executable, "-c", FAILING], env=environment, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"'tasks/\d+/0' is broken", done.stdout)
