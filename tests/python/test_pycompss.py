"""Arrays of the store as arguments and results of unchanged PyCOMPSs tasks."""

import pickle

import numpy as np
from pycompss_tree import application, needs_sources, tree  # noqa: F401 - fixtures


@needs_sources
def test_arguments_are_mapped_by_the_workers(application):  # noqa: F811
    done = application("pycompss_handles.py", 128 * 1024, 8 << 20)
    for fact in done.facts["argument"]:
        total = fact["nbytes"] / 8 * 0.5
        assert fact["mine"] != 0
        assert all(seen[:4] == [fact["mine"], total, "SharedArray", False]
                   for seen in fact["seen"])  # fmt: skip
        assert fact["file"] < 200
    for fact in done.facts["view"]:
        assert fact["seen"][:2] == [fact["mine"], fact["sum"]]
        assert fact["file"] < 200


@needs_sources
def test_collections_of_arrays_are_mapped(application):  # noqa: F811
    (fact,) = application("pycompss_handles.py", 1 << 20).facts["collection"]
    assert fact["seen"][0] == [fact["mine"][0], (1 << 17) * 0.5]
    assert fact["seen"][1][1] == 3  # a small one, by value
    assert fact["seen"][2] == [fact["mine"][2], 0]


@needs_sources
def test_a_result_outlives_the_worker_that_made_it(application):  # noqa: F811
    (fact,) = application("pycompss_handles.py", 1 << 20, workers=1).facts["result"]
    assert fact["kind"] == "SharedArray" and fact["equal"]


@needs_sources
def test_inout_stays_with_pycompss(application):  # noqa: F811
    (fact,) = application("pycompss_handles.py", 1 << 20).facts["inout"]
    assert fact == {"same": True, "kind": "ndarray"}


# What this rests on, for those who have no sources at hand. PyCOMPSs writes an object with
# numpy.save if a part of its class's module name is `numpy`, else with pickle's newest protocol,
# behind four bytes that name the serializer (util/serialization/serializer.py); arguments that are
# plain objects go the same way, and come back by pickle.load.


def serialized(x):
    assert "numpy" not in type(x).__module__.split(".")
    return b"0000" + pickle.dumps(x, protocol=pickle.HIGHEST_PROTOCOL)


def test_pycompss_would_pickle_an_array_of_the_store_by_handle(shm):
    for nbytes in (128 * 1024, 8 << 20):
        x = shm.share(np.full(nbytes // 8, 0.5))
        for one in (x, x[16:-5], x.reshape(-1, 64)[:, 3:5]):
            data = serialized(one)
            assert len(data) < 200
            back = pickle.loads(data[4:])
            assert back.shm.id == x.shm.id and np.array_equal(back, one)


def test_pycompss_would_not_take_it_for_a_stored_object(shm):
    """What has a `getID` that is not None is passed as that id (util/storages/persistent.py)."""
    assert not hasattr(shm.share(np.ones(1 << 15)), "getID")
