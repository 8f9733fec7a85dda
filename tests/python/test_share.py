"""share: what goes into the store, what comes back, and that it pickles by handle."""

import copyreg
import dataclasses
import gc
import os
import pickle
import threading
from collections import OrderedDict, defaultdict, namedtuple

import numpy as np
import pytest
from conftest import Daemon

from shmstore import InvalidArgument, SharedArray, sharing
from shmstore.sharing import in_store, share

pytestmark = pytest.mark.filterwarnings("ignore:the matrix subclass")

LARGE = 40000  # elements of 8 bytes: more than MIN_BYTES
Pair = namedtuple("Pair", "left right")


@dataclasses.dataclass
class Model:
    weights: np.ndarray
    name: str = "m"
    parts: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Frozen:
    data: np.ndarray
    __slots__ = ("data",)


class Tagged(np.ndarray):
    """A user's subclass with an attribute."""

    def __array_finalize__(self, source):
        self.tag = getattr(source, "tag", None)


class OwnPickle(np.ndarray):
    def __reduce__(self):
        return np.ndarray.__reduce__(self)


def by_handle(x, limit=1000):
    """x through pickle, which must not have carried the data."""
    text = pickle.dumps(x)
    assert len(text) < limit, len(text)
    return pickle.loads(text)


def same_memory(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return a.__array_interface__["data"][0] == b.__array_interface__["data"][0]


def unchanged(x):
    assert share(x) is x


@pytest.fixture(autouse=True)
def store(shm):
    yield shm
    gc.collect()


# --- arrays ---------------------------------------------------------------------------------------


def test_an_array_is_shared_once():
    x = np.arange(LARGE)
    shared = share(x)
    assert isinstance(shared, SharedArray) and not shared.flags.writeable
    assert (shared == x).all() and shared.shm.state == "sealed" and shared.shm.name is None
    assert share(x) is shared and share([x])[0] is shared and share(shared) is shared
    assert same_memory(by_handle(shared), by_handle(shared))


def test_a_changed_array_is_shared_anew():
    x = np.arange(LARGE)
    before = share(x)
    x[-1] = -5
    after = share(x)
    assert after is not before and after[-1] == -5 and before[-1] == LARGE - 1
    assert share(x) is after
    x.flags.writeable = False
    assert share(x) is after
    x.flags.writeable = True
    x[0] = 9
    x.flags.writeable = False
    assert share(x)[0] == 9
    nan = np.full(LARGE, np.nan)
    shared = share(nan)
    assert share(nan) is shared


def test_memory_is_given_back(store):
    x = np.arange(LARGE)
    first = share(x).shm.id
    gc.collect()
    assert store.stats()["arrays"] == 0
    again = share(x)
    assert again.shm.id != first
    del x
    gc.collect()
    assert again[5] == 5 and not sharing._shared


def test_small_arrays_and_other_things_pass():
    for x in (np.arange(10), 5, "text", None, b"x" * 100000, {1, 2}, object(), [1, [2]], {"a": ()}):
        unchanged(x)
    x = np.arange(10)
    assert isinstance(share(x, min_bytes=80), SharedArray) and share(x, min_bytes=81) is x
    assert isinstance(share(np.empty(0), min_bytes=0), SharedArray)
    for bad in (None, "100"):
        with pytest.raises(InvalidArgument, match="min_bytes: .* is not a number of bytes"):
            share(x, min_bytes=bad)


@pytest.mark.parametrize("x", [
    np.array([None] * LARGE),
    np.array([(1, "x")] * LARGE, [("a", "i4"), ("b", object)]),
    np.ones(LARGE).view(OwnPickle),
], ids=["object", "object field", "own pickling"])
def test_what_cannot_be_shared_passes(x):
    unchanged(x)
    assert (pickle.loads(pickle.dumps(x)) == x).all()


def layouts():
    wide = np.arange(4 * LARGE).reshape(4, 2, -1)
    yield from (wide, np.asfortranarray(wide), wide[:, ::-1], wide[..., ::2], wide.T)
    yield np.broadcast_to(np.arange(4), (LARGE, 4))
    yield np.array(["ab", "c"] * LARGE)
    yield np.arange(LARGE).astype("M8[s]")
    yield np.arange(LARGE).astype(">f4").astype(">c16")
    yield np.zeros(LARGE, [("a", "i1"), ("b", "f8", (2,))])
    yield np.zeros(LARGE, np.dtype([("a", "i1"), ("b", "f8")], align=True))


@pytest.mark.parametrize("x", list(layouts()), ids=lambda x: f"{x.dtype}{x.strides}"[:40])
def test_layouts_and_dtypes(x):
    shared = share(x)
    assert shared.dtype == x.dtype and shared.shape == x.shape
    assert np.array_equal(shared, x) and np.array_equal(by_handle(shared), x)
    assert share(x) is shared


def test_arrays_of_the_store_are_not_copied(store):
    put = store.put("named", np.arange(LARGE))
    assert share(put) is put
    part = put[5:10]
    assert share(part) is part  # however small
    assert same_memory(share(np.asarray(put)), put)
    assert type(share(np.asarray(put))) is SharedArray
    private = store.attach("named", "c")
    private[0] = 77
    assert share(private)[0] == 77 and put[0] == 0
    wide = np.broadcast_to(put[:1], (LARGE,))
    assert share(wide).shape == (LARGE,)
    mutable = store.create("mutable", LARGE, mutable=True)
    assert share(mutable) is mutable and mutable.flags.writeable


def test_sharing_a_draft_seals_it(store):
    draft = sharing.zeros(LARGE)
    draft[3] = 3
    assert share({"a": draft})["a"] is draft
    assert draft.shm.state == "sealed" and not draft.flags.writeable
    other = sharing.empty(LARGE, name="other")
    view = np.asarray(other)
    view[:] = 1
    shared = share(view)
    assert same_memory(shared, view) and not shared.flags.writeable
    assert store.attach("other").sum() == LARGE


def test_threads_share_once():
    x = np.arange(50 * LARGE)
    found = []
    start = threading.Barrier(8)

    def work():
        start.wait()
        found.append(share(x))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in found}) == 1


