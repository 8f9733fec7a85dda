"""Dask on two nodes: two daemons, workers told apart by their socket, bytes counted at the wire."""

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import warnings

import cloudpickle
import numpy as np
import pytest

import shmstore
from shmstore import SharedArray, _connect

distributed = pytest.importorskip("distributed", reason="distributed is not installed")
dask = pytest.importorskip("dask")

from conftest import PATIENCE, wait_until  # noqa: E402
from distributed import Client, Nanny, Scheduler, SpecCluster, WorkerPlugin  # noqa: E402
from nodes import empty, ids, two_daemons  # noqa: E402

import shmstore.dask  # noqa: E402
from shmstore import _dask_node  # noqa: E402
from shmstore.dask import Broadcast, broadcast  # noqa: E402

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not import the tests

LARGE = 4 << 20  # 32 MiB as float64: two pieces


@contextlib.contextmanager
def a_cluster(sockets):
    """A cluster with one single-threaded worker for each socket. Workers are processes."""
    cluster = SpecCluster(
        workers={i: a_worker(socket) for i, socket in enumerate(sockets)},
        scheduler={
            "cls": Scheduler,
            "options": {"port": 0, "host": "127.0.0.1", "dashboard_address": ":0"},
        },
        silence_logs=logging.CRITICAL,
    )
    with cluster, Client(cluster) as client:
        client.wait_for_workers(len(sockets))
        yield cluster, client


def a_worker(socket):
    options = {
        "nthreads": 1,
        "host": "127.0.0.1",
        "env": {"SHMSTORE_SOCKET": socket, "SHMSTORE_AUTOSTART": "0"},
        "dashboard": False,
    }
    return {"cls": Nanny, "options": options}


class Counting(WorkerPlugin):
    """Counts what a worker reads from its connections."""

    name = "counting"

    def setup(self, worker):
        from distributed.comm import tcp

        original = tcp.read_bytes_rw
        worker.bytes_read = 0

        async def read_bytes_rw(stream, n):
            worker.bytes_read += n
            return await original(stream, n)

        tcp.read_bytes_rw = read_bytes_rw


class Nodes:
    def __init__(self, a, b, cluster, client):
        self.a, self.b = a, b
        self.cluster, self.client = cluster, client
        self.before = {}

    def arrays(self, node):
        """What a store has that was not there when the test began."""
        return [one for one in node.client().list() if one["id"] not in self.before[node]]

    def leave_handles(self):
        """A pickled handle holds its array for a minute: not waited for."""
        self.before = {node: self.before[node] | ids(node) for node in (self.a, self.b)}

    def empty(self):
        for node in (self.a, self.b):
            empty(node, self.before[node])

    def workers(self, daemon):
        where = self.client.run(lambda: os.environ["SHMSTORE_SOCKET"])
        return sorted(address for address, socket in where.items() if socket == daemon.socket)

    def read(self):
        """Bytes that the workers of each node have read so far."""
        counts = self.client.run(lambda dask_worker: dask_worker.bytes_read)
        return [sum(counts[w] for w in self.workers(node)) for node in (self.a, self.b)]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with two_daemons(tmp_path_factory.mktemp) as (a, b):
        with a_cluster([a.socket, a.socket, b.socket, b.socket]) as (cluster, client):
            client.register_plugin(Counting())
            yield Nodes(a, b, cluster, client)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(_dask_node, "LINGER", 0.05)  # the scheduler is in this process


@pytest.fixture
def on_a(nodes, monkeypatch, request):
    """The client's process is on node a. At the end both stores must be empty."""
    yield from at(nodes, nodes.a.socket, monkeypatch, request)


@pytest.fixture
def outside(nodes, monkeypatch, request, tmp_path):
    """The client's process has no store."""
    yield from at(nodes, str(tmp_path / "none"), monkeypatch, request)


def at(nodes, socket, monkeypatch, request):
    monkeypatch.setenv("SHMSTORE_SOCKET", socket)
    monkeypatch.setenv("SHMSTORE_AUTOSTART", "0")
    monkeypatch.setattr(_connect, "_default", None)
    nodes.before = {node: ids(node) for node in (nodes.a, nodes.b)}
    yield nodes
    if not getattr(request.node, "failed_call", False):  # its traceback holds what it made
        nodes.empty()


