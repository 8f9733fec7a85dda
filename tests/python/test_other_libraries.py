"""What other libraries make of a SharedArray: they ask for numpy's arrays in ways of their own."""

import copy
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

import shmstore
from shmstore import SharedArray


def test_the_class_is_found_under_its_own_name():
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for dumps in (pickle.dumps, pickle._dumps):
            assert pickle.loads(dumps(SharedArray, protocol)) is SharedArray
    assert str(SharedArray.__module__) == "shmstore" and repr(SharedArray).count("shmstore") == 1
    assert sys.modules[SharedArray.__module__] is shmstore
    module = pickle.loads(pickle.dumps(SharedArray.__module__))
    assert type(module) is str and module == "shmstore" != "numpy"
    assert SharedArray.__module__ != "torch"


def test_torchs_test_for_arrays_of_numpy_finds_these(client):
    """Its default_convert, as in torch/utils/data/_utils/collate.py."""
    data = client.put("x", np.arange(3))
    elem_type = type(data)
    assert elem_type.__module__ == "numpy" and elem_type.__name__ not in ("str_", "string_")
    assert "numpy" == elem_type.__module__ and not elem_type.__module__ != "numpy"


def test_torchs_collate_takes_them(client):
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, default_collate, default_convert

    x = client.put("x", np.arange(12.0).reshape(4, 3))
    assert isinstance(default_convert(x), torch.Tensor)
    assert isinstance(default_convert({"x": x})["x"], torch.Tensor)
    assert default_collate([x[0], x[1]]).tolist() == x[:2].tolist()
    batches = list(DataLoader(x, batch_size=2))
    assert torch.cat(batches).tolist() == x.tolist()


@pytest.mark.parametrize("how", [lambda x: x, lambda x: x[1:], lambda x: x.T, lambda x: x[:, ::2]])
def test_joblib_hashes_them_like_plain_arrays(client, how):
    joblib = pytest.importorskip("joblib")
    plain = np.arange(12.0).reshape(4, 3)
    x = client.put("x", plain)
    assert joblib.hash(how(x)) == joblib.hash(how(plain))
    assert joblib.hash({"a": [how(x)]}) == joblib.hash({"a": [how(plain)]})
    assert joblib.hash(how(x)) != joblib.hash(how(plain) + 1)


def test_joblibs_memory_knows_them_as_plain_arrays(client, tmp_path):
    joblib = pytest.importorskip("joblib")
    calls = []
    memory = joblib.Memory(tmp_path, verbose=0)

    @memory.cache
    def total(x):
        calls.append(type(x))
        return float(x.sum())

    plain = np.arange(12.0)
    assert total(plain) == total(client.put("x", plain)) == 66
    assert calls == [np.ndarray]


def test_the_class_they_say_they_are_does_no_harm(client):
    class Mine(SharedArray):
        pass

    x = client.put("x", np.arange(3))
    assert type(x) is SharedArray and x.__class__ is np.ndarray
    assert isinstance(x, SharedArray) and isinstance(x, np.ndarray) and not isinstance(x, Mine)
    assert x.view(Mine).__class__ is Mine and type(x[1:]) is SharedArray
    assert type(copy.copy(x)) is np.ndarray and repr(x) == "SharedArray([0, 1, 2])"


def test_other_subclasses_win(client):
    class Unit(np.ndarray):
        pass

    class Loud(np.ndarray):
        def __array_wrap__(self, array, context=None, return_scalar=False):
            return "loud"

    x, plain = client.put("x", np.arange(3.0)), np.arange(3.0)
    unit, loud = plain.view(Unit), plain.view(Loud)
    for a, b in ((x, unit), (unit, x)):
        assert type(a + b) is Unit and type(np.hypot(a, b)) is Unit
    assert x + loud == loud + x == "loud"
    for y in (x + plain, plain + x, x + x, x + 1, np.concatenate([x, plain]), -x, x @ x.T):
        assert type(y) in (np.ndarray, np.float64)
    assert type(x * np.matrix(plain)) is np.matrix
    assert type(x + np.ma.array(plain)) is np.ma.MaskedArray
    y = client.create("y", 3, mutable=True)
    y[:] = 1
    y += x
    assert type(y) is SharedArray and y.tolist() == [1, 2, 3]


# --- what share leaves ----------------------------------------------------------------------------


class Model:
    def __init__(self, weights):
        self.weights = weights


class Slotted:
    __slots__ = ("__weakref__", "parts")

    def __init__(self, parts):
        self.parts = parts


LARGE = 50000


def sparse():
    return pytest.importorskip("scipy.sparse").random(500, 500, 0.5, format="csr")


def forest():
    ensemble = pytest.importorskip("sklearn.ensemble")
    x = np.random.default_rng(1).random((2000, 5))
    return ensemble.RandomForestRegressor(10).fit(x, x.sum(axis=1))


def nearest():
    neighbors = pytest.importorskip("sklearn.neighbors")
    return neighbors.NearestNeighbors().fit(np.random.default_rng(1).random((LARGE, 3)))


