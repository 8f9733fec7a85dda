"""Pickling with the data on purpose, and the warning about handles in files."""

import asyncio
import io
import os
import pickle
import shelve
import subprocess
import sys
import tempfile
import threading
import types
import warnings

import numpy as np
import pytest

import shmstore
from shmstore import SharedArray, _by_value


@pytest.fixture(autouse=True)
def not_warned(monkeypatch):
    monkeypatch.setattr(_by_value, "_warned", False)
    monkeypatch.setattr(_by_value, "_looks", 0)
    monkeypatch.setattr(_by_value, "_look_again", 0.0)


def is_plain(data, x):
    y = pickle.loads(data)
    return type(y) is np.ndarray and np.array_equal(x, y)


def test_by_value_is_a_context(client):
    x = client.put("x", np.arange(20.0))
    with shmstore.by_value():
        assert is_plain(pickle.dumps(x), x) and is_plain(pickle.dumps(x[1:]), x[1:])
        with shmstore.by_value():
            pass
        assert is_plain(pickle.dumps(x), x)
    assert len(pickle.dumps(x)) < 200
    with pytest.raises(KeyError), shmstore.by_value():
        raise KeyError
    assert type(pickle.loads(pickle.dumps(x))) is SharedArray

    @shmstore.by_value()
    def save(array):
        return pickle.dumps(array)

    assert is_plain(save(x), x) and is_plain(save(x), x)


def test_by_value_of_what_share_makes(shm):
    masked = np.ma.masked_less(np.arange(50000.0), 100)
    for x in (masked, np.arange(50000.0).view(np.matrix), [np.arange(50000.0)]):
        shared = shm.share(x, 1)
        assert len(pickle.dumps(shared)) < 1000
        with shm.by_value():
            data = pickle.dumps(shared)
        assert len(data) > 400000 and type(pickle.loads(data)) is type(x)


def test_by_value_of_frames(shm):
    pd = pytest.importorskip("pandas")
    frame = shm.share(pd.DataFrame({"a": np.arange(50000.0)}))
    assert len(pickle.dumps(frame)) < 2000
    with shm.by_value():
        data = pickle.dumps(frame)
    assert len(data) > 400000 and pickle.loads(data).equals(frame)


def test_by_value_holds_for_one_thread_and_one_task(client):
    x = client.put("x", np.arange(20.0))
    with shmstore.by_value():
        found = []
        thread = threading.Thread(target=lambda: found.append(pickle.dumps(x)))
        thread.start()
        thread.join()
    assert not is_plain(found[0], x)

    async def save(event, other):
        with shmstore.by_value():
            event.set()
            await other.wait()
            return pickle.dumps(x)

    async def send(event, other):
        await event.wait()
        data = pickle.dumps(x)
        other.set()
        return data

    async def main():
        one, two = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(save(one, two), send(one, two))

    saved, sent = asyncio.run(main())
    assert is_plain(saved, x) and not is_plain(sent, x)


