"""What the kernel, the socket and the caches cost at least, which bounds the data path.

Each function expects a daemon and returns numbers for the JSON object.
"""

import mmap
import os
import pickle
import socket
import statistics

import engine
import numpy as np
import shmstore as shm
import study

MIB = 1 << 20


def round_trip_and_pages(mode):
    """Milliseconds, medians: a round trip to the daemon; opening a handle of 128 KiB and of 128 MiB
    that nobody holds here; the page faults of the large one, read and written; unmapping it."""
    size, rounds = 128 * MIB, 5 if mode == "quick" else 25
    client = shm.connect(os.environ["SHMSTORE_SOCKET"], grace=0)
    small = client.put(None, np.zeros(128 << 7))
    large = client.put(None, np.zeros(size // 8))
    writable = client.create(None, size // 8, mutable=True)
    writable[:] = 0
    found = {"round_trip": [seconds(client._ext.ping) for _ in range(40 * rounds)]}
    with engine.FORK.Pool(1) as pool:  # in another process: this one has them all mapped
        for name, array in (("read", large), ("write", writable)):
            handle = pickle.dumps(array)
            for key, values in pool.apply(touched, (handle, name == "write", rounds)).items():
                found[f"{name}_{key}"] = values
        handle = pickle.dumps(small)
        found["open_128KiB"] = pool.apply(touched, (handle, False, 10 * rounds))["open_first"]
    return {f"apps_bound_{key}_ms": statistics.median(v) * 1000 for key, v in found.items()}


def seconds(work):
    started = engine.clock()
    work()
    return engine.clock() - started


def touched(handle, write, rounds):
    """In a worker: {what: seconds of each round} for opening a handle, touching each page of the
    array twice, and letting go."""
    found = {"open_first": [], "first_touch": [], "second_touch": [], "let_go": []}
    for _ in range(rounds):
        started = engine.clock()
        array = pickle.loads(handle)
        found["open_first"].append(engine.clock() - started)
        pages = array[:: mmap.PAGESIZE // 8]
        for key in ("first_touch", "second_touch"):
            found[key].append(seconds((lambda: pages.fill(1)) if write else pages.sum))
        del pages
        started = engine.clock()
        del array
        found["let_go"].append(engine.clock() - started)
    return found


def after_products(mode):
    """Milliseconds, medians, right after a product of two blocks of 128 KiB to 8 MiB, which empties
    the caches, while another process computes the same: a message to a third process and back; to
    map and unmap a memory file of that size; to open a handle for the first time and again, held;
    to look an array up in a list. The first two are what no first opening can do without."""
    found = {}
    for size in (128 << 10, 512 << 10, 2 * MIB, 8 * MIB):
        client = shm.connect(os.environ["SHMSTORE_SOCKET"], grace=0)
        arrays = [client.put(None, np.ones(size // 8)) for _ in range(3 if mode == "quick" else 20)]
        handles = [pickle.dumps(array) for array in arrays]
        stop = engine.FORK.Event()
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        others = [
            engine.FORK.Process(target=compute, args=(size, stop)),
            engine.FORK.Process(target=echo, args=(its, mine)),
        ]
        for other in others:
            other.start()
        its.close()
        try:
            with engine.FORK.Pool(1) as pool:
                taken = pool.apply(timed_after_products, (handles, size, mine))
        finally:  # `compute` would go on for ever
            stop.set()
            mine.close()
            for other in others:
                other.join()
        for key, values in taken.items():
            found[f"apps_after_{study.size_text(size)}_{key}_ms"] = statistics.median(values) * 1000
    return found


def compute(size, stop):
    block = np.ones((int((size // 8) ** 0.5),) * 2)
    product = np.empty_like(block)
    while not stop.is_set():
        np.matmul(block, block, out=product)


def echo(ours, theirs):
    theirs.close()
    while message := ours.recv(64):
        ours.send(message)


def timed_after_products(handles, size, peer):
    """In a worker: {what: seconds, for each handle}."""
    block = np.ones((int((size // 8) ** 0.5),) * 2)
    product = np.empty_like(block)
    file = os.memfd_create("shmbench")
    os.ftruncate(file, size)
    shm.stats()  # connects
    opened, found = [], {}

    def ask():
        peer.send(b"." * 64)
        peer.recv(64)

    for handle in handles:
        works = {
            "echo": ask,
            "map": lambda: mmap.mmap(file, size, prot=mmap.PROT_READ).close(),
            "open_first": lambda handle=handle: opened.append(pickle.loads(handle)),
            "open_again": lambda handle=handle: pickle.loads(handle),
            "look_up": lambda: opened[len(opened) // 2],
        }
        for key, work in works.items():
            np.matmul(block, block, out=product)
            found.setdefault(key, []).append(seconds(work))
    return found