def describe(x, *_, **__):
    """In a task: what the argument is."""
    shared = isinstance(x, SharedArray) and x.shm is not None
    return shared, bool(x.flags.writeable), x.shm.id if shared else None, float(x.sum())


def on(client, worker, function, *arguments):
    return client.submit(function, *arguments, workers=[worker], pure=False).result(PATIENCE)


def everywhere(nodes, b):
    """What the argument is on each worker: lists for the two nodes."""
    return [
        [on(nodes.client, w, describe, b) for w in nodes.workers(node)]
        for node in (nodes.a, nodes.b)
    ]


def assert_one_copy_each(nodes, b, total):
    for one, other in everywhere(nodes, b):
        assert one == other == (True, False, one[2], total)


def test_to_each_node_once_from_outside(outside):
    nodes, x = outside, np.random.default_rng(1).random(LARGE)
    before = nodes.read()
    b = broadcast(nodes.client, x)
    got = [after - start for after, start in zip(nodes.read(), before)]
    assert got == pytest.approx([x.nbytes, x.nbytes], rel=0.01)
    assert sorted(b.wire().values()) == [x.nbytes, x.nbytes]
    assert_one_copy_each(nodes, b, float(x.sum()))
    assert [one["nbytes"] for one in nodes.arrays(nodes.a)] == [x.nbytes]
    assert [one["nbytes"] for one in nodes.arrays(nodes.b)] == [x.nbytes]


def test_to_the_other_node_once_from_a_node(on_a):
    nodes, x = on_a, np.random.default_rng(2).random(LARGE)
    before = nodes.read()
    b = broadcast(nodes.client, x)
    got = [after - start for after, start in zip(nodes.read(), before)]
    assert got[0] < 0.01 * x.nbytes and got[1] == pytest.approx(x.nbytes, rel=0.01)
    assert sorted(b.wire().values()) == [0, x.nbytes]
    assert shmstore.dask.traffic(nodes.client).keys() == b.wire().keys()
    assert_one_copy_each(nodes, b, float(x.sum()))
    tasks = nodes.client.map(describe, [b] * 20, range(20))
    assert {result[3] for result in nodes.client.gather(tasks)} == {x.sum()}
    assert sorted(b.wire().values()) == [0, x.nbytes]


@pytest.mark.parametrize("direct", [True, False])
def test_through_the_scheduler_or_not(outside, direct):
    x = np.arange(100_000)
    b = broadcast(outside.client, x, direct=direct)
    assert sorted(b.wire().values()) == [x.nbytes, x.nbytes]
    assert_one_copy_each(outside, b, float(x.sum()))


def test_an_array_of_the_store_is_not_copied(on_a):
    x = shmstore.put(None, np.arange(float(LARGE)))
    b = broadcast(on_a.client, x)
    assert {one[2] for one in everywhere(on_a, b)[0]} == {x.shm.id}
    assert len(on_a.arrays(on_a.a)) == 1
    view = broadcast(on_a.client, x[1:])
    assert on(on_a.client, on_a.workers(on_a.b)[0], describe, view)[3] == x[1:].sum()


def test_layouts_and_dtypes(on_a):
    far = on_a.workers(on_a.b)[0]
    arrays = [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(24).reshape(2, 3, 4)[:, ::2],
        np.array(5.0),
        np.arange(3).astype("M8[s]"),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", ">f8")]),
        np.array(["ab", "c"]),
    ]
    for x, b in zip(arrays, broadcast(on_a.client, arrays, min_bytes=1)):
        y = on(on_a.client, far, copied, b)
        assert isinstance(b, Broadcast)
        assert y.dtype == x.dtype and y.shape == x.shape and np.array_equal(x, y)
        assert b.shape == x.shape and b.nbytes == x.nbytes
        assert np.array_equal(b.value, x) and np.array_equal(np.asarray(b), x)


def copied(x):
    return np.asarray(x).copy("K")


