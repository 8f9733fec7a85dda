"""A PyCOMPSs program that shares where it creates; its tasks know nothing of the store."""

import os
import signal
import sys

import numpy as np
from pycompss.api.api import compss_barrier, compss_wait_on
from pycompss.api.parameter import COLLECTION_IN, INOUT, Depth, Type
from pycompss.api.task import task
from pycompss.runtime.management.object_tracker import OT
from pycompss_common import inode, say

import shmstore as shm


@task(returns=1)
def look(a):
    return [inode(a), float(a.sum()), type(a).__name__, bool(a.flags.writeable), os.getpid()]


@task(returns=1, blocks={Type: COLLECTION_IN, Depth: 1})
def look_at_all(blocks):
    return [[inode(a), float(a.sum())] for a in blocks]


@task(returns=1)
def make(n):
    return shm.share(np.arange(n, dtype="f8"))


@task(c=INOUT)
def add(c, a):
    c += a


@task(returns=1)
def process():
    return os.getpid()


def file_size(x):
    return os.path.getsize(OT.get_file_name(OT.is_tracked(x)))


def main(sizes):
    for nbytes in sizes:
        x = shm.share(np.full(nbytes // 8, 0.5))
        seen = [compss_wait_on(look(x)) for _ in range(3)]
        say("argument", nbytes=nbytes, mine=inode(x), seen=seen, file=file_size(x))
        view = x[16 : nbytes // 16]
        say("view", mine=inode(view), seen=compss_wait_on(look(view)), file=file_size(view),
            sum=float(view.sum()))  # fmt: skip
    blocks = [x, np.ones(3), shm.share(np.zeros(nbytes // 8))]
    seen = compss_wait_on(look_at_all(blocks))
    say("collection", mine=[inode(b) for b in blocks], seen=seen)

    c = np.zeros(x.shape)  # INOUT is PyCOMPSs' own affair: a private copy each time
    for _ in range(3):
        add(c, x)
    c = compss_wait_on(c)
    say("inout", same=bool((c == 1.5).all()), kind=type(c).__name__)

    made = make(1 << 18)
    pid = compss_wait_on(process())
    compss_barrier()
    if os.environ["MINICOMPSS_WORKERS"] == "1":
        os.kill(pid, signal.SIGKILL)  # the only worker: the one that made it
    made = compss_wait_on(made)
    say("result", kind=type(made).__name__, equal=bool((made == np.arange(1 << 18)).all()),
        id=made.shm.id)  # fmt: skip


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]])