def test_a_forked_child_shares_too():
    x = np.arange(LARGE)
    shared = share(x)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            fresh = share(np.ones(LARGE))
            assert share(x) is shared and by_handle(fresh).sum() == LARGE
            assert same_memory(by_handle(shared), by_handle(shared))
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert (by_handle(shared) == x).all()


def test_another_client(daemon, monkeypatch):
    client = daemon.client()
    monkeypatch.setenv("SHMSTORE_SOCKET", "/nowhere")
    assert (share(np.arange(LARGE), client=client) == np.arange(LARGE)).all()
    assert sharing.ones(3, client=client).sum() == 3


def test_each_store_has_its_own(daemon, tmp_path):
    (tmp_path / "other").mkdir()
    other = Daemon(tmp_path / "other")
    try:
        x = np.ma.array(np.arange(LARGE), mask=np.arange(LARGE) % 2 == 0)
        clients = [daemon.client(), other.client()]
        for y in (x, x.data):
            results = [share(y, 1, client=client) for client in clients]
            for client, result in zip(clients, results):
                assert sharing.lease_around(sharing.plain(result)).store_id == client.store_id
                assert share(y, 1, client=client) is result
    finally:
        assert other.stop() == 0


# --- subclasses -----------------------------------------------------------------------------------


@pytest.mark.kills_daemon
def test_after_the_daemons_restart_it_is_shared_anew(daemon, store):
    x, y = np.arange(float(LARGE)), np.frombuffer(bytes(8 * LARGE))  # y is known not to change
    before = share([x, y])
    daemon.stop()
    daemon.start()
    after = share([x, y])
    for old, new, original in zip(before, after, (x, y)):
        assert new.shm.id in {entry["id"] for entry in store.list()} and new is not old
        assert np.array_equal(by_handle(new), original)
    assert all(a is b for a, b in zip(after, share([x, y])))
    daemon.stop()


def test_matrix():
    x = np.matrix(np.arange(90000).reshape(300, 300))
    shared = share(x)
    again = by_handle(shared)
    assert type(shared) is type(again) is np.matrix and (again == x).all()
    assert same_memory(again, by_handle(shared)) and not again.flags.writeable
    assert share(x) is shared and share(shared) is shared
    assert again[0].shape == (1, 300) and (again * again == x * x).all()
    assert type(by_handle(shared[1:3])) is np.matrix
    plain = np.matrix([[1, 2]])
    assert (pickle.loads(pickle.dumps(plain)) == plain).all()


def test_recarray():
    x = np.rec.array([(i, i / 2, "x") for i in range(LARGE)], dtype="i8,f8,U2")
    shared = share(x)
    again = by_handle(shared)
    assert type(shared) is type(again) is np.recarray and again.dtype == x.dtype
    assert again.dtype.type is np.record and (again.f1 == x.f1).all() and again[7].f2 == "x"
    assert share(x) is shared