def test_dump_writes_the_data(client, tmp_path):
    x = client.put("x", np.arange(20.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x.dump(str(tmp_path / "x"))
        x[3:].dump(tmp_path / "y")
        with open(tmp_path / "z", "wb") as file:
            x.dump(file)
    assert is_plain((tmp_path / "x").read_bytes(), x)
    assert is_plain((tmp_path / "y").read_bytes(), x[3:])
    assert is_plain((tmp_path / "z").read_bytes(), x)
    assert is_plain(x.dumps(), x)


def by_pickle(x, path):
    with open(path, "wb") as file:
        pickle.dump({"what": [x]}, file)


def by_python_pickle(x, path):
    with open(path, "wb") as file:
        pickle._dump(x, file)


def by_unbuffered(x, path):
    files = [open(path, "wb", 0)]  # noqa: SIM115 - no variable of its own
    pickle.Pickler(files[0]).dump(x)
    files[0].close()


def by_gzip(x, path):
    import gzip

    with gzip.open(path, "wb") as file:
        pickle.dump(x, file)


def by_joblib(x, path):
    pytest.importorskip("joblib").dump([x], path)


def by_joblib_compressed(x, path):
    pytest.importorskip("joblib").dump(x, path, compress=3)


def by_cloudpickle(x, path):
    with open(path, "wb") as file:
        pytest.importorskip("cloudpickle").dump(x, file)


def by_shelve(x, path):
    with shelve.open(path) as shelf:
        shelf["x"] = x


def by_torch(x, path):
    pytest.importorskip("torch").save(x, path)


WRITERS = [by_pickle, by_python_pickle, by_unbuffered, by_gzip, by_joblib, by_joblib_compressed,
           by_cloudpickle, by_shelve, by_torch]  # fmt: skip


@pytest.mark.parametrize("write", WRITERS)
def test_a_handle_written_to_a_file_is_told_once(client, tmp_path, write):
    x = client.put("x", np.arange(20.0))
    path = str(tmp_path / "file")
    with pytest.warns(UserWarning, match="is a handle of array 'x', not its data") as caught:
        write(x, path)
    assert any(name in str(caught[0].message) for name in (path, "shelve", "torch"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(x, path)


@pytest.mark.parametrize("write", WRITERS)
def test_nothing_is_told_of_data(client, tmp_path, write):
    x = client.put("x", np.arange(20.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with shmstore.by_value():
            write(x, str(tmp_path / "file"))


def test_the_warning_names_the_users_line(client, tmp_path):
    x = client.put("x", np.arange(20.0))
    with pytest.warns(UserWarning) as caught:
        by_pickle(x, tmp_path / "file")
    assert caught[0].filename == __file__


def test_nothing_is_told_of_what_goes_to_no_file(client):
    x = client.put("x", np.arange(20.0))
    read, write = os.pipe()
    with warnings.catch_warnings(), os.fdopen(write, "wb") as pipe:
        warnings.simplefilter("error")
        for send in (pickle.dumps, lambda x: pickle.dump(x, io.BytesIO()),
                     lambda x: pickle.dump(x, pipe)):  # fmt: skip
            send(x)
    os.close(read)


def test_a_file_is_told_right_after_pickles_in_memory(client, tmp_path):
    x = client.put("x", np.arange(20.0))
    for _ in range(49):
        pickle.dumps(x)
    with pytest.warns(UserWarning, match="is a handle of array 'x'"):
        by_pickle(x, tmp_path / "file")


def test_a_warning_that_raises_leaves_no_handle_in_flight(client, tmp_path):
    x = client.put("x", np.arange(20.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="is a handle of array 'x'"):
            by_pickle(x, tmp_path / "file")
    assert client.info("x")["in_flight"] == 0


class Clock:
    now = 1000.0

    def monotonic(self):
        return self.now


def test_looking_for_files_takes_a_hundredth_of_the_time(monkeypatch):
    clock, looks, takes = Clock(), [], 0.0

    def look():
        looks.append(clock.now)
        clock.now += takes

    monkeypatch.setattr(_by_value, "time", clock)
    monkeypatch.setattr(_by_value, "_file_of_pickler", look)
    for _ in range(100):
        _by_value.warn_of_file("x")
    assert len(looks) == 50  # The first have no limit.
    for takes, pause in ((0.0, 0.1), (0.5, 50.0)):
        clock.now += 1000
        looks.clear()
        _by_value.warn_of_file("x")
        clock.now += pause * 0.99
        _by_value.warn_of_file("x")
        assert len(looks) == 1, (takes, pause)
        clock.now += pause * 0.02
        _by_value.warn_of_file("x")
        assert len(looks) == 2, (takes, pause)


def test_many_young_objects_are_not_looked_through(client, monkeypatch):
    """As where the garbage collector is disabled."""
    x = client.put("x", np.arange(20.0))
    asked = []
    count = [20_001, 0, 0]
    collector = types.SimpleNamespace(
        get_count=lambda: count,
        get_objects=lambda generation: asked.append(generation) or [],
        get_referents=lambda _: [],
    )
    monkeypatch.setattr(_by_value, "gc", collector)
    pickle.dumps(x)
    assert asked == []
    count[0] = 20_000
    pickle.dumps(x)
    assert asked == [0, 1]


class Remote:
    """A file of the user's."""

    def __init__(self, fileno):
        self.data, self._fileno = b"", fileno

    def write(self, data):
        self.data += bytes(data)

    def fileno(self):
        return self._fileno()


@pytest.mark.parametrize("kind", [NotImplementedError, RuntimeError, KeyError])
def test_a_file_may_raise_what_it_likes_when_it_is_asked(client, kind):
    def fileno():
        raise kind("no")

    x = client.put("x", np.arange(20.0))
    for dump in (pickle.dump, pickle._dump):
        remote = Remote(fileno)
        dump(x, remote)
        assert np.array_equal(pickle.loads(remote.data), x)


def test_a_spooled_file_stays_in_memory(client):
    x = client.put("x", np.arange(20.0))
    for dump in (pickle.dump, pickle._dump):
        with tempfile.SpooledTemporaryFile(1 << 20) as file:
            dump(x, file)
            assert not file._rolled


def test_nothing_is_told_of_a_file_without_a_name(client):
    """A program reads it while it runs, or hands it to others."""
    x = client.put("x", np.arange(20.0))
    with warnings.catch_warnings(), tempfile.TemporaryFile() as file:
        warnings.simplefilter("error")
        pickle.dump(x, file)
        with os.fdopen(os.memfd_create("x"), "wb") as memory:
            pickle.dump(x, memory)


def test_a_program_sees_the_warning(daemon, tmp_path):
    text = (
        "import pickle, sys, numpy as np, shmstore as shm\n"
        "x = shm.put('x', np.zeros(3))\n"
        "with open(sys.argv[1], 'wb') as file: pickle.dump(x, file)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text, str(tmp_path / "file")],
        env=daemon.environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "is a handle of array 'x'" in done.stderr, done
