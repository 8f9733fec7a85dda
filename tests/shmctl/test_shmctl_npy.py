"""import and export of .npy files, checked against numpy's own reader and writer."""

import io
import os
import stat
import subprocess

import numpy as np
import pytest
from conftest import SHMCTL, environment

FIELDS = np.dtype([("x", "<f4"), ("n", ">i2", (2, 3)), ("t", "M8[ns]")])
ALIGNED = np.dtype([("a", "u1"), ("b", "<i4"), ("c", "S3")], align=True)
NESTED = np.dtype([("p", [("x", "<f8"), ("y", "<f8")]), (("a title", "q"), "<i8")])

ARRAYS = {
    "plain": np.arange(12.0).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(12, dtype="i4").reshape(3, 4)),
    "scalar": np.array(3.5),
    "empty": np.zeros((2, 0, 3), "u2"),
    "big endian": np.arange(5, dtype=">f8"),
    "bool": np.array([True, False, True]),
    "complex": np.array([1 + 2j, -3j], "c8"),
    "half": np.linspace(0, 1, 7, dtype="f2"),
    "longdouble": np.linspace(0, 1, 7, dtype="g"),
    "bytes": np.array([b"one", b"three"]),
    "text": np.array(["één", "日本"]),
    "times": np.array(["2024-05-01", "NaT"], "M8[ns]"),
    "spans": np.array([1, 2], "m8[25s]"),
    "void": np.frombuffer(b"abcdef", "V3"),
    "fields": np.zeros(3, FIELDS),
    "aligned": np.ones(4, ALIGNED),
    "nested": np.ones(2, NESTED),
    "unicode fields": np.zeros(2, [("größe", "<f4"), ("日本", "u1")]),
    "latin fields": np.zeros(2, [("größe", "<f4")]),
    "many fields": np.zeros(2, [(f"field{i}", "u1") for i in range(300)]),
    "40 dims": np.arange(4.0).reshape((1,) * 38 + (2, 2)),
    "3 MiB": np.arange(3 << 17, dtype="u8"),
}


def npy_bytes(array, version=None):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.filterwarnings("ignore:Stored array in format")
def test_there_and_back(store, tmp_path, name):
    array = ARRAYS[name]
    source, target = tmp_path / "in.npy", tmp_path / "out.npy"
    source.write_bytes(npy_bytes(array))
    store.ctl("import", source, "x")
    info = store.json("info", "x")
    assert info["shape"] == list(array.shape)
    assert info["nbytes"] == array.nbytes
    store.ctl("export", "x", target)
    back = np.load(target)
    assert back.dtype == array.dtype and back.shape == array.shape
    assert back.flags.f_contiguous == array.flags.f_contiguous
    assert back.tobytes("A") == array.tobytes("A")
    data = target.stat().st_size - array.nbytes
    assert data % 64 == 0  # aligned, so that it can be mapped


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format_is_read(store, tmp_path, version):
    array = np.arange(6, dtype="i2").reshape(2, 3)
    source = tmp_path / "in.npy"
    source.write_bytes(npy_bytes(array, version))
    store.ctl("import", source, "x")
    store.ctl("export", "x", tmp_path / "out.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), array)


def test_a_header_of_python_2(store, tmp_path):
    header = b"{'descr': '<i4', 'fortran_order': False, 'shape': (2L, 3L), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    source = tmp_path / "in.npy"
    source.write_bytes(b"\x93NUMPY\x01\x00" + bytes([118, 0]) + header + bytes(24))
    store.ctl("import", source, "x")
    assert store.json("info", "x")["shape"] == [2, 3]


def test_pipes(store):
    array = np.arange(1000.0)
    assert "imported x" in store.ctl("import", "-", "x", stdin=npy_bytes(array))
    done = subprocess.run(
        [SHMCTL, "--socket", store.socket, "export", "x", "-"],
        capture_output=True,
        env=environment(),
        check=True,
    )
    np.testing.assert_array_equal(np.load(io.BytesIO(done.stdout)), array)


def test_what_follows_the_data_is_left_alone(store, tmp_path):
    source = tmp_path / "in.npy"
    source.write_bytes(npy_bytes(np.arange(3.0)) + npy_bytes(np.arange(4.0)))
    assert "(3,), 24 B" in store.ctl("import", source, "x")


def test_import_options(store, tmp_path):
    source = tmp_path / "in.npy"
    np.save(source, np.arange(3.0))
    info = store.json("import", source, "x", "--mutable", "--attrs", '{"a":1}', "--ttl", "60")
    assert info["state"] == "mutable" and info["attrs"] == {"a": 1} and info["kept"] is True
    assert store.refused("import", source, "x")[0] == "already_exists"
    assert store.json("import", source, "x", "--replace")["version"] == info["version"] + 1


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "ends 8 bytes too early"),
        (b"PK\x03\x04 not a numpy file", "is no .npy file"),
        (b"\x93NUMPY\x04\x00" + bytes(10), "version 4"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "too early"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "over 1 MiB"),
        (b"\x93NUMPY\x01\x00\x04\x00oops", "no dictionary"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f8'}", "lacks"),
        (b"\x93NUMPY\x01\x00\x0b\x00{'what': 1}", "unknown key"),
        (b"\x93NUMPY\x01\x00\x0f\x00{'shape': (-1)}", "shape is damaged"),
        (npy_bytes(np.arange(10.0))[:-1], "ends 1 byte too early"),
        (npy_bytes(np.array([None, "x"])), "objects cannot be shared"),
        (npy_bytes(np.zeros(2, [("a", "i4"), ("o", "O")])), "objects cannot be shared"),
    ],
)
def test_files_that_are_refused(store, tmp_path, content, says):
    source = tmp_path / "in.npy"
    source.write_bytes(content)
    code, text = store.refused("import", source, "x")
    assert code == "invalid_argument" and says in text
    assert store.json("ls") == []
    # A pipe's length is not known before: the draft has to go again.
    code, text = store.refused("import", "-", "x", stdin=content)
    assert code == "invalid_argument" and says in text
    assert store.json("ls") == []