def test_a_users_subclass_keeps_its_attributes():
    x = np.arange(LARGE).view(Tagged)
    x.tag = {"unit": "m"}
    shared = share(x)
    again = by_handle(shared)
    assert type(shared) is type(again) is Tagged and shared.tag == again.tag == {"unit": "m"}
    assert share(x) is shared
    x.tag = {"unit": "km"}
    assert share(x).tag == {"unit": "km"}
    memory = np.memmap("/dev/zero", np.uint8, "r", shape=(8 * LARGE,))
    assert type(share(memory)) is SharedArray


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("mask", ["none", "full", "nothing masked"])
def test_masked_arrays(mask, hard):
    x = np.ma.MaskedArray(np.arange(8.0 * LARGE), fill_value=-7, hard_mask=hard)
    if mask == "full":
        x[::3] = np.ma.masked
    elif mask == "nothing masked":
        x.mask = np.zeros(x.shape, bool)
    shared = share(x)
    again = by_handle(shared)
    for found in (shared, again):
        assert type(found) is np.ma.MaskedArray and type(found.data) is np.ndarray
        assert found.sum() == x.sum() and found.fill_value == -7 and found.hardmask == hard
        assert (np.ma.getmask(found) is np.ma.nomask) == (mask == "none")
        assert np.array_equal(np.ma.getmaskarray(found), np.ma.getmaskarray(x))
        assert type(found + 1) is np.ma.MaskedArray and (found + 1).sum() == (x + 1).sum()
    assert share(x) is shared and share(shared) is shared
    assert same_memory(by_handle(shared).data, by_handle(shared).data)
    if mask == "full":
        x[1] = np.ma.masked
        assert share(x).mask[1] and not shared.mask[1]
    few = np.ma.MaskedArray(np.arange(LARGE), np.zeros(LARGE, bool))
    shared = share(few, min_bytes=8 * LARGE)  # the mask is too small
    few[0] = np.ma.masked
    assert not shared.mask[0] and in_store(shared)
    unchanged(np.ma.MaskedArray([1, 2], [True, False]))


def test_pickling_elsewhere_is_as_before():
    """Registering a type changes nothing for objects outside the store."""
    share(np.matrix(np.ones((300, 300))))
    share(np.ma.MaskedArray(np.ones(LARGE)))
    assert np.matrix in copyreg.dispatch_table
    for x in (np.matrix([[1, 2], [3, 4]]), np.ma.MaskedArray([1, 2], [True, False])):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            again = pickle.loads(pickle.dumps(x, protocol))
            assert type(again) is type(x) and (again == x).all()


# --- structures -----------------------------------------------------------------------------------


def test_structures():
    x, small = np.arange(LARGE), np.arange(3)
    inner = [x, small]
    whole = {
        "list": inner,
        "tuple": (1, x),
        "named": Pair(x, "r"),
        "model": Model(x, parts=[x]),
        "frozen": Frozen(x),
        "default": defaultdict(list, k=[x]),
        "ordered": OrderedDict(a=x),
        "untouched": [small],
    }
    shared = share(whole)
    one = share(x)
    assert list(shared) == list(whole) and shared is not whole and whole["list"] is inner
    assert shared["list"][0] is one and shared["list"][1] is small
    assert shared["tuple"][1] is one and shared["named"] == Pair(one, "r")
    assert type(shared["named"]) is Pair and type(shared["model"]) is Model
    assert shared["model"].weights is one and shared["model"].parts[0] is one
    assert whole["model"].weights is x
    assert type(shared["frozen"]) is Frozen and shared["frozen"].data is one
    assert type(shared["default"]) is defaultdict and shared["default"].default_factory is list
    assert shared["default"]["k"][0] is one and type(shared["ordered"]) is OrderedDict
    assert shared["untouched"] is whole["untouched"]
    del shared["frozen"]  # pickle does not know such classes
    assert pickle.loads(pickle.dumps(shared))["model"].weights[5] == 5


def test_sharing_keeps_identity_and_cycles():
    x = np.arange(LARGE)
    inner = [x]
    whole = {"a": inner, "b": inner}
    whole["self"] = whole
    loop = [x]
    loop.append((loop,))
    shared = share([whole, loop])
    assert shared[0]["a"] is shared[0]["b"] and shared[0]["self"] is shared[0]
    assert shared[1][1][0] is shared[1] and shared[1][0] is shared[0]["a"][0]
    endless = [1]
    endless.append(endless)
    unchanged(endless)


