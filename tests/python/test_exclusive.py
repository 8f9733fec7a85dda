"""Exclusive access to mutable arrays: one process at a time, handed over by its release, broken by
its death."""

import json
import multiprocessing
import os
import pickle
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
from conftest import wait_until

import shmstore
from shmstore import Aborted, Busy, InvalidArgument, NotFound, TimedOut

ITEMS = 1000


@pytest.fixture
def grid(client):
    """A mutable array of zeros that nobody holds: the name keeps it."""
    x = client.create("grid", ITEMS, "i8", mutable=True, keep=True)
    x[:] = 0
    assert client.release(x)
    return "grid"


class Worker:
    """A process that does what it is told."""

    def __init__(self, program):
        self.program = program("told.py")

    def __call__(self, text):
        self.program.say(text)
        return self.program.json()

    def begin(self, text):
        """Does not wait for the answer."""
        self.program.say(text)

    def answer(self):
        return self.program.json()

    @property
    def pid(self):
        return self.program.pid

    def kill(self):
        self.program.kill()


@pytest.fixture
def worker(program):
    return Worker(program)


@pytest.fixture
def second(program):
    return Worker(program)


TAKE = "x = shm.attach('grid', 'r+', exclusive=True, timeout=0)"


def holders(client, name="grid"):
    return sorted(row["access"] for row in client.holders(name))


def waiting(client, count):
    """Until so many requests wait in the daemon."""

    def reached():
        text = json.loads(client._ext.admin("metrics", "{}"))["text"]
        (line,) = [row for row in text.splitlines() if row.startswith("shmstore_waits ")]
        return float(line.split()[1]) == count

    wait_until(reached, f"{count} waiting requests")


def test_written_by_one_at_a_time(client, grid, worker):
    assert worker(TAKE) is None
    assert holders(client) == ["x"]
    for mode in ("r", "r+", "c"):
        with pytest.raises(Busy, match=f"pid {worker.pid} "):
            client.attach(grid, mode, timeout=0)
    with pytest.raises(Busy, match=f"pid {worker.pid} "):
        client.attach(grid, "r+", exclusive=True, timeout=0)
    assert worker("x[:] = 7") is None
    assert worker("shm.release(x)") is True
    x = client.attach(grid, "r+", exclusive=True, timeout=0)
    assert x.shm.access == "x" and x.flags.writeable and (x == 7).all()
    assert x.shm.state == "mutable"


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_waits_for_everybody_who_maps_it(client, grid, worker, mode):
    x = client.attach(grid, mode)
    kind, text = worker(TAKE)
    assert kind == "Busy" and "grid" in text and mode in text
    assert client.release(x)
    assert worker(TAKE) is None


def test_dead_holder_leaves_it_broken(client, grid, worker, second):
    assert worker(TAKE) is None
    assert worker("x[:500] = 1") is None
    began = time.time()
    worker.kill()
    wait_until(lambda: client.info(grid)["state"] == "broken", "the break")
    for mode in ("r", "r+", "c"):
        with pytest.raises(Aborted, match=f"'grid' is broken: pid {worker.pid} .*ended at"):
            client.attach(grid, mode)
    kind, text = second(TAKE)
    assert kind == "Aborted" and "grid" in text
    broken = client.info(grid)["broken"]
    assert broken["pid"] == worker.pid and abs(broken["at"] - began) < 60
    x = client.attach(grid, "r+", exclusive=True, repair=True)
    assert x.shm.state == "broken" and (x[:500] == 1).all()
    x[:] = 2
    assert client.release(x)
    assert client.info(grid)["state"] == "mutable" and client.info(grid)["broken"] is None
    assert second(TAKE) is None and second("int(x.sum())") == 2 * ITEMS


# --- turns ----------------------------------------------------------------------------------------


def test_the_release_hands_over(client, grid, worker, second):
    """Whoever waits sees all that was written before; nobody is woken earlier."""
    assert worker(TAKE) is None
    second.begin("x = shm.attach('grid', 'r+', exclusive=True)")
    waiting(client, 1)
    assert worker("x[:] = np.arange(1000)") is None
    assert holders(client) == ["x"] and client.holders(grid)[0]["pid"] == worker.pid
    worker("del x")
    assert second.answer() is None
    assert second("bool((x == np.arange(1000)).all())") is True
    assert client.holders(grid)[0]["pid"] == second.pid


