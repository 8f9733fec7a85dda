"""Arrays that PyCOMPSs' tasks change where they are."""

import subprocess
import sys

import pytest
from pycompss_tree import HERE, application, minicompss, needs_sources, python, tree  # noqa: F401

PROGRAM = "pycompss_in_place.py"
pytestmark = needs_sources


def test_matmul_without_copies_of_c(application):  # noqa: F811
    (fact,) = application(PROGRAM, "matmul").facts["matmul"]
    assert fact["right"] and fact["file"] < 250


def test_a_chain_of_writers_on_several_processes(application, client):  # noqa: F811
    facts = application(PROGRAM, "chain", workers=3).facts
    (fact,) = facts["chain"]
    kinds, inodes, _ = zip(*fact["seen"])
    assert set(kinds) == {"InPlaceArray"} and set(inodes) == {fact["mine"]} != {0}
    assert fact["value"] == [15, 15] and fact["fortran"] and not fact["writeable"]
    assert facts["read"] == [{"seen": ["InPlaceArray", fact["mine"], 15.0 * 3500, False],
                              "mine": fact["mine"]}]  # fmt: skip
    assert facts["swapped"] == [{"c": 1, "d": 5}]
    assert client.list() == []


def test_reading_without_waiting_is_an_error(application):  # noqa: F811
    (fact,) = application(PROGRAM, "missing_wait").facts["error"]
    assert fact["text"].startswith("version 0 of array 'missing' is gone: it was changed in place")


def test_a_reader_that_runs_too_late_gets_an_error(application):  # noqa: F811
    done = application(PROGRAM, "late_reader", check=False)
    assert done.returncode != 0
    assert "version 0 of array 'late' is gone" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "part, name, reason",
    [
        ("fail", "failed", "the task that had it failed"),
        ("die", "died", "the process that had it died"),
        ("keep", "kept", "the task that had it failed"),
    ],
)
def test_a_half_written_array_is_named(application, part, name, reason):  # noqa: F811
    facts = application(PROGRAM, part, check=False).facts
    expected = f"array '{name}' is half-written: {reason}"
    assert expected in facts["error"][0]["text"]  # from the task, which was run again
    assert facts["read"][0]["text"].startswith(expected)


def test_a_task_does_not_wait_for_ever(application):  # noqa: F811
    (fact,) = application(PROGRAM, "waiting", check=False, WAIT="1").facts["error"]
    assert "TimedOut" in fact["text"] and "array 'busy' is in use" in fact["text"]
    assert fact["x"] == 0


def test_other_arguments_are_refused(application):  # noqa: F811
    facts = application(PROGRAM, "wrong", check=False).facts
    kinds = ("ndarray", "int", "NoneType")
    expected = [f"c: Shared needs an array made by in_place(), not {kind}" for kind in kinds]
    assert [fact["text"] for fact in facts["error"]] == expected
    assert "c: Shared needs an array made by in_place(), not ndarray" in facts["task"][0]["text"]
    assert facts["untouched"] == [{"value": 0}]


def test_a_parameter_without_the_mark_cannot_write(application):  # noqa: F811
    done = application(PROGRAM, "unmarked", check=False)
    assert done.returncode != 0 and "read-only" in done.stdout + done.stderr


def test_outside_of_pycompss(daemon, tree):  # noqa: F811
    app = HERE / "programs" / PROGRAM
    environment = daemon.environment(**minicompss.environment(tree, tree, app))
    done = subprocess.run(
        [sys.executable, app, "sequential"], env=environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"value": 400.0, "total": 400.0' in done.stdout
    assert '"half-way"' in done.stdout and "is half-written" in done.stdout


def test_marks_that_make_no_sense_are_errors(tree):  # noqa: F811
    source = """
from pycompss.api.parameter import *
from shmstore.pycompss import RRO, Shared, task
for spec in ({Type: IN, Shared: True}, {Type: OUT, Shared: True}, {Shared: True},
             {Type: COMMUTATIVE, Shared: True}, {Type: COLLECTION_INOUT, Shared: True}):
    try:
        task(c=spec)
    except ValueError as error:
        assert str(error).startswith("c: Shared is for parameters of type INOUT, not"), error
    else:
        raise SystemExit(f"{spec} was accepted")
task(c={Direction: INOUT, Shared: True})(lambda c: None)
try:
    task(c={Type: INOUT, Shared: True}, on_failure="IGNORE")
except ValueError as error:
    assert str(error).startswith("on_failure: "), error
else:
    raise SystemExit("IGNORE was accepted")
"""
    done = python(tree, source)
    assert done.returncode == 0, done.stderr
