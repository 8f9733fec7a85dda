"""shmstore.compat.plasma does what programs of Plasma's orphans rely on."""

import pickle
import select
import signal
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest

import shmstore
from shmstore.compat import plasma
from shmstore.compat.plasma import ObjectID, ObjectNotAvailable


@pytest.fixture
def clients(daemon):
    """Two clients of one store."""
    return plasma.connect(daemon.socket), plasma.connect(daemon.socket)


def sealed(client, size, metadata=b""):
    object_id = ObjectID.from_random()
    client.create_and_seal(object_id, bytes(size), metadata)
    return object_id


def test_ids():
    one, same, other = ObjectID(b"0" * 20), ObjectID(b"0" * 20), ObjectID(b"0" * 19 + b"1")
    assert one == same and hash(one) == hash(same) and one != other and one != "foo"
    assert pickle.loads(pickle.dumps(one)) == one and one.binary() == b"0" * 20
    assert repr(one) == "ObjectID(" + "30" * 20 + ")"
    assert ObjectID.from_random() != ObjectID.from_random()
    for wrong in ("hello", b"hello", "0" * 20, None, bytearray(20)):
        with pytest.raises(ValueError):
            ObjectID(wrong)


def test_create_fill_seal_get(clients):
    one, two = clients
    object_id = ObjectID.from_random()
    buffer = one.create(object_id, 50, metadata=b"meta")
    np.frombuffer(buffer, np.uint8)[:] = np.arange(50)
    assert not two.contains(object_id)
    assert two.get_buffers([object_id], timeout_ms=0, with_meta=True) == [(None, None)]
    assert two.get_metadata([object_id], timeout_ms=0) == [None]
    one.seal(object_id)
    assert two.contains(object_id)
    [got] = two.get_buffers([object_id])
    assert got.size == 50 and got.to_pybytes() == bytes(range(50))
    with pytest.raises(ValueError):
        np.frombuffer(got, np.uint8)[0] = 1
    assert two.get_metadata([object_id])[0].to_pybytes() == b"meta"
    [(metadata, data)] = two.get_buffers([object_id], with_meta=True)
    assert metadata == b"meta" and data.to_pybytes() == bytes(range(50))


def test_the_data_is_mapped_not_copied(clients):
    one, two = clients
    object_id = sealed(one, 1 << 20)
    [a], [b] = one.get_buffers([object_id]), two.get_buffers([object_id])
    maps = open("/proc/self/maps").read()
    assert maps.count("memfd:shmstore") >= 1
    assert shmstore.connect(one.store_socket_name).stats()["used"] < 2 << 20
    assert a.size == b.size == 1 << 20


@pytest.mark.parametrize("size, meta", [(0, 0), (0, 5), (7, 0), (1000, 999)])
def test_sizes(clients, size, meta):
    one, two = clients
    object_id = ObjectID.from_random()
    one.create_and_seal(object_id, b"a" * size, b"b" * meta)
    assert two.get_buffers([object_id], with_meta=True)[0][1].to_pybytes() == b"a" * size
    assert two.get_metadata([object_id])[0].to_pybytes() == b"b" * meta
    assert two.list()[object_id]["data_size"] == size
    assert two.list()[object_id]["metadata_size"] == meta


def test_errors(clients):
    one, two = clients
    object_id = sealed(one, 10)
    for client in clients:
        with pytest.raises(plasma.PlasmaObjectExists):
            client.create(object_id, 10)
    draft = ObjectID.from_random()
    one.create(draft, 10)
    with pytest.raises(plasma.PlasmaObjectExists):
        two.create_and_seal(draft, b"x")
    for client, missing in ((two, draft), (one, object_id), (one, ObjectID.from_random())):
        with pytest.raises(plasma.PlasmaObjectNotFound):
            client.seal(missing)
    with pytest.raises(plasma.PlasmaObjectNotFound):
        one.hash(ObjectID.from_random())
    assert plasma.PlasmaObjectNonexistent is plasma.PlasmaObjectNotFound
    if plasma.pyarrow is not None:
        assert issubclass(plasma.PlasmaStoreFull, plasma.pyarrow.lib.ArrowException)
    with pytest.raises(OSError):
        plasma.connect("/nowhere/at/all", num_retries=1)
    with pytest.raises(TypeError):
        one.contains(b"0" * 20)
    with pytest.raises(TypeError):
        one.put(1, serialization_context=object())


