"""Pickling by handle, and by value where a handle would not be right."""

import copy
import gc
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import Daemon
from numpy.lib.stride_tricks import as_strided, sliding_window_view

import shmstore
from shmstore import SharedArray, _handle
from shmstore._array import lease_of

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


def by_handle(array, protocol=4):
    return array.__reduce_ex__(protocol)[0] is _handle.open


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_round_trip(client, protocol):
    created = client.put("x", np.arange(12.0).reshape(3, 4))
    x = client.attach("x")  # the creator's own map may be another one
    y = pickle.loads(pickle.dumps(x, protocol))
    assert np.array_equal(pickle.loads(pickle.dumps(created, protocol)), x)
    assert type(y) is SharedArray and np.array_equal(x, y)
    assert y.shm.id == x.shm.id and np.shares_memory(x, y) and not y.flags.writeable


VIEWS = {
    "rows": lambda x: x[1:],
    "steps": lambda x: x[::2, 1::2],
    "backwards": lambda x: x[::-1, ::-1],
    "one": lambda x: x[2, 3:4],
    "transposed": lambda x: x.T,
    "4d": lambda x: x.reshape(2, 4, 2, 3)[:, 1:3, :, ::2],
    "empty": lambda x: x[5:5],
    "bytes": lambda x: x.view("u1"),
    "complex": lambda x: x.view("c16"),
    "nothing": lambda x: x[8:, 6:],
    "0d": lambda x: x[1:2, 1:2].reshape(()),
    "ufortran": lambda x: x.T[2:],
    "axis in front": lambda x: x[None],
    "axis between": lambda x: x[:, None],
    "axis behind": lambda x: x[..., None],
    "axes of a column": lambda x: x[:, 1:2, None],
    "axis of nothing": lambda x: x[5:5][None],
    "expand_dims": lambda x: np.expand_dims(x, (0, 2)),
    "atleast_3d": lambda x: np.atleast_3d(x),
    "reshaped": lambda x: x.reshape(1, 48, 1),
    "ravelled": lambda x: x.ravel(),
    "swapped": lambda x: x[None].swapaxes(0, 2),
    "moved": lambda x: np.moveaxis(x[:, :, None], 2, 0),
    "squeezed": lambda x: x[1:2].squeeze(),
    "squeezed column": lambda x: np.squeeze(x[:, 2:3], axis=1),
    "squeezed to 0d": lambda x: x[1:2, 1:2].squeeze(),
    "diagonal": lambda x: x.diagonal(),
    "real": lambda x: x.view("c16").imag,
    "broadcast": lambda x: np.broadcast_to(x[0], (5, 6), subok=True),
    "strides of zero": lambda x: as_strided(x, (3, 2, 2), (48, 0, 8), subok=True),
    "overlapping": lambda x: sliding_window_view(x, 3, axis=0, subok=True),
}


@pytest.mark.parametrize("view", VIEWS)
def test_views(client, view):
    created = client.put("x", np.arange(48.0).reshape(8, 6))
    x = client.attach("x")  # the creator's own map may be another one
    assert np.array_equal(pickle.loads(pickle.dumps(VIEWS[view](created))), VIEWS[view](x))
    v = VIEWS[view](x)
    for protocol in PROTOCOLS:
        data = pickle.dumps(v, protocol)
        assert len(data) <= 200
        w = pickle.loads(data)
        assert type(w) is SharedArray and w.shm.id == x.shm.id
        assert w.dtype == v.dtype and w.shape == v.shape and np.array_equal(w, v)
        assert w.strides == v.strides or v.size == 0
        assert w.size == 0 or np.shares_memory(w, v)


#: numpy makes these read-only.
READ_ONLY = ("broadcast", "diagonal", "overlapping")


@pytest.mark.parametrize("view", sorted(VIEWS.keys() - READ_ONLY))
def test_views_are_written_by_whoever_gets_them(client, view):
    """Also with new axes, whose stride is 0 to numpy, and squeezed ones, which it makes plain."""
    x = client.create("x", (8, 6), "f8", mutable=True)
    x[:] = 0
    v = VIEWS[view](x)
    assert type(v) is SharedArray
    pickle.loads(pickle.dumps(v))[...] = 1
    assert (v == 1).all() and (v.size == 0 or x.any())


def test_a_worker_writes_to_a_view_with_new_axes(shm, script):
    x = shm.create("x", (1000, 300), "f8", mutable=True)
    x[:] = 0
    data = pickle.dumps([x[None], x[:, None].squeeze()])
    assert len(data) < 500
    result = script(f"import pickle; a, b = pickle.loads({data!r}); a[0, 0] = 1; b[1] = 2")
    assert result.returncode == 0, result.stderr
    assert (x[0] == 1).all() and (x[1] == 2).all()


