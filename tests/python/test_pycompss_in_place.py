"""Arrays that PyCOMPSs' tasks change where they are."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from conftest import wait_until
from pycompss_tree import HERE, application, minicompss, needs_sources, python, tree  # noqa: F401

import shmstore
from shmstore.pycompss import _config, _in_files, _in_place, in_place
from shmstore.pycompss._program import sweep

PROGRAM = "pycompss_in_place.py"


@needs_sources
def test_matmul_without_copies_of_c(application):  # noqa: F811
    (fact,) = application(PROGRAM, "matmul").facts["matmul"]
    assert fact["right"] and fact["file"] < 350


@needs_sources
def test_a_chain_of_writers_on_several_processes(application):  # noqa: F811
    facts = application(PROGRAM, "chain", workers=3).facts
    (fact,) = facts["chain"]
    kinds, inodes, _ = zip(*fact["seen"])
    assert set(kinds) == {"InPlaceArray"} and set(inodes) == {fact["mine"]} != {0}
    assert fact["value"] == [15, 15] and fact["fortran"] and not fact["writeable"]
    assert facts["read"] == [{"seen": ["InPlaceArray", fact["mine"], 15.0 * 3500, False],
                              "mine": fact["mine"]}]  # fmt: skip
    assert facts["not waited for"][0]["text"].startswith("array 'chain' is an argument of tasks")
    assert facts["swapped"] == [{"c": 1, "d": 5}]


@needs_sources
def test_methods_and_other_decorators(application):  # noqa: F811
    (fact,) = application(PROGRAM, "methods").facts["methods"]
    assert fact == {"made": [[2, 2], [4, 4], [8, 8]], "value": 8}


@needs_sources
def test_a_task_may_make_one(application):  # noqa: F811
    assert application(PROGRAM, "from_a_task").facts["made"] == [{"kind": "InPlace", "value": 200}]


@needs_sources
@pytest.mark.parametrize("end", ["normal", "exception"])
def test_names_and_memory_end_with_the_program(application, client, end):  # noqa: F811
    for _ in range(2):
        assert application(PROGRAM, "named", end, check=False).facts["began"]
        assert client.in_flight() == []
        wait_until(lambda: client.list() == [], "the end of its processes")


@needs_sources
def test_the_next_program_frees_what_a_killed_one_left(application, client):  # noqa: F811
    for _ in range(2):
        assert application(PROGRAM, "named", "kill", check=False).returncode == -9
        assert [info["in_flight"] for info in client.list()] == [1, 1]
    application(PROGRAM, "named", "normal")
    wait_until(lambda: client.list() == [], "the end of its processes")


@needs_sources
def test_reading_without_waiting_is_an_error(application):  # noqa: F811
    (fact,) = application(PROGRAM, "missing_wait").facts["error"]
    assert fact["text"].startswith("version 0 of array 'missing' is gone: it was changed in place")


@needs_sources
def test_a_reader_that_runs_too_late_gets_an_error(application):  # noqa: F811
    done = application(PROGRAM, "late_reader", check=False)
    assert done.returncode != 0
    assert "version 0 of array 'late' is gone" in done.stdout + done.stderr


@needs_sources
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "part, name, reason",
    [("fail", "failed", "the task that had it failed"),
     ("die", "died", "the process that had it died")],
)  # fmt: skip
def test_a_half_written_array_is_named(application, part, name, reason, workers):  # noqa: F811
    facts = application(PROGRAM, part, check=False, workers=workers).facts
    expected = f"array '{name}' is half-written: {reason}"
    if (part, workers) != ("die", 1):
        assert expected in facts["error"][0]["text"]  # from the task, which was run again
    assert facts["read"][0]["text"].startswith(expected)
    how = "gave it up" if part == "fail" else "ended"
    text = facts["by name"][0]["text"]
    assert text.startswith(f"access: '{name}' is broken: pid") and how in text


@needs_sources
def test_a_task_that_keeps_the_array_loses_it(application):  # noqa: F811
    done = application(PROGRAM, "keep", check=False)
    assert "array 'kept' is gone" in done.facts["error"][0]["text"]
    assert "array 'kept' is gone" in done.facts["read"][0]["text"]


@needs_sources
def test_a_task_does_not_wait_for_ever(application):  # noqa: F811
    facts = application(PROGRAM, "waiting", check=False, WAIT="1").facts
    (fact,) = facts["error"]
    assert "TimedOut" in fact["text"] and "array 'busy' is in use" in fact["text"]
    assert fact["x"] == 0
    ((text,),) = (fact["texts"] for fact in facts["warnings"])
    assert text.startswith("c: the main program has what read() gave; tasks")


@needs_sources
def test_other_arguments_are_refused(application):  # noqa: F811
    facts = application(PROGRAM, "wrong", check=False).facts
    assert facts["twice"] == [{"text": "d: is the same array as c"}] * 2
    kinds = ("ndarray", "int", "NoneType")
    expected = [f"c: Shared needs an array made by in_place(), not {kind}" for kind in kinds]
    assert [fact["text"] for fact in facts["error"]] == expected
    assert "c: Shared needs an array made by in_place(), not ndarray" in facts["task"][0]["text"]
    assert facts["untouched"] == [{"value": 0}]


@needs_sources
def test_a_parameter_without_the_mark_cannot_write(application):  # noqa: F811
    done = application(PROGRAM, "unmarked", check=False)
    assert done.returncode != 0 and "read-only" in done.stdout + done.stderr


@needs_sources
@pytest.mark.kills_daemon
@pytest.mark.parametrize("store", [True, False])
def test_outside_of_pycompss(daemon, tree, store):  # noqa: F811
    if not store:
        daemon.stop()
    app = HERE / "programs" / PROGRAM
    environment = daemon.environment(**minicompss.environment(tree, tree, app))
    done = subprocess.run(
        [sys.executable, app, "sequential"], env=environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"value": 400.0, "total": 400.0' in done.stdout
    assert '"half-way"' in done.stdout and "is half-written" in done.stdout


@needs_sources
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
for name, function in (("args", lambda c, *args: None), ("more", lambda c, **more: None),
                       ("d", lambda c: None)):
    try:
        task(**{name: {Type: INOUT, Shared: True}})(function)
    except ValueError as error:
        assert str(error).startswith(f"{name}: "), error
    else:
        raise SystemExit(f"{name} was accepted")
try:
    task(c={Type: INOUT, Shared: True}, on_failure="IGNORE")
except ValueError as error:
    assert str(error).startswith("on_failure: "), error
else:
    raise SystemExit("IGNORE was accepted")
from pycompss.api.on_failure import on_failure
from pycompss.util.context import CONTEXT
CONTEXT.set_master()  # else the decorator does nothing
try:
    on_failure(management="IGNORE")(task(c={Type: INOUT, Shared: True})(lambda c: None))(1)
except ValueError as error:
    assert str(error).startswith("on_failure: "), error
else:
    raise SystemExit("IGNORE was accepted")
"""
    done = python(tree, source)
    assert done.returncode == 0, done.stderr


