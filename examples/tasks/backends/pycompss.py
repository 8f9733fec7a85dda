"""PyCOMPSs: decorated functions. Under `runcompss` (or `python -m pycompss`) they are tasks, with
its own files between them; without its runtime plain calls, one after the other.

With --data store not a line of this changes: arrays of the store travel by handle.
"""

import numpy as np

from pycompss.api.api import compss_wait_on
from pycompss.api.parameter import INOUT
from pycompss.api.task import task
from tasks import data, kernels
from tasks.backends.base import Base


@task(c=INOUT)
def multiply(a, b, c):
    kernels.multiply(a, b, c)


@task(labels=INOUT, returns=1)
def assign(fragment, labels, centres):
    return kernels.assign(fragment, labels, centres)


TASKS = {"multiply": multiply, "assign": assign}


class Backend(Base):
    """How many workers there are is for the runtime to say; they were there before the program, so
    the store is the one that they find."""

    own_stores = False

    def __init__(self, workers, way, sockets=()):
        if way == "file":
            raise ValueError("files are its own way: --data copy")
        super().__init__(workers, way, sockets)

    def output(self, array):
        # What tasks write is PyCOMPSs' affair: it makes versions of it.
        return data.Copy.output(self.way, array)

    def run_wave(self, tasks):
        results = []
        for job in tasks:
            name, references, extra = self.arguments(job)
            results.append(TASKS[name](*references, *extra))
        return compss_wait_on(results)

    def collect(self, name):
        return np.asarray(compss_wait_on(self.references[name]))