def test_squeeze_of_computed_and_foreign_arrays_is_plain(client):
    x = client.put("x", np.arange(6.0).reshape(1, 6))
    for y in ((x + 1).squeeze(), np.frombuffer(b"abc", "u1").view(SharedArray)[None].squeeze(),
              np.sum(x, axis=0), np.sqrt(x), np.add(x, 1, out=np.empty((1, 6)))):  # fmt: skip
        assert type(y) is np.ndarray or lease_of(y) is None
    assert type(x.sum()) is np.float64 and type(np.add(x[0, 0:1].squeeze(), 1)) is np.float64


def test_fields_of_structured_arrays(client):
    dtype = np.dtype([("a", "i2"), ("b", [("c", "f8"), ("d", "S3")]), ("e", "f4", (2,))])
    x = client.put("x", np.zeros(5, dtype))
    for v in (x, x[1:], x["a"], x["b"]["c"], x["e"], x[["a", "e"]]):
        y = pickle.loads(pickle.dumps(v))
        assert y.dtype == v.dtype and y.tobytes() == v.tobytes()
        assert y.shm.id == x.shm.id


def test_orders_and_kinds(client):
    arrays = [np.asfortranarray(np.eye(3)), np.array(5), np.zeros((0, 4)), np.zeros(3, "M8[ns]"),
              np.array(["a"]), np.zeros(2, ">f8"), np.zeros((2, 3, 4), order="F")[1:]]
    for source in arrays:
        x = client.put(None, source)
        y = pickle.loads(pickle.dumps(x))
        assert y.shm.id == x.shm.id and y.dtype == x.dtype and y.strides == x.strides
        assert np.array_equal(x, y)


def test_handles_are_short(daemon, client):
    big = client.create("a" * 255, (1, 1 << 24, 1, 1), "u1")
    for protocol in PROTOCOLS:
        assert len(pickle.dumps(big, protocol)) <= 200
        assert len(pickle.dumps(big[:, 1 : 1 << 23 : 3, :, ::-1], protocol)) <= 200
    # Numbers as large as they get.
    huge = (1 << 64) - 1
    view = ("<M8[25s]", (1 << 20,) * 4, 1 << 40, (1 << 40,) * 4)
    for protocol in PROTOCOLS:
        arguments = (huge, huge, "h" * 16, "w", None, view)
        assert len(pickle.dumps(Reduced((_handle.open, arguments)), protocol)) <= 200


class Reduced:
    """Pickles as it is told."""

    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        return self.how


@pytest.mark.parametrize("length", [20, 50, 70, 90, 100, 107])
def test_the_socket_is_sent_when_there_is_room(daemon, monkeypatch, length):
    """A socket's path has at most 107 bytes; no handle grows over 200 because of it."""
    folder = tempfile.mkdtemp(prefix="s", dir="/tmp")
    path = folder + "/" + "p" * (length - len(folder) - 1)
    os.symlink(daemon.socket, path)
    monkeypatch.setattr(_handle, "_host", lambda: "h" * 16)
    client = shmstore.connect(path)
    x = client.put(None, np.zeros((4, 5, 6, 7)))
    for array in (x, x[1:], x[1:, ::2, ::-1, 1:3]):
        arguments = array.__reduce_ex__(4)[1]
        sent = len(arguments) > 4 and arguments[4] == path
        assert sent or length > (90 if array is x else 50)
        for protocol in PROTOCOLS:
            assert len(pickle.dumps(array, protocol)) <= 200
    os.unlink(path)
    os.rmdir(folder)


def test_the_default_clients_handles_name_the_socket_as_assumed(shm, daemon):
    x = shm.put("x", np.zeros(3))
    assert x.__reduce_ex__(4)[1][4] == "?" + daemon.socket
    assert shm.handle(x).__reduce__()[1][3] == "?" + daemon.socket
    y = shmstore.connect(daemon.socket).put("y", np.zeros(3))
    assert pickle.loads(pickle.dumps(y)).shm.id == y.shm.id


def test_by_value(client, daemon):
    x = client.put("x", np.arange(12.0).reshape(3, 4))
    private = client.attach("x", "c")
    private[0] = 9
    foreign = np.arange(3.0).view(SharedArray)
    released = client.put("y", [1.0])
    assert shmstore.release(released)
    for array in (private, foreign, x + 1, x[x > 3], released, np.asarray(x)):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            y = pickle.loads(pickle.dumps(array, protocol))
            assert type(y) is np.ndarray and np.array_equal(array, y)
    assert not by_handle(private) and by_handle(x)
    buffers = []
    data = pickle.dumps(private, 5, buffer_callback=buffers.append)
    assert np.array_equal(pickle.loads(data, buffers=buffers), private)