class Custom:
    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return self.value == other.value


VALUES = [None, "hello", ["hello", "world", 3, 1.0], {"a": (1, b"x")}, Custom(42), b"", 2**80]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_put_and_get(clients, value):
    one, two = clients
    object_id = one.put(value)
    assert two.get(object_id) == value
    assert two.get([object_id]) == [value]
    given = ObjectID.from_random()
    assert one.put(value, given) == given and two.get(given) == value


def test_what_does_not_come_is_not_available(clients):
    one, _ = clients
    object_id, missing = one.put(5), ObjectID.from_random()
    for timeout in (0, 10):
        assert one.get([object_id, missing], timeout_ms=timeout) == [5, ObjectNotAvailable]
        assert one.get(missing, timeout_ms=timeout) is ObjectNotAvailable


def test_arrays_are_got_without_a_copy_and_outlive_the_client(daemon):
    client = plasma.connect(daemon.socket)
    wide = np.arange(100000).reshape(100, 1000)
    object_id = client.put({"c": wide, "f": np.asfortranarray(wide), "strided": wide[::2]})
    value = client.get(object_id)
    assert client.list()[object_id]["ref_count"] == 1
    client.disconnect()
    del client
    assert not value["c"].flags.writeable
    for key, array in {"c": wide, "f": wide, "strided": wide[::2]}.items():
        assert (value[key] == array).all()
    base = value["c"]
    while isinstance(base, np.ndarray) or base.__class__ is memoryview:
        base = base.obj if isinstance(base, memoryview) else base.base
    assert type(base).__name__ == "Lease"
    assert value["c"].ctypes.data % 64 == 0


def test_put_holds_the_data_of_arrays_of_the_store(clients, shm):
    """Not a handle: the array may be gone when the object is read."""
    one, two = clients
    shared = shm.put(None, np.arange(100000))
    matrix = shm.share(np.ma.MaskedArray(np.ones((300, 300))))
    object_id = one.put([shared, matrix])
    expected = [shared.copy(), matrix.copy()]
    del shared, matrix
    got = two.get(object_id)
    assert all((a == b).all() for a, b in zip(got, expected))


def test_raw_buffers(clients):
    one, two = clients
    for value in (b"Bytes Test", b"", bytearray(b"x" * 100), np.arange(10)):
        object_id = one.put_raw_buffer(value, metadata=b"RAW")
        [(metadata, data)] = two.get_buffers([object_id], with_meta=True)
        assert metadata == b"RAW" and data.to_pybytes() == bytes(memoryview(value).cast("B"))


def test_get_waits_for_existence_and_seal(clients):
    one, two = clients
    ids = [ObjectID.from_random() for _ in range(10)]
    found = []
    waiter = threading.Thread(target=lambda: found.extend(two.get(ids)))
    waiter.start()
    for value, object_id in enumerate(ids):
        one.put(value, object_id)
    waiter.join()
    assert found == list(range(10))


