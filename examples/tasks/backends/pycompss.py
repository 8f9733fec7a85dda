"""PyCOMPSs: decorated functions. Under `runcompss` (or `python -m pycompss`) they are tasks, with
its own files between them; without its runtime plain calls, one after the other.

With --data store what tasks read travels by handle, which takes no line here; what they write they
change in place, which takes the mark `Shared`.
"""

import numpy as np

from pycompss.api.api import compss_barrier, compss_wait_on
from pycompss.api.parameter import INOUT, Type
from pycompss.api.task import task
from shmstore import pycompss as store
from tasks import kernels
from tasks.backends.base import Base


@task(c=INOUT)
def multiply(a, b, c):
    kernels.multiply(a, b, c)


@task(labels=INOUT, returns=1)
def assign(fragment, labels, centres):
    return kernels.assign(fragment, labels, centres)


@store.task(c={Type: INOUT, store.Shared: True})
def multiply_in_place(a, b, c):
    kernels.multiply(a, b, c)


@store.task(labels={Type: INOUT, store.Shared: True}, returns=1)
def assign_in_place(fragment, labels, centres):
    return kernels.assign(fragment, labels, centres)


TASKS = {"multiply": multiply, "assign": assign}
IN_PLACE = {"multiply": multiply_in_place, "assign": assign_in_place}


class Backend(Base):
    """How many workers there are is for the runtime to say; they were there before the program, so
    the store is the one that they find."""

    own_stores = False

    def __init__(self, workers, way, sockets=()):
        if way == "file":
            raise ValueError("files are its own way: --data copy")
        super().__init__(workers, way, sockets)
        self.tasks = IN_PLACE if way == "store" else TASKS

    def output(self, array):
        # Else it is PyCOMPSs' affair: it makes versions of it.
        # No copies in place of the store: that is what --data copy is.
        return store.in_place(array, fallback=False) if self.tasks is IN_PLACE else array

    def run_wave(self, tasks):
        results = []
        for job in tasks:
            name, references, extra = self.arguments(job)
            results.append(self.tasks[name](*references, *extra))
        compss_barrier()  # some tasks have no result to wait for
        return compss_wait_on(results)

    def collect(self, name):
        return np.asarray(compss_wait_on(self.references[name]))
