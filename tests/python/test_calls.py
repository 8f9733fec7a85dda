"""The calls, their options and their errors."""

import gc
import inspect
import os
import pickle
import re
import traceback
from pathlib import Path

import numpy as np
import pytest

import shmstore
from shmstore import _errors

ROOT = Path(__file__).resolve().parents[2]


# --- errors ---------------------------------------------------------------------------------------


def test_errors_write_names_as_their_reader_does(client):
    with pytest.raises(shmstore.NotFound, match="'nowhere'"):
        client.attach("nowhere")
    with pytest.raises((shmstore.NotFound, shmstore.PermissionDenied), match="'~54321/nowhere'"):
        client.attach("~54321/nowhere")


def test_there_is_a_class_for_every_code():
    header = (ROOT / "include/shmstore/error.hpp").read_text()
    codes = re.findall(r"^  (\w+) = (\d+), +///<", header, re.M)
    assert len(codes) == 13
    for name, number in codes:
        kind = _errors.BY_CODE[int(number)]
        assert kind.code == name.rstrip("_")
        assert issubclass(kind, shmstore.Error) and getattr(shmstore, kind.__name__) is kind
        assert kind.__name__.lower() == name.replace("_", "")
        assert kind.__module__ == "shmstore" and kind.__doc__


@pytest.mark.parametrize(
    "kind, builtin",
    [
        ("NotFound", FileNotFoundError),
        ("AlreadyExists", FileExistsError),
        ("PermissionDenied", PermissionError),
        ("NoCapacity", MemoryError),
        ("QuotaExceeded", MemoryError),
        ("TimedOut", TimeoutError),
        ("InvalidArgument", ValueError),
        ("Disconnected", ConnectionError),
    ],
)
def test_errors_are_builtins_too(kind, builtin):
    kind = getattr(shmstore, kind)
    assert issubclass(kind, builtin)
    error = pickle.loads(pickle.dumps(kind("text of it")))
    assert type(error) is kind and str(error) == "text of it"
    again = kind.__new__(kind, "text of it")  # as tblib makes them, which Dask loads
    assert str(again) == "text of it" and again.code == kind.code


def test_a_traceback_shows_the_callers_line_and_ours_only(shm):
    try:
        shm.attach("missing")
    except FileNotFoundError as error:
        frames = traceback.extract_tb(error.__traceback__)
        assert [frame.name for frame in frames[1:]] == ["attach", "attach"]
        assert error.__cause__ is None and error.__context__ is None
    else:
        pytest.fail("no error")