# --- without a store ------------------------------------------------------------------------------


@pytest.fixture
def nowhere(daemon, application):  # noqa: F811
    """The application, where no daemon is and none can be started."""
    daemon.stop()
    return application


@needs_sources
@pytest.mark.kills_daemon
def test_without_a_store_it_goes_with_files(nowhere):
    facts = nowhere(PROGRAM, "files").facts
    (fact,) = facts["as it is"]
    kind, inode, total, writeable = fact["seen"]
    assert inode == 0 and total == 0 and not writeable and issubclass_in_place(kind)
    assert fact["c"].startswith("<shmstore.pycompss.InPlace array 'files', float64 (50, 70)")
    (fact,) = facts["changed"]
    assert all(map(issubclass_in_place, fact["seen"]))
    assert fact["before"] == 0 and fact["value"] == [5, 5]
    assert facts["read"] == [{"writeable": False, "again": 50}]
    assert facts["in the main program"] == [{"value": 2}]
    assert facts["passed on"] == [{"value": 6, "before": 2}]
    ((text,),) = (fact["texts"] for fact in facts["warnings"])
    assert "goes on without the store" in text


def issubclass_in_place(name):
    return issubclass(getattr(_in_files, name), _in_place.InPlaceArray)


@needs_sources
@pytest.mark.kills_daemon
def test_without_a_store_programs_do_the_same(nowhere):
    (fact,) = nowhere(PROGRAM, "matmul").facts["matmul"]
    assert fact["right"] and fact["file"] > 128 * 128 * 8
    facts = nowhere(PROGRAM, "chain").facts
    assert facts["chain"][0]["value"] == [15, 15] and facts["chain"][0]["fortran"]
    assert facts["not waited for"][0]["text"].startswith("array 'chain' is an argument of tasks")
    assert facts["swapped"] == [{"c": 1, "d": 5}]
    assert nowhere(PROGRAM, "from_a_task").facts["made"][0]["value"] == 200
    facts = nowhere(PROGRAM, "wrong", check=False).facts
    assert "c: Shared needs an array made by in_place(), not ndarray" in facts["task"][0]["text"]


