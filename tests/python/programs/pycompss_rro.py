"""A PyCOMPSs program whose decorators say what goes into the store."""

import sys
import warnings

import numpy as np
from pycompss.api.api import compss_wait_on
from pycompss.api.parameter import (
    COLLECTION_IN, DICTIONARY_IN, IN, INOUT, Depth, Direction, Type,
)  # fmt: skip
from pycompss.api.task import task as plain_task
from pycompss_common import Grid, inode, say

from shmstore import zeros
from shmstore.pycompss import RRO, compss_delete_object, task

B = 128  # 128 KiB a block


# As in the paper, but for the import of `task` and `RRO`.
@task(a={Type: IN, RRO: True}, b={Type: IN, RRO: True}, c=INOUT)
def multiply(a, b, c):
    c += a @ b


@task(fragment={Type: IN, RRO: True}, returns=1, labels=INOUT)
def partial_sum(fragment, labels):
    labels[:] = 1
    return fragment.sum(axis=0)


@task(a={Direction: IN, RRO: True}, returns=1)
def look(a):
    mask = int(np.ma.getmaskarray(a).sum()) if isinstance(a, np.ma.MaskedArray) else 0
    return [type(a).__name__, inode(a), float(a.sum()), mask]


@task(blocks={Type: COLLECTION_IN, Depth: 1, RRO: True}, returns=1)
def look_at_all(blocks):
    return [[type(a).__name__, inode(a), float(a.sum())] for a in blocks]


@task(table={Type: DICTIONARY_IN, Depth: 1, RRO: True}, returns=1)
def look_at_table(table):
    return {key: [type(a).__name__, inode(a), float(a.sum())] for key, a in table.items()}


@task(more={Type: IN, RRO: True}, named={Type: IN, RRO: True}, returns=1)
def look_at_rest(first, *more, **named):
    return [type(a).__name__ for a in (first, *more, *named.values())]


@task(nested={Type: IN, RRO: True}, returns=1)
def look_inside(nested):
    return [type(nested["a"]).__name__, type(nested["list"][0]).__name__, nested["list"][1]]


@task(a={Type: IN, RRO: False}, returns=1)
def not_shared(a):
    return type(a).__name__


@plain_task(c=INOUT)
def double(c):
    c *= 2


@plain_task(returns=1)
def make():
    return np.full((B, B), 7.0)


def arrays():
    import shmstore as shm

    return shm.stats()["arrays"]


def matmul(n):
    rng = np.random.default_rng(1)
    a = [[rng.random((B, B)) for _ in range(n)] for _ in range(n)]
    b = [[rng.random((B, B)) for _ in range(n)] for _ in range(n)]
    c = [[np.zeros((B, B)) for _ in range(n)] for _ in range(n)]
    for i in range(n):
        for j in range(n):
            for k in range(n):
                multiply(a[i][k], b[k][j], c[i][j])
    c = compss_wait_on(c)
    right = np.allclose(np.block(c), np.block(a) @ np.block(b))
    say("matmul", right=bool(right), arrays=arrays(), blocks=2 * n * n)


def kmeans():
    fragments = [np.full((B, B), float(i)) for i in range(4)]
    labels = [np.zeros(B) for _ in fragments]
    sums = [
        partial_sum(fragment, label)
        for _ in range(3)
        for fragment, label in zip(fragments, labels)
    ]
    sums = compss_wait_on(sums)
    labels = compss_wait_on(labels)
    say("kmeans", sums=[float(s[0]) for s in sums], labels=sum(float(x.sum()) for x in labels))


def changes():
    x = np.ones((B, B))
    before = look(x)
    x[:] = 2
    after = look(x)
    seen = [compss_wait_on(before), compss_wait_on(after)]
    say("changed by its owner", seen=seen, expected=[B * B, 2 * B * B])
    shared = zeros((B, B), mutable=True)
    shared[:] = 1
    before = look(shared)
    shared[:] = 2
    seen = [compss_wait_on(before), compss_wait_on(look(shared))]
    say("changed by its owner", seen=seen, expected=[B * B, 2 * B * B])
    double(x)  # from here on PyCOMPSs knows better than the main program what x holds
    result = compss_wait_on(look(x))
    say("changed by a task", seen=result, expected=4 * B * B)
    say("not waited for", seen=compss_wait_on(look(make())), expected=7 * B * B)


def changes_by_value(edge):
    x = np.ones((edge, edge))
    masked = np.ma.MaskedArray(np.ones(edge), mask=np.arange(edge) == 0)
    arrays = [x, x[::2], x.view(np.matrix), masked]
    before = [look(one) for one in arrays] + [look_at_all([x])]
    again = [look(one) for one in arrays] + [look_at_all([x])]
    x[:] = 2
    masked[1:] = 2
    after = [look(one) for one in arrays] + [look_at_all([x])]
    for one, two, three in zip(*map(compss_wait_on, (before, again, after))):
        one, two, three = (seen[0] if len(seen) == 1 else seen for seen in (one, two, three))
        say("by value", seen=[one[2], two[2], three[2]])


def kinds():
    x = np.ones((B, B))
    masked = np.ma.MaskedArray(x, mask=np.eye(B, dtype=bool))
    for one in (x, np.matrix(x), masked):
        first, second = compss_wait_on(look(one)), compss_wait_on(look(one))
        say("kind", given=type(one).__name__, first=first, second=second)
    say("small", seen=compss_wait_on(look(np.ones(3))))
    say("objects", seen=compss_wait_on(look(np.array([1, 2.5] * 40000, dtype=object))))
    say("not contiguous", seen=compss_wait_on(look(np.ones((2 * B, B))[::2])))
    say("collection", seen=compss_wait_on(look_at_all([x, np.ones(3), x, np.matrix(x)])))
    say("dictionary", seen=compss_wait_on(look_at_table({"k": x, "small": np.ones(3)})))
    say("rest", seen=compss_wait_on(look_at_rest(x + 0, x, x, named=x)))
    say("nested", seen=compss_wait_on(look_inside({"a": x, "list": [x, "text"]})))
    say("false", seen=compss_wait_on(not_shared(x)))
    say("method", seen=compss_wait_on(Grid(3).times(x + 0)))


def deleting():
    x = np.ones((B, B))
    start = arrays()
    for _ in range(3):
        compss_wait_on(look(x))
    once = arrays()
    compss_delete_object(x)
    say("deleted", once=once - start, x=float(x.sum()))


def main(*parts):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for part in parts:
            {"matmul": lambda: matmul(3), "kmeans": kmeans, "changes": changes, "kinds": kinds,
             "small changes": lambda: changes_by_value(10), "deleting": deleting,
             "large changes": lambda: changes_by_value(B)}[part]()  # fmt: skip
    texts = [str(one.message) for one in caught if "without the store" in str(one.message)]
    say("warnings", texts=texts)


if __name__ == "__main__":
    main(*sys.argv[1:])