def test_copies_are_plain(client):
    x = client.put("x", np.arange(4.0))
    for y in (copy.copy(x), copy.deepcopy(x), copy.deepcopy({"x": x})["x"], copy.copy(x[1:])):
        assert type(y) is np.ndarray
        y[:] = 0
    f = client.put("f", np.asfortranarray(np.eye(3)))
    assert copy.copy(f).flags.f_contiguous
    assert x.tolist() == [0, 1, 2, 3]


def test_one_array_pickled_twice_in_one_pickle(client):
    x = client.put("x", np.arange(4.0))
    a, b, c = pickle.loads(pickle.dumps([x, x, x[1:]]))
    assert a is b and np.shares_memory(a, c)


def test_a_draft_that_was_dropped_is_named_as_one(client):
    text = pickle.dumps(client.create(None, 3))
    with pytest.raises(shmstore.NotFound, match="if it was a draft, its creator dropped it: share"):
        pickle.loads(text)


def test_drafts_travel_as_co_writers(client):
    w = client.create("w", 4, "i8")
    v = pickle.loads(pickle.dumps(w))
    part = pickle.loads(pickle.dumps(w[2:]))
    assert v.flags.writeable and v.shm.access == "r+"
    v[:] = 3
    part[:] = 5
    assert w.tolist() == [3, 3, 5, 5]
    w.flags.writeable = False
    assert not pickle.loads(pickle.dumps(w)).flags.writeable
    data = pickle.dumps(part)
    w.seal()
    after = pickle.loads(data)
    assert not after.flags.writeable and after.tolist() == [5, 5]


def test_mutable_arrays_travel_as_they_are_seen(client):
    s = client.create("s", 4, "i8", mutable=True)
    t = pickle.loads(pickle.dumps(s))
    assert t.flags.writeable and t.shm.access == "r+"
    t[1] = 7
    assert s[1] == 7
    reader = client.attach("s")
    assert not pickle.loads(pickle.dumps(reader)).flags.writeable
    locked = s[:]
    locked.flags.writeable = False
    u = pickle.loads(pickle.dumps(locked))
    assert not u.flags.writeable and u.shm.access == "r"


def test_a_handle_keeps_the_array_alive(client, daemon):
    data = pickle.dumps(client.put(None, np.arange(5)))
    gc.collect()
    assert client.stats()["arrays"] == 1
    x = pickle.loads(data)
    assert x.tolist() == [0, 1, 2, 3, 4]
    y = pickle.loads(data)
    assert y.tolist() == x.tolist()


def test_an_opened_handle_keeps_the_array_for_others(client):
    """For a broadcast's other receivers, and a task's second try; until it is deleted."""
    data = pickle.dumps(client.put(None, np.arange(5)))
    number = pickle.loads(data).shm.id
    gc.collect()
    x = pickle.loads(data)
    client.delete(id=number)
    assert x.tolist() == [0, 1, 2, 3, 4]
    del x
    assert client.stats()["arrays"] == 0


def test_a_handle_of_what_is_open_stays_in_flight(client):
    x = client.put(None, np.arange(5))
    first = pickle.loads(pickle.dumps(x))
    assert client.in_flight() == []
    second = pickle.loads(pickle.dumps(x))  # no message says so
    assert client.info(id=x.shm.id)["in_flight"] == 1 and np.shares_memory(first, second)


def test_grace_is_the_clients(daemon):
    short = daemon.client(grace=0.05)
    x = short.put("x", np.arange(5))
    data = pickle.dumps(x)
    del x
    from conftest import wait_until

    wait_until(lambda: short.stats()["arrays"] == 0, "the end of the grace time")
    with pytest.raises(shmstore.NotFound, match="expired"):
        pickle.loads(data)


def test_grace_has_limits(daemon):
    for grace in (-1, 3601, None, "long"):
        with pytest.raises(shmstore.InvalidArgument, match="^grace: "):
            daemon.client(grace=grace)


def test_deleted_and_replaced_arrays_travel_by_value(client):
    x = client.put("x", np.arange(3))
    before = pickle.dumps(x)
    client.delete("x")
    y = client.put("y", np.arange(3), replace=True)
    newer = client.put("y", np.arange(4), replace=True)
    w = client.create("w", 3, "i8")
    w[:] = [0, 1, 2]
    client.delete("w")
    for array in (x, y, w):
        copied = pickle.loads(pickle.dumps(array))
        assert type(copied) is np.ndarray and copied.tolist() == [0, 1, 2]
    assert by_handle(newer)
    with pytest.raises(shmstore.NotFound):
        pickle.loads(before)


