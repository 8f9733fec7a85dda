"""What goes through multiprocessing has one receiver, and lives no longer than that one wants."""

import multiprocessing
import os
import pickle
import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.reduction import ForkingPickler

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


def test_a_message_of_forking_pickler_may_be_read_by_many(client, pipe):
    """For several ranks, or for a retry: only what a carrier pickles has one receiver."""
    here, there = pipe
    x = client.put(None, np.arange(4.0))
    message = bytes(ForkingPickler.dumps([x, client.handle(x)]))
    del x
    for _ in range(3):
        opened, handle = pickle.loads(message)
        assert opened.tolist() == [0, 1, 2, 3] and handle.shape == (4,)
        del opened, handle
    there.send_bytes(message)
    assert pickle.loads(here.recv_bytes())[0].tolist() == [0, 1, 2, 3]


def test_a_receiver_out_of_descriptors_tries_again(client, pipe):
    here, there = pipe
    x = client.put(None, np.arange(4.0))
    number = x.shm.id
    there.send(x)
    del x
    message = here.recv_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(shmstore.NoCapacity):
            pickle.loads(message)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    x = pickle.loads(message)
    assert x.tolist() == [0, 1, 2, 3]
    assert not waits_for_receivers(client, number)


def test_a_handle_of_what_is_open_is_received_as_well(client, pipe):
    x = client.put(None, np.arange(4.0))
    first, second = through(pipe, x), through(pipe, x)
    assert np.shares_memory(first, second)
    assert client.info(id=x.shm.id)["in_flight"] == 0
    assert not waits_for_receivers(client, x.shm.id)


def test_a_handle_that_its_receiver_has_used_says_so(client, pipe):
    here, there = pipe
    there.send(client.put(None, np.arange(4.0)))
    message = here.recv_bytes()
    pickle.loads(message)
    with pytest.raises(shmstore.NotFound, match="for one receiver, and that one has had it"):
        pickle.loads(message)


def hold(x, ready, done):
    ready.send(float(x.sum()))
    done.recv()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_arguments_of_a_process_have_one_receiver(daemon, client, method, monkeypatch):
    monkeypatch.setenv("SHMSTORE_SOCKET", daemon.socket)
    context = multiprocessing.get_context(method)
    ready, at_child = context.Pipe()
    done, child_done = context.Pipe()
    x = client.put(None, np.arange(4.0))
    child = context.Process(target=hold, args=(x, at_child, child_done))
    child.start()
    assert ready.recv() == 6.0
    assert not waits_for_receivers(client, x.shm.id)
    done.send(None)
    child.join()
    assert child.exitcode == 0


def test_handles_for_one_receiver_are_short(client, pipe):
    here, there = pipe
    x = client.create("a" * 255, (1, 1 << 24, 1, 1), "u1")
    for array in (x, x[:, 1 : 1 << 23 : 3, :, ::-1]):
        there.send(array)
        assert len(here.recv_bytes()) <= 200
