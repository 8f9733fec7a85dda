"""Trees of names as trees of .npy files."""

import json
import os
import threading

import numpy as np
import pytest

from shmstore import Aborted, AlreadyExists, Busy, InvalidArgument, NotFound
from shmstore.persist import load, save


@pytest.fixture(autouse=True)
def store(shm):
    return shm


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


ARRAYS = {
    "grid": np.arange(12.0).reshape(3, 4),
    "deep/er/x": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "zero": np.array(7.5),
    "empty": np.empty((0, 3), "i2"),
    "fields": np.zeros(3, np.dtype([("a", "i1"), ("b", "f8", (2,)), ("c", "U3")])),
    "times": np.arange(5).astype("M8[ms]"),
    "swapped": np.arange(5, dtype=">f4"),
    "text": np.array(["a", "bcd"]),
}


def test_there_and_back(store, folder):
    held = store.put_many({"sim/" + name: array for name, array in ARRAYS.items()})
    written = save("sim/", folder)
    assert set(written) == set(held)
    for name, array in ARRAYS.items():
        path = folder / (name + ".npy")
        assert written["sim/" + name] == path
        found = np.load(path)
        assert found.dtype == array.dtype and np.array_equal(found, array)
        assert np.isfortran(found) == np.isfortran(array)
    loaded = load("back/", folder)
    assert set(loaded) == {"back/" + name for name in ARRAYS}
    for name, array in ARRAYS.items():
        found = store.attach("back/" + name)
        assert found.dtype == array.dtype and np.array_equal(found, array)
        assert found.shape == array.shape and np.isfortran(found) == np.isfortran(array)
        assert found.shm.state == "sealed" and not found.flags.writeable
    assert not [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".npy"]


def test_prefixes(store, folder):
    held = store.put_many({name: np.ones(2) for name in ("sim/run1", "sim/run2/a", "sim/b", "run")})
    assert set(save("sim/run", folder / "1")) == {"sim/run1", "sim/run2/a"}
    assert (folder / "1" / "run1.npy").exists() and (folder / "1" / "run2" / "a.npy").exists()
    assert set(save("", folder / "2")) == set(held)
    assert (folder / "2" / "sim" / "b.npy").exists()
    assert set(load("", folder / "1")) == {"run1", "run2/a"}
    assert set(load("x-", folder / "1")) == {"x-run1", "x-run2/a"}


def test_attrs_and_replacing_files(store, folder):
    first = store.put("a", np.ones(3), attrs={"unit": "m", "n": [1]})
    save("a", folder)
    assert json.loads((folder / "a.attrs.json").read_text()) == {"unit": "m", "n": [1]}
    del first
    [array] = load("b/", folder).values()
    assert store.info("b/a")["attrs"] == {"unit": "m", "n": [1]} and array.sum() == 3
    second = store.put("a", np.zeros(2))
    save("a", folder)
    assert np.load(folder / "a.npy").size == 2 and second.size == 2
    assert [path.name for path in folder.iterdir()] == ["a.npy"]


def test_files_have_the_usual_permissions(store, folder):
    held = store.put("a", np.ones(3))
    before = os.umask(0o027)
    try:
        save("a", folder)
    finally:
        os.umask(before)
    assert (folder / "a.npy").stat().st_mode & 0o777 == 0o640 and held.size == 3


def test_options_of_load(store, folder):
    np.save(folder / "a.npy", np.arange(3))
    load("", folder, keep=True)
    assert store.attach("a").tolist() == [0, 1, 2]
    with pytest.raises(AlreadyExists):
        load("", folder)
    np.save(folder / "a.npy", np.arange(4))
    load("", folder, keep=True, replace=True)
    assert store.attach("a").tolist() == [0, 1, 2, 3]
    mutable = load("m/", folder, mutable=True)["m/a"]
    mutable[0] = 9
    assert store.attach("m/a")[0] == 9 and mutable.shm.state == "mutable"


def test_drafts_and_anonymous_arrays_are_left_out(store, folder):
    draft, anonymous = store.create("draft", 3), store.put(None, np.ones(3))
    with pytest.raises(NotFound):
        save("", folder)
    assert list(folder.iterdir()) == [] and draft.size == anonymous.size
    with pytest.raises(NotFound):
        load("", folder)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions_of_the_format(store, folder, version):
    array = np.arange(6).reshape(2, 3)
    with open(folder / "a.npy", "wb") as file:
        np.lib.format.write_array(file, array, version)
    assert np.array_equal(load("", folder)["a"], array)