def test_a_writer_in_line_is_not_overtaken(client, grid, program, worker, second):
    third = Worker(program)
    x = client.attach(grid)
    worker.begin("x = shm.attach('grid', 'r+', exclusive=True)")
    waiting(client, 1)
    second.begin("x = shm.attach('grid')")
    waiting(client, 2)
    third.begin("x = shm.attach('grid', 'r+')")
    waiting(client, 3)
    with pytest.raises(Busy):
        client.attach(grid, "r+", exclusive=True, timeout=0)
    y = client.attach(grid, timeout=0)  # It is waited for: if it waited too, nobody would move.
    assert client.release(y) and client.release(x)
    assert worker.answer() is None
    assert holders(client) == ["x"]
    waiting(client, 2)
    assert worker("shm.release(x)") is True
    assert second.answer() is None and third.answer() is None
    assert holders(client) == ["r", "r+"]


def test_time_out_names_who_holds_it(client, grid, worker):
    assert worker(TAKE) is None
    with pytest.raises(TimedOut, match=f"pid {worker.pid} .*with x"):
        client.attach(grid, timeout=0.05)
    with pytest.raises(TimedOut, match=f"pid {worker.pid} .*with x"):
        client.attach(grid, "r+", exclusive=True, timeout=0.05)
    waiting(client, 0)


def test_killed_while_waiting(client, grid, worker, second):
    x = client.attach(grid)
    worker.begin("x = shm.attach('grid', 'r+', exclusive=True)")
    waiting(client, 1)
    second.begin("x = shm.attach('grid')")
    waiting(client, 2)
    worker.kill()
    assert second.answer() is None
    assert client.release(x)
    assert client.info(grid)["state"] == "mutable"


def test_a_process_does_not_wait_for_itself(client, grid):
    x = client.attach(grid, "r+")
    with pytest.raises(Busy, match="this process"):
        client.attach(grid, "r+", exclusive=True)
    assert client.release(x)
    x = client.attach(grid, "r+", exclusive=True)
    for mode in ("r", "r+", "c"):
        with pytest.raises(Busy, match="this process"):
            client.attach(grid, mode)
    with pytest.raises(Busy, match="this process"):
        client.attach(grid, "r+", exclusive=True, timeout=0)


