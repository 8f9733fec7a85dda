"""joblib with the store in place of its memory-mapped files; and pools, where nothing is to do."""

import gc
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import signal
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import shmstore
from conftest import PATIENCE, wait_until
from shmstore import SharedArray, _array, _connect

joblib = pytest.importorskip("joblib")

from joblib import Parallel, delayed  # noqa: E402
from joblib.externals.loky import get_reusable_executor  # noqa: E402

from shmstore.joblib import sharing  # noqa: E402

LARGE = 200_000  # 1.6 MB as float64
METHODS = ("fork", "spawn", "forkserver")

# FAILING: only one task fails at a time where the backend is multiprocessing. After the first
# failure joblib terminates the pool, and a worker that is just sending its own result may be ended
# with the lock of the queue in its hand, for which Pool.terminate then waits for ever; with or
# without the store, about once in some hundred calls on a busy machine (Python 3.11, joblib 1.6).


@pytest.fixture(params=["loky", "multiprocessing"])
def backend(request):
    return request.param


@pytest.fixture(autouse=True)
def store(shm):
    multiprocessing.forkserver._forkserver._stop()  # one that runs has another environment
    yield shm
    get_reusable_executor().shutdown(wait=True)  # its workers are connected to this test's daemon
    gc.collect()


def describe(x):
    """In the worker: what the argument is."""
    return type(x).__name__, bool(x.flags.writeable), float(x.sum()), file_of(x)


def file_of(x):
    while isinstance(x, np.ndarray):
        if isinstance(x, np.memmap):
            return str(x.filename)
        x = x.base
    return None


def total(x, i):
    return float(x.sum()) + i


def make(i, size=LARGE):
    return np.full(size, float(i))


def nested(i):
    return {"big": make(i), "list": [make(i + 1), "text"], "small": np.arange(3)}


def tweak(x):
    x[0] += 1
    return x[0]


class Holder:
    def __init__(self, data):
        self.data = data

    def total(self, i):
        return float(self.data.sum()) + i


def files():
    """What joblib has written for its workers; it makes folders in any case."""
    return {str(path) for path in Path("/dev/shm").glob("joblib_memmapping_folder_*/*")}


def test_arguments_go_through_the_store(store, backend):
    x = np.arange(float(LARGE))
    with sharing():
        found = Parallel(2, backend=backend)(delayed(describe)(x) for _ in range(6))
    assert found == [("SharedArray", False, x.sum(), None)] * 6
    without = Parallel(2, backend=backend)(delayed(describe)(x) for _ in range(2))
    assert without[0][0] == "memmap" and without[0][3]


def test_one_copy_for_all_tasks_given_back_at_the_end(store):
    x = np.arange(float(LARGE))
    before = files()
    with sharing():
        [only] = set(Parallel(2)(delayed(id_of)(x, i) for i in range(20)))
        assert living(store) == []
        [other] = set(Parallel(2)(delayed(id_of)(x, i) for i in range(2)))
        assert other != only
        assert files() <= before


def living(store):
    """The arrays that are not there for their holders only."""
    return [entry["id"] for entry in store.list() if entry["state"] != "dying"]


def id_of(x, i):
    return x.shm.id


def test_arguments_anywhere(store, backend):
    holder = Holder(np.arange(float(LARGE)))
    inside = {"k": [np.arange(float(LARGE))]}
    with sharing():
        assert Parallel(2, backend=backend)(delayed(holder.total)(i) for i in range(3)) == [
            holder.total(i) for i in range(3)
        ]
        found = Parallel(2, backend=backend)(delayed(kind_inside)(inside) for _ in range(3))
    assert found == ["SharedArray"] * 3


def kind_inside(x):
    return type(x["k"][0]).__name__


def test_small_objects_and_views_of_memmaps_stay_joblibs(store, tmp_path, backend):
    mapped = np.memmap(tmp_path / "f", float, "w+", shape=(LARGE,))
    arguments = [np.arange(10.0), mapped, np.arange(float(LARGE))[::2]]
    with sharing():
        small, file, strided = Parallel(2, backend=backend)(delayed(describe)(x) for x in arguments)
    assert small[0] == "ndarray" and file[3] == str(tmp_path / "f")
    assert strided[0] == ("ndarray" if arguments[2].nbytes <= 1e6 else "SharedArray")


def test_thresholds(store):
    x, y = np.arange(1000.0), np.arange(float(LARGE))
    with sharing(min_bytes=8000):
        assert Parallel(2)(delayed(describe)(x) for _ in range(2))[0][0] == "SharedArray"
    with sharing():
        assert Parallel(2, max_nbytes=100)(delayed(describe)(x) for _ in range(2))[0][0] == (
            "SharedArray"
        )
        assert Parallel(2, max_nbytes=None)(delayed(describe)(y) for _ in range(2))[0][0] == (
            "ndarray"
        )


