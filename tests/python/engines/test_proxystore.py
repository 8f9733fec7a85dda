"""ProxyStore over the store, with its own Store and proxies, also of other processes."""

import gc
import pickle
import uuid

import numpy as np
import pytest

import shmstore
from shmstore._array import lease_of

pytest.importorskip("proxystore", reason="proxystore is not installed")

from proxystore.connectors.protocols import Connector, DeferrableConnector  # noqa: E402
from proxystore.proxy import extract  # noqa: E402
from proxystore.store import Store, unregister_store  # noqa: E402

from shmstore.proxystore import (  # noqa: E402
    StoreConnector,
    StoreKey,
    deserializer,
    serializer,
)


@pytest.fixture
def connector(daemon):
    with StoreConnector(daemon.socket) as connector:
        yield connector
        gc.collect()
        connector.close(clear=True)


@pytest.fixture
def store(connector):
    name = f"test-{uuid.uuid4().hex}"
    store = Store(
        name, connector, serializer=serializer, deserializer=deserializer, cache_size=0,
        register=True,
    )
    yield store
    unregister_store(name)


def test_the_protocol(connector):
    assert isinstance(connector, Connector) and isinstance(connector, DeferrableConnector)
    key = connector.put(b"abc")
    assert isinstance(key, StoreKey) and connector.exists(key)
    assert bytes(connector.get(key)) == b"abc"
    assert pickle.loads(pickle.dumps(key)) == key
    other = StoreConnector.from_config(connector.config())
    assert bytes(other.get(key)) == b"abc" and repr(other) == repr(connector)
    connector.evict(key)
    connector.evict(key)
    assert not connector.exists(key) and connector.get(key) is None
    keys = connector.put_batch([b"1", bytearray(b"22"), memoryview(b""), np.arange(3)])
    found = connector.get_batch([*keys, key])
    assert [None if one is None else len(one) for one in found] == [1, 2, 0, 24, None]


def test_deferred(connector, daemon):
    key = connector.new_key()
    assert connector.get(key) is None and not connector.exists(key)
    connector.set(key, b"later")
    assert bytes(connector.get(key)) == b"later"
    with pytest.raises(shmstore.AlreadyExists):
        connector.set(key, b"twice")


def test_get_is_no_copy_and_outlives_eviction(connector, daemon):
    data = np.random.default_rng(1).bytes(1 << 20)
    key = connector.put(data)
    one, two = connector.get(key), connector.get(key)
    assert one.readonly and lease_of(np.asarray(one)) is not None
    assert np.shares_memory(np.asarray(one), np.asarray(two))
    connector.evict(key)
    assert one == data
    del one, two
    gc.collect()
    assert daemon.client().stats()["used"] == 0


def test_objects_outlive_their_putter_until_cleared(daemon, script):
    done = script(
        "import sys; from shmstore.proxystore import StoreConnector\n"
        "print(StoreConnector(sys.argv[1]).put(b'kept').name)", daemon.socket,
    )
    connector = StoreConnector(daemon.socket)
    key = StoreKey(done.stdout.strip())
    assert bytes(connector.get(key)) == b"kept"
    assert daemon.client().info(key.name)["kept"]
    connector.close(clear=True)
    assert not daemon.client().list("proxystore/")
    connector.close()


def test_ttl(daemon):
    connector = StoreConnector(daemon.socket, ttl=1000)
    key = connector.put(b"x")
    assert daemon.client().info(key.name)["ttl_s"] == pytest.approx(1000, abs=100)
    connector.evict(key)


@pytest.mark.parametrize(
    "value",
    [
        np.arange(1e5),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        {"a": [np.arange(1e5), "text"], "b": np.array([{}, 1])},
        np.arange(10)[::3],
        np.array([]),
        "text",
        b"bytes",
        None,
    ],
    ids=lambda value: type(value).__name__,
)
def test_values(store, value):
    key = store.put(value)
    found = store.get(key)
    np.testing.assert_equal(found, value)
    assert deserializer(serializer(value)).__class__ is value.__class__


def test_arrays_are_the_stores_memory(store):
    x = np.random.default_rng(2).random(1 << 17)
    proxy = store.proxy(x)
    y = pickle.loads(pickle.dumps(proxy))
    assert np.array_equal(x, y) and not y.flags.writeable
    assert lease_of(extract(y)) is not None
    assert extract(y).ctypes.data % 64 == 0


def test_arrays_of_the_store_go_by_handle(store, client):
    x = client.put(None, np.arange(1 << 17))
    before = client.stats()["used"]
    found = store.get(store.put([x]))
    assert found[0].shm.id == x.shm.id and np.array_equal(found[0], x)
    assert client.stats()["used"] - before < 1 << 16


def test_what_proxystore_wrote_is_read(connector):
    name = f"test-{uuid.uuid4().hex}"
    plain = Store(name, connector)
    key = plain.put(np.arange(5))
    assert np.array_equal(plain.get(key), np.arange(5))
    assert np.array_equal(deserializer(connector.get(key)), np.arange(5))
    plain.close()


RESOLVE = """
import pickle, sys, numpy as np
proxy = pickle.loads(bytes.fromhex(sys.argv[1]))
from proxystore.proxy import extract
from shmstore._array import lease_of
print(float(np.sum(proxy)), proxy.flags.writeable, lease_of(extract(proxy)) is not None)
"""


def test_another_process_resolves(store, script):
    x = np.random.default_rng(3).random(1 << 17)
    done = script(RESOLVE, pickle.dumps(store.proxy(x)).hex())
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(float(x.sum())), "False", "True"]


def test_evict_on_resolve(store, daemon):
    x = np.arange(1 << 17)
    proxy = pickle.loads(pickle.dumps(store.proxy(x, evict=True)))
    assert daemon.client().list("proxystore/") != []
    assert np.array_equal(proxy, x)
    gc.collect()
    assert daemon.client().list("proxystore/") == []


def test_future(store):
    future = store.future()
    future.set_result(np.arange(10))
    assert np.array_equal(future.proxy(), np.arange(10))
