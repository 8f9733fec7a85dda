"""What the study shows beside times: what publishing costs, one copy in memory, nothing left when
workers are killed. Each with a daemon of its own; returns numbers for the JSON object."""

import gc
import json
import mmap
import os
import signal
import statistics
import sys
import time

import bounds
import engine
import numpy as np
import paths
import shmstore as shm
from tasks import nodes, programs

MIB = 1 << 20
PATIENCE_S = 60


def run(mode, say):
    """All checks."""
    numbers = {}
    for check in (bounds.round_trip_and_pages, bounds.after_products, publishing, memory, killing):
        say(check.__name__)
        with nodes.started(1):
            numbers.update(check(mode))
        gc.collect()
    return numbers


# --- publishing -----------------------------------------------------------------------------------


def publishing(mode):
    """What it costs to put an array into the store, beside a fresh memfd that gets the same bytes
    in the same (one) thread, through a map or written; and to publish one made in the store."""
    size = (256 if mode == "quick" else 2048) * MIB
    source = np.random.default_rng(0).random(size // 8)
    put, fill, write, in_place = [], [], [], []
    client = shm.connect(os.environ["SHMSTORE_SOCKET"])
    for _ in range(1 if mode == "quick" else 5):
        settled(client)
        put.append(timed(lambda: client.put(None, source)))
        settled(client)
        fill.append(filled_memfd(source))
        write.append(written_memfd(source))
        draft = shm.empty(source.shape, client=client)
        np.copyto(draft, source)  # the program's own work
        in_place.append(timed(lambda draft=draft: shm.share(draft)))
        del draft
    floor = statistics.median(fill)
    return {
        "apps_publish_bytes": size,
        "apps_publish_s": statistics.median(put),
        "apps_fill_memfd_s": floor,
        "apps_write_memfd_s": statistics.median(write),
        "apps_publish_ratio": statistics.median(put) / floor,
        "apps_publish_in_place_ratio": statistics.median(in_place) / floor,
        "apps_publish_in_place_ms": statistics.median(in_place) * 1000,
    }


def timed(work):
    started = engine.clock()
    result = work()
    taken = engine.clock() - started
    del result  # what it takes to give the memory back is not part of it
    return taken


def settled(client):
    """Waits until the store has given its memory back: that takes a core and the kernel's locks."""
    until = engine.clock() + PATIENCE_S
    while client.stats()["used"] != 0:
        if engine.clock() > until:
            sys.exit("the store still holds memory")
        time.sleep(0.01)


def written_memfd(source):
    started = engine.clock()
    with open(os.memfd_create("shmbench"), "wb", buffering=0) as file:
        rest = memoryview(source).cast("B")
        while rest:
            rest = rest[file.write(rest):]
        return engine.clock() - started


def filled_memfd(source):
    started = engine.clock()
    descriptor = os.memfd_create("shmbench")
    os.ftruncate(descriptor, source.nbytes)
    mapped = mmap.mmap(descriptor, source.nbytes)
    target = np.frombuffer(mapped, source.dtype)
    np.copyto(target, source)
    taken = engine.clock() - started
    del target
    mapped.close()
    os.close(descriptor)
    return taken


# --- memory ---------------------------------------------------------------------------------------


def memory(mode):
    """The store's memory mapped by the master and eight workers that have all read everything, as
    multiples of the arrays' bytes."""
    size = (1 if mode == "quick" else 8) * MIB
    program = programs.KMeans(size, fragments=16, rounds=12)
    path, pss = paths.Store(), []

    def look(crew):
        pids = [os.getpid(), *(process.pid for process in crew.processes)]
        pss.append(sum(store_pss(pid) for pid in pids))

    run_with(program, path, 8, after=look)
    arrays = {**program.inputs, **program.outputs}
    page = mmap.PAGESIZE
    held = sum(-(-array.nbytes // page) * page for array in arrays.values())
    return {"apps_memory_bytes": held, "apps_memory_copies_8_workers": pss[0] / held}


def run_with(program, path, workers, after=None, done=None):
    """Runs a program and calls `after(workers)` while everybody is there."""
    times = engine.Times()
    with engine.Workers(path, workers) as crew:
        engine.publish(program, path, times)
        engine.drive(
            program,
            lambda tasks: crew.run_wave(
                tasks, path.references, times, done and (lambda count: done(crew, count))
            ),
        )
        if after is not None:
            after(crew)
    path.finish()


def store_pss(pid):
    """Bytes of the store's memory that a process maps, each page divided by who maps it."""
    total, ours = 0, False
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as smaps:
        for line in smaps:
            if "-" in line.split(" ", 1)[0]:  # a new map
                ours = "/memfd:shmstore" in line
            elif ours and line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


# --- workers are killed ---------------------------------------------------------------------------


def killing(mode):
    """All workers are killed in the middle of a run. The master's arrays are what they were, the
    books balance, and when the master lets go nothing is left."""
    program = programs.KMeans(1 * MIB, fragments=16, rounds=20)
    path = paths.Store()

    def kill(crew, count):
        if count == 8:
            for process in crew.processes:
                os.kill(process.pid, signal.SIGKILL)

    try:
        run_with(program, path, 8, done=kill)
        sys.exit("killing: the run went on without workers")
    except (EOFError, OSError):
        pass
    intact = all(np.array_equal(path.arrays[name], x) for name, x in program.inputs.items())
    mine = {os.getpid()}
    client = path.client

    def only_mine():
        numbers = (x.shm.id for x in path.arrays.values())
        return all({who["pid"] for who in client.holders(id=one)} <= mine for one in numbers)

    wait_until(only_mine, "the end of their leases")
    path.finish()
    gc.collect()
    wait_until(lambda: client.stats()["used"] == 0, "the memory's return")
    report = json.loads(client._ext.admin("selfcheck", "{}"))
    if not (intact and report["clean"]):
        sys.exit(f"killing: intact {intact}, selfcheck {report}")
    return {"apps_killed_workers_left_bytes": client.stats()["used"], "apps_killed_clean": 1}


def wait_until(condition, what):
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > give_up:
            sys.exit(f"waited in vain for {what}")
        time.sleep(0.005)