def test_modes(store, backend):
    x = np.zeros(LARGE)
    with sharing():
        options = {"n_jobs": 2, "backend": backend}
        private = Parallel(**options, mmap_mode="c")(delayed(tweak)(x) for _ in range(4))
        assert private == [1, 1, 1, 1] and x[0] == 0
        together = Parallel(**options, mmap_mode="r+")(delayed(tweak)(x) for _ in range(4))
        assert max(together) > 1 and x[0] == 0
        with pytest.raises(ValueError):
            Parallel(**options, mmap_mode="r")([delayed(tweak)(x)])  # see FAILING


def test_an_array_changed_between_calls(store, backend):
    x = np.zeros(LARGE)
    with sharing():
        for value in range(3):
            x[:] = value
            assert Parallel(2, backend=backend)(delayed(total)(x, 0) for _ in range(3)) == (
                [value * LARGE] * 3
            )
        with Parallel(2, backend=backend) as parallel:
            for value in range(3):
                x[:] = value
                assert parallel(delayed(total)(x, 0) for _ in range(3)) == [value * LARGE] * 3


def test_results_are_writable_and_private(store, backend):
    with sharing():
        results = Parallel(2, backend=backend)(delayed(make)(i) for i in range(5))
    for i, x in enumerate(results):
        assert isinstance(x, SharedArray) and x.shm.access == "c"
        assert x.sum() == i * LARGE
        x[0] = -1
        assert x.sum() == i * (LARGE - 1) - 1
    assert pickle.loads(pickle.dumps(results[1]))[0] == -1


def test_results_in_structures_and_read_only(store):
    with sharing(results="r"):
        [found] = Parallel(2)(delayed(nested)(i) for i in range(1, 2))
        assert found["big"].shm.access == "r" and not found["big"].flags.writeable
        assert found["list"][0].sum() == 2 * LARGE and found["list"][1] == "text"
        assert type(found["small"]) is np.ndarray
        again = Parallel(2)(delayed(describe)(found["big"]) for _ in range(2))
        assert again[0] == ("SharedArray", False, LARGE, None)
    with sharing(results=None):
        [plain] = Parallel(2)(delayed(make)(i) for i in range(1))
    assert type(plain) is np.ndarray
    with pytest.raises(ValueError):
        sharing(results="w").__enter__()


def test_results_given_back(store):
    with sharing():
        results = Parallel(2)(delayed(make)(i) for i in range(4))
        assert store.stats()["used"] >= 4 * 8 * LARGE
        assert sum(x.sum() for x in results) == 6 * LARGE


def test_exceptions_of_tasks(store, backend):
    x = np.arange(float(LARGE))
    with sharing(), pytest.raises(ZeroDivisionError):
        Parallel(2, backend=backend)([delayed(fail)(x)])  # see FAILING
    with sharing():
        assert Parallel(2, backend=backend)(delayed(total)(x, 0) for _ in range(2))[0] == x.sum()


def fail(x):
    raise ZeroDivisionError


def test_generators_threads_and_nesting(store):
    x = np.arange(float(LARGE))
    with sharing():
        generator = Parallel(2, return_as="generator")(delayed(total)(x, i) for i in range(5))
        assert list(generator) == [x.sum() + i for i in range(5)]
        threads = Parallel(2, backend="threading")(delayed(describe)(x) for _ in range(2))
        assert threads[0][0] == "ndarray"
        assert Parallel(1)(delayed(describe)(x) for _ in range(2))[0][0] == "ndarray"
        with sharing(min_bytes=1 << 40):
            assert Parallel(2)(delayed(describe)(x) for _ in range(2))[0][0] == "memmap"
        assert Parallel(2)(delayed(describe)(x) for _ in range(2))[0][0] == "SharedArray"


def test_a_killed_worker_is_joblibs_usual_error_and_leaves_nothing(store):
    x = np.arange(float(LARGE))
    with sharing(), pytest.raises(Exception) as caught:
        Parallel(2)(delayed(kill)(x) for _ in range(2))
    assert "Terminated" in type(caught.value).__name__
    with sharing():
        assert Parallel(2)(delayed(total)(x, 0) for _ in range(2)) == [x.sum()] * 2


def kill(x):
    os.kill(os.getpid(), 9)