def test_files_that_cannot_be_opened(store, tmp_path):
    code, text = store.refused("import", tmp_path / "none.npy", "x")
    assert code == "not_found" and str(tmp_path / "none.npy") in text
    code, _ = store.refused("import", tmp_path, "x")
    assert code == "invalid_argument"


# --- export --------------------------------------------------------------------------------------


@pytest.fixture
def grid(store):
    store.ctl("create", "grid", "--shape", "3,4", "--dtype", "f8", "--fill", "2")
    return "grid"


def test_export_says_what_it_wrote(store, grid, tmp_path):
    target = tmp_path / "g.npy"
    assert store.ctl("export", grid, target) == (
        f"exported grid to {target}: float64 (3, 4), 96 B\n"
    )
    answer = store.json("export", grid, target)
    assert answer == {"name": "grid", "file": str(target), "version": 1, "nbytes": 96}
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~current_umask()
    assert os.listdir(tmp_path) == ["g.npy"]


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_export_replaces_a_file_and_follows_links(store, grid, tmp_path):
    target, link = tmp_path / "g.npy", tmp_path / "link.npy"
    target.write_bytes(b"old" * 1000)
    link.symlink_to(target)
    store.ctl("export", grid, link)
    assert link.is_symlink()
    assert np.load(target).shape == (3, 4)
    assert sorted(os.listdir(tmp_path)) == ["g.npy", "link.npy"]


def test_export_writes_into_a_pipe_as_it_is(store, grid, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writing = subprocess.Popen(
        [SHMCTL, "--socket", store.socket, "export", grid, fifo],
        env=environment(),
        stdout=subprocess.DEVNULL,
    )
    with open(fifo, "rb") as file:
        content = file.read()
    assert writing.wait(60) == 0
    assert np.load(io.BytesIO(content)).shape == (3, 4)
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_export_that_fails_leaves_nothing(store, grid, tmp_path):
    target = tmp_path / "none" / "g.npy"
    assert store.refused("export", grid, target)[0] == "not_found"
    assert store.refused("export", grid, tmp_path)[0] == "invalid_argument"
    assert store.refused("export", grid, "/dev/full")[0] == "no_capacity"
    assert store.refused("export", "none", tmp_path / "g.npy")[0] == "not_found"
    assert os.listdir(tmp_path) == []
    assert store.json("info", grid)["leases"] == 0


def test_export_of_a_draft_is_refused(store, tmp_path):
    child = store.holder("shm.create('x', (4,), 'f8')")
    code, text = store.refused("export", "x", tmp_path / "x.npy")
    assert code == "not_sealed" and "draft" in text
    assert os.listdir(tmp_path) == []
    child.kill()


def test_export_of_a_mutable_array(store, tmp_path):
    store.ctl("create", "x", "--shape", "2", "--dtype", "f8", "--mutable", "--fill", "7")
    store.ctl("export", "x", tmp_path / "x.npy")
    assert np.load(tmp_path / "x.npy").tolist() == [7, 7]