@pytest.mark.kills_daemon
def test_a_handle_of_an_earlier_run_says_so(daemon):
    x = daemon.client().put("x", np.arange(3), keep=True)
    data = pickle.dumps(x)
    assert daemon.stop() == 0
    daemon.start()
    with pytest.raises(shmstore.NotFound, match="earlier"):
        pickle.loads(data)
    assert x.tolist() == [0, 1, 2]
    daemon.stop()


@pytest.mark.kills_daemon
def test_sealed_arrays_that_outlived_their_daemon_travel_by_value(daemon):
    client = daemon.client(reconnect=0)
    x, s = client.put("x", np.arange(5)), client.put("s", np.arange(5), mutable=True)
    w = client.create("w", 5)
    assert daemon.stop() == 0

    def check():
        y, part = pickle.loads(pickle.dumps([x, x[1:]]))
        assert type(y) is np.ndarray and y.tolist() == x.tolist() and part.tolist() == [1, 2, 3, 4]
        for array in (s, w):
            with pytest.raises(shmstore.Disconnected):
                pickle.dumps(array)

    check()
    daemon.start()
    check()
    daemon.stop()


def test_a_handle_of_another_host_says_so(client):
    x = client.put("x", np.arange(3))
    function, arguments = x.__reduce_ex__(4)
    arguments = (12345, arguments[1], "elsewhere", *arguments[3:])
    with pytest.raises(shmstore.NotFound, match="host elsewhere"):
        function(*arguments)


def test_without_any_daemon(client, script, tmp_path):
    x = client.put("x", np.arange(3))
    function, arguments = x.__reduce_ex__(4)
    data = pickle.dumps((function, (*arguments[:4], None, None)))
    (tmp_path / "handle").write_bytes(data)
    result = script(
        "import pickle, shmstore\n"
        f"function, arguments = pickle.load(open({str(tmp_path / 'handle')!r}, 'rb'))\n"
        "try: function(*arguments)\n"
        "except shmstore.NotFound as error: print(error)\n",
        env=dict(os.environ, SHMSTORE_SOCKET=str(tmp_path / "none")),
    )
    assert "handle of array" in result.stdout and "made on host" in result.stdout, result


def test_a_receiver_finds_the_store_by_its_path(daemon, client, script, tmp_path):
    data = pickle.dumps(client.put("x", np.arange(3), keep=True))
    (tmp_path / "handle").write_bytes(data)
    environment = dict(os.environ, SHMSTORE_AUTOSTART="0")
    environment.pop("SHMSTORE_SOCKET", None)
    result = script(
        "import pickle\n"
        f"x = pickle.load(open({str(tmp_path / 'handle')!r}, 'rb'))\n"
        "print(x.tolist())",
        env=environment,
    )
    assert result.stdout == "[0, 1, 2]\n", result


def handle_elsewhere(daemon, script, tmp_path, **environment):
    """Opens a default client's handle in a process with another environment."""
    x = daemon.client().put("x", np.arange(3), keep=True)
    function, arguments = x.__reduce_ex__(4)
    assumed = (*arguments[:4], "?" + daemon.socket)
    (tmp_path / "handle").write_bytes(pickle.dumps(Reduced((function, assumed))))
    return open_elsewhere(script, tmp_path, **environment)


def open_elsewhere(script, tmp_path, **environment):
    """Opens the handle in tmp_path and leaves there one of its own."""
    inherited = {k: v for k, v in os.environ.items() if k != "SHMSTORE_SOCKET"}
    runtime = tmp_path / "run"  # no daemon of the user's
    runtime.mkdir(mode=0o700, exist_ok=True)
    return script(
        "import pickle, sys, shmstore\n"
        "try: x = pickle.load(open(sys.argv[1], 'rb'))\n"
        "except shmstore.NotFound as error: print(error)\n"
        "else:\n"
        "    print(x.tolist(), x.__reduce_ex__(4)[1][4])\n"
        "    pickle.dump(x, open(sys.argv[1], 'wb'))\n",
        tmp_path / "handle",
        env={**inherited, "XDG_RUNTIME_DIR": str(runtime), **environment},
    )


def test_a_receiver_without_the_variable_finds_the_default_clients_store(daemon, script, tmp_path):
    result = handle_elsewhere(daemon, script, tmp_path)
    assert result.stdout == f"[0, 1, 2] ?{daemon.socket}\n", result