def test_a_daemon_that_went_away_is_not_looked_for_with_each_array(daemon, monkeypatch):
    monkeypatch.setattr(_config.settings, "warned", False)
    client = daemon.client(reconnect=0)

    def kind(fallback=True):
        return type(in_place(np.zeros(3), client=client, fallback=fallback))

    assert kind() is _in_place.InPlace
    assert daemon.stop() == 0
    with pytest.warns(RuntimeWarning, match="goes on without the store"):
        assert kind() is _in_files.InFiles
    daemon.start()
    assert kind() is _in_files.InFiles  # though there is one
    assert kind(fallback=False) is _in_place.InPlace
    assert kind() is _in_place.InPlace  # and so it is known


@needs_sources
@pytest.mark.kills_daemon
@pytest.mark.parametrize("how", ["environment", "configure"])
def test_without_a_store_it_raises_if_told_to(nowhere, how):
    told = {"SHMSTORE_PYCOMPSS_FALLBACK": "0"} if how == "environment" else {"FALLBACK": "0"}
    done = nowhere(PROGRAM, "files", check=False, **told)
    assert done.returncode != 0 and "Disconnected" in done.stderr and done.facts == {}


@needs_sources
@pytest.mark.kills_daemon
def test_without_a_store_mistakes_are_errors_too(nowhere):
    done = nowhere(PROGRAM, "unmarked", check=False)
    assert done.returncode != 0 and "read-only" in done.stdout + done.stderr
    facts = nowhere(PROGRAM, "fail", check=False).facts
    assert "half-way" in facts["error"][0]["text"]  # and what the program has is whole
    assert "read" not in facts


# --- without PyCOMPSs -----------------------------------------------------------------------------


def test_layouts(shm):
    structured = np.zeros((3, 2), [("a", "i4"), ("b", "f8", (2,))])
    structured["b"][1] = 7
    square = np.arange(9.0).reshape(3, 3)
    sources = square, np.asfortranarray(square), np.float32(3), np.zeros((0, 4)), structured
    for source in (*sources, square[::2, ::3]):
        c = in_place(source)
        for one in (c, pickle.loads(pickle.dumps(c))):
            x = one.read()
            assert np.array_equal(x, source) and x.dtype == np.asarray(source).dtype
            assert one.shape == np.shape(source) and one.dtype == np.asarray(source).dtype
            assert not x.flags.writeable
        assert np.array_equal(np.array(c), source)
        assert len(pickle.dumps(c)) < 350
    with pytest.raises(shmstore.InvalidArgument):
        in_place(np.array([None]))


@pytest.mark.kills_daemon
def test_each_call_may_choose_what_becomes_of_it_without_a_store(daemon, script):
    daemon.stop()
    done = script("""
import pickle, warnings
import numpy as np, shmstore
from shmstore.pycompss import configure, in_place
warnings.simplefilter("error")
def fails(error, *args, **options):
    try:
        in_place(*args, **options)
    except error:
        return
    raise SystemExit(f"{args} {options} made one")
fails(shmstore.Disconnected, np.zeros(3), fallback=False)
fails(RuntimeWarning, np.zeros(3))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from shmstore.pycompss import _config
    _config.settings.warned = False
    in_place(np.zeros(3))
assert [one.filename for one in caught] == ["<string>"], caught[0]
source = np.asfortranarray(np.arange(9.).reshape(3, 3))
for fallback in (True, None):  # that was the one warning
    c = in_place(source, fallback=fallback)
    source += 1
    assert c.read()[0, 0] == source[0, 0] - 1 and c.read().flags.f_contiguous
before = c.read()
c.change(lambda x: x.fill(7))
assert before.sum() == 45 and c.read()[2, 2] == 7 and c.read().flags.f_contiguous
c = pickle.loads(pickle.dumps(c.read(), 5))  # read-only, as a task that reads it passes it on
kept = []
c.change(lambda x: (x.fill(4), kept.append(x)))
assert np.array(c).sum() == 36 and c.shape == (3, 3) and c.dtype == float
assert type(pickle.loads(pickle.dumps(c.read()[0]))) is np.ndarray
fails(shmstore.InvalidArgument, np.array([None]))
configure(fallback=False)
fails(shmstore.Disconnected, np.zeros(3))
in_place(np.zeros(3), fallback=True)
""")
    assert done.returncode == 0, done.stderr