BAD = [
    ("name", lambda c: c.put("", [1])),
    ("name", lambda c: c.put("../x", [1])),
    ("name", lambda c: c.put("a//b", [1])),
    ("name", lambda c: c.put("/a", [1])),
    ("name", lambda c: c.put("-a", [1])),
    ("name", lambda c: c.put("a b", [1])),
    ("name", lambda c: c.put("a\0b", [1])),
    ("name", lambda c: c.put("grün", [1])),
    ("name", lambda c: c.put("\udc80", [1])),
    ("name", lambda c: c.put("x" * 256, [1])),
    ("name", lambda c: c.put(b"x", [1])),
    ("name", lambda c: c.attach(None)),
    ("name", lambda c: c.exists(None)),
    ("name", lambda c: c.delete(3)),
    ("name", lambda c: c.info("")),
    ("shape", lambda c: c.create("x", -1)),
    ("shape", lambda c: c.create("x", (2, -1))),
    ("shape", lambda c: c.create("x", 2.5)),
    ("shape", lambda c: c.create("x", None)),
    ("shape", lambda c: c.create("x", (1 << 60, 1 << 60))),
    ("shape", lambda c: c.create("x", (0, 1 << 60))),
    ("shape", lambda c: c.create("x", 1 << 70)),
    ("shape", lambda c: c.create("x", [1] * 65)),
    ("perms", lambda c: c.create("x", 1, perms=0o777)),
    ("perms", lambda c: c.create("x", 1, perms="0600")),
    ("perms", lambda c: c.create("x", 1, perms=-1)),
    ("attrs", lambda c: c.create("x", 1, attrs=[1])),
    ("attrs", lambda c: c.create("x", 1, attrs={"a": object()})),
    ("attrs", lambda c: c.create("x", 1, attrs={"a": float("nan")})),
    ("attrs", lambda c: c.create("x", 1, attrs={"a": "x" * 5000})),
    ("ttl", lambda c: c.create("x", 1, keep=True, ttl=-1)),
    ("timeout", lambda c: c.create("x", 1, timeout=-1)),
    ("timeout", lambda c: c.attach("x", timeout="soon")),
    ("timeout", lambda c: c.wait("x", timeout=float("nan"))),
    ("newer_than", lambda c: c.attach("x", newer_than=-1)),
    ("newer_than", lambda c: c.wait("x", newer_than=1.5)),
    ("mode", lambda c: c.attach("x", "w")),
    ("mode", lambda c: c.attach("x", mode=None)),
    ("id", lambda c: c.attach(id=5)),
    ("id", lambda c: c.attach(id="x")),
    ("id", lambda c: c.attach("x", id="5")),
    ("id", lambda c: c.attach(id="9" * 5000)),
    ("id", lambda c: c.attach(id="99999999999999999999")),
    ("shape", lambda c: c.create("x", 10**5000)),
    ("array", lambda c: c.put("x", [1, [2]])),
    ("attrs", lambda c: c.create("x", 1, attrs={"a": "\ud800"})),
    ("order", lambda c: c.create("x", 1, order=np.array(["C", "F"]))),
    ("mode", lambda c: c.attach("x", mode=np.array(["r", "c"]))),
    ("timeout", lambda c: c.attach("x", timeout=10**5000)),
    ("prefix", lambda c: c.list("~²/")),
    ("prefix", lambda c: c.list("~a\0b/")),
    ("prefix", lambda c: c.list("~4294967296/")),
    ("prefix", lambda c: c.list(f"~{'9' * 5000}/")),
    ("prefix", lambda c: c.list(None)),
    ("dtype", lambda c: c.cached("x", np.zeros, dtype="f8")),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_arguments_name_the_field(client, number):
    field, call = BAD[number]
    with pytest.raises(shmstore.InvalidArgument, match=f"^{field}: "):
        call(client)
    assert client.list() == []


def test_the_text_of_bad_attrs_tells_the_reason(client):
    with pytest.raises(shmstore.InvalidArgument, match="surrogate"):
        client.create("x", 1, attrs={"a": "\ud800"})
    x = client.put("x", [1], attrs={"ü": "→" * 1000})
    assert client.info("x")["attrs"] == {"ü": "→" * 1000}
    del x


def test_missing_names(client):
    for call in (
        client.attach, client.info, client.holders, client.delete, client.keep, client.unkeep,
        lambda name: client.attach(name, "r+"), lambda name: client.attach(name, timeout=5),
        lambda name: client.chmod(name, 0o600),
    ):  # fmt: skip
        with pytest.raises(FileNotFoundError):
            call("missing")
    with pytest.raises(shmstore.NotFound):
        client.attach(id="123456789")


# --- create and put -------------------------------------------------------------------------------


def test_create_fill_seal(client):
    with client.create("field", (4, 3), "f4") as w:
        assert w.shm.state == "draft" and w.shm.access == "r+" and w.flags.writeable
        w[:] = 5
    assert w.shm.state == "sealed" and not w.flags.writeable and w.shm.access == "r"
    x = client.attach("field")
    assert x.dtype == "f4" and (x == 5).all()
    assert client.create("one", 7).shape == (7,)
    assert client.create("none", ()).shape == ()


def test_names_are_taken(client):
    x = client.put("x", [1])
    with pytest.raises(FileExistsError):
        client.put("x", [2])
    with pytest.raises(shmstore.AlreadyExists):
        client.create("x", 3)
    draft = client.create("y", 3)
    with pytest.raises(shmstore.AlreadyExists):
        client.put("y", [2])
    del x, draft


def test_replace_publishes_a_new_version(client):
    old = client.put("x", [1.0], replace=True)
    new = client.put("x", [2.0, 3.0], replace=True)
    assert new.shm.version > old.shm.version
    assert old.tolist() == [1] and client.attach("x").tolist() == [2, 3]
    version = client.info("x")["version"]
    client.delete("x")
    assert client.put("x", [4.0]).shm.version > version


def test_replace_at_seal_only(client):
    old = client.put("x", [1.0], replace=True)
    with client.create("x", 1, replace=True) as w:
        w[:] = 2
        assert client.attach("x").tolist() == [1]
    assert client.attach("x").tolist() == [2] and old.tolist() == [1]


def test_keep_and_ttl(client):
    client.put("kept", [1, 2], keep=True)
    client.put("gone", [1])
    gc.collect()
    assert "kept" in client and "gone" not in client
    assert client.info("kept")["kept"] is True and client.info("kept")["leases"] == 0
    client.keep("kept", ttl=1000)
    assert 900 < client.info("kept")["ttl_s"] <= 1000
    client.unkeep("kept")
    assert not client.exists("kept")
    x = client.put("x", [1], keep=True, ttl=2000)
    assert 1900 < client.info("x")["ttl_s"] <= 2000
    client.keep("x")
    assert client.info("x")["ttl_s"] is None
    client.delete("x")
    assert x.tolist() == [1]


def test_attrs(client):
    attrs = {"unit": "m/s", "grid": [1, 2.5, None], "nested": {"ok": True}, "ü": "é"}
    x = client.put("x", [1], attrs=attrs)
    assert client.info("x")["attrs"] == attrs
    y = client.put("y", [1])
    assert client.info("y")["attrs"] == {}
    del x, y


def test_hard_seals(client):
    assert client.put("a", [1]).shm.sealed == "soft"
    assert client.put("b", [1], hard=True).shm.sealed == "hard"
    assert client.put("c", [1], perms=0o644).shm.sealed == "hard"
    with client.create("d", 3, hard=True) as w:
        w[:] = 1
    assert w.shm.sealed == "hard"


def test_anonymous(client):
    x = client.put(None, np.arange(3))
    y = client.put(None, np.arange(4))
    assert x.shm.name is None and x.shm.id != y.shm.id
    assert client.attach(id=x.shm.id).tolist() == [0, 1, 2]
    assert client.info(id=y.shm.id)["name"] is None
    assert client.holders(id=y.shm.id)[0]["pid"] == os.getpid()
    client.delete(id=y.shm.id)
    with pytest.raises(shmstore.NotFound):
        client.attach(id=y.shm.id)
    assert y.tolist() == [0, 1, 2, 3]


def test_late_changes_nothing(client):
    x = client.put("x", [1], late=True)
    assert client.exists("x")
    del x


def test_many(client):
    arrays = {f"many/{i}": np.full(i, i) for i in range(20)}
    put = client.put_many(arrays, keep=True, attrs={"a": 1})
    assert list(put) == list(arrays) and put["many/3"].tolist() == [3, 3, 3]
    got = client.attach_many(arrays)
    assert all(np.array_equal(got[name], arrays[name]) for name in arrays)
    assert client.info("many/7")["attrs"] == {"a": 1}
    with pytest.raises(shmstore.NotFound):
        client.attach_many(["many/1", "many/x"])
    with pytest.raises(shmstore.AlreadyExists):
        client.put_many({"many/new": [1], "many/1": [2]})
    del put, got
    gc.collect()
    assert not client.exists("many/new")
    assert client.info("many/1")["leases"] == 0


# --- attach ---------------------------------------------------------------------------------------


def test_modes(client):
    sealed = client.put("sealed", np.arange(4.0))
    shared = client.create("shared", (4,), "i8", mutable=True)
    assert shared.shm.state == "mutable" and shared.flags.writeable
    shared[:] = 1
    reader = client.attach("shared")
    writer = client.attach("shared", "r+")
    assert not reader.flags.writeable and writer.flags.writeable
    with pytest.raises(ValueError):
        reader.flags.writeable = True
    writer[2] = 9
    assert reader[2] == shared[2] == 9
    private = client.attach("sealed", "c")
    assert private.flags.writeable and private.shm.access == "c"
    private[:] = -1
    assert sealed.tolist() == [0, 1, 2, 3] and client.attach("sealed").tolist() == [0, 1, 2, 3]
    other = client.attach("sealed", "c")
    assert other.tolist() == [0, 1, 2, 3] and private.tolist() == [-1] * 4
    with pytest.raises(shmstore.InvalidArgument, match='mode|"c"| c'):
        client.attach("sealed", "r+")


def test_a_dying_array_cannot_be_attached(client):
    x = client.put("x", [1, 2])
    client.delete("x")
    assert not client.exists("x") and x.tolist() == [1, 2]
    assert x.base is not None
    with pytest.raises(shmstore.NotFound):
        client.attach("x")
    with pytest.raises(shmstore.NotFound):
        client.attach(id=x.shm.id)


def test_same_memory_for_all(client, daemon):
    x = client.put("x", np.arange(1000))
    y, again = client.attach("x"), client.attach("x")
    assert np.shares_memory(y, again)  # x itself may be the creator's own map
    z = daemon.client().attach("x")
    assert np.array_equal(x, z)


# --- looking --------------------------------------------------------------------------------------

INFO_KEYS = set(
    "id name dtype shape order nbytes state version perms uid leases kept ttl_s created sealed "
    "attrs".split()
)


def test_info_and_list(client):
    a = client.put("sim/a", np.zeros((2, 3), "i2"), keep=True)
    b = client.create("sim/b", 4)
    c = client.put("other", [1.0])
    info = client.info("sim/a")
    assert INFO_KEYS <= set(info)
    assert info["dtype"] == "<i2" and info["shape"] == [2, 3] and info["order"] == "C"
    assert info["nbytes"] == 12 and info["state"] == "sealed" and info["perms"] == "0600"
    assert info["uid"] == os.getuid() and info["leases"] == 1 and info["kept"] is True
    assert [one["name"] for one in client.list("sim/")] == ["sim/a", "sim/b"]
    assert len(client.list()) == 3
    assert client.list(f"~{os.getuid()}/oth")[0]["name"] == "other"
    assert client.list("nothing") == []
    assert "sim/a" in client and "sim/x" not in client and 5 not in client
    del a, b, c


def test_list_pages(client):
    kept = client.put_many({f"p/{i:04}": [i] for i in range(300)})
    assert [one["name"] for one in client.list("p/")] == list(kept)


def test_holders(client, daemon):
    x = client.put("x", [1])
    holders = client.holders("x")
    assert [(one["pid"], one["uid"], one["access"]) for one in holders] == [
        (os.getpid(), os.getuid(), "r")
    ]
    assert {"pid", "command", "uid", "access", "since"} <= set(holders[0])
    other = daemon.client()
    y = other.attach("x", "c")
    assert sorted(one["access"] for one in client.holders("x")) == ["c", "r"]
    del x, y


def test_stats(client):
    before = client.stats()
    x = client.put("x", np.zeros(1 << 20, "u1"))
    after = client.stats()
    keys = "capacity used pooled arrays sessions fds fds_max uptime_s version uids".split()
    assert set(keys) <= set(after)
    assert after["arrays"] == before["arrays"] + 1
    assert after["used"] - before["used"] >= 1 << 20
    assert after["version"] == shmstore.__version__
    del x


def test_own_namespace_by_uid(client):
    x = client.put(f"~{os.getuid()}/x", [1])
    assert client.attach("x").tolist() == [1] and x.shm.name == "x"
    if os.getuid() != 0:
        with pytest.raises(shmstore.PermissionDenied):
            client.put("~4000000000/x", [1])
    with pytest.raises((shmstore.PermissionDenied, shmstore.NotFound)):
        client.attach("~4000000000/x")


def test_chmod(client):
    x = client.put("x", [1], perms=0o644)
    client.chmod("x", 0o600)
    assert client.info("x")["perms"] == "0600"
    client.chmod("x", 0o644)
    y = client.put("y", [1])
    with pytest.raises(shmstore.InvalidArgument):
        client.chmod("y", 0o644)
    del x, y


def test_watch(client):
    events = client.watch("w/")
    x = client.put("w/x", [1])
    y = client.put("elsewhere", [1])
    client.delete("w/x")
    seen = []
    for event in events:
        seen.append((event["event"], event["name"]))
        if event["event"] == "deleted":
            break
    assert seen == [("created", "w/x"), ("sealed", "w/x"), ("deleted", "w/x")]
    with pytest.raises(shmstore.TimedOut):
        events.next(timeout=0)
    assert isinstance(events.fileno(), int)
    del x, y


# --- limits ---------------------------------------------------------------------------------------


def test_capacity(tmp_path):
    from conftest import Daemon

    daemon = Daemon(tmp_path, "--capacity", "8M")
    try:
        client = daemon.client()
        with pytest.raises((shmstore.NoCapacity, shmstore.QuotaExceeded)) as caught:
            client.put("big", np.zeros(16 << 20, "u1"))
        assert isinstance(caught.value, MemoryError)
        assert re.search(r"asked for 1677\d{4}, \d+ free of 8388608 .* record", str(caught.value))
        x = client.put("x", np.zeros(6 << 20, "u1"))
        with pytest.raises(MemoryError):
            client.create("y", 6 << 20, "u1")
        assert [one["name"] for one in client.list()] == ["x"]
        assert shmstore.release(x)
        assert client.create("y", 6 << 20, "u1", timeout=None).nbytes == 6 << 20
        assert daemon.selfcheck()["clean"]
    finally:
        daemon.stop()


# --- the module's functions -----------------------------------------------------------------------


def test_functions_are_the_methods():
    for name in (
        "create put put_many cached attach attach_many list info exists holders wait watch delete "
        "keep unkeep chmod stats"
    ).split():
        function, method = getattr(shmstore, name), getattr(shmstore.Client, name)
        ours = list(inspect.signature(function).parameters.values())
        theirs = list(inspect.signature(method).parameters.values())[1:]
        assert ours == theirs, name
        assert function.__doc__ == method.__doc__ and function.__doc__


def test_the_readmes_lines(shm):
    a = shm.put("grid", np.arange(12.0).reshape(3, 4))
    with shm.create("field", (1024, 1024), "f8") as w:
        w[:] = 0
    x = shm.attach("grid")
    s = shm.create("counter", (4,), "i8", mutable=True)
    t = shm.cached("table:v3", lambda: np.eye(3))
    u = shm.cached("big:v1", lambda out: out.fill(2), shape=(5, 6), dtype="f4")
    both = shm.put_many({"a": x, "b": t})
    got = shm.attach_many(["a", "b"])
    assert np.array_equal(got["a"], a) and np.array_equal(got["b"], np.eye(3))
    assert (u == 2).all() and u.dtype == "f4" and s.flags.writeable
    assert {one["name"] for one in shm.list("")} >= {"grid", "field", "counter", "table:v3"}
    assert shm.info("grid")["name"] == "grid" and shm.exists("grid") and shm.holders("grid")
    assert shm.wait("grid", newer_than=0, timeout=5) == a.shm.version
    shm.keep("grid", ttl=60)
    shm.delete("grid")
    del both, got
    assert shm.release(x) is True and shm.stats()["arrays"] > 0