def test_without_a_daemon(store, monkeypatch):
    monkeypatch.setenv("SHMSTORE_SOCKET", "/nowhere")
    monkeypatch.setattr(_connect, "_default", None)
    x = np.arange(float(LARGE))
    with sharing(), pytest.warns(RuntimeWarning, match="without the store") as caught:
        found = Parallel(2)(delayed(describe)(x) for _ in range(4))
    assert [one[0] for one in found] == ["memmap"] * 4
    assert len([w for w in caught if "without the store" in str(w.message)]) == 1
    with pytest.raises(shmstore.Disconnected, match="/nowhere.*fallback=False.*start a daemon"):
        with sharing(fallback=False):
            pytest.fail("the block began")


def end_daemon_and_describe(x, i, daemon):
    """The first task ends the daemon, and waits for its end."""
    if i == 0:
        os.kill(daemon, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{daemon}/cmdline").read_bytes(), "the daemon's end")
    return (*describe(x), make(i))


def test_a_daemon_that_goes_away_meanwhile(tmp_path, store, backend):
    from shmstore.compat.plasma import start_plasma_store

    x = np.arange(float(LARGE))
    with start_plasma_store(1 << 28) as (path, daemon):
        client = shmstore.connect(path, reconnect=1)
        with warnings.catch_warnings(record=True) as caught, sharing(client=client):
            warnings.simplefilter("always")
            with Parallel(2, backend=backend, batch_size=1, pre_dispatch=1) as parallel:
                tasks = (delayed(end_daemon_and_describe)(x, i, daemon.pid) for i in range(6))
                found = parallel(tasks)
    assert [one[0] for one in found] == ["SharedArray"] + ["memmap"] * 5
    assert [one[-1][0] for one in found] == [0, 1, 2, 3, 4, 5]
    assert len([w for w in caught if "without the store" in str(w.message)]) == 1
    get_reusable_executor().shutdown(wait=True)


def test_a_store_that_is_absent_is_not_taken_for_the_default_one(store, monkeypatch):
    """In a worker that cannot reach the store of the block."""
    monkeypatch.setattr(shmstore.joblib, "_absent_until", {})
    default = store.default_client().store_id
    batch = shmstore.joblib._SharingBatch(lambda: [make(1)], (1000, "c", True, (5, "/nowhere")))
    with pytest.warns(RuntimeWarning, match="/nowhere"):
        assert type(batch()[0]) is np.ndarray
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch()
    assert set(shmstore.joblib._absent_until) == {5} != {default}


def test_a_full_store(tmp_path, store):
    from shmstore.compat.plasma import start_plasma_store

    x = np.arange(float(LARGE))
    with start_plasma_store(1 << 20) as (path, _):
        client = shmstore.connect(path)
        with sharing(client=client), pytest.warns(RuntimeWarning, match="without the store"):
            found = Parallel(2)(delayed(describe)(x) for _ in range(2))
            assert found[0][0] == "memmap"
        with warnings.catch_warnings(), sharing(client=client, results="r", min_bytes=1000):
            warnings.simplefilter("error")
            [result] = Parallel(2)(delayed(make)(i, 1000) for i in range(1))
            assert result.sum() == 0 and client.info(id=result.shm.id)["nbytes"] == 8000
    get_reusable_executor().shutdown(wait=True)


@pytest.mark.parametrize(
    "backend, way", [("loky", "list"), ("loky", "generator"), ("multiprocessing", "list")]
)
def test_a_full_store_without_fallback(tmp_path, store, backend, way):
    from shmstore.compat.plasma import start_plasma_store

    x = np.arange(float(LARGE))
    with start_plasma_store(1 << 20) as (path, _):
        with sharing(client=shmstore.connect(path), fallback=False):
            with pytest.raises(shmstore.NoCapacity, match="fallback=False.*make room"):
                parallel = Parallel(2, backend=backend, return_as=way)
                list(parallel(delayed(total)(x, 0) for _ in range(2)))
            with pytest.raises(shmstore.NoCapacity, match="fallback=False.*make room"):
                Parallel(2, backend=backend)([delayed(make)(0)])  # see FAILING
    get_reusable_executor().shutdown(wait=True)


def test_nothing_is_left_for_the_grace_time(store, backend):
    x = np.arange(float(LARGE))
    with sharing():
        results = Parallel(2, backend=backend)(delayed(np.sqrt)(x) for _ in range(4))
        assert living(store) == []  # no lease waits for handles that nobody will open
        with Parallel(2, backend=backend) as parallel:
            for factor in (1.0, 2.0):  # the argument is another one the second time
                x *= factor
                results += parallel(delayed(np.sqrt)(x) for _ in range(2))
        assert living(store) == []
    assert all(np.array_equal(found, np.sqrt(x)) for found in results[-2:])
    assert store.stats()["arrays"] >= 6
    del results
    gc.collect()
    wait_until(lambda: store.stats()["arrays"] == 0, "the end of the arrays")


def test_an_argument_that_comes_back_stays(store):
    x = np.arange(float(LARGE))
    with sharing(results="r"):
        [whole, part] = Parallel(2)(delayed(np.ndarray.view)(y) for y in (x, x[10:]))
    assert whole.shm.state == "sealed" and np.array_equal(whole, x)
    assert len(pickle.dumps(whole)) < 200 and np.array_equal(pickle.loads(pickle.dumps(part)), part)


def test_an_array_of_the_store_that_comes_back_stays(store):
    y = store.put("y", np.arange(float(LARGE)))
    with sharing():
        [(found, new)] = Parallel(2)(delayed(with_a_new_one)(one) for one in [y])
    assert found.flags.writeable and new.flags.writeable and np.array_equal(new, found + 1)
    assert store.info("y")["state"] == "sealed" and len(living(store)) == 1


def test_an_array_of_another_store_that_comes_back_stays(store):
    """Its id there is the one that the new array gets in the store of the block."""
    from shmstore.compat.plasma import start_plasma_store

    y = store.put("y", np.arange(float(LARGE)), keep=True)
    with start_plasma_store(1 << 28) as (path, _):
        with sharing(client=shmstore.connect(path)):
            [(found, new)] = Parallel(2)(delayed(with_a_new_one)(one) for one in [y])
        stores = {_array.lease_around(x).store_id for x in (found, new)}
        assert found.shm.id == new.shm.id == y.shm.id and len(stores) == 2
        assert np.array_equal(new, found + 1)
        assert store.info("y")["state"] == "sealed"
        get_reusable_executor().shutdown(wait=True)


def with_a_new_one(x):
    return x, x + 1


def test_a_fork_while_another_thread_pickles(store):
    """As a pool does that starts a worker in place of one that ended."""
    held, done = threading.Event(), threading.Event()

    def hold():
        with shmstore.joblib._lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(PATIENCE)
            with sharing():
                status = 0
        finally:
            os._exit(status)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_joblib_is_as_it_was_afterwards(store):
    from joblib import _memmapping_reducer, parallel

    def state():
        return (
            _memmapping_reducer.ArrayMemmapForwardReducer.__call__,
            _memmapping_reducer.TemporaryResourcesManager._clean_temporary_resources,
            parallel.BatchedCalls.__reduce__,
            parallel.Parallel.__call__,
        )

    before = state()
    with pytest.raises(KeyError), sharing(), sharing():
        assert state() != before
        raise KeyError
    assert state() == before


def test_scikit_learn(store):
    pytest.importorskip("sklearn")
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import cross_val_score

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20000, 20)), rng.normal(size=20000)
    model = RandomForestRegressor(2, max_depth=3, random_state=0)
    expected = cross_val_score(model, x, y, cv=3)
    with sharing():
        assert np.array_equal(cross_val_score(model, x, y, cv=3, n_jobs=2), expected)


