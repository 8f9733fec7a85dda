"""A PyCOMPSs program whose tasks change arrays in place."""

import os
import signal
import sys
import time
import warnings

import numpy as np
from pycompss.api.api import compss_barrier, compss_wait_on
from pycompss.api.parameter import IN, INOUT, Type
from pycompss.runtime.management.object_tracker import OT
from pycompss_common import Grid, inode, say

import shmstore
from shmstore.pycompss import RRO, Shared, configure, in_place, task

B = 128
if "waiting" in sys.argv or os.environ.get("WAIT"):
    os.environ["WAIT"] = "1"
    configure(wait=1)
if "FALLBACK" in os.environ:
    configure(fallback=os.environ["FALLBACK"] != "0")


@task(a={Type: IN, RRO: True}, b={Type: IN, RRO: True}, c={Type: INOUT, Shared: True})
def multiply(a, b, c):
    c += a @ b


@task(c={Type: INOUT, Shared: True}, returns=1)
def add(c, k=1.0):
    c += k
    return [type(c).__name__, inode(c), os.getpid(), c[0]]


@task(c={Type: INOUT, Shared: True}, d={Type: INOUT, Shared: True})
def swap(c, d):
    c[:], d[:] = d.copy(), c.copy()


@task(returns=1)
def total(c, after=None):
    return [type(c).__name__, inode(c), float(c.sum()), bool(c.flags.writeable)]


@task(returns=1)
def same(c):
    return c


@task(returns=1)
def flag(path):
    while not os.path.exists(path):
        time.sleep(0.002)  # tidy: allow(sleep) because it waits for a condition
    return True


@task(c={Type: INOUT, Shared: True})
def raise_flag(c, path):
    c += 1
    with open(path, "w"):
        pass


