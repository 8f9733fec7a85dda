"""Every dtype that can be shared goes in and comes out as it was."""

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import shmstore
from shmstore._dtype import dtype_of, dtype_text

POINT = np.dtype([("x", "<f8"), ("y", ">i2"), ("name", "S5")])
NESTED = np.dtype([("head", [("a", "u1"), ("b", "<c8", (2, 3))]), ("t", "<M8[ms]"), ("v", "V7")])
ALIGNED = np.dtype([("a", "u1"), ("b", "f8"), ("c", "u2")], align=True)
ALIGNED_NESTED = np.dtype([("p", ALIGNED, (2,)), ("q", "u1"), ("r", ALIGNED)], align=True)
TITLED = np.dtype([(("a title", "x"), "f4"), (("ünïcode 'quoted\"", "y"), "i8")])
GAPS = np.dtype({"names": ["a", "b"], "formats": ["u1", "f4"], "offsets": [3, 8], "itemsize": 20})

DTYPES = [
    *"?bBhHiIlLqQefdgFDG",
    ">f8", ">i4", ">u2", ">c16", ">U3", "<U0", "S0", "S7", "U12", "V0", "V16", "M8[ns]", "m8[us]",
    "M8[25s]", "M8[D]", ">m8[h]", "M8", "m8", POINT, NESTED, ALIGNED, ALIGNED_NESTED, TITLED, GAPS,
    np.dtype([]), np.dtype([("", "i4"), ("", "i8")]), np.dtype([("s", "S0"), ("x", "i1")]),
    np.dtype([("f", "f8", (2, 2, 2))]), np.dtype([("one", "f8", (1,))]), np.longdouble,
]  # fmt: skip


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_round_trip(client, dtype):
    dtype = np.dtype(dtype)
    for shape in ((5,), (2, 3), (), (0,), (2, 0, 3)):
        source = np.empty(shape, dtype) if dtype.itemsize == 0 else np.zeros(shape, dtype)
        x = client.put(None, source)
        y = client.attach(id=x.shm.id)
        for one in (x, y):
            assert one.dtype == source.dtype and one.dtype.descr == source.dtype.descr
            assert one.dtype.fields == source.dtype.fields
            assert one.dtype.itemsize == source.dtype.itemsize
            assert one.shape == source.shape and one.strides == source.strides or one.size == 0
            assert one.tobytes() == source.tobytes()


def test_values_of_all_kinds(client):
    arrays = [
        np.array([1.5, np.nan, -0.0, np.inf], "f2"), np.array([1 + 2j, -3j], ">c16"),
        np.array(["grün", "", "日本"], "U4"), np.array([b"ab\0c", b""], "S4"),
        np.array(["2026-11-21", "NaT"], "M8[D]"), np.array([True, False]),
        np.array([(1.0, 2, b"abc"), (3.0, 4, b"d")], POINT),
        np.longdouble("1.25") + np.zeros(3, "g"),
        np.array([(True, 1, 2)], [("a", "?"), ("b", "i1"), ("c", "f8")]),
    ]  # fmt: skip
    for source in arrays:
        x = client.put(None, source)
        assert same(x, source)
        assert x.tolist() == source.tolist() or "nan" in repr(source)
        assert same(client.attach(id=x.shm.id, mode="c"), source)


def test_create_with_every_dtype(client):
    for dtype in DTYPES:
        with client.create(None, (3,), dtype) as w:
            assert w.dtype == np.dtype(dtype)


UNSHARABLE = {
    "object": "O",
    "field": [("a", "f8"), ("b", "O")],
    "nested": [("a", [("b", "O")])],
    "overlap": {"names": ["a", "b"], "formats": ["f8", "i4"], "offsets": [0, 4]},
    "reordered": {"names": ["b", "a"], "formats": ["i4", "f8"], "offsets": [8, 0]},
}
if hasattr(getattr(np, "dtypes", None), "StringDType"):
    UNSHARABLE["string"] = np.dtypes.StringDType()


@pytest.mark.parametrize("dtype", UNSHARABLE.values(), ids=UNSHARABLE)
def test_what_cannot_be_shared(client, dtype):
    with pytest.raises(shmstore.InvalidArgument, match="^dtype: "):
        client.create(None, (3,), dtype)
    with pytest.raises(shmstore.InvalidArgument, match="^dtype: "):
        client.put(None, np.zeros(3, dtype))
    with pytest.raises(shmstore.InvalidArgument, match="^dtype: "):
        client.cached("key", lambda: np.zeros(3, dtype))
    assert client.list() == []


