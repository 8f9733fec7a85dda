"""Ray on two nodes: two raylets with two daemons on this machine.

Bytes are counted where an actor of a node reads them out of Ray's object store: Ray's statistics
of its transport need the dashboard's agent, which these tests do without.
"""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest

import shmstore
from shmstore import SharedArray, _connect

ray = pytest.importorskip("ray", reason="ray is not installed")

import ray.cloudpickle  # noqa: E402
from conftest import PATIENCE, wait_until  # noqa: E402
from nodes import empty, ids, two_daemons  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

import shmstore.ray  # noqa: E402
from shmstore.ray import Broadcast, broadcast  # noqa: E402

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
LARGE = 1 << 20  # 8 MiB as float64
PLASMA = 100 << 20


class Nodes:
    def __init__(self, a, b, address):
        self.a, self.b, self.address = a, b, address
        where = ray.remote(num_cpus=0)(lambda: os.environ.get("SHMSTORE_SOCKET"))
        alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        sockets = ray.get([where.options(scheduling_strategy=at(n)).remote() for n in alive])
        self.places = dict(zip(sockets, alive))
        self.before = {}

    def on(self, daemon, function, *arguments):
        """Runs a function in a worker of a node."""
        task = ray.remote(num_cpus=0)(function)
        place = at(self.places[daemon.socket])
        return ray.get(task.options(scheduling_strategy=place).remote(*arguments), timeout=PATIENCE)

    def arrays(self, daemon):
        return [one for one in daemon.client().list() if one["id"] not in self.before[daemon]]