def test_as_argument_everywhere(on_a):
    client, x = on_a.client, np.arange(float(LARGE))
    b = broadcast(client, {"x": x})["x"]
    assert client.submit(lambda d: d["k"][0].sum(), {"k": [b]}).result() == x.sum()
    assert client.submit(lambda *, x: x[1], x=b).result() == 1
    assert client.gather(client.map(lambda i, x: x[i], range(4), x=b)) == [0, 1, 2, 3]
    assert dask.delayed(lambda i, x: x[i])(5, b).compute(scheduler=client) == 5
    held = Held(b)
    assert client.submit(lambda h: np.asarray(h.inside)[7], held).result() == 7
    assert client.submit(lambda y: y[-1], client.submit(np.array, b)).result() == x[-1]

    async def coroutine(y):
        return y[8]

    assert client.submit(coroutine, b).result() == 8
    assert pickle.loads(pickle.dumps(b)) == b and "Broadcast" in repr(b)


class Held:
    def __init__(self, inside):
        self.inside = inside


def test_the_same_contents_again_move_nothing(on_a):
    x = np.arange(float(LARGE))
    first = broadcast(on_a.client, x)
    again = broadcast(on_a.client, x.copy())
    assert again != first and set(again.wire().values()) == {0}
    del first
    assert on(on_a.client, on_a.workers(on_a.b)[0], describe, again)[0]
    x[0] = -1
    assert sorted(broadcast(on_a.client, x).wire().values()) == [0, x.nbytes]
    other = broadcast(on_a.client, x, hash=False)
    assert sorted(other.wire().values()) == [0, x.nbytes]


def test_what_goes_the_engines_way(on_a):
    small = np.arange(3)
    objects = np.array([{}, None] * 100_000)
    found = broadcast(on_a.client, [small, objects, "text"])
    assert all(isinstance(one, distributed.Future) for one in found)
    assert on_a.client.submit(lambda a, b, c: (a.sum(), len(b), c), *found).result() == (
        3, 200_000, "text",
    )


# --- lifetimes ------------------------------------------------------------------------------------


def test_tasks_that_wait_keep_the_copies(on_a, tmp_path):
    x = np.arange(float(LARGE))
    b = broadcast(on_a.client, x)
    key, gate = b.key, tmp_path / "gate"
    far = on_a.workers(on_a.b)[0]
    waiting = on_a.client.submit(wait_for_file, str(gate), workers=[far])
    future = on_a.client.submit(lambda _, x: float(x[5]), waiting, b, workers=[far])
    del b
    wait_until(lambda: key not in on_a.cluster.scheduler.tasks, "the end of the future")
    plugin = on_a.cluster.scheduler.plugins["shmstore"]
    wait_until(lambda: plugin._counts.get(key) == 1, "the search for tasks")
    gate.touch()
    assert future.result(PATIENCE) == 5
    assert on_a.arrays(on_a.b)  # the task may have to run again
    del future, waiting


def wait_for_file(path):
    import time

    while not os.path.exists(path):
        time.sleep(0.01)  # tidy: allow(sleep) because it waits for a condition


def test_release(on_a):
    b = broadcast(on_a.client, np.arange(float(LARGE)))
    b.release()
    on_a.empty()
    with pytest.raises(shmstore.NotFound, match="no worker has it any more"):
        on(on_a.client, on_a.workers(on_a.b)[0], describe, b)


