"""Arrays through a pool of processes, both ways. Arguments: pool | executor | process, and how
processes are started: fork | spawn | forkserver."""

import concurrent.futures
import gc
import multiprocessing
import sys

import numpy as np

import shmstore as shm


def double(x):
    """Takes a shared array, returns one."""
    assert type(x) is shm.SharedArray and x.shm is not None and not x.flags.writeable
    return shm.put(None, x * 2)


def fill(draft, value):
    draft[value] = value + 1


def view(x):
    return x[1:3]


def send(queue, n):
    queue.put(shm.put(None, np.full(10, n)))


def inherited(_):
    return GLOBAL[::2]


GLOBAL = None


def use(map_, starmap):
    inputs = [shm.put(None, np.full((3, 4), i, "f8")) for i in range(10)]
    results = map_(double, inputs)
    for i, result in enumerate(results):
        assert type(result) is shm.SharedArray and (result == 2 * i).all(), result
    for i, part in enumerate(map_(view, inputs)):
        assert part.shm.id == inputs[i].shm.id and np.array_equal(part, inputs[i][1:3])
        assert np.shares_memory(part, shm.attach(id=part.shm.id))
    with shm.create("together", (8,), "i8") as draft:
        starmap(fill, [(draft, i) for i in range(8)])
        assert draft.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
        draft.seal(wait=60)  # a worker answers before it lets go of what it was given
    del inputs


def main(kind, method):
    global GLOBAL
    context = multiprocessing.get_context(method)
    GLOBAL = shm.put("global", np.arange(10))
    if kind == "pool":
        # A worker ends after two tasks: what it returned must outlive it.
        with context.Pool(2, maxtasksperchild=2) as pool:
            # Sizes are given: Pool would divide by its workers, and between two there may be none.
            use(
                lambda f, xs: pool.map(f, xs, chunksize=1),
                lambda f, xs: pool.starmap(f, xs, chunksize=1),
            )
            if method == "fork":
                assert pool.map(inherited, [0, 0], chunksize=1)[0].tolist() == [0, 2, 4, 6, 8]
            pool.close()
            pool.join()
    elif kind == "executor":
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
            run = lambda f, xs: list(executor.map(f, xs))  # noqa: E731
            use(run, lambda f, xs: list(executor.map(f, *zip(*xs))))
    else:
        queue = context.Queue()
        processes = [context.Process(target=send, args=(queue, n)) for n in range(4)]
        for process in processes:
            process.start()
        got = [queue.get(timeout=60) for _ in processes]
        for process in processes:
            process.join()
        assert sorted(x[0] for x in got) == [0, 1, 2, 3]
        del got
    GLOBAL = None
    gc.collect()
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