def test_threads_of_a_process_take_turns(client, grid):
    def add(times):
        for _ in range(times):
            with client.attach(grid, "r+", exclusive=True) as x:
                x[0] += 1

    threads = [threading.Thread(target=add, args=(50,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.attach(grid)[0] == 200


def test_processes_take_turns(client, grid, program):
    workers = [Worker(program) for _ in range(3)]
    for one in workers:
        one.begin("exec('for _ in range(100):\\n"
                  " with shm.attach(\"grid\", \"r+\", exclusive=True) as x: x += 1')")
    assert [one.answer() for one in workers] == [None] * 3
    assert (client.attach(grid) == 300).all()


def test_interrupted_while_waiting(client, grid, worker):
    x = client.attach(grid)
    worker.begin("x = shm.attach('grid', 'r+', exclusive=True)")
    waiting(client, 1)
    worker.program.process.send_signal(signal.SIGINT)
    worker.program.process.wait()
    waiting(client, 0)
    assert client.info(grid)["state"] == "mutable" and x.shm.access == "r"


@pytest.mark.parametrize("how", ["draft", "sealed"])
def test_only_of_mutable_arrays(client, how):
    w = client.create("a", 5)
    if how == "sealed":
        w = w.seal()
    with pytest.raises(InvalidArgument, match=how):
        client.attach("a", "r+", exclusive=True)
    assert w.shm.state == how


def test_arguments(client, grid):
    with pytest.raises(InvalidArgument, match="exclusive: needs mode 'r\\+'"):
        client.attach(grid, exclusive=True)
    with pytest.raises(InvalidArgument, match="repair: only with"):
        client.attach(grid, "r+", repair=True)
    x = client.attach(id=client.info(grid)["id"], mode="r+", exclusive=True, repair=True)
    assert x.shm.access == "x" and x.shm.state == "mutable"


def test_who_deletes_it_ends_the_line(client, grid, worker, second):
    assert worker(TAKE) is None
    second.begin("x = shm.attach('grid', 'r+', exclusive=True)")
    waiting(client, 1)
    client.delete(grid)
    assert second.answer()[0] == "NotFound"
    assert worker("x[:] = 1") is None and worker("shm.release(x)") is True
    assert not client.exists(grid)


def test_who_replaces_it_serves_the_line(client, grid, worker, second):
    assert worker(TAKE) is None
    second.begin("x = shm.attach('grid')")
    waiting(client, 1)
    client.put(grid, np.ones(3), replace=True, keep=True)
    assert second.answer() is None and second("x.shape[0]") == 3
    assert worker("shm.release(x)") is True


# --- the end of a holder --------------------------------------------------------------------------


def test_waiters_are_told_of_the_death(client, grid, worker, second):
    assert worker(TAKE) is None
    second.begin("x = shm.attach('grid', 'r+', exclusive=True)")
    waiting(client, 1)
    worker.kill()
    kind, text = second.answer()
    assert kind == "Aborted" and f"pid {worker.pid} " in text and "'grid'" in text


def test_a_repairer_dies(client, grid, worker, second):
    assert worker(TAKE) is None
    worker.kill()
    wait_until(lambda: client.info(grid)["state"] == "broken", "the break")
    assert second("x = shm.attach('grid', 'r+', exclusive=True, repair=True)") is None
    with pytest.raises(Aborted, match=f"pid {second.pid} .*is repairing it"):
        client.attach(grid)
    second.kill()
    wait_until(lambda: client.info(grid)["broken"]["pid"] == second.pid, "the second break")
    with pytest.raises(Aborted):
        client.attach(grid)


def broken_grid(client, worker):
    assert worker(TAKE) is None
    worker.kill()
    wait_until(lambda: client.info("grid")["state"] == "broken", "the break")


def test_a_broken_array_is_deleted_or_replaced(client, grid, worker, second):
    broken_grid(client, worker)
    client.put(grid, np.ones(3), replace=True, keep=True)
    assert client.attach(grid).shape == (3,)
    client.delete(grid)
    x = client.create(grid, 3, mutable=True, keep=True)
    assert client.release(x)
    broken_grid(client, second)
    client.delete(grid)
    assert not client.exists(grid)


def test_a_broken_array_is_sealed_by_its_repairer(client, grid, worker):
    broken_grid(client, worker)
    with client.attach(grid, "r+", exclusive=True, repair=True) as x:
        x[:] = 5
        x.seal()
    assert client.info(grid)["state"] == "sealed" and (client.attach(grid) == 5).all()
    assert x.shm is None and x[0] == 5


@pytest.mark.parametrize("hard", [False, True])
def test_the_holder_seals(client, grid, worker, second, hard):
    assert worker(TAKE) is None
    y = client.handle(grid)
    second.begin("x = shm.attach('grid')")
    waiting(client, 1)
    assert worker("x[:] = 3") is None
    assert worker(f"bool(x.seal(hard={hard}) is x)") is True
    assert second.answer() is None and second("int(x[0])") == 3
    assert y.info()["seal"] == ("hard" if hard else "soft")
    assert worker("shm.release(x)") is True


def test_others_do_not_seal_while_it_is_held(client, grid, worker):
    w = client.attach(grid, "r+")
    assert worker(TAKE)[0] == "Busy"
    assert client.release(w)
    assert worker(TAKE) is None
    code = client._ext.attach_id(int(client.info(grid)["id"]), 0, "h", 0, False)
    with pytest.raises(shmstore.PermissionDenied):
        code.seal(False, 0)  # not held for writing; the daemon is not even asked


def test_what_is_left_behind_a_with_block(client, grid, worker):
    with client.attach(grid, "r+", exclusive=True) as x:
        view = x[10:]
        for row in x:
            pass
        view[:] = 6
    assert holders(client) == []
    assert worker(TAKE) is None and worker("int(x[10])") == 6
    assert not x.flags.writeable and x.shm is None and view[0] == 6
    view[:] = 8  # private
    assert worker("int(x[10])") == 6
    assert worker("shm.release(x)") is True


def test_a_forked_child_does_not_write(client, grid):
    x = client.attach(grid, "r+", exclusive=True)
    x[:] = 1
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        x[0] = 2
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV
    assert x[0] == 1 and x.shm.access == "x"
    assert client.release(x)
    assert client.info(grid)["state"] == "mutable"


def test_a_forked_child_lets_go_of_nothing(client, grid):
    x = client.attach(grid, "r+", exclusive=True)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            filler = [bytearray(1 << 20) for _ in range(8)]
            del x  # must not unmap what lies at its address here
            for block in filler:
                block[:] = b"x" * len(block)
            with pytest.raises(Busy):
                client.attach(grid, timeout=0)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert holders(client) == ["x"]
    assert client.release(x)


# --- handles --------------------------------------------------------------------------------------


def test_a_handle_keeps_and_does_not_map(client, worker):
    x = client.create(None, (3, 4), "f4", order="F", mutable=True)
    x[:] = 1
    handle = client.handle(x)
    assert client.handle(id=x.shm.id) == handle and hash(client.handle(x)) == hash(handle)
    assert (handle.id, handle.name, handle.shape, handle.order) == (x.shm.id, None, (3, 4), "F")
    assert handle.dtype == np.dtype("f4") and handle.nbytes == 48
    assert handle.info()["id"] == handle.id and handle.id in repr(handle)
    del x
    assert sorted(row["access"] for row in client.holders(id=handle.id)) == ["h"]
    with handle.attach("r+", exclusive=True) as y:
        y += 1
    assert (handle.attach() == 2).all()
    handle.release()
    handle.release()
    wait_until(lambda: client.stats()["arrays"] == 0, "the end of the array")
    with pytest.raises(NotFound):
        handle.attach()
    with pytest.raises(NotFound):
        client.handle("nothing")
    with pytest.raises(InvalidArgument):
        client.handle(np.ones(3))


def test_handles_travel(client, shm, worker):
    """A driver passes a handle on, two workers write in turn, the driver reads."""
    driver = shm.handle(shm.create(None, ITEMS, "i8", mutable=True))
    text = pickle.dumps(driver)
    assert len(text) <= 200
    assert shm.info(id=driver.id)["in_flight"] == 1
    assert [info["id"] for info in shm.in_flight()] == [driver.id]
    (row,) = [row for row in shm.holders(id=driver.id) if row["pid"] == 0]
    assert row["in_flight"] == 1 and row["from_pid"] == os.getpid()
    assert worker(f"import pickle; h = pickle.loads({text!r})") is None
    assert shm.info(id=driver.id)["in_flight"] == 0 and shm.in_flight() == []
    assert worker("x = h.attach('r+', exclusive=True); x[:] = np.arange(1000)") is None
    with pytest.raises(Busy):
        driver.attach(timeout=0)
    assert worker("shm.release(x)") is True
    assert (driver.attach() == np.arange(ITEMS)).all()
    worker.kill()
    wait_until(lambda: len(shm.holders(id=driver.id)) == 2, "the end of the worker")


def test_a_result_outlives_its_worker(client, shm, worker):
    assert worker("import pickle; r = shm.put(None, np.full(1000, 7))") is None
    text = worker("pickle.dumps(shm.handle(r)).hex()")
    worker.kill()
    handle = pickle.loads(bytes.fromhex(text))
    assert (handle.attach() == 7).all()
    assert handle.info()["in_flight"] == 0


def test_a_broken_array_in_flight(client, shm, worker):
    driver = shm.handle(shm.create(None, ITEMS, "i8", mutable=True))
    text = pickle.dumps(driver)
    assert worker(f"import pickle; x = pickle.loads({text!r}).attach('r+', exclusive=True)") is None
    worker.kill()
    wait_until(lambda: driver.info()["state"] == "broken", "the break")
    with pytest.raises(Aborted, match=f"array {driver.id} is broken: pid {worker.pid} "):
        driver.attach()
    with driver.attach("r+", exclusive=True, repair=True) as x:
        x[:] = 0
    assert (driver.attach() == 0).all()


def half_write(handle):
    with handle.attach("r+", exclusive=True) as x:
        x[:500] = 1
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_that_broke_left_arrays_that_are_named(client, shm, method):
    grids = [shm.handle(shm.create(name, ITEMS, "i8", mutable=True)) for name in ("a", "b", None)]
    assert shm.broken() == []
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        with pytest.raises(BrokenProcessPool):
            pool.submit(half_write, grids[1]).result()
    (info,) = shm.broken()
    assert info["name"] == "b" and not info["broken"]["gave_up"]
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        with pytest.raises(BrokenProcessPool):
            pool.submit(half_write, grids[2]).result()
    assert {info["id"] for info in shm.broken()} == {grids[1].id, grids[2].id}
    assert [info["name"] for info in shm.broken("b")] == ["b"]


def test_events(client, grid, worker):
    watch = client.watch()
    broken_grid(client, worker)
    with client.attach(grid, "r+", exclusive=True, repair=True) as x:
        x[:] = 0
    assert [watch.next(60)["event"] for _ in range(2)] == ["broken", "repaired"]
