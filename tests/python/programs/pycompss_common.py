"""For the programs pycompss_*.py: what they share, and classes, which workers have to import."""

import json

from pycompss.api.constraint import constraint
from pycompss.api.parameter import IN, INOUT, Type
from pycompss.api.task import task as plain_task

from shmstore.pycompss import RRO, Shared, StorageObject, task


def say(what, **facts):
    print(json.dumps({"what": what, **facts}), flush=True)


def inode(x):
    """Of the file that the array's first byte is mapped from."""
    address = x.__array_interface__["data"][0]
    with open("/proc/self/maps") as maps:
        for line in maps:
            fields = line.split()
            low, high = (int(edge, 16) for edge in fields[0].split("-"))
            if low <= address < high:
                return int(fields[4])
    return 0


class Grid:
    def __init__(self, n):
        self.n = n

    @task(a={Type: IN, RRO: True}, returns=1, target_direction=IN)
    def times(self, a):
        return [type(a).__name__, float(a.sum()) * self.n]


    @constraint(computing_units="1")
    @task(a={Type: IN, RRO: True}, c={Type: INOUT, Shared: True}, returns=1, target_direction=IN)
    def add(self, a, c, scale=1.0):
        c += scale * self.n * a[0, 0]
        return c[:2]


class Block(StorageObject):
    def __init__(self, values, label, more=()):
        self.values = values
        self.label = label
        self.more = more

    @plain_task(returns=1, target_direction=IN)
    def total(self):
        return [self.label, float(self.values.sum()), type(self.values).__name__]

    @plain_task()
    def relabel(self, label):
        self.label = label
