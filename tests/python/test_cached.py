"""cached: exactly one loader, whoever dies."""

import gc
import os
import signal
import threading

import numpy as np
import pytest
from conftest import FULL, wait_until

import shmstore


def test_loads_once(client):
    calls = []

    def load():
        calls.append(1)
        return np.arange(6, dtype="i4").reshape(2, 3)

    a = client.cached("k", load)
    b = client.cached("k", load)
    assert calls == [1] and np.array_equal(a, b) and a.shm.id == b.shm.id
    assert a.dtype == "i4" and not a.flags.writeable and a.shm.name == "k"
    del a, b
    gc.collect()
    assert client.exists("k")  # kept
    assert client.cached("k", load).shape == (2, 3) and calls == [1]
    client.delete("k")
    client.cached("k", load)
    assert calls == [1, 1]


def test_fills_in_place(client):
    kept = []

    def fill(out):
        assert out.shape == (3, 4) and out.dtype == "f4" and out.flags.writeable
        out[:] = 5
        kept.append(out[1:])

    x = client.cached("k", fill, shape=(3, 4), dtype="f4", attrs={"a": 1}, ttl=1000)
    assert (x == 5).all() and not x.flags.writeable
    assert client.info("k")["attrs"] == {"a": 1} and client.info("k")["ttl_s"] > 900
    del x
    gc.collect()
    assert (kept[0] == 5).all()  # what the loader kept stays readable
    assert client.info("k")["leases"] == 1
    kept.clear()
    gc.collect()
    assert client.info("k")["leases"] == 0
    y = client.cached("f", lambda out: out.fill(1), shape=(3, 4), order="F")
    assert y.flags.f_contiguous and y.dtype == "f8"


def test_an_exception_goes_to_the_caller(client):
    class Mine(Exception):
        pass

    error = Mine("text")
    kept = []

    def bad(out):
        out[:] = 1
        kept.append(out)
        raise error

    for _ in range(2):
        with pytest.raises(Mine) as caught:
            client.cached("k", bad, shape=3)
        assert caught.value is error and error.__cause__ is None and error.__context__ is None
        assert not client.exists("k")
    assert kept[0].tolist() == [1, 1, 1]  # memory that is referred to stays
    with pytest.raises(ZeroDivisionError):
        client.cached("k", lambda: 1 / 0)
    with pytest.raises(KeyboardInterrupt):
        client.cached("k", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit):
        client.cached("k", lambda out: (_ for _ in ()).throw(SystemExit(3)), shape=2)
    assert client.cached("k", lambda: [1, 2]).tolist() == [1, 2]
    kept.clear()


def test_the_loader_may_use_the_store(client):
    def outer():
        a = client.cached("inner", lambda: np.arange(3))
        b = client.put("other", a + 1)
        return np.concatenate([a, b])

    assert client.cached("outer", outer).tolist() == [0, 1, 2, 1, 2, 3]


def test_not_inside_itself(client):
    def load():
        return client.cached("k", lambda: np.zeros(3))

    with pytest.raises(shmstore.InvalidArgument):
        client.cached("k", load)
    assert client.cached("k", lambda: np.ones(3)).sum() == 3


def test_bad_results(client):
    for load in (lambda: None, lambda: [object()], lambda: np.zeros(2, "O")):
        with pytest.raises(shmstore.InvalidArgument, match="^(array|dtype): "):
            client.cached("k", load)
    with pytest.raises(TypeError):
        client.cached("k", 5)
    with pytest.raises(shmstore.InvalidArgument, match="^shape: "):
        client.cached("k", lambda out: None, shape=-1)
    assert not client.exists("k")


def test_an_array_of_that_name_is_taken(client):
    x = client.put("k", [1, 2, 3])
    assert client.cached("k", lambda: 1 / 0).tolist() == [1, 2, 3]
    del x


def test_threads_wait_for_one_loader(client):
    started, go = threading.Event(), threading.Event()
    calls, results = [], []

    def load():
        calls.append(1)
        started.set()
        go.wait()
        return np.arange(5)

    def use():
        results.append(client.cached("k", load))

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    started.wait()
    with pytest.raises(shmstore.TimedOut):
        client.cached("k", load, timeout=0.05)
    go.set()
    for thread in threads:
        thread.join()
    assert calls == [1] and len(results) == 6
    assert all(x.tolist() == [0, 1, 2, 3, 4] for x in results)


def test_a_raising_loader_is_followed_by_the_next(client):
    turn = threading.Event()
    outcomes = []

    def fail():
        turn.set()
        wait_until(lambda: len(threads) == 2 and threads[1].is_alive())
        raise OSError("first")

    def use(load):
        try:
            outcomes.append(client.cached("k", load).tolist())
        except OSError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=use, args=(fail,))]
    threads[0].start()
    turn.wait()
    threads.append(threading.Thread(target=use, args=(lambda: [7],)))
    threads[1].start()
    for thread in list(threads):
        thread.join()
    assert sorted(map(str, outcomes)) == sorted(["first", "[7]"])


@pytest.mark.parametrize("turn", range(20 if FULL else 2))
def test_many_processes_and_a_killed_loader(daemon, client, program, tmp_path, turn):
    count = 32 if FULL else 8
    log = tmp_path / "log"
    log.touch()
    users = [program("cached_user.py", "key", tmp_path, 1 << 18) for _ in range(count)]

    def half_way():
        return [line.split()[1] for line in log.read_text().splitlines() if "half" in line]

    victim = int(wait_until(half_way, "a loader that is half-way")[0])
    os.kill(victim, signal.SIGKILL)
    reports = [user.json() for user in users if user.pid != victim]
    assert len(reports) == count - 1
    lines = log.read_text().splitlines()
    assert sum("complete" in line for line in lines) == 1
    assert sum("start" in line for line in lines) == 2
    assert {report["sum"] for report in reports} == {(1 << 18) * 3}
    assert len({(report["inode"], report["offset"]) for report in reports}) == 1
    info = client.info("key")
    assert info["state"] == "sealed" and info["kept"] and info["leases"] == count - 1
    stats = client.stats
    wait_until(lambda: stats()["used"] - stats()["records"] == info["nbytes"], "one copy")
    for user in users:
        if user.pid != victim:
            assert user.finish()[0] == 0
