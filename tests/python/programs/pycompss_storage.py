"""A PyCOMPSs program that uses the storage interface."""

import os
import signal
import sys
import time

import numpy as np
from pycompss.api.api import compss_barrier, compss_wait_on
from pycompss.api.parameter import COLLECTION_IN, INOUT, Depth, Type
from pycompss.api.task import task
from pycompss.runtime.management.object_tracker import OT
from pycompss_common import Block, inode, say
from storage.api import PersistentArray, getByID

import shmstore as shm


@task(returns=1)
def look(a):
    return [type(a).__name__, inode(a), float(a.sum()), a.getID()]


@task(returns=1, blocks={Type: COLLECTION_IN, Depth: 1})
def look_at_all(blocks):
    return [[type(a).__name__, float(a.sum())] for a in blocks]


@task(returns=1)
def make(n, alias):
    result = PersistentArray(np.arange(n, dtype="f8"), alias or None)
    result.makePersistent()
    return result


@task(returns=1)
def make_block(n):
    block = Block(np.ones(n), "made by a task")
    block.makePersistent()
    return block


@task(returns=1)
def total(block):
    return [block.label, float(block.values.sum()), inode(block.values)]


@task(returns=1)
def total_of(a):
    return float(a.sum())


@task(returns=1)
def kind_of(a):
    return [type(a).__name__, float(a.sum())]


@task(returns=1)
def look_by_id(identifier):
    return float(getByID(identifier).sum())


@task(c=INOUT)
def add(c, k):
    c += k


def arguments():
    x = PersistentArray(np.full((256, 256), 0.5))
    before = x.getID()
    x.makePersistent()
    seen = compss_wait_on(look(x))
    say("array", before=before, id=x.getID(), mine=inode(x), seen=seen, tracked=OT.is_tracked(x))
    view = x[3:]
    say("view", id=view.getID(), seen=[float(view.sum()), compss_wait_on(total_of(view))])
    seen = compss_wait_on(look_at_all([x, np.ones(3), x]))
    say("collection", seen=seen)
    x = compss_wait_on(x)
    say("waited for", kind=type(x).__name__, id=x.getID())


def results():
    made = make(1 << 16, "")
    again = kind_of(made)
    made = compss_wait_on(made)
    say("result", kind=type(made).__name__, id=made.getID(), sum=float(made.sum()),
        again=compss_wait_on(again), name=shm.info(id=made.shm.id)["name"])  # fmt: skip
    alias = compss_wait_on(make(1 << 16, "results/kept"))
    say("alias", same=getByID("results/kept").getID() == alias.getID())


def objects():
    block = Block(np.full(1 << 16, 2.0), "mine", more=[np.ones(3)])
    block.makePersistent()
    say("object", id=block.getID(), mine=inode(block.values), seen=compss_wait_on(total(block)),
        method=compss_wait_on(block.total()), tracked=OT.is_tracked(block))  # fmt: skip
    made = make_block(1 << 16)
    seen = compss_wait_on(total(made))
    made = compss_wait_on(made)
    say("object result", seen=seen, label=made.label, id=made.getID())
    made.deletePersistent()
    identifier = block.getID()
    getByID(identifier)
    block.deletePersistent()
    try:
        getByID(identifier)
    except FileNotFoundError as error:
        say("deleted", text=str(error))


def without_ids():
    x = PersistentArray(np.full((256, 256), 0.5))
    x.makePersistent()
    seen = compss_wait_on(look(x))
    say("array", seen=seen, tracked=OT.is_tracked(x))
    made = compss_wait_on(make(4, ""))
    say("result", kind=type(made).__name__, id=made.getID(), sum=float(made.sum()))
    block = Block(np.full(1 << 16, 2.0), "mine")
    block.makePersistent()
    seen = compss_wait_on(total(block))
    say("object", seen=seen, made=compss_wait_on(make_block(1 << 16)).label)


def writing():
    x = PersistentArray(np.zeros(1 << 16))
    x.makePersistent()
    add(x, 1)
    compss_barrier()


def setting():
    block = Block(np.zeros(1 << 16), "first")
    block.makePersistent()
    block.relabel("second")
    compss_barrier()


def gone():
    look_by_id("shma-0000000000000001-12345")
    compss_barrier()


@task(returns=1)
def processes():
    return [os.getpid(), os.getppid()]


def killed():
    x = PersistentArray(np.full(1 << 16, 3.0))
    x.makePersistent()
    compss_wait_on(total_of(x))
    made = compss_wait_on(make(1 << 16, ""))
    pids = compss_wait_on(processes())
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    while sum("/" not in info["name"][9:] for info in shm.list("pycompss/")) > 1:
        time.sleep(0.002)  # tidy: allow(sleep) because the store learns of their end a little later
    say("killed", kept=[info["kept"] for info in shm.list("pycompss/") if "/" in info["name"][9:]],
        made=float(made[-1]), mine=float(getByID(x.getID()).sum()))  # fmt: skip


if __name__ == "__main__":
    for part in sys.argv[1:]:
        globals()[part]()
