"""Arrays of the store as arguments and results of unchanged PyCOMPSs tasks."""

import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
from pycompss_tree import application, minicompss, needs_sources, tree  # noqa: F401 - fixtures


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


@needs_sources
def test_an_installed_compss_is_as_good_as_its_sources(tree, tmp_path):  # noqa: F811
    """Laid out as COMPSs installs itself, with what its build generates."""
    home = tmp_path / "COMPSs"
    installed = home / "Bindings" / "python" / "3"
    shutil.copytree(tree / "src" / "pycompss", installed / "pycompss")
    shutil.copytree(tree / "log", installed / "log")
    assert minicompss.why_not(home) is None
    app = tmp_path / "app.py"
    app.write_text(
        "from pycompss.api.task import task\nfrom pycompss.api.api import compss_wait_on\n"
        "@task(returns=1)\ndef add(a, b): return a + b\n"
        "if __name__ == '__main__': print('sum', compss_wait_on(add(2, 3)))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYCOMPSS_SRC"}
    done = subprocess.run(
        [sys.executable, minicompss.HERE / "run.py", app], capture_output=True, text=True,
        env={**environment, "COMPSS_HOME": str(home)}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and "sum 5\n" in done.stdout, done.stdout + done.stderr
    shutil.rmtree(installed / "log")
    assert "Bindings/python/3/log is missing" in minicompss.why_not(home)


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
