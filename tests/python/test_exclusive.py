"""Exclusive access to mutable arrays: one process at a time, handed over by its release, broken by
its death."""

import time

import pytest
from conftest import wait_until

from shmstore import Aborted, Busy

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
