"""share: what has changed since it was shared is shared anew, whatever part of it has changed."""

import pickle

import numpy as np
import pytest
from test_share import LARGE, Tagged, by_handle

from shmstore.sharing import share

pytestmark = pytest.mark.filterwarnings("ignore:the matrix subclass")


@pytest.fixture(autouse=True)
def default_store(shm):
    pass


class Incomparable:
    def __eq__(self, other):
        raise RuntimeError("do not compare me")

    __hash__ = None


@pytest.mark.parametrize(
    "old, new",
    [
        (np.arange(3), np.arange(3) + 1),
        (np.arange(3), np.arange(3.0)),
        ([np.arange(3)], [np.arange(3)]),
        (1, True),
        (Incomparable(), Incomparable()),
    ],
    ids=["array", "dtype", "list of arrays", "type", "comparison raises"],
)
def test_attributes_that_changed(old, new):
    x = np.ones(LARGE).view(Tagged)
    x.tag = old
    shared = share(x)
    assert share(x) is shared
    x.tag = new
    again = share(x)
    assert again is not shared and again.tag is new and shared.tag is old
    x.tag = "text"
    shared = share(x)
    x.tag = "".join(["te", "xt"])
    assert share(x) is shared


def test_masked_arrays_keep_the_type_of_their_data():
    for kind in (np.matrix, Tagged):
        x = np.ma.masked_greater(np.arange(4 * LARGE).reshape(4, -1).view(kind), 5)
        shared = share(x)
        assert shared is not x and share(x) is shared
        for each in (shared, by_handle(shared)):
            assert type(each) is np.ma.MaskedArray and type(each.data) is kind
            assert each.mask.sum() == x.mask.sum() and each.sum() == x.sum()
    x = np.ma.masked_array(share(np.arange(LARGE)))
    assert type(x.data) is not np.ndarray and type(by_handle(share(x)).data) is np.ndarray


def test_frames_whose_parts_changed():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": np.arange(LARGE), "o": pd.Series([True, "a"] * (LARGE // 2))})
    frame.attrs["weights"] = np.arange(3)
    frame.index = pd.Index(np.arange(LARGE))
    changes = (
        lambda: frame.attrs.update(weights=np.arange(3) + 1),
        lambda: frame.__setitem__("o", pd.Series([1, "a"] * (LARGE // 2), dtype=object)),
        lambda: setattr(frame, "index", frame.index.astype(float)),
        lambda: setattr(frame.index, "name", "n"),
    )
    for change in changes:
        shared = share(frame)
        assert share(frame) is shared
        change()
        again = share(frame)
        assert again is not shared
        pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(again)), frame)
        assert again["o"].iloc[0] is frame["o"].iloc[0]
        assert (again.attrs["weights"] == frame.attrs["weights"]).all()


def test_arrow_over_memory_that_changed():
    pa = pytest.importorskip("pyarrow")
    numbers = np.arange(LARGE * 1.0)
    numbers[7] = np.nan
    column = pa.array(numbers)
    for x in (column, pa.chunked_array([column, column]), pa.table({"a": column})):
        shared = share(x)
        assert share(x) is shared
        numbers[-1] += 1
        again = share(x)
        assert again is not shared and str(again) == str(x) != str(shared)
        assert share(x) is again and len(pickle.dumps(again)) < 1000