def test_an_object_of_a_killed_client_can_be_made_by_another(clients, daemon):
    one, two = clients
    object_id = ObjectID(b"1" * 20)
    code = (
        "import sys\nfrom shmstore.compat import plasma\n"
        "c = plasma.connect(sys.argv[1])\nb = c.create(plasma.ObjectID(b'1' * 20), 100)\n"
        "print('made', flush=True)\ninput()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, daemon.socket],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"made\n"
    found = []
    waiter = threading.Thread(target=lambda: found.append(two.get(object_id)))
    waiter.start()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while True:
        try:
            one.put("again", object_id)
            break
        except plasma.PlasmaObjectExists:
            pass
    waiter.join()
    assert found == ["again"]


def test_sealed_objects_stay_without_holders(clients, script, daemon):
    result = script(
        "import sys\nfrom shmstore.compat import plasma\n"
        "plasma.connect(sys.argv[1]).put([1, 2], plasma.ObjectID(b'2' * 20))",
        daemon.socket,
    )
    assert result.returncode == 0, result.stderr
    one, _ = clients
    assert one.get(ObjectID(b"2" * 20)) == [1, 2]


def test_delete(clients):
    one, two = clients
    object_id, draft, missing = sealed(one, 1000), ObjectID.from_random(), ObjectID.from_random()
    filling = one.create(draft, 10)
    [held] = two.get_buffers([object_id])
    one.delete([object_id, draft, missing])
    assert not two.contains(object_id)
    assert held.to_pybytes() == bytes(1000)
    one.seal(draft)  # deleting what is not sealed does nothing
    assert two.contains(draft) and filling.size == 10


def test_list(clients):
    one, two = clients
    draft = ObjectID.from_random()
    filling = one.create(draft, 11, metadata=b"7 bytes")
    entry = two.list()[draft]
    assert entry["state"] == "created" and entry["construct_duration"] == -1
    assert (entry["data_size"], entry["metadata_size"]) == (11, 7)
    one.seal(draft)
    assert two.list()[draft]["state"] == "sealed"
    assert two.list()[draft]["construct_duration"] >= 0
    del filling
    assert one.list()[draft]["ref_count"] == 0
    value = one.put(np.zeros(3))
    got = one.get(value)
    assert one.list()[value]["ref_count"] == 1 and got.size == 3
    assert isinstance(one.list()[value]["create_time"], int)


def test_evict_the_oldest_that_nobody_holds(clients):
    _, client = clients
    ids = [sealed(client, size) for size in (1000, 998, 997)]
    [held] = client.get_buffers([ids[1]])
    assert client.evict(1) == 1000
    assert client.evict(1) == 997
    assert client.evict(1) == 0 and client.contains(ids[1])
    del held
    assert client.evict(2000) == 998
    more = [sealed(client, size) for size in (996, 995, 994)]
    assert client.evict(2000) == 996 + 995 + 994
    assert not any(map(client.contains, more)) and client.evict(0) == 0


def test_a_full_store_evicts_what_nobody_holds():
    size = 1 << 20
    with plasma.start_plasma_store(10 * size) as (path, process):
        client = plasma.connect(path)
        assert client.store_capacity() == 10 * size and process.poll() is None
        for _ in range(30):
            sealed(client, size - 100)
        kept = ObjectID.from_random()
        buffer = client.create(kept, 5 * size)
        client.seal(kept)
        with pytest.raises(plasma.PlasmaStoreFull):
            client.create(ObjectID.from_random(), 6 * size)
        assert client.contains(kept) and buffer.size == 5 * size
        client.evict_when_full = False
        sealed(client, 4 * size)
        with pytest.raises(plasma.PlasmaStoreFull):
            sealed(client, 2 * size)
    assert process.poll() == 0


def test_hashes_tell_contents_apart(clients):
    one, two = clients

    def digest(data, metadata=b""):
        object_id = ObjectID.from_random()
        one.create_and_seal(object_id, data, metadata)
        assert one.hash(object_id) == two.hash(object_id)
        return one.hash(object_id)

    contents = [(bytes([i]) * 100, b"") for i in range(50)]
    contents += [(bytes(i), b"") for i in range(50)] + [(b"a", b"b"), (b"ab", b""), (b"", b"ab")]
    assert len({digest(*content) for content in contents}) == len(contents)
    assert digest(b"same") == digest(b"same") and len(digest(b"")) == 8


def test_notifications(clients):
    one, two = clients
    one.subscribe()
    expected = []
    for size in (0, 1, 500):
        object_id = ObjectID.from_random()
        two.create_and_seal(object_id, bytes(size), b"m" * size)
        assert one.get_next_notification() == (object_id, size, size)
        expected.append(object_id)
    two.delete(expected)
    for object_id in expected:
        assert one.get_next_notification() == (object_id, -1, -1)
    with pytest.raises(plasma.ArrowException):
        two.get_next_notification()


def test_the_notification_socket(clients):
    one, two = clients
    one.subscribe()
    sock = one.get_notification_socket()
    assert select.select([sock], [], [], 0)[0] == []
    for size in range(20):
        object_id = ObjectID.from_random()
        two.create_and_seal(object_id, bytes(size))
        select.select([sock], [], [])
        (length,) = struct.unpack("L", sock.recv(8))
        ids, data_sizes, metadata_sizes = one.decode_notifications(sock.recv(length))
        assert (ids, data_sizes, metadata_sizes) == ([object_id], [size], [0])
    object_id = sealed(two, 5)
    assert one.get_next_notification() == (object_id, 5, 0)
    sock.close()


def test_more_notifications_than_the_daemon_holds():
    with plasma.start_plasma_store(1 << 28) as (path, _):  # does not check itself at each step
        one, two = plasma.connect(path), plasma.connect(path)
        one.subscribe()
        ids = {sealed(two, 10) for _ in range(5000)}
        assert {one.get_next_notification()[0] for _ in range(5000)} == ids


def test_the_rest(clients):
    one, two = clients
    assert "capacity" in one.debug_string() and one.store_socket_name
    draft = ObjectID.from_random()
    one.create(draft, 10)
    one.disconnect()
    assert two.put(1, draft) == draft
    with pytest.raises(ValueError):
        with plasma.start_plasma_store(1 << 20, external_store="hashtable://x"):
            pass


def test_a_disconnected_client_does_nothing(clients):
    one, two = clients
    sealed, draft = one.put([1]), ObjectID.from_random()
    buffer = one.create(draft, 10)
    [kept] = one.get_buffers([sealed])
    one.subscribe()
    one.disconnect()
    one.disconnect()
    calls = {
        "create": lambda: one.create(ObjectID.from_random(), 1),
        "seal": lambda: one.seal(draft),
        "create_and_seal": lambda: one.create_and_seal(ObjectID.from_random(), b"1"),
        "put": lambda: one.put(1),
        "put_raw_buffer": lambda: one.put_raw_buffer(b"1"),
        "get": lambda: one.get(sealed, 0),
        "get_buffers": lambda: one.get_buffers([sealed], 0),
        "get_metadata": lambda: one.get_metadata([sealed], 0),
        "contains": lambda: one.contains(sealed),
        "hash": lambda: one.hash(sealed),
        "delete": lambda: one.delete([sealed]),
        "evict": lambda: one.evict(1),
        "list": one.list,
        "store_capacity": one.store_capacity,
        "debug_string": one.debug_string,
        "subscribe": one.subscribe,
    }
    for name, call in calls.items():
        with pytest.raises(OSError, match="disconnected"):
            call()
            pytest.fail(name)
    with pytest.raises(plasma.ArrowException):
        one.get_next_notification()
    assert kept.to_pybytes() and len(buffer) == 10 and two.get(sealed) == [1]
    assert list(two.list()) == [sealed]


def test_a_disconnect_in_another_thread_meanwhile(clients, monkeypatch):
    one, two = clients
    make_draft, make_events = one._draft, plasma.Events

    def make_and_disconnect(make, *arguments):
        made = make(*arguments)
        thread = threading.Thread(target=one.disconnect)
        thread.start()
        thread.join()
        return made

    monkeypatch.setattr(one, "_draft", lambda *rest: make_and_disconnect(make_draft, *rest))
    connection = one._connection
    with pytest.raises(OSError, match="disconnected"):
        one.create(ObjectID.from_random(), 10)
    assert two.list() == {} and one._drafts == {}
    one._connection = connection  # a client that has not disconnected yet
    monkeypatch.setattr(plasma, "Events", lambda *rest: make_and_disconnect(make_events, *rest))
    with pytest.raises(OSError, match="disconnected"):
        one.subscribe()
    assert one._events is None


def test_without_pyarrow(daemon, script):
    result = script(
        "import sys\nsys.modules['pyarrow'] = None\n"
        "import numpy as np\nfrom shmstore.compat import plasma\n"
        "c = plasma.connect(sys.argv[1])\ni = plasma.ObjectID.from_random()\n"
        "b = c.create(i, 10)\nb[:] = range(10)\nc.seal(i)\n"
        "g = c.get_buffers([i])[0]\n"
        "assert g.size == 10 and g.to_pybytes() == bytes(range(10)) and memoryview(g).readonly\n"
        "assert c.get(c.put([1, np.arange(5)]))[1][3] == 3\n"
        "try: c.create(i, 1)\n"
        "except plasma.ArrowException as e: print(type(e).__name__)\n",
        daemon.socket,
    )
    assert (result.returncode, result.stdout) == (0, "PlasmaObjectExists\n"), result.stderr