def test_what_is_no_dtype(client):
    for dtype in ("nonsense", "f3", 3.5, [("a",)], [("a", "f8"), ("a", "f8")]):
        with pytest.raises(shmstore.InvalidArgument, match="^dtype: "):
            client.create("x", 3, dtype)


def test_too_deep_and_too_long(client):
    deep = np.dtype("u1")
    for _ in range(9):
        deep = np.dtype([("x", deep)])
    with pytest.raises(shmstore.InvalidArgument, match="^dtype: .*8 levels"):
        client.create("x", 1, deep)
    long = np.dtype([(f"field_{i:050}", "u1") for i in range(150)])
    with pytest.raises(shmstore.InvalidArgument, match="^dtype: .*8192"):
        client.create("x", 1, long)


def test_sub_array_dtypes_become_dimensions(client):
    with client.create("x", (2,), ("f4", (3, 2))) as w:
        assert w.shape == (2, 3, 2) and w.dtype == "f4"


def test_orders(client):
    c = np.arange(24.0).reshape(2, 3, 4)
    f = np.asfortranarray(c)
    assert client.put("c", c).flags.c_contiguous
    x = client.put("f", f)
    assert x.flags.f_contiguous and not x.flags.c_contiguous and np.array_equal(x, c)
    assert client.attach("f").strides == f.strides and client.info("f")["order"] == "F"
    strided = client.put("s", c[:, ::2, ::-1])
    assert strided.flags.c_contiguous and np.array_equal(strided, c[:, ::2, ::-1])
    cf, fc = client.put("cf", c, order="F"), client.put("fc", f, order="C")
    assert cf.flags.f_contiguous and fc.flags.c_contiguous
    assert np.array_equal(client.attach("cf"), c) and np.array_equal(client.attach("fc"), c)
    with client.create("w", (3, 4), order="F") as w:
        assert w.flags.f_contiguous
    for order in ("A", "K", None, 1):
        with pytest.raises(shmstore.InvalidArgument, match="^order: "):
            client.create("bad", 3, order=order)


def test_other_kinds_of_arrays_are_plain_data(client, tmp_path):
    mapped = np.memmap(tmp_path / "m", "f4", "w+", shape=(3,))
    record = np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])
    shared = client.put("shared", np.arange(5))
    for source in (mapped, record, shared, shared[1:3], [1, 2], 7):
        x = client.put(None, source)
        assert type(x) is shmstore.SharedArray
        assert x.tobytes() == np.asarray(source).tobytes()
        if isinstance(source, np.ndarray):
            assert not np.shares_memory(x, source)


@pytest.mark.parametrize("masked", [np.ma.array([1.0, 2.0], mask=[True, False]), np.ma.masked,
                                    np.ma.array([1.0]), [np.ma.array([1.0], mask=[True])],
                                    [[1.0], (np.ma.array([1.0], mask=[True]),)]])
def test_a_mask_is_not_dropped(shm, masked):  # fmt: skip
    for put in (lambda: shm.put("x", masked), lambda: shm.cached("x", lambda: masked),
                lambda: shm.put_many({"x": masked})):  # fmt: skip
        with pytest.raises(shmstore.InvalidArgument, match=r"^array: .* mask.*share\(x\) keeps it"):
            put()
    for fill in (lambda: shm.full(2, masked), lambda: shm.full((2, 1, 1, 2), masked, "i4"),
                 lambda: shm.full_like(np.zeros(2), masked)):  # fmt: skip
        text = r"^fill_value: .* mask.*share\(x\) keeps it"
        with pytest.raises(shmstore.InvalidArgument, match=text):
            fill()
    assert shm.list() == []


def test_a_list_that_holds_itself_is_refused(shm):
    endless = [1.0]
    endless += [endless, endless]
    with pytest.raises(shmstore.InvalidArgument, match="^array: "):
        shm.put("x", endless)


def layouts(dtype):
    """What `==` of dtypes does not compare."""
    inner = [layouts(field[0].base) for field in (dtype.fields or {}).values()]
    return dtype.isalignedstruct, dtype.alignment, inner


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if np.dtype(dtype).names is not None],
                         ids=str)
def test_aligned_structures_stay_aligned(client, dtype):  # fmt: skip
    dtype = np.dtype(dtype)
    x = client.put(None, np.zeros(5, dtype))
    views = (x, client.attach(id=x.shm.id), pickle.loads(pickle.dumps(x)),
             pickle.loads(pickle.dumps(x[1:])))  # fmt: skip
    for y in views:
        assert y.dtype == dtype and layouts(y.dtype) == layouts(dtype)
    both = np.dtype([("a", "i4"), ("b", "f4")]), np.dtype([("a", "i4"), ("b", "f4")], align=True)
    for same in both:  # equal to numpy, which a cache must not go by
        assert client.put(None, np.zeros(5, same)).dtype.isalignedstruct == same.isalignedstruct