def test_bad_files(store, folder):
    array = np.arange(1000)
    np.save(folder / "a.npy", array)
    whole = (folder / "a.npy").read_bytes()
    np.save(folder / "a.npy", np.array([None, 1]), allow_pickle=True)
    objects = (folder / "a.npy").read_bytes()
    for damaged in (b"", b"\x93NUMPY", whole[:50], whole[:-1], b"x" * 1000, objects):
        (folder / "a.npy").write_bytes(damaged)
        with pytest.raises(InvalidArgument) as caught:
            load("", folder)
        assert "a.npy" in str(caught.value)
        assert not store.exists("a")
    (folder / "a.npy").write_bytes(whole)
    for name in (b"no name.npy", b".npy", b"\xff.npy", b"x" * 250 + b".npy"):
        os.rename(folder / "a.npy", os.fsencode(folder) + b"/" + name)
        with pytest.raises(InvalidArgument) as caught:
            load("much/too/long/", folder)
        assert f"/{os.fsdecode(name)}" in str(caught.value) and "name:" in str(caught.value)
        os.rename(os.fsencode(folder) + b"/" + name, folder / "a.npy")
    with pytest.raises(InvalidArgument, match="^perms:"):
        load("", folder, perms=0o777)


def test_a_name_too_long_for_its_attrs(store, folder):
    name = "n" * 250
    held = store.put(name, np.arange(3))
    save("n", folder)
    assert load("", folder, replace=True)[name].tolist() == held.tolist()


def test_names_that_are_no_paths(store, folder):
    held = store.put("x/./y", np.ones(3))
    with pytest.raises(InvalidArgument):
        save("x/", folder)
    assert held.size == 3 and not list(folder.rglob("*.npy"))


def test_a_failed_write_leaves_the_old_file(store, folder, monkeypatch):
    first = store.put("a", np.ones(3))
    save("a", folder)
    del first
    second = store.put("a", np.zeros(5))

    def fail(*_):
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):
        save("a", folder)
    assert [path.name for path in folder.iterdir()] == ["a.npy"]
    assert np.load(folder / "a.npy").tolist() == [1, 1, 1] and second.size == 5


def test_readers_see_whole_files_while_saving(store, folder):
    held = store.put("a", np.zeros(100000))
    save("a", folder)
    seen, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            seen.append(len(set(np.load(folder / "a.npy").tolist())))

    reader = threading.Thread(target=read)
    reader.start()
    for value in range(20):
        held = store.put("a", np.full(100000, float(value)), replace=True)
        save("a", folder)
    stop.set()
    reader.join()
    assert set(seen) == {1} and held.size == 100000


def test_another_client(daemon, folder, monkeypatch):
    client = daemon.client()
    monkeypatch.setenv("SHMSTORE_SOCKET", "/nowhere")
    held = client.put("a", np.arange(3))
    save("a", folder, client=client)
    assert load("b/", folder, client=client)["b/a"].tolist() == held.tolist()


def test_a_namespace_in_the_prefix_is_no_folder(store, folder):
    held = store.put("sim/abc", np.ones(3))
    assert save(f"~{os.getuid()}/sim/", folder) == {"sim/abc": folder / "abc.npy"}
    assert np.array_equal(np.load(folder / "abc.npy"), held)


@pytest.mark.skipif(os.getuid() != 0, reason="root only: reads what others own")
def test_arrays_of_others_get_a_folder_each(store, folder):
    held = [store.put("sim/abc", np.ones(3)), store.put("~4711/sim/abc", np.zeros(3))]
    written = save("sim/", folder)
    assert written["sim/abc"] == folder / "abc.npy"
    assert written["~4711/sim/abc"] == folder / "~4711" / "abc.npy"
    assert [np.load(path)[0] for path in written.values()] == [x[0] for x in held]


def test_what_is_made_anew_as_a_draft_meanwhile_is_left_out(store, folder):
    held = store.put("a", np.ones(3)), store.put("b", np.ones(3))

    class Client:
        """The real one, but between its list and the first attach the others act."""

        def list(self, prefix):
            entries = store.list(prefix)
            store.delete("a")
            self.draft = store.create("a", 3)
            return entries

        def attach(self, name, **options):
            return store.attach(name, **options)

    assert set(save("", folder, client=Client())) == {"b"}
    assert len(held) == 2


@pytest.mark.parametrize("content", ["{bad", "[1]", "\udc80"])
def test_damaged_attrs_name_their_file(folder, content):
    np.save(folder / "x.npy", np.arange(3))
    (folder / "x.attrs.json").write_text(content, errors="surrogateescape")
    with pytest.raises(InvalidArgument, match="file: .*x.attrs.json"):
        load("a/", folder)


def test_arrays_that_cannot_be_read_are_named(store, folder):
    held = store.put("m", np.arange(3), mutable=True, keep=True)
    del held
    with store.attach("m", "r+", exclusive=True), pytest.raises(Busy, match="'m' is held"):
        save("", folder)
    with pytest.raises(KeyError), store.attach("m", "r+", exclusive=True):
        raise KeyError
    with pytest.raises(Aborted, match="'m' is broken"):
        save("", folder)
    assert not list(folder.iterdir())