LEFT = {
    "sparse": (sparse, "csr_"),
    "forest": (forest, "RandomForestRegressor"),
    "nearest": (nearest, "NearestNeighbors"),
    "object": (lambda: Model({"w": [np.zeros(LARGE)]}), "Model"),
    "slots": (lambda: Slotted((np.zeros(LARGE),)), "Slotted"),
    "in a list": (lambda: [1, Model(np.zeros(LARGE))], "Model"),
    "bytes": (lambda: Model(bytes(8 * LARGE)), "Model"),
    "objects": (lambda: np.array([None] * LARGE), "ndarray of dtype object"),
}


@pytest.mark.parametrize("what", LEFT)
def test_share_tells_what_it_leaves(shm, monkeypatch, what):
    monkeypatch.setattr("shmstore._report._told", set())
    make, text = LEFT[what]
    x = make()
    with pytest.warns(UserWarning, match=f"share does not put this {text}.* KiB|MiB") as caught:
        assert shm.share(x) is x
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shm.share(x)  # once for a kind


QUIET = [
    lambda: Model(np.zeros(10)), lambda: Slotted(()), lambda: [1, "a", b"c" * LARGE * 8],
    lambda: len, lambda: {"a": np.zeros(LARGE)}, lambda: Model([1] * LARGE),
    lambda: np.zeros(LARGE), lambda: np.array([None] * 10),
]  # fmt: skip


@pytest.mark.parametrize("make", QUIET)
def test_share_tells_nothing_of_what_is_small_or_shared(shm, recwarn, monkeypatch, make):
    monkeypatch.setattr("shmstore._report._told", set())
    x = make()
    shared = shm.share(x)
    shm.share(Model(shm.share(np.zeros(LARGE))))
    shm.share([shared, shared])
    assert not [one for one in recwarn if "share" in str(one.message)]


def test_an_object_is_not_resolved_for_the_report(shm, monkeypatch):
    class Proxy:
        @property
        def __class__(self):
            raise AssertionError("resolved")

        def __getattr__(self, name):
            raise AssertionError(name)

    assert shmstore._report.bytes_inside(Proxy())[0] == 0


def test_a_state_is_not_asked_for_the_report(shm):
    class Costly:
        __slots__ = ()
        asked = 0

        def __getstate__(self):
            Costly.asked += 1
            return {"large": np.zeros(LARGE)}

    shm.share([Costly(), Model(Costly())])
    assert Costly.asked == 0


def test_the_report_takes_no_time_for_many_objects(shm, monkeypatch):
    looks = []
    inside = shmstore._report.bytes_inside

    def counted(x, *limit):
        found = inside(x, *limit)
        looks.append((type(x), found[1]))
        return found

    monkeypatch.setattr("shmstore._report.bytes_inside", counted)
    shm.share([Model(i) for i in range(1000)])
    assert len(looks) == 20
    looks.clear()
    kinds = [type(f"Model{i}", (Model,), {}) for i in range(100)]
    shm.share([kind(list(range(900))) for kind in kinds])
    # The last one begins below the limit, and has 900.
    assert sum(objects for _, objects in looks) < 5000 + 1000 and len(looks) < 10


def test_share_tells_which_columns_it_leaves(shm, monkeypatch):
    pd = pytest.importorskip("pandas")
    monkeypatch.setattr("shmstore._report._told", set())
    frame = pd.DataFrame({"a": np.zeros(LARGE), "name": ["x"] * LARGE,
                          "kind": pd.Categorical(["y"] * LARGE)})  # fmt: skip
    with pytest.warns(UserWarning, match="DataFrame: columns 'name', 'kind' into the store"):
        shared = shm.share(frame)
    assert shared.equals(frame)
    monkeypatch.setattr("shmstore._report._told", set())
    with pytest.warns(UserWarning, match="this Series into the store"):
        shm.share(frame["name"])


def test_what_is_shared_twice_is_not_told(shm, recwarn, monkeypatch):
    pa, pd = pytest.importorskip("pyarrow"), pytest.importorskip("pandas")
    monkeypatch.setattr("shmstore._report._told", set())
    for x in (np.zeros(LARGE), pa.array(np.zeros(LARGE)), pd.Series(np.zeros(LARGE)),
              np.ma.masked_less(np.zeros(LARGE), 1), np.zeros(LARGE).view(np.matrix)):  # fmt: skip
        shared = shm.share(x)
        assert shm.share(shared) is shared and shm.share([shared])[0] is shared
    assert not [one for one in recwarn if "share" in str(one.message)]


def test_share_keeps_masks(shm):
    x = np.ma.masked_less(np.arange(float(LARGE)), 100)
    y = pickle.loads(pickle.dumps(shm.share(x)))
    assert type(y) is np.ma.MaskedArray and (y.mask == x.mask).all() and y.sum() == x.sum()


def test_a_program_sees_the_report(daemon):
    text = (
        "import numpy as np, shmstore as shm\n"
        "class Model: pass\n"
        "m = Model(); m.w = np.zeros(50000)\n"
        "shm.share(m); shm.share(m)\n"
    )
    done = subprocess.run([sys.executable, "-c", text], env=daemon.environment(),
                          capture_output=True, text=True)  # fmt: skip
    assert done.stderr.count("share does not put this Model into the store") == 1, done