def test_versions(shm):
    c = in_place(np.zeros(10), name="c")
    old = pickle.loads(pickle.dumps(c))
    x = c.read()
    with pytest.raises(shmstore.Busy, match="array 'c' is in use"):
        c.change(lambda array: None)
    del x
    c.change(lambda array: array.fill(3))
    assert c.read()[0] == 3
    with pytest.raises(shmstore.NotFound, match="version 0 of array 'c' is gone"):
        old.read()
    with pytest.raises(shmstore.NotFound, match="version 0 of array 'c' is gone"):
        old.change(lambda array: None)
    new = pickle.loads(pickle.dumps(c))
    new.change(lambda array: array.fill(4))
    assert new.read()[0] == 4 and "'c'" in repr(new)


def test_what_is_pickled_of_it(shm):
    c = in_place(np.arange(100000.0))
    x = c.read()
    assert type(pickle.loads(pickle.dumps(x))) is type(c)
    part = pickle.loads(pickle.dumps(x[1:3]))
    assert type(part) is np.ndarray and part.tolist() == [1, 2]
    del x
    c.change(lambda array: array.fill(0))
    assert part.tolist() == [1, 2]


def test_a_receiver_without_the_variable_finds_the_store(shm, script, tmp_path):
    c = in_place(np.arange(10.0))
    runtime = tmp_path / "run"  # no daemon of the user's
    runtime.mkdir(mode=0o700)
    environment = {k: v for k, v in os.environ.items() if k != "SHMSTORE_SOCKET"}
    environment.update(XDG_RUNTIME_DIR=str(runtime), SHMSTORE_AUTOSTART="0")
    done = script(
        "import pickle, sys\n"
        "print(pickle.loads(bytes.fromhex(sys.argv[1])).read()[9])",
        pickle.dumps(c).hex(),
        env=environment,
    )
    assert done.stdout == "9.0\n", done.stderr


def test_half_written(shm, script):
    c = in_place(np.zeros(10), name="c")

    def fail(array):
        array[0] = 1
        raise KeyError("x")

    with pytest.raises(KeyError):
        c.change(fail)
    text = "array 'c' is half-written: the task that had it failed"
    for use in (c.read, lambda: c.change(fail), lambda: np.array(c)):
        with pytest.raises(shmstore.Aborted, match=text):
            use()
    info = shm.info("c")
    assert info["state"] == "broken" and info["broken"]["gave_up"]
    for mode in ("r", "r+", "c"):
        with pytest.raises(shmstore.Aborted, match="'c' is broken: .* gave it up"):
            shm.attach("c", mode)

    d = in_place(np.zeros(10), name="d")
    done = script(
        "import os, pickle, sys; d = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "d.change(lambda array: os.kill(os.getpid(), 9))",
        pickle.dumps(d).hex(),
    )
    assert done.returncode == -9, done.stderr
    with pytest.raises(shmstore.Aborted, match="array 'd' is half-written: the process"):
        d.read()
    assert not shm.info("d")["broken"]["gave_up"]


ENDS = {"normal": "", "exception": "raise KeyError", "exit": "sys.exit(3)",
        "kill": "os.kill(os.getpid(), 9)"}  # fmt: skip
MAKE = """
import os, pickle, sys
import numpy as np, shmstore
from shmstore.pycompss import in_place
c, d = in_place(np.zeros(10), name="c"), in_place(np.zeros(10))
pickle.dumps((c, d))
"""


@pytest.mark.parametrize("end", ENDS)
def test_a_program_can_be_run_again(script, client, end):
    for _ in range(2):
        done = script(MAKE + "assert len(shmstore.in_flight()) == 2\n" + ENDS[end])
        assert done.returncode == {"normal": 0, "exception": 1, "exit": 3, "kill": -9}[end]
        assert "AlreadyExists" not in done.stderr
        if end != "kill":
            wait_until(lambda: client.list() == [], "the end of the program")


def test_what_is_taken_away_is_of_programs_that_have_ended(script, shm):
    kept = shm.put("mine", [1], attrs={"pycompss": "shma", "program": "x"})
    c = in_place(np.zeros(10), name="other")
    done = script(MAKE)
    assert done.returncode == 0, done.stderr
    assert c.read()[0] == 0 and kept[0] == 1 and shm.exists("mine")


