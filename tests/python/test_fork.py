"""Fork: what a child inherits, what it does on its own."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import PATIENCE, wait_until

import shmstore


def in_child(work):
    """Runs work() in a forked child; returns its pid. The child exits with 0 if it returns true."""
    sys.stdout.flush()
    pid = os.fork()
    if pid != 0:
        return pid
    status = 1
    try:
        signal.alarm(PATIENCE)
        status = 0 if work() else 2
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def joined(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Pipe:
    """One process waits for another."""

    def __init__(self):
        self.ends = os.pipe()

    def wait(self):
        os.read(self.ends[0], 1)

    def go(self):
        os.write(self.ends[1], b"x")


def test_a_child_reads_what_it_inherited(client):
    x = client.put("x", np.arange(1000))

    def work():
        return x.sum() == 499500 and x[5:].shm.name == "x" and not x.flags.writeable

    assert joined(in_child(work)) == 0
    assert client.info("x")["leases"] == 1


def test_a_child_has_a_session_of_its_own(client):
    x = client.put("x", np.arange(10))

    def work():
        y = client.attach("x")
        mine = client.put("mine", [1, 2])
        pids = [one["pid"] for one in client.holders("x")]
        assert sorted(pids) == sorted([os.getppid(), os.getpid()])
        assert client.holders("mine")[0]["pid"] == os.getpid()
        assert client.info("x")["leases"] == 2
        return y.tolist() == x.tolist() and mine.tolist() == [1, 2]

    assert joined(in_child(work)) == 0
    wait_until(lambda: client.info("x")["leases"] == 1, "the end of the child's lease")
    wait_until(lambda: not client.exists("mine"), "the end of the child's array")
    assert x.tolist() == list(range(10))


def test_the_default_client_goes_on_in_a_child(shm):
    x = shm.put("x", [1, 2])

    def work():
        return shm.attach("x").tolist() == [1, 2] and shm.put("y", [3]).tolist() == [3]

    assert joined(in_child(work)) == 0
    assert shm.exists("x") and x.tolist() == [1, 2]


def test_the_default_client_begins_in_a_child(shm):
    assert joined(in_child(lambda: shm.put("y", [3]).tolist() == [3])) == 0
    assert shm.put("z", [1]).tolist() == [1]


def test_dropping_in_a_child_ends_nothing(client):
    box = [client.put("x", np.ones(1 << 16))]

    def work():
        box.clear()
        gc.collect()
        return client.info("x")["leases"] == 1

    assert joined(in_child(work)) == 0
    assert box[0].sum() == 1 << 16 and client.exists("x")


def test_release_in_a_child(client):
    x = client.put("x", np.ones(10))

    def work():
        local = box.pop()
        released = shmstore.release(local)
        return released and local.size == 0 and client.info("x")["leases"] == 1

    box = [x]
    del x
    assert joined(in_child(work)) == 0
    assert box[0].sum() == 10


def test_a_childs_draft(client):
    w = client.create("w", 4, "i8")

    def work():
        w[:] = 7  # inherited, writable, shared
        with client.create("childs", 2) as mine:
            mine[:] = 1
        return client.exists("childs")

    assert joined(in_child(work)) == 0
    assert w.seal().tolist() == [7] * 4


def test_leaving_with_in_a_child_seals_nothing(client):
    w = client.create("w", 4, "i8")
    w.__enter__()

    def work():
        w.__exit__(KeyError, KeyError(), None)
        w.__exit__(None, None, None)
        return client.info("w")["state"] == "draft"

    assert joined(in_child(work)) == 0
    assert w.seal().shm.state == "sealed"


def test_pickling_what_was_inherited(client):
    import pickle

    x = client.put("x", np.arange(10))
    reader, writer = os.pipe()

    def work():
        os.write(writer, pickle.dumps(x[2:]))
        return True

    assert joined(in_child(work)) == 0
    data = os.read(reader, 1000)
    assert len(data) <= 200
    del x
    assert pickle.loads(data).tolist() == list(range(2, 10))


@pytest.mark.parametrize("sealed_first", [True, False])
def test_pickling_an_inherited_draft(client, sealed_first):
    """Pickled by a child after its parent has sealed it, or before: the contents as sealed."""
    import pickle

    draft = client.create("x", 10, "i8")
    part = draft[2:]
    go, done = Pipe(), Pipe()
    reader, writer = os.pipe()

    def work():
        if not sealed_first:
            os.write(writer, pickle.dumps([draft, part]))
            done.go()
        go.wait()
        if sealed_first:
            os.write(writer, pickle.dumps([draft, part]))
        return True

    child = in_child(work)
    if not sealed_first:
        done.wait()
    draft[:] = np.arange(10)
    draft.seal()
    go.go()
    assert joined(child) == 0
    data = os.read(reader, 10000)
    assert len(data) < 400
    whole, rest = pickle.loads(data)
    assert whole.tolist() == list(range(10)) and rest.tolist() == list(range(2, 10))
    assert whole.shm.id == draft.shm.id and whole.shm.state == "sealed"
    assert not whole.flags.writeable and not rest.flags.writeable
    del draft, part  # the child's hand-over lease was its own
    gc.collect()
    again = pickle.loads(data)[0]
    assert again.tolist() == whole.tolist()


@pytest.mark.parametrize("keeps", [False, True])
def test_nobody_sees_foreign_bytes(daemon, client, keeps):
    """The child reads an inherited array while the parent lets go and others refill the store."""
    size = 1 << 17
    box = [client.put("x", np.full(size, 7.0))]
    started, go = Pipe(), Pipe()

    def work():
        x = box.pop()
        if keeps:
            attached = client.attach("x")
        started.go()
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            if not (x == 7).all():
                return False
        if keeps:
            del attached
            client.stats()
            if not (x == 7).all():
                return False
        go.wait()
        return bool((x == 7).all())

    child = in_child(work)
    started.wait()
    other = daemon.client()
    other.delete("x")
    box.clear()
    gc.collect()
    for i in range(100):
        refill = other.put("x", np.full(size, float(i % 5)))
        assert refill[-1] == i % 5
        del refill
    go.go()
    assert joined(child) == 0
    wait_until(lambda: other.stats()["used"] == 0, "the end of the inherited memory")


def test_memory_a_child_maps_stays_charged(client):
    box = [client.put("x", np.ones(1 << 17))]
    go = Pipe()

    def work():
        go.wait()
        return box[0].sum() == 1 << 17

    child = in_child(work)
    box.clear()
    gc.collect()
    assert not client.exists("x")
    assert client.stats()["used"] == 1 << 20
    go.go()
    assert joined(child) == 0
    wait_until(lambda: client.stats()["used"] == 0, "the end of the inherited memory")


def test_fork_returns_while_a_thread_waits(client):
    waiting = threading.Thread(target=lambda: results.append(client.wait("later")))
    results = []
    waiting.start()
    wait_until(lambda: thread_blocked(waiting), "the thread's wait")
    for _ in range(20):
        child = in_child(lambda: client.put(None, [1]).tolist() == [1])
        assert joined(child) == 0
    assert waiting.is_alive()
    x = client.put("later", [1])
    waiting.join(PATIENCE)
    assert results == [x.shm.version]


def thread_blocked(thread):
    """Whether the thread sleeps in the kernel."""
    stat = open(f"/proc/self/task/{thread.native_id}/stat").read()
    return stat.rsplit(")", 1)[1].split()[0] == "S"


def test_fork_among_busy_threads(client):
    stop = threading.Event()
    failures = []

    def churn(n):
        try:
            i = 0
            while not stop.is_set():
                i += 1
                x = client.put(None, np.full(100, i))
                assert client.attach(id=x.shm.id)[-1] == i
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=churn, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    try:
        for i in range(20):
            child = in_child(lambda: client.put(None, [5]).tolist() == [5])
            assert joined(child) == 0, i
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert failures == []


def test_a_grandchild(client):
    x = client.put("x", [1, 2, 3])

    def work():
        y = client.attach("x")
        return joined(in_child(lambda: y.tolist() == client.attach("x").tolist())) == 0

    assert joined(in_child(work)) == 0
    assert x.tolist() == [1, 2, 3]


def test_exec_after_fork_inherits_no_socket(client, daemon):
    x = client.put("x", [1])
    code = (
        "import os\n"
        "links = [os.readlink('/proc/self/fd/' + fd) for fd in os.listdir('/proc/self/fd')\n"
        "         if os.path.exists('/proc/self/fd/' + fd)]\n"
        "print([link for link in links if 'socket' in link or 'memfd' in link])\n"
    )
    output = subprocess.check_output(
        [sys.executable, "-c", code], close_fds=False, stdin=subprocess.DEVNULL, text=True
    )
    assert output == "[]\n"
    del x
