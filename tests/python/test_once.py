"""What goes through multiprocessing has one receiver, and lives no longer than that one wants."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

import shmstore
from conftest import Daemon, wait_until

MIB = 1 << 20


def waits_for_receivers(client, number):
    """Whether there is a lease for handles that were pickled."""
    return any(holder["pid"] == 0 for holder in client.holders(id=number))


def through(pipe, thing):
    """Sends and receives it."""
    here, there = pipe
    there.send(thing)
    return here.recv()


@pytest.fixture
def pipe(client):
    ends = multiprocessing.Pipe()
    through(ends, client.put(None, np.zeros(1)))  # From now on multiprocessing is known.
    yield ends
    for end in ends:
        end.close()


def test_the_lease_ends_with_the_opening(client, pipe):
    x = client.put(None, np.arange(4.0))
    number = x.shm.id
    here, there = pipe
    there.send(x[1:])
    there.send([x, x])  # one handle
    there.send(client.handle(x))
    del x
    assert client.info(id=number)["in_flight"] == 3
    assert here.recv().tolist() == [1, 2, 3]
    kept = here.recv()
    assert waits_for_receivers(client, number)
    handle = here.recv()
    assert not waits_for_receivers(client, number)
    del handle, kept
    with pytest.raises(shmstore.NotFound):
        client.info(id=number)


def test_other_pickles_may_be_opened_by_many(client, pipe):
    x = client.put(None, np.arange(4.0))
    number, pickled = x.shm.id, pickle.dumps(x)
    through(pipe, x)
    del x
    for _ in range(3):
        assert pickle.loads(pickled).tolist() == [0, 1, 2, 3]
    assert waits_for_receivers(client, number)


def test_what_nobody_has_received_waits(client, pipe):
    here, there = pipe
    there.send(client.put(None, np.arange(4.0)))
    wait_until(lambda: len(client.in_flight()) == 1, "the handle on its way")
    assert here.recv().tolist() == [0, 1, 2, 3]


def mebibyte(value):
    return shmstore.put(None, np.full(MIB, value, np.uint8))


def test_results_of_a_pool_do_not_fill_the_store(tmp_path, monkeypatch):
    daemon = Daemon(tmp_path, "--capacity", "8M")
    try:
        monkeypatch.setenv("SHMSTORE_SOCKET", daemon.socket)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            for value in range(40):
                assert pool.submit(mebibyte, value).result()[-1] == value
        client = daemon.client()
        wait_until(lambda: client.stats()["used"] == 0, "the end of all results")
    finally:
        daemon.stop()