def test_an_empty_variable_is_none(daemon, script, tmp_path):
    result = handle_elsewhere(daemon, script, tmp_path, SHMSTORE_SOCKET="")
    assert "[0, 1, 2]" in result.stdout, result


def test_a_path_that_connect_was_told_is_passed_on_as_such(client, daemon, script, tmp_path):
    (tmp_path / "handle").write_bytes(pickle.dumps(client.put("x", np.arange(3), keep=True)))
    for _ in range(2):
        result = open_elsewhere(script, tmp_path)
        assert result.stdout == f"[0, 1, 2] {daemon.socket}\n", result


def test_a_handle_that_is_passed_on_names_the_socket_as_the_sender_did(daemon, script, tmp_path):
    """From a default client, over a process on no node, to one on another node."""
    assert "[0, 1, 2]" in handle_elsewhere(daemon, script, tmp_path).stdout
    (tmp_path / "other").mkdir()
    other = Daemon(tmp_path / "other")
    try:
        result = open_elsewhere(script, tmp_path, SHMSTORE_SOCKET=other.socket)
    finally:
        other.stop()
    assert daemon.socket in result.stdout and other.socket in result.stdout, result


def test_an_assumed_socket_of_another_user_is_not_believed(daemon, script, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can give a socket to another user")
    os.chown(daemon.socket, 54321, -1)
    result = handle_elsewhere(daemon, script, tmp_path)
    assert f"{daemon.socket}: belongs to user 54321" in result.stdout, result
    assert "$SHMSTORE_SOCKET" in result.stdout
    result = open_elsewhere(script, tmp_path, SHMSTORE_SOCKET=daemon.socket)
    assert "[0, 1, 2]" in result.stdout, result
    os.chown(daemon.socket, 0, -1)


def test_a_receiver_on_another_node_goes_nowhere_else(daemon, script, tmp_path):
    (tmp_path / "other").mkdir()
    other = Daemon(tmp_path / "other")
    try:
        result = handle_elsewhere(daemon, script, tmp_path, SHMSTORE_SOCKET=other.socket)
    finally:
        other.stop()
    assert daemon.socket in result.stdout and other.socket in result.stdout, result


def test_a_receiver_on_no_node_goes_nowhere(daemon, script, tmp_path):
    result = handle_elsewhere(daemon, script, tmp_path, SHMSTORE_SOCKET="/nowhere/socket")
    assert "/nowhere/socket" in result.stdout and "handle of array" in result.stdout, result


@pytest.mark.parametrize("other_lives", [True, False])
def test_a_fork_server_with_another_environment(daemon, script, tmp_path, other_lives):
    """Its workers are on their parent's node, whatever the variable was when it was started."""
    (tmp_path / "other").mkdir()
    other = Daemon(tmp_path / "other")
    if not other_lives:
        other.stop()
    try:
        result = script(
            "import multiprocessing, os, sys, numpy as np, shmstore\n"
            "context = multiprocessing.get_context('forkserver')\n"
            "with context.Pool(1) as pool: pool.map(int, '12')\n"
            "os.environ['SHMSTORE_SOCKET'] = sys.argv[1]\n"
            "x = shmstore.put(None, np.arange(3.0))\n"
            "with context.Pool(2) as pool:\n"
            "    print(*map(float, pool.map_async(np.sum, [x, x[1:]]).get(60)))\n",
            daemon.socket,
            env=dict(os.environ, SHMSTORE_SOCKET=other.socket, SHMSTORE_AUTOSTART="0"),
        )
        assert result.stdout == "3.0 3.0\n", result
    finally:
        if other_lives:
            other.stop()


def test_two_stores_in_one_process(daemon, client):
    with tempfile.TemporaryDirectory() as folder:
        other = Daemon(Path(folder))
        try:
            there = other.client()
            x, y = client.put("x", [1]), there.put("x", [2])
            a, b = pickle.loads(pickle.dumps([x, y]))
            assert a.tolist() == [1] and b.tolist() == [2]
            with pytest.raises(shmstore.NotFound):
                there.attach(id="1")
            del y, b
        finally:
            other.stop()


def test_a_bad_view_is_refused(client):
    x = client.put("x", np.arange(3.0))
    function, arguments = x.__reduce_ex__(4)
    base = (*arguments[:4], None)
    for view in ((None, (4,), 0, (8,)), (None, (3,), 8, (8,)), (None, (3,), 0, (-8,)),
                 ("<f8", (1 << 60,), 0, (8,)), (None, (2,), -8, (8,))):  # fmt: skip
        with pytest.raises(ValueError):
            function(*base, view)