def at(place):
    return NodeAffinitySchedulingStrategy(place, soft=False)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two raylets; the first is the head. All processes of Ray are stopped at the end."""
    from ray.cluster_utils import Cluster

    with two_daemons(tmp_path_factory.mktemp) as (a, b), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("SHMSTORE_AUTOSTART", "0")
        patch.setenv("SHMSTORE_SOCKET", a.socket)
        patch.setattr(_connect, "_default", None)
        cluster = Cluster(shutdown_at_exit=True)
        try:
            try:
                for daemon, more in ((a, {"include_dashboard": False}), (b, {})):
                    cluster.add_node(
                        num_cpus=1, object_store_memory=PLASMA,
                        env_vars={"SHMSTORE_SOCKET": daemon.socket}, **more,
                    )
                ray.init(address=cluster.address, log_to_driver=False)
            except Exception as error:
                pytest.skip(f"Ray does not start here: {error}")
            yield Nodes(a, b, cluster.address)
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture
def nodes(cluster, monkeypatch, request):
    """The driver is on node a. At the end both stores must be as they were."""
    monkeypatch.setenv("SHMSTORE_SOCKET", cluster.a.socket)
    monkeypatch.setenv("SHMSTORE_AUTOSTART", "0")
    monkeypatch.setattr(_connect, "_default", None)
    cluster.before = {node: ids(node) for node in (cluster.a, cluster.b)}
    yield cluster
    gc.collect()
    if not getattr(request.node, "failed_call", False):
        for node in (cluster.a, cluster.b):
            empty(node, cluster.before[node])


def describe(x):
    shared = isinstance(x, SharedArray) and x.shm is not None
    return shared, bool(x.flags.writeable), x.shm.id if shared else None, float(x.sum())


def test_to_each_node_once(nodes):
    x = np.random.default_rng(1).random(LARGE)
    b = broadcast(x)
    assert isinstance(b, Broadcast) and b.shape == x.shape and b.nbytes == x.nbytes
    counts = b.wire()
    assert sorted(counts.values()) == [0, x.nbytes]
    [far] = [name for name, count in counts.items() if count]
    assert nodes.b.socket in far
    for node in (nodes.a, nodes.b):
        one, other = nodes.on(node, describe, b), nodes.on(node, describe, b)
        assert one == other == (True, False, one[2], x.sum())
        assert [array["id"] for array in nodes.arrays(node)] == [one[2]]
    assert b.wire() == counts
    assert np.array_equal(b.value, x) and np.array_equal(np.asarray(b), x)


def test_from_outside_to_each_node_once(nodes, monkeypatch, tmp_path):
    monkeypatch.setenv("SHMSTORE_SOCKET", str(tmp_path / "none"))
    x = np.random.default_rng(2).random(LARGE)
    b = broadcast(x)
    assert sorted(b.wire().values()) == [x.nbytes, x.nbytes]
    assert nodes.on(nodes.a, describe, b)[0] and nodes.on(nodes.b, describe, b)[0]
    with pytest.warns(RuntimeWarning, match="from Ray's own store"):
        assert np.array_equal(b.value, x)


def test_structures_layouts_and_what_goes_the_engines_way(nodes):
    arrays = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(24).reshape(2, 3, 4)[:, ::2],
        "dates": np.arange(3).astype("M8[s]"),
        "records": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", ">f8")]),
        "objects": np.array([{}, None]),
        "text": "text",
    }
    sent = broadcast(arrays, min_bytes=1)
    assert all(isinstance(sent[name], Broadcast) for name in list(arrays)[:4])
    assert isinstance(sent["objects"], ray.ObjectRef)
    for name in list(arrays)[:4]:
        found = nodes.on(nodes.b, copied, [{"deep": sent[name]}])
        np.testing.assert_array_equal(found, arrays[name])
        assert found.dtype == arrays[name].dtype
    assert isinstance(broadcast(np.arange(3)), ray.ObjectRef)


def copied(x):
    return np.array(x[0]["deep"])


def test_an_array_of_the_store_is_not_copied_here(nodes):
    x = shmstore.put(None, np.arange(float(LARGE)))
    b = broadcast([x])[0]
    assert nodes.on(nodes.a, describe, b)[2] == x.shm.id
    assert len(nodes.arrays(nodes.a)) == 1


def test_actors_and_waiting_tasks_keep_it(nodes):
    x = np.arange(float(LARGE))
    b = broadcast(x)

    class Holder:
        def __init__(self, x):
            self.x = x

        def total(self):
            return float(self.x.sum())

    place = at(nodes.places[nodes.b.socket])
    holder = ray.remote(num_cpus=0)(Holder).options(scheduling_strategy=place).remote(b)
    late = ray.remote(num_cpus=0)(lambda x, _: float(x[5])).options(scheduling_strategy=place)
    waiting = late.remote(b, holder.total.remote())
    del b
    assert ray.get(waiting, timeout=PATIENCE) == 5
    assert ray.get(holder.total.remote(), timeout=PATIENCE) == x.sum()
    ray.kill(holder)


def test_an_actor_that_dies_while_it_fetches(nodes, tmp_path, monkeypatch):
    died = str(tmp_path / "died")

    class Dying(shmstore.ray._Keeper):
        def hold(self, spec, boxed):
            if boxed and os.environ["SHMSTORE_SOCKET"].endswith(far):
                try:
                    os.close(os.open(died, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    pass
                else:
                    shmstore._engines.find_or_begin(shmstore.default_client(), spec)
                    os.kill(os.getpid(), 9)
            return super().hold(spec, boxed)

    far = nodes.b.socket
    monkeypatch.setattr(shmstore.ray, "_Keeper", Dying)
    x = np.arange(float(LARGE))
    b = broadcast(x)
    assert os.path.exists(died)
    assert nodes.on(nodes.b, describe, b) == (True, False, nodes.arrays(nodes.b)[0]["id"], x.sum())


def test_release(nodes):
    b = broadcast(np.arange(float(LARGE)))
    b.release()
    for node in (nodes.a, nodes.b):
        wait_until(lambda node=node: not nodes.arrays(node), "the release")
    with pytest.raises(Exception, match="has it any more"):
        nodes.on(nodes.b, describe, b)


def test_without_a_store(nodes, monkeypatch, tmp_path):
    class Poor(shmstore.ray._Keeper):
        def node(self):
            if os.environ["SHMSTORE_SOCKET"] == far:
                os.environ["SHMSTORE_SOCKET"] = none
            return super().node()

    far, none = nodes.b.socket, str(tmp_path / "none")
    monkeypatch.setattr(shmstore.ray, "_Keeper", Poor)
    x = np.arange(float(LARGE))
    with pytest.warns(RuntimeWarning, match="no store at"):
        b = broadcast(x)
    assert list(b.wire().values()) == [0]
    assert nodes.on(nodes.b, describe, b)[3] == x.sum()
    with pytest.raises(shmstore.Disconnected, match="no store at"):
        broadcast(x, fallback=False)


DRIVER = """
import sys, numpy as np, ray, shmstore.ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
kept = shmstore.ray.broadcast(np.random.random(1 << 20))
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_killed_driver_leaves_nothing(nodes):
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, nodes.address],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=nodes.a.environment(),
    )
    try:
        assert process.stdout.readline() == "ready\n"
        assert nodes.arrays(nodes.b)
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)
    for node in (nodes.a, nodes.b):
        empty(node, nodes.before[node])


def test_cached_loads_once_per_node(nodes, tmp_path):
    def use(folder):
        def load():
            open(f"{folder}/{os.getpid()}", "x").close()
            return np.arange(float(LARGE))

        return float(shmstore.cached("test-cached", load)[3])

    for node in (nodes.a, nodes.b, nodes.a, nodes.b):
        assert nodes.on(node, use, str(tmp_path)) == 3
    assert len(list(tmp_path.iterdir())) == 2
    for node in (nodes.a, nodes.b):
        node.client().delete("test-cached")
