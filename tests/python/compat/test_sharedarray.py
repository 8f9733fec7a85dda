"""shmstore.compat.sharedarray does what SharedArray does; where SharedArray is installed, it is the
reference for the behaviour and for the files."""

import ctypes
import errno
import importlib.util
import mmap
import os
import pickle
import sysconfig

import numpy as np
import pytest

from shmstore.compat import sharedarray as sa

#: A program as SharedArray's manual shows it; only the import line is ours.
PROGRAM = """
import shmstore.compat.sharedarray as sa
a = sa.create("shm://test", 10)
b = sa.attach("shm://test")
a[0] = 42
assert b[0] == 42
del a
assert b[0] == 42
[entry] = sa.list()
assert (entry.name, entry.dtype.__name__, entry.dims) == (b"test", "float64", (10,))
sa.delete("test")
assert b[0] == 42
assert sa.list() == ()
"""


@pytest.fixture
def store(shm):
    """The default client is the test's daemon's."""
    return shm


def upstream():
    """The module SharedArray, if it is installed."""
    folder = sysconfig.get_path("platlib")
    for entry in os.listdir(folder):
        if entry.startswith("SharedArray.") and entry.endswith(".so"):
            path = os.path.join(folder, entry)
            spec = importlib.util.spec_from_file_location("SharedArray", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    return pytest.skip("SharedArray is not installed")


def test_a_program_runs_with_the_import_line_changed(script):
    result = script(PROGRAM)
    assert result.returncode == 0, result.stderr


def test_two_processes_share_the_memory(store, script):
    a = sa.create("shm://both", (2, 3), np.int32)
    result = script(
        "import shmstore.compat.sharedarray as sa\n"
        "b = sa.attach('both')\n"
        "assert b.shape == (2, 3) and b.dtype == 'i4' and not b.any()\n"
        "b[1, 2] = 7\n"
    )
    assert result.returncode == 0, result.stderr
    assert a[1, 2] == 7


def test_an_array_outlives_its_creator_until_it_is_deleted(store, script):
    result = script("import shmstore.compat.sharedarray as sa\nsa.create('left', 4)[:] = 5")
    assert result.returncode == 0, result.stderr
    assert sa.attach("left").tolist() == [5, 5, 5, 5]
    sa.delete("left")
    with pytest.raises(FileNotFoundError):
        sa.attach("left")


def test_arrays_are_plain_with_a_base(store):
    a = sa.create("shm://plain", (3, 4))
    assert type(a) is np.ndarray
    assert a.dtype == float and a.flags.c_contiguous and a.flags.writeable and not a.any()
    assert a.base.name == "shm://plain"
    assert a.base.addr == a.ctypes.data
    assert a.base.size >= a.nbytes
    assert type(pickle.loads(pickle.dumps(a))) is np.ndarray
    copied = pickle.loads(pickle.dumps(a))
    copied[0, 0] = 1
    assert a[0, 0] == 0


def test_it_is_an_array_of_the_store(store):
    a = sa.create("shm://tree/x", 4, "i8")
    store.attach("tree/x", "r+")[2] = 9
    assert a.tolist() == [0, 0, 9, 0]
    assert store.info("tree/x")["kept"]
    store.put("sealed", np.arange(3), keep=True)
    assert sa.attach("sealed", ro=True).tolist() == [0, 1, 2]
    with pytest.raises(PermissionError) as caught:
        sa.attach("sealed")
    assert caught.value.errno == errno.EACCES and caught.value.filename == "sealed"


FIELDS = [("a", "i4"), ("b", "f8")]


@pytest.mark.parametrize("dtype", ["?", "f2", "c16", ">i4", "S5", "U3", "M8[s]", FIELDS])
def test_dtypes_are_kept(store, tmp_path, dtype):
    for name in ("shm://d", f"file://{tmp_path}/d"):
        a = sa.create(name, 3, dtype)
        b = sa.attach(name)
        assert a.dtype == b.dtype == np.dtype(dtype)
        a[1] = np.ones(1, dtype)[0]
        assert b[1] == a[1]
        sa.delete(name)


@pytest.mark.parametrize("shape", [(), 0, 5, (2, 0, 3), [2, 3], np.int64(4), (1,) * 20])
def test_shapes(store, tmp_path, shape):
    for name in ("shm://s", f"file://{tmp_path}/s"):
        a = sa.create(name, shape)
        assert sa.attach(name).shape == a.shape == np.zeros(shape).shape
        assert not a.any()


def test_a_new_array_is_zero_where_an_old_one_was_not(store):
    for _ in range(20):
        a = sa.create("dirty", 1 << 16)
        assert not a.any()
        a[:] = 1
        sa.delete("dirty")
        del a


def test_read_only(store, tmp_path):
    for name in ("shm://ro", f"file://{tmp_path}/ro"):
        sa.create(name, 3)
        b = sa.attach(name, ro=True)
        assert not b.flags.writeable
        with pytest.raises(ValueError):
            b[0] = 1
        with pytest.raises(ValueError):
            b.flags.writeable = True


def outcomes(module, folder):
    """What calls raise, as far as SharedArray's behaviour is defined."""
    calls = {
        "exists": lambda: (module.create("hx-one", 3), module.create("hx-one", 3)),
        "attach missing": lambda: module.attach("hx-none"),
        "attach missing, prefix": lambda: module.attach("shm://hx-none"),
        "delete missing": lambda: module.delete("hx-none"),
        "other prefix": lambda: module.create("ftp://x", 3),
        "attach, other prefix": lambda: module.attach("ftp://x"),
        "delete, other prefix": lambda: module.delete("ftp://x"),
        "empty name": lambda: module.create("", 3),
        "long name": lambda: module.create("x" * 300, 3),
        "name not text": lambda: module.create(5, 3),
        "no shape": lambda: module.create("hx-s", None),
        "shape a float": lambda: module.create("hx-s", 1.5),
        "shape text": lambda: module.create("hx-s", "a"),
        "no such dtype": lambda: module.create("hx-d", 3, "nodtype"),
        "empty elements": lambda: module.create("hx-d", 3, "V0"),
        "no array": lambda: module.attach(f"file://{folder}/text"),
        "delete no array": lambda: module.delete(f"file://{folder}/text"),
        "short file": lambda: module.attach(f"file://{folder}/short"),
        "missing file": lambda: module.attach(f"file://{folder}/none"),
        "no folder": lambda: module.create(f"file://{folder}/none/x", 3),
    }
    (folder / "text").write_bytes(b"text" * 1000)
    (folder / "short").write_bytes(b"text")
    found = {}
    for name, call in calls.items():
        try:
            call()
            found[name] = None
        except Exception as error:
            more = getattr(error, "errno", None), getattr(error, "filename", None)
            found[name] = type(error), *more
    try:
        module.delete("hx-one")
    except OSError:
        pass
    return found


def test_exceptions(store, tmp_path):
    found = outcomes(sa, tmp_path)
    missing = str(tmp_path)
    assert found["exists"] == (FileExistsError, errno.EEXIST, "hx-one")
    assert found["attach missing"] == (FileNotFoundError, errno.ENOENT, "hx-none")
    assert found["attach missing, prefix"] == (FileNotFoundError, errno.ENOENT, "shm://hx-none")
    assert found["delete missing"] == (FileNotFoundError, errno.ENOENT, "hx-none")
    assert found["other prefix"] == (OSError, errno.EINVAL, "ftp://x")
    assert found["no array"] == (OSError, None, None)
    assert found["missing file"] == (FileNotFoundError, errno.ENOENT, f"file://{missing}/none")
    assert found["empty elements"][0] is ValueError
    with pytest.raises(ValueError):
        sa.create("hx-n", -3)
    with pytest.raises(ValueError):
        sa.create("hx-o", 3, object)
    with pytest.raises(OSError) as caught:
        sa.create("hx-big", 1 << 55)
    assert caught.value.errno in (errno.ENOMEM, errno.EINVAL)


def test_exceptions_are_those_of_sharedarray(store, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    theirs, ours = outcomes(upstream(), tmp_path / "a"), outcomes(sa, tmp_path / "b")

    def general(found):
        return {k: v and (*v[:2], v[2] and v[2].replace("/b/", "/a/")) for k, v in found.items()}

    assert general(ours) == general(theirs)


def test_the_modules_have_the_same_names():
    names = {name for name in dir(upstream()) if not name.startswith("_")}
    assert names <= set(dir(sa))
    for name in ("MS_ASYNC", "MS_SYNC", "MS_INVALIDATE"):
        assert getattr(sa, name) == getattr(upstream(), name)


def test_files_are_exchanged_with_sharedarray(store, tmp_path):
    theirs = upstream()
    for number, dtype in enumerate(["f8", "i4", "c8", "?", "S5", "U3"]):
        name = f"file://{tmp_path}/ours{number}"
        a = sa.create(name, (2, 3), dtype)
        a[1, 1] = np.ones(1, dtype)[0]
        b = theirs.attach(name)
        assert b.shape == (2, 3) and b.dtype == dtype and (a == b).all()
        b[0, 0] = a[1, 1]
        assert a[0, 0] == a[1, 1]
        theirs.delete(name)
        name = f"file://{tmp_path}/theirs{number}"
        b = theirs.create(name, (2, 3), dtype)
        b[1, 1] = np.ones(1, dtype)[0]
        a = sa.attach(name)
        assert a.shape == (2, 3) and a.dtype == dtype and (a == b).all()
        sa.delete(name)
        assert not os.path.exists(f"{tmp_path}/theirs{number}")


def test_list(store):
    a = sa.create("one", (2, 3), "i4")
    sa.create("shm:///slash", ())
    draft = store.create("draft", 3)
    with store.create("sealed", 4, "u1"):
        pass
    entries = {entry.name: entry for entry in sa.list()}
    assert isinstance(sa.list(), tuple) and isinstance(sa.list()[0], tuple)
    assert set(entries) == {b"one", b"slash"}
    assert entries[b"one"] == (b"one", np.int32, (2, 3))
    shown = "ArrayDesc(name=b'one', dtype=<class 'numpy.int32'>, dims=(2, 3))"
    assert repr(entries[b"one"]) == shown
    assert a is not None and draft is not None
    for entry in sa.list():
        sa.delete(entry.name.decode())
    assert sa.list() == ()


NAMES = ["with space", "-dash", "~tilde", "a=b", "ü", "a..b", "x=41", "50%"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name(store, name):
    sa.create(name, 3)[0] = 1
    assert sa.attach("shm://" + name)[0] == 1
    assert [entry.name.decode() for entry in sa.list()] == [name]
    sa.delete(name)
    assert sa.list() == ()


def test_msync_mlock_munlock(store, tmp_path):
    reason = why_nothing_can_be_locked()
    for name in ("shm://locked", f"file://{tmp_path}/locked"):
        a = sa.create(name, 10000)
        for flags in (sa.MS_SYNC, sa.MS_ASYNC, sa.MS_SYNC | sa.MS_INVALIDATE):
            a.base.msync(flags)
            a.base.msync(flags=flags)
            sa.msync(a, flags)
        with pytest.raises(OSError) as caught:
            a.base.msync(99)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(TypeError):
            a.base.msync()
        if reason:
            continue
        a.base.mlock()
        assert locked_kib() > 0
        a.base.munlock()
        sa.mlock(a[5:])  # of the whole array, as the base has it
        sa.munlock(a[5:])
        assert locked_kib() == 0
        with pytest.raises(AttributeError):
            a.base.name = "other"
    with pytest.raises(ValueError):
        sa.mlock(np.zeros(3))
    if reason:
        pytest.skip(f"all but mlock passed; this process may lock no memory: {reason}")


def why_nothing_can_be_locked():
    """What mlock(2) of a few pages says here; None when it works."""
    with mmap.mmap(-1, 5 * mmap.PAGESIZE) as pages:
        address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(len(pages))) == 0:
            libc.munlock(ctypes.c_void_p(address), ctypes.c_size_t(len(pages)))
            return None
        return os.strerror(ctypes.get_errno())


def locked_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmLck"))


def test_a_damaged_file_is_no_array(tmp_path):
    name = f"file://{tmp_path}/x"
    sa.create(name, (4, 4))
    whole = (tmp_path / "x").read_bytes()
    rng = np.random.default_rng(5)
    for cut in (0, 1, 100, mmap.PAGESIZE, len(whole) - 1):
        (tmp_path / "x").write_bytes(whole[cut + 1 :] if cut else b"")
        outcome(name)
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 4):
            damaged[place] ^= int(rng.integers(1, 256))
        (tmp_path / "x").write_bytes(damaged)
        outcome(name)


def outcome(name):
    """An array that lies in the file, or OSError."""
    try:
        array = sa.attach(name, ro=True)
    except OSError:
        return
    assert array.nbytes <= array.base.size
    array.sum()


def test_import_starts_nothing(script):
    result = script(
        "import shmstore.compat.sharedarray as sa, sys\n"
        "assert 'pyarrow' not in sys.modules and 'pandas' not in sys.modules\n",
        env={**os.environ, "SHMSTORE_SOCKET": "/nowhere"},
    )
    assert result.returncode == 0, result.stderr


def test_who_looks_into_dev_shm_is_told_where_the_array_is(store):
    sa.create("here", 3)
    with pytest.raises(FileExistsError, match=r"not in /dev/shm; shmstore.exists\('here'\)"):
        sa.create("here", 3)
    assert store.exists("here")
    sa.delete("here")