def test_deep_structures_without_arrays():
    deep = []
    for _ in range(100000):
        deep = [deep]
    assert share(deep) is deep


# --- made in the store ----------------------------------------------------------------------------


def test_arrays_made_in_the_store(store):
    assert sharing.zeros((2, 3)).tolist() == np.zeros((2, 3)).tolist()
    assert sharing.zeros(2, "U3").tolist() == ["", ""] and sharing.zeros((), "i4") == 0
    assert sharing.zeros(2, [("a", "i4"), ("b", "S2")]).tolist() == [(0, b""), (0, b"")]
    assert sharing.ones(3, "i2").tolist() == [1, 1, 1]
    assert sharing.full((2,), 7).dtype == int and sharing.full(2, [1.5, 2]).tolist() == [1.5, 2]
    assert sharing.full(2, 7, "f4").dtype == "f4" and sharing.empty(0).size == 0
    fortran = np.asfortranarray(np.ones((2, 3), "f4"))
    like = sharing.empty_like(fortran)
    assert like.shape == (2, 3) and like.dtype == "f4" and like.flags.f_contiguous
    assert sharing.empty_like(fortran, order="C").flags.c_contiguous
    assert sharing.zeros_like([1, 2], shape=(3,)).tolist() == [0, 0, 0]
    assert sharing.zeros_like(fortran, order="F").flags.f_contiguous
    assert sharing.ones_like(fortran).sum() == 6 and sharing.full_like([0, 0], 4).tolist() == [4, 4]
    with sharing.zeros(5, name="named", keep=True) as x:
        x[0] = 1
    assert store.attach("named")[0] == 1
    mutable = sharing.ones(3, name="m", mutable=True)
    store.attach("m", "r+")[1] = 5
    assert mutable.tolist() == [1, 5, 1]
    with pytest.raises(ValueError):
        sharing.full(3, [1, 2])
    gc.collect()
    assert {entry["name"] for entry in store.list()} - {None} == {"named", "m"}


def test_publishing_what_was_made_in_place_writes_nothing(store):
    x = sharing.empty(1 << 20)
    before = store.stats()["used"]
    shared = share(x)
    assert shared is x and store.stats()["used"] == before


# --- pandas ---------------------------------------------------------------------------------------


@pytest.fixture
def pd():
    return pytest.importorskip("pandas")