def test_a_child_leaves_it_to_its_parent(shm, script):
    done = script(
        MAKE + "import multiprocessing as mp\n"
        "def make(pipe): pipe.send(in_place(np.ones(10), name='child'))\n"
        "context = mp.get_context('fork')\n"
        "mine, its = context.Pipe()\n"
        "child = context.Process(target=make, args=(its,))\n"
        "child.start(); x = mine.recv(); child.join()\n"
        "from shmstore.pycompss._program import sweep\n"
        "sweep(shmstore.default_client())  # as the next program does it\n"
        "assert c.read()[0] == 0 and d.read()[0] == 0 and x.read()[0] == 1\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    x = in_place(np.zeros(10))\n"
        "    sys.exit()\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "assert c.read()[0] == 0 and d.read()[0] == 0\n"
    )
    assert done.returncode == 0, done.stderr


def test_a_program_goes_on_with_a_new_daemon(shm, daemon):
    old = in_place(np.zeros(10), name="c")
    assert daemon.stop() == 0
    daemon.start()
    c, d = in_place(np.zeros(10), name="c"), in_place(np.ones(10))
    sweep(daemon.client())  # as the next program does it
    c.change(lambda array: array.fill(2))
    assert c.read()[0] == 2 and pickle.loads(pickle.dumps(d)).read()[0] == 1
    with pytest.raises(shmstore.NotFound, match="array 'c' is gone"):
        old.read()


def test_a_name_that_is_taken(shm, program):
    shm.put("array", [1], keep=True)
    c = in_place(np.zeros(10), name="c")
    for name in ("array", "c"):
        with pytest.raises(shmstore.AlreadyExists, match="choose another name, or .* replace=True"):
            in_place(np.zeros(10), name=name)
    del c
    with pytest.raises(shmstore.AlreadyExists, match="this program has made it already"):
        x = in_place(np.zeros(10), name="d"), in_place(np.zeros(10), name="d")
    other = program("pycompss_holder.py", "e")
    other.line()
    with pytest.raises(shmstore.AlreadyExists, match=f"a program that runs .pid {other.pid}, "):
        x = in_place(np.zeros(10), name="e")
    other.kill()
    x = in_place(np.zeros(10), name="e")
    old = x.read()
    assert in_place(np.ones(10), name="e", replace=True).read()[0] == 1 and old[0] == 0
    with pytest.raises(shmstore.NotFound, match="array 'e' is gone"):
        x.read()


def test_an_array_that_was_only_waited_with_is_whole(shm):
    """Who needs two and gets one of them has not written to that one."""
    c, d = in_place(np.zeros(10), name="c"), in_place(np.zeros(10), name="d")
    held = d.read()
    with pytest.raises(shmstore.Busy, match="array 'd' is in use"):
        with _in_place.writing([c._ticket, d._ticket]):
            raise AssertionError("both were had")
    del held
    c.change(lambda array: array.fill(1))
    assert c.read()[0] == 1 and d.read()[0] == 0


def test_a_failed_function_may_keep_the_array(shm):
    """It has a copy of its own from then on."""
    c, kept = in_place(np.zeros(10), name="c"), []

    def fail(array):
        kept.append(array)
        raise KeyError("x")

    with pytest.raises(KeyError):
        c.change(fail)
    kept[0][0] = 1
    with pytest.raises(shmstore.Aborted, match="the task that had it failed"):
        c.read()


def test_one_change_inside_another(shm):
    c, d = in_place(np.zeros(10)), in_place(np.zeros(10))
    with _in_place.writing([c._ticket]) as arrays:
        d.change(lambda array: array.fill(1))
        same = pickle.loads(pickle.dumps(c)) is arrays[0]
    assert same and d.read()[0] == 1
    ticket = _in_files.FileTicket("c", "")
    with _in_files.changing([ticket]):
        with _in_files.changing([ticket, ticket._replace(key="d")]):
            pass
        assert _in_files._changing == {"c"}
    assert not _in_files._changing and not _in_place._writing


def test_a_function_that_keeps_a_deleted_array_is_told_too(shm):
    c, d = (in_place(np.zeros(10), name=name) for name in "cd")
    kept = []
    with pytest.raises(RuntimeError, match="array 'c', array 'd': .* deleted"):
        with _in_place.writing([c._ticket, d._ticket]) as arrays:
            kept += arrays
            shm.delete("c")
    with pytest.raises(shmstore.NotFound, match="array 'd' is gone"):
        d.read()


def test_a_function_that_keeps_the_array_loses_it(shm):
    c, kept = in_place(np.zeros(10), name="c"), []
    with pytest.raises(RuntimeError, match="array 'c': .* it was deleted"):
        c.change(kept.append)
    kept[0][0] = 1  # it has it still, alone
    with pytest.raises(shmstore.NotFound, match="array 'c' is gone"):
        c.read()