CLIENT = """
import sys, numpy as np, shmstore.dask
from distributed import Client
client = Client(sys.argv[1])
kept = shmstore.dask.broadcast(client, np.random.random(1 << 20))
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_killed_client_leaves_nothing(on_a):
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT, on_a.cluster.scheduler_address],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=on_a.a.environment(),
    )
    try:
        assert process.stdout.readline() == "ready\n"
        assert on_a.arrays(on_a.b)
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)
    on_a.empty()


# --- workers that die, come late, have no store ---------------------------------------------------


def test_a_worker_started_anew_finds_the_copy(on_a):
    client, x = on_a.client, np.arange(float(LARGE))
    b = broadcast(client, x)
    counts = client.run(lambda dask_worker: dask_worker.extensions["shmstore"]._received)
    [victim] = [worker for worker, received in counts.items() if received]  # it has fetched
    os.kill(client.run(os.getpid, workers=[victim])[victim], signal.SIGKILL)
    wait_until(lambda: victim not in on_a.cluster.scheduler.workers, "the end of the worker")
    wait_until(lambda: len(on_a.cluster.scheduler.workers) == 4, "the new worker")
    assert_one_copy_each(on_a, b, float(x.sum()))
    assert set(b.wire().values()) == {0}  # its count is gone, and there is no new one


def test_a_worker_that_dies_while_it_fetches(on_a, tmp_path):
    client, x = on_a.client, np.arange(float(LARGE))
    shmstore.dask.setup(client)
    before = set(on_a.workers(on_a.b))
    client.run(die_once_while_fetching, str(tmp_path / "died"))
    with contextlib.ExitStack() as stack:
        stack.callback(client.run, fetch_as_before)
        b = broadcast(client, x)
        assert (tmp_path / "died").exists()
        wait_until(lambda: len(on_a.cluster.scheduler.workers) == 4, "the new worker")
        assert before - set(on_a.workers(on_a.b))
        assert_one_copy_each(on_a, b, float(x.sum()))


def die_once_while_fetching(path):
    from shmstore import _dask_node, _engines

    original = _dask_node.read_all

    async def read_all(pool, address, spec, out):
        await original(pool, address, spec._replace(nbytes=_engines.CHUNK_BYTES), out)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            await original(pool, address, spec, out)
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    _dask_node._original_read_all = original
    _dask_node.read_all = read_all


def fetch_as_before():
    from shmstore import _dask_node

    _dask_node.read_all = getattr(_dask_node, "_original_read_all", _dask_node.read_all)


def test_later_nodes_and_workers_without_a_store(tmp_path_factory, monkeypatch, tmp_path):
    x = np.arange(float(LARGE))
    with two_daemons(tmp_path_factory.mktemp) as (a, b), a_cluster(
        [a.socket, str(tmp_path / "none")]
    ) as (cluster, client):
        monkeypatch.setenv("SHMSTORE_SOCKET", a.socket)
        monkeypatch.setenv("SHMSTORE_AUTOSTART", "0")
        monkeypatch.setattr(_connect, "_default", None)
        with pytest.raises(shmstore.Disconnected, match="no store at"):
            broadcast(client, x, fallback=False)
        with pytest.warns(RuntimeWarning, match="copy of its own") as caught:
            sent = broadcast(client, x)
        assert len(caught) == 1
        found = {on(client, w, describe, sent)[0] for w in cluster.scheduler.workers}
        assert found == {True, False}
        early = set(cluster.scheduler.workers)
        cluster.worker_spec.update({i: a_worker(b.socket) for i in (2, 3)})
        cluster.sync(cluster._correct_state)
        client.wait_for_workers(4)
        late = set(cluster.scheduler.workers) - early
        tasks = [client.submit(describe, sent, workers=[w], pure=False) for w in late]
        one, other = client.gather(tasks)
        assert one == other == (True, False, one[2], x.sum())
        assert sent.wire()[f"{os.uname().nodename}:{b.socket}"] == x.nbytes
        del sent, tasks
        empty(a)
        empty(b)


def test_no_store_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("SHMSTORE_SOCKET", str(tmp_path / "none"))
    monkeypatch.setattr(_connect, "_default", None)
    x = np.arange(100_000)
    with a_cluster([str(tmp_path / "none")]) as (_, client):
        with pytest.warns(RuntimeWarning, match="the array goes the engine's way"):
            future = broadcast(client, x)
        assert client.submit(np.sum, future).result() == x.sum()
        with pytest.raises(shmstore.Disconnected):
            broadcast(client, x, fallback=False)


# --- between workers ------------------------------------------------------------------------------


def make(n):
    return shmstore.put(None, np.arange(float(n)))


def test_results_cross_by_handle_inside_a_node_and_by_value_between(on_a):
    client = on_a.client
    shmstore.dask.setup(client)
    (here, beside), (far, _) = on_a.workers(on_a.a), on_a.workers(on_a.b)
    made = client.submit(make, LARGE, workers=[here], pure=False)
    name = client.submit(describe, made, workers=[here]).result()[2]
    before = on_a.read()
    assert on(client, beside, describe, made)[:3] == (True, False, name)
    assert on_a.read()[0] - before[0] < 0.01 * LARGE * 8
    shared, _, _, total = on(client, far, describe, made)
    assert not shared and total == np.arange(float(LARGE)).sum()
    assert on_a.read()[1] - before[1] == pytest.approx(LARGE * 8, rel=0.01)
    assert np.array_equal(made.result(), np.arange(float(LARGE)))  # by way of the scheduler
    on_a.leave_handles()


def test_a_handle_on_the_wrong_node_names_both(on_a):
    x = shmstore.put(None, np.arange(float(LARGE)))
    far = on_a.workers(on_a.b)[0]
    with pytest.raises(shmstore.NotFound) as caught:
        on(on_a.client, far, pickle.loads, pickle.dumps(x))
    assert on_a.b.socket in str(caught.value)
    assert os.uname().nodename.split(".")[0][:16] in str(caught.value)
    on_a.leave_handles()


def test_a_handle_in_a_graph_is_fetched_where_it_cannot_be_opened(on_a):
    shmstore.dask.setup(on_a.client)
    x = shmstore.put(None, np.arange(float(LARGE)))
    near, far = on_a.workers(on_a.a)[0], on_a.workers(on_a.b)[0]
    assert on(on_a.client, near, describe, x) == (True, False, x.shm.id, x.sum())
    assert on(on_a.client, far, describe, x) == (False, False, None, x.sum())
    assert on(on_a.client, far, describe, x[3:9:2]) == (False, False, None, x[3:9:2].sum())
    on_a.leave_handles()


def test_a_handle_in_a_graph_passes_a_scheduler_without_its_store(outside):
    shmstore.dask.setup(outside.client)
    x = outside.b.client().put(None, np.arange(float(LARGE)))
    arguments = list(x.__reduce__()[1])
    handle = Handle([*arguments[:4], None, None])  # no path: only b's workers find the store
    near, far = outside.workers(outside.b)[0], outside.workers(outside.a)[0]
    assert on(outside.client, near, describe, handle)[0]
    assert on(outside.client, far, describe, handle) == (False, False, None, x.sum())
    gone = Handle([1, *arguments[1:4], None, None])
    with pytest.raises(shmstore.NotFound, match="no worker of that store") as caught:
        on(outside.client, far, describe, gone)
    assert outside.a.socket in str(caught.value) and "made on host" in str(caught.value)
    outside.leave_handles()


class Handle:
    """Pickles as a handle does."""

    def __init__(self, arguments):
        self.arguments = arguments

    def __reduce__(self):
        return shmstore._handle.open, tuple(self.arguments)


def test_cached_loads_once_per_node(on_a, tmp_path):
    def use(i, folder):
        def load():
            open(f"{folder}/{os.getpid()}", "x").close()
            return np.arange(float(LARGE))

        return shmstore.cached("test-cached", load)[i]

    tasks = on_a.client.map(use, range(20), folder=str(tmp_path))
    assert on_a.client.gather(tasks) == list(range(20))
    del tasks
    where = on_a.client.run(lambda: (os.getpid(), os.environ["SHMSTORE_SOCKET"])).values()
    loaded = {socket for pid, socket in where if (tmp_path / str(pid)).exists()}
    assert loaded == {on_a.a.socket, on_a.b.socket} and len(list(tmp_path.iterdir())) == 2
    for daemon in (on_a.a, on_a.b):
        daemon.client().delete("test-cached")


def test_asynchronous_clients(on_a):
    x = np.arange(float(LARGE))

    async def run():
        async with Client(on_a.cluster.scheduler_address, asynchronous=True) as client:
            b = await broadcast(client, x)
            far = on_a.workers(on_a.b)[0]
            assert (await client.submit(describe, b, workers=[far]))[3] == x.sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        asyncio.run(run())