def test_characters_are_bytes_as_in_numpys_own_pickles(client):
    x = np.array(["abc", "def"], "c")
    y = client.put(None, x)
    assert y.dtype == x.dtype and y.tolist() == x.tolist() and y.tobytes() == x.tobytes()
    assert y.dtype.char == pickle.loads(pickle.dumps(x.dtype)).char == "S"


def test_types_of_other_packages_name_the_way_out(client):
    kinds = pytest.importorskip("ml_dtypes")
    for dtype, bits in ((kinds.bfloat16, "u2"), (kinds.float8_e5m2, "u1"), (kinds.int4, "u1")):
        x = np.arange(3).astype(dtype)
        with pytest.raises(shmstore.InvalidArgument, match=f"ml_dtypes added.*x.view.'{bits}'"):
            client.put(None, x)
        y = client.put(None, x.view(bits))
        assert y.view(dtype).tolist() == x.tolist()
    with pytest.raises(shmstore.InvalidArgument, match="ml_dtypes added"):
        client.put(None, np.zeros(3, [("a", kinds.bfloat16)]))


def objects():
    yield None, "None is no array"
    yield {"a": 1}, "dict is not an array; put_many"
    yield object(), "a object, which|an object"
    yield [object()], "Python objects of a list"
    sparse = pytest.importorskip("scipy.sparse")
    yield sparse.eye(3, format="csr"), "csr_.* x.data, x.indices, x.indptr"
    yield sparse.eye(3, format="coo"), "coo_.* x.data, x.row, x.col"
    yield sparse.eye(3, format="lil"), "lil_.* x.data|x.tocsr"


def test_what_is_no_array_names_its_type_and_the_way_out(client):
    for x, text in objects():
        with pytest.raises(shmstore.InvalidArgument, match=f"^array: .*({text})"):
            client.put("x", x)
    with pytest.raises(shmstore.InvalidArgument, match=r"^dtype: object .*\(x.astype\('U'\)\)"):
        client.put("x", np.array(["a", None]))


def test_pandas_objects_name_the_way_out(client):
    pd = pytest.importorskip("pandas")
    for x in (pd.Categorical(["a", "b"]), pd.Series(["a", "b"], dtype="category")):
        with pytest.raises(shmstore.InvalidArgument, match="^array: pandas categories.*codes"):
            client.put("x", x)
    for x in (pd.Series(["a", None]), pd.DataFrame({"a": [1], "b": ["x"]})):
        text = f"^array: a {type(x).__name__} of pandas"
        with pytest.raises(shmstore.InvalidArgument, match=text):
            client.put("x", x)


def test_sixty_four_dimensions(client):
    shape = (1,) * 30 + (2, 3)
    assert client.put("x", np.zeros(shape)).shape == shape


dtypes = st.one_of(
    hnp.scalar_dtypes(),
    hnp.array_dtypes(max_size=4),
    hnp.nested_dtypes(max_leaves=6),
    st.builds(
        lambda dtype: np.dtype(dtype.descr, align=True),
        hnp.array_dtypes(max_size=4, subtype_strategy=hnp.scalar_dtypes()),
    ),
)


@settings(max_examples=150)
@given(dtypes)
def test_texts_say_any_dtype(dtype):
    if dtype.subdtype is not None:
        dtype = dtype.base
    text = dtype_text(dtype)
    back = dtype_of(text)
    assert back == dtype and back.itemsize == dtype.itemsize and back.fields == dtype.fields
    assert text.isascii()


def values(array):
    """The bytes of each field; those of padding are copied or not, as numpy's version likes."""
    if array.dtype.names is None:
        return array.tobytes()
    return [values(array[name]) for name in array.dtype.names]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_array(client, data):
    dtype = data.draw(dtypes)
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    raw = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, 2, 4096, "u1")
    source = np.zeros(shape, dtype)
    if 0 < source.nbytes <= raw.size:
        source = np.frombuffer(raw.tobytes(), "u1", source.nbytes).view(source.dtype)
        source = source.reshape(np.zeros(shape, dtype).shape)
    if source.ndim > 1 and data.draw(st.booleans()):
        source = source.T
    x = client.put(None, source)
    y = client.attach(id=x.shm.id)
    assert y.dtype == source.dtype and y.shape == source.shape
    assert values(y) == values(source)