@task(c={Type: INOUT, Shared: True})
def fail(c):
    c[: len(c) // 2] = -1
    raise RuntimeError("half-way")


@task(c={Type: INOUT, Shared: True})
def die(c):
    c[: len(c) // 2] = -1
    os.kill(os.getpid(), signal.SIGKILL)


kept = []


@task(c={Type: INOUT, Shared: True})
def keep(c):
    kept.append(c)


@task(c=INOUT)
def write_without_mark(c):
    c += 1


@task(returns=1)
def plain(n):
    return np.zeros(n)


@task(returns=1)
def made(n):
    return in_place(np.ones(n))


def matmul():
    n = 3
    rng = np.random.default_rng(1)
    a = [[rng.random((B, B)) for _ in range(n)] for _ in range(n)]
    b = [[rng.random((B, B)) for _ in range(n)] for _ in range(n)]
    c = [[in_place(np.zeros((B, B))) for _ in range(n)] for _ in range(n)]
    for i in range(n):
        for j in range(n):
            for k in range(n):
                multiply(a[i][k], b[k][j], c[i][j])
    files = [os.path.getsize(OT.get_file_name(OT.is_tracked(x))) for row in c for x in row]
    c = compss_wait_on(c)
    result = np.block([[x.read() for x in row] for row in c])
    right = np.allclose(result, np.block(a) @ np.block(b))
    say("matmul", right=bool(right), file=max(files))


def chain():
    c = in_place(np.asfortranarray(np.zeros((50, 70))), name="chain")
    seen = [add(c, float(k)) for k in range(6)]
    seen = [x[:3] for x in compss_wait_on(seen)]
    c = compss_wait_on(c)
    x = c.read()
    say("chain", seen=seen, mine=inode(x), value=[float(x.min()), float(x.max())],
        fortran=bool(x.flags.f_contiguous), writeable=bool(x.flags.writeable))  # fmt: skip
    say("read", seen=compss_wait_on(total(c)), mine=inode(x))
    del x
    try:
        c.change(print)
    except RuntimeError as error:
        say("not waited for", text=str(error))
    c = compss_wait_on(c)
    c.change(lambda array: array.fill(0))
    add(c)
    c = compss_wait_on(c)
    d = in_place(np.full((50, 70), 5.0))
    swap(c, d)
    swap(d, c)
    c, d = compss_wait_on(c), compss_wait_on(d)
    say("swapped", c=float(c.read().max()), d=float(np.asarray(d).max()))


def methods():
    a, c, grid = np.ones((B, B)), in_place(np.zeros(3)), Grid(2)
    made = [grid.add(a, c), grid.add(a, c=c), grid.add(c=c, a=a, scale=2.0)]
    made = [x.tolist() for x in compss_wait_on(made)]
    say("methods", made=made, value=float(compss_wait_on(c).read()[0]))


def from_a_task():
    c = made(100)
    add(c)
    c = compss_wait_on(c)
    say("made", kind=type(c).__name__, value=float(c.read().sum()))


def files():
    """What goes with PyCOMPSs' files as well, and what of it each task is given."""
    c = in_place(np.zeros((50, 70)), name="files")
    wide = in_place(np.ones(1 << 20))
    say("as it is", seen=compss_wait_on(total(c)), kind=type(c).__name__, c=repr(c))
    for k in range(3):
        add(wide, float(k))
    seen = compss_wait_on([add(wide), total(wide)])
    wide = compss_wait_on(wide)
    say("changed", seen=[one[0] for one in seen], before=float(c.read().sum()),
        value=[float(wide.read().min()), float(wide.read().max())])  # fmt: skip
    x = wide.read()
    say("read", writeable=bool(x.flags.writeable), again=compss_wait_on(total(x[:10]))[2])
    wide.change(lambda array: array.fill(2))
    say("in the main program", value=float(np.asarray(wide).mean()))
    passed_on = same(wide)
    add(passed_on)
    passed_on = compss_wait_on(passed_on)
    passed_on.change(lambda array: np.multiply(array, 2, out=array))
    say("passed on", value=float(np.asarray(passed_on).mean()), before=float(wide.read()[0]))


def caught(part):
    def run():
        here = part.__code__.co_filename
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            part()
        texts = [str(one.message) for one in caught if one.filename == here]
        say("warnings", texts=texts)

    return run


def named(end):
    """Nobody waits for the tasks; the handles that PyCOMPSs has pickled outlive the program."""
    c, d = in_place(np.zeros(100), name="named"), in_place(np.zeros(100))
    add(c)
    add(d)
    say("began")
    if end == "exception":
        raise KeyError("the end")
    if end == "kill":
        compss_barrier()
        os.kill(os.getpid(), signal.SIGKILL)


def missing_wait():
    c = in_place(np.zeros(100), name="missing")
    add(c)
    compss_barrier()
    try:
        c.read()
    except shmstore.NotFound as error:
        say("error", text=str(error))


def late_reader():
    c = in_place(np.zeros(100), name="late")
    path = os.path.abspath("flag")
    blocked = flag(path)
    result = total(c, blocked)  # reads version 0, when version 1 has been made
    raise_flag(c, path)
    compss_wait_on(result)


def failing(what, name):
    c = in_place(np.zeros(100), name=name)
    what(c)
    try:
        compss_wait_on(c)
    except RuntimeError as error:
        say("error", text=str(error)[-1500:])
    try:
        c.read()
    except (shmstore.Aborted, shmstore.NotFound) as error:
        say("read", text=str(error))
    try:
        shmstore.attach(name)
    except (shmstore.Aborted, shmstore.NotFound) as error:
        say("by name", text=str(error))


def waiting():
    c = in_place(np.zeros(100), name="busy")
    part = c.read()[:3]
    add(c)
    try:
        compss_wait_on(c)
    except RuntimeError as error:
        say("error", text=str(error)[-1500:], x=float(part[0]))


def wrong():
    c = in_place(np.zeros(100))
    for call in (lambda: swap(c, c), lambda: swap(c, d=c)):
        try:
            call()
        except ValueError as error:
            say("twice", text=str(error))
    for value in (np.zeros(3), 3, None):
        try:
            add(value)
        except TypeError as error:
            say("error", text=str(error))
    c = in_place(np.zeros(100), name="unmarked")
    add(plain(3))
    try:
        compss_barrier()
    except RuntimeError as error:
        say("task", text=str(error)[-1500:])
    say("untouched", value=float(c.read().sum()))


def unmarked():
    write_without_mark(in_place(np.zeros(100)))
    compss_barrier()


def sequential():
    c = in_place(np.zeros(100))
    add(c, 2.0)
    add(c, 2.0)
    c = compss_wait_on(c)
    say("sequential", value=float(c.read().sum()), total=total(c)[2])
    try:
        fail(c)
    except RuntimeError as error:
        say("failed", text=str(error))
    try:
        c.read()
    except shmstore.Aborted as error:
        say("read", text=str(error))


if __name__ == "__main__":
    {
        "matmul": matmul,
        "chain": chain,
        "from_a_task": from_a_task,
        "methods": methods,
        "files": caught(files),
        "named": lambda: named(sys.argv[2]),
        "missing_wait": missing_wait,
        "late_reader": late_reader,
        "fail": lambda: failing(fail, "failed"),
        "die": lambda: failing(die, "died"),
        "keep": lambda: failing(keep, "kept"),
        "waiting": caught(waiting),
        "wrong": wrong,
        "unmarked": unmarked,
        "sequential": sequential,
    }[sys.argv[1]]()
