"""shmstore.pycompss.task: the decorator that puts what it is told into the store."""

import subprocess
import sys

import pytest
from pycompss_tree import HERE, application, minicompss, needs_sources, python, tree  # noqa: F401

PROGRAM = "pycompss_rro.py"


@needs_sources
def test_the_papers_matmul(application):  # noqa: F811
    facts = application(PROGRAM, "matmul").facts
    (fact,) = facts["matmul"]
    assert fact["right"]
    # Each block once, though each is an argument of three tasks.
    assert fact["arrays"] == fact["blocks"]
    assert facts["warnings"] == [{"texts": []}]


@needs_sources
def test_the_papers_kmeans(application):  # noqa: F811
    (fact,) = application(PROGRAM, "kmeans").facts["kmeans"]
    assert fact["sums"] == [128.0 * i for i in range(4)] * 3
    assert fact["labels"] == 4 * 128


@needs_sources
def test_a_task_sees_what_the_array_held_when_it_was_submitted(application):  # noqa: F811
    facts = application(PROGRAM, "changes").facts
    for fact in facts["changed by its owner"]:  # an ordinary array, then a mutable one of the store
        assert [seen[2] for seen in fact["seen"]] == fact["expected"]
        assert [seen[0] for seen in fact["seen"]] == ["SharedArray"] * 2
    for what in ("changed by a task", "not waited for"):
        (fact,) = facts[what]
        assert fact["seen"][2] == fact["expected"], what


@needs_sources
def test_a_task_sees_the_same_of_small_arrays(application):  # noqa: F811
    facts = application(PROGRAM, "small changes").facts
    sums = [fact["seen"] for fact in facts["by value"]]
    assert sums == [[n, n, 2 * n] for n in (100, 50, 100, 9, 100)]
    assert facts["warnings"] == [{"texts": []}]


@needs_sources
@pytest.mark.kills_daemon
def test_a_task_sees_the_same_without_a_store(application, daemon):  # noqa: F811
    daemon.stop()
    facts = application(PROGRAM, "large changes").facts
    sums = [fact["seen"] for fact in facts["by value"]]
    n = 128 * 128
    assert sums == [[k, k, 2 * k] for k in (n, n // 2, n, 127, n)]
    assert len(facts["warnings"][0]["texts"]) == 1


@needs_sources
def test_kinds_of_arguments(application):  # noqa: F811
    facts = application(PROGRAM, "kinds").facts
    kinds = {fact["given"]: fact for fact in facts["kind"]}
    assert set(kinds) == {"ndarray", "matrix", "MaskedArray"}
    for given, fact in kinds.items():
        expected = "SharedArray" if given == "ndarray" else given
        assert fact["first"][0] == expected
        assert fact["first"] == fact["second"] and fact["first"][1] != 0  # the same file, mapped
    assert kinds["MaskedArray"]["first"][2:] == [128 * 127, 128]
    assert facts["small"][0]["seen"][0] == "ndarray"
    assert facts["objects"][0]["seen"] == ["ndarray", 0, 140000, 0]
    assert facts["not contiguous"][0]["seen"][0] == "SharedArray"
    (collection,) = facts["collection"]
    names, inodes, sums = zip(*collection["seen"])
    assert names == ("SharedArray", "ndarray", "SharedArray", "matrix")
    assert inodes[0] == inodes[2] != 0
    assert sums == (128 * 128, 3, 128 * 128, 128 * 128)
    (table,) = facts["dictionary"]
    assert table["seen"]["k"][0] == "SharedArray" and table["seen"]["small"][0] == "ndarray"
    assert facts["rest"][0]["seen"] == ["ndarray", "SharedArray", "SharedArray", "SharedArray"]
    assert facts["nested"][0]["seen"] == ["SharedArray", "SharedArray", "text"]
    assert facts["false"][0]["seen"] == "ndarray"
    assert facts["method"][0]["seen"] == ["SharedArray", 3.0 * 128 * 128]


@needs_sources
def test_an_object_is_shared_once_and_can_be_deleted(application):  # noqa: F811
    (fact,) = application(PROGRAM, "deleting").facts["deleted"]
    assert fact == {"once": 1, "x": 128.0 * 128}


@needs_sources
@pytest.mark.kills_daemon
def test_without_a_store_it_warns_once_and_goes_on(application, daemon):  # noqa: F811
    daemon.stop()
    facts = application(PROGRAM, "kmeans").facts
    assert facts["kmeans"][0]["labels"] == 4 * 128
    ((text,),) = (fact["texts"] for fact in facts["warnings"])
    assert "goes on without the store" in text
    done = application(PROGRAM, "kmeans", check=False, SHMSTORE_PYCOMPSS_FALLBACK="0")
    assert done.returncode != 0 and "Disconnected" in done.stderr


@needs_sources
def test_outside_of_pycompss_tasks_are_calls(daemon, tree):  # noqa: F811
    app = HERE / "programs" / PROGRAM
    environment = daemon.environment(**minicompss.environment(tree, tree, app))
    done = subprocess.run(
        [sys.executable, app, "matmul", "kmeans"], env=environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"right": true, "arrays": 0' in done.stdout


@needs_sources
def test_marks_that_make_no_sense_are_errors(tree):  # noqa: F811
    source = """
from pycompss.api.parameter import *
from shmstore.pycompss import RRO, task
for spec in ({Type: INOUT, RRO: True}, {Type: FILE_IN, RRO: True}, {Type: OUT, RRO: True},
             {Type: IN, Direction: INOUT, RRO: True}, {Type: COLLECTION_INOUT, RRO: True},
             {Direction: 2, RRO: True}, {Type: IN_DELETE, RRO: True},
             {Type: COLLECTION, Direction: 2, RRO: True}, {Type: FILE, Direction: IN, RRO: True}):
    try:
        task(a=spec)
    except ValueError as error:
        assert str(error).startswith("a: RRO is for parameters of type IN, COLLECTION"), error
    else:
        raise SystemExit(f"{spec} was accepted")
for spec in ({Type: IN, Direction: IN, RRO: True}, {Direction: 0, RRO: True}, {RRO: True},
             {Type: COLLECTION, Direction: IN, Depth: 2, RRO: True}, {Type: INOUT, RRO: False}):
    task(a=spec)(lambda a: None)
for name in ("args", "more"):
    task(**{name: {Type: IN, RRO: True}})(lambda *args, **more: None)
try:
    task(b={Type: IN, RRO: True})(lambda a, **more: None)
except ValueError as error:
    assert str(error) == "b: RRO or Shared, but the function has no such parameter", error
else:
    raise SystemExit("b was accepted")
"""
    done = python(tree, source)
    assert done.returncode == 0, done.stderr


def test_without_pycompss_the_error_names_it(script):
    done = script("import sys; sys.modules['pycompss'] = None; from shmstore.pycompss import task")
    assert done.returncode != 0
    assert "shmstore.pycompss needs the package pycompss" in done.stderr.splitlines()[-1]


def test_the_package_itself_needs_no_pycompss(script):
    done = script(
        "import sys; sys.modules['pycompss'] = None\n"
        "import shmstore.pycompss as p; p.configure(min_bytes=1); print(p.storage_path())"
    )
    assert done.returncode == 0, done.stderr
    done = script("import shmstore, sys; print('shmstore.pycompss' in sys.modules)")
    assert done.stdout == "False\n"