def frame(pd, rows=LARGE):
    return pd.DataFrame({
        "a": np.arange(rows),
        "b": np.arange(rows) / 2,
        "text": ["x", "y"] * (rows // 2),
        "a2": np.arange(rows)[::-1],
        "when": np.arange(rows).astype("M8[s]"),
        "kind": pd.Categorical(["x", "y"] * (rows // 2)),
        "nullable": pd.array([1, None] * (rows // 2), dtype="Int64"),
    })


def test_frames(pd, store):
    x = frame(pd)
    shared = share(x)
    again = pickle.loads(pickle.dumps(shared))
    for found in (shared, again):
        pd.testing.assert_frame_equal(found, x)
    assert share(x) is shared and share(shared) is shared
    assert store.stats()["arrays"] == 3  # one for each dtype
    other = pickle.loads(pickle.dumps(shared))
    for column in ("a", "b", "a2", "when"):
        assert same_memory(again[column].to_numpy(), other[column].to_numpy())
    assert len(pickle.dumps(shared)) < len(pickle.dumps(x)) / 2
    assert (again["a"] + again["a2"]).nunique() == 1 and again.groupby("text").a.sum()["x"] > 0


def test_frames_of_numbers_are_handles(pd):
    x = frame(pd)[["a", "b", "a2", "when"]]
    x.attrs["from"] = "here"
    x.index = pd.Index(np.arange(LARGE)[::-1].copy(), name="key")
    x.columns = pd.MultiIndex.from_tuples([(1, c) for c in x.columns], names=["n", "c"])
    shared = share(x)
    again = by_handle(shared, 2500)
    pd.testing.assert_frame_equal(again, x)
    assert again.attrs == {"from": "here"} and again.index.name == "key"
    assert same_memory(again.index.to_numpy(), by_handle(shared, 2500).index.to_numpy())
    pd.testing.assert_frame_equal(by_handle(shared[10:500], 2500), x[10:500])
    pd.testing.assert_frame_equal(by_handle(again, 2500), x)
    pd.testing.assert_series_equal(by_handle(shared[(1, "a")], 2500), x[(1, "a")])


def test_a_changed_frame_is_shared_anew(pd):
    x = frame(pd)
    shared = share(x)
    small = share(x, min_bytes=1 << 19)  # shares the two int columns only
    x.loc[5, ["text", "b"]] = ["other", -2.5]
    assert small.loc[5, "text"] == "y" and small.loc[5, "b"] == 2.5
    x.loc[5, "text"] = "changed"
    assert share(x).loc[5, "text"] == "changed" and shared.loc[5, "text"] != "changed"
    again = share(x)
    x.loc[5, "a"] = -1
    assert share(x).loc[5, "a"] == -1 and again.loc[5, "a"] == 5
    x.columns = list("abcdefg")
    assert list(share(x).columns) == list("abcdefg")


def test_series_duplicates_small_ones_and_subclasses(pd):
    x = pd.Series(np.arange(LARGE) / 3, name="s", index=pd.date_range("2020", periods=LARGE))
    pd.testing.assert_series_equal(by_handle(share(x), 500000), x)
    twice = pd.DataFrame(np.arange(4.0 * LARGE).reshape(-1, 2), columns=["a", "a"])
    pd.testing.assert_frame_equal(by_handle(share(twice)), twice)
    unchanged(pd.DataFrame({"a": [1, 2]}))
    unchanged(pd.Series(["text"] * LARGE, dtype=object))

    class Own(pd.DataFrame):
        pass

    unchanged(Own({"a": np.arange(LARGE)}))
    empty = pd.DataFrame({"a": []})
    unchanged(empty)
    assert pickle.loads(pickle.dumps(twice[:3])).equals(twice[:3])


def test_results_of_shared_frames_are_writable(pd):
    shared = by_handle(share(frame(pd)[["a", "b"]]))
    copy = shared.copy()
    copy.loc[0, "a"] = 5
    shared["c"] = shared["a"] * 2
    assert copy.loc[0, "a"] == 5 and shared.loc[3, "c"] == 6


# --- Arrow ----------------------------------------------------------------------------------------


@pytest.fixture
def pa():
    return pytest.importorskip("pyarrow")


def arrow_objects(pa):
    table = pa.table({
        "a": np.arange(LARGE),
        "text": ["abc", None] * (LARGE // 2),
        "nested": [[1, 2], []] * (LARGE // 2),
        "kind": pa.array(["x", "y"] * (LARGE // 2)).dictionary_encode(),
    })
    yield table
    yield table.to_batches()[0]
    yield table.column("text")
    yield pa.array(np.arange(LARGE) / 2)
    yield pa.array(["abc", None] * LARGE)
    yield table.slice(3, LARGE - 10)
    yield pa.concat_tables([table, table])
    yield table.replace_schema_metadata({"k": "v"})


def test_arrow(pa):
    for x in arrow_objects(pa):
        shared = share(x)
        again = by_handle(shared)
        assert type(again) is type(x) and again.equals(x) and shared.equals(x)
        if hasattr(x, "schema"):
            assert again.schema.equals(x.schema, check_metadata=True)
        assert share(x) is shared and share(shared) is shared
        assert by_handle(again).equals(x)
        assert pickle.loads(pickle.dumps(shared.slice(2, 5))).equals(x.slice(2, 5))
    unchanged(pa.array([1, 2, 3]))
    unchanged(pa.int64())


def test_arrow_without_copies(pa, store):
    x = pa.table({"a": np.arange(100 * LARGE)})
    shared = share(x)
    one, two = by_handle(shared), by_handle(shared)
    address = one.column(0).chunk(0).buffers()[1].address
    assert address == two.column(0).chunk(0).buffers()[1].address
    assert store.stats()["arrays"] == 1
    other = share(pa.table({"a": np.arange(LARGE)}))
    assert store.stats()["arrays"] == 2 and other.num_rows == LARGE
    del other
    gc.collect()
    assert store.stats()["arrays"] == 1


def test_nothing_is_imported(script):
    result = script(
        "import sys, numpy as np\nfrom shmstore.sharing import share\n"
        "share([np.arange(100000), object()])\n"
        "assert not {'pandas', 'pyarrow', 'joblib'} & set(sys.modules)"
    )
    assert result.returncode == 0, result.stderr


def test_a_result_that_was_released_is_not_handed_out_again(shm):
    x = np.ones(LARGE)
    x.flags.writeable = False
    first = share(x)
    assert shm.release(first)
    second = share(x)
    assert np.array_equal(second, x)
    assert np.array_equal(by_handle(second), x)