# --- pools, where nothing is to do ----------------------------------------------------------------


@pytest.fixture
def shared(store):
    return store.put(None, np.arange(float(LARGE)))


def put_one(value):
    return shmstore.put(None, make(value))


@pytest.mark.parametrize("method", METHODS)
def test_concurrent_futures(shared, method):
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        found = list(pool.map(describe, [shared] * 4))
        views = list(pool.map(describe, [shared[i:] for i in range(3)]))
        result = pool.submit(put_one, 3).result()
    assert found == [("SharedArray", False, shared.sum(), None)] * 4
    assert [one[2] for one in views] == [shared[i:].sum() for i in range(3)]
    assert isinstance(result, SharedArray) and result.sum() == 3 * LARGE


@pytest.mark.parametrize("method", METHODS)
def test_multiprocessing_pool(shared, method):
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(describe, [shared] * 4) == [("SharedArray", False, shared.sum(), None)] * 4
        assert pool.starmap(total, [(shared, 1)]) == [shared.sum() + 1]
        assert pool.apply(put_one, (2,)).sum() == 2 * LARGE


def test_loky(shared):
    executor = get_reusable_executor(max_workers=2)
    found = list(executor.map(describe, [shared] * 3))
    assert found == [("SharedArray", False, shared.sum(), None)] * 3
    assert executor.submit(put_one, 2).result().sum() == 2 * LARGE


def test_joblib_without_the_context(shared):
    """A SharedArray goes by handle in any case."""
    found = Parallel(2)(delayed(describe)(shared) for _ in range(2))
    assert found[0] == ("SharedArray", False, shared.sum(), None)
