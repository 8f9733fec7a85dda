"""PyCOMPSs' storage interface over the store: with the engine's own worker, and as a contract."""

import inspect
import logging
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import wait_until
from pycompss_tree import application, needs_sources, tree  # noqa: F401 - fixtures

import shmstore
from shmstore import pycompss
from shmstore.pycompss._program import sweep

PROGRAM = "pycompss_storage.py"


@pytest.fixture
def stored(application, tmp_path, daemon):  # noqa: F811
    """stored(*parts) runs parts of the program with a storage configuration."""
    path = tmp_path / "storage.conf"

    def run(*parts, configuration="", **options):
        path.write_text(f"# for the tests\n\nsocket = {daemon.socket}\n{configuration}")
        paths = [pycompss.storage_path(), *filter(None, [os.environ.get("PYTHONPATH")])]
        return application(
            PROGRAM, *parts, storage=path, paths=os.pathsep.join(paths), **options
        )

    return run


# --- with PyCOMPSs' decorators and workers --------------------------------------------------------


@needs_sources
def test_arrays_travel_as_ids(stored, client):
    facts = stored("arguments").facts
    (fact,) = facts["array"]
    assert fact["before"] is None and fact["tracked"] == ""  # no file was written
    assert fact["seen"] == ["PersistentArray", fact["mine"], 256 * 256 * 0.5, fact["id"]]
    (view,) = facts["view"]
    assert view["id"] is None and view["seen"][0] == view["seen"][1]
    assert facts["collection"][0]["seen"] == [
        ["PersistentArray", 256 * 256 * 0.5], ["ndarray", 3], ["PersistentArray", 256 * 256 * 0.5]
    ]  # fmt: skip
    assert facts["waited for"] == [{"kind": "PersistentArray", "id": fact["id"]}]
    wait_until(lambda: client.list() == [])  # the application has ended


@needs_sources
def test_results_of_tasks_are_stored_by_the_worker(stored, client):
    facts = stored("results").facts
    (fact,) = facts["result"]
    total = float(np.arange(1 << 16).sum())
    assert fact["kind"] == "PersistentArray" and fact["sum"] == total and fact["id"]
    assert fact["again"] == ["PersistentArray", total]
    assert fact["name"].startswith("pycompss/")
    assert facts["alias"] == [{"same": True}]
    wait_until(lambda: [info["name"] for info in client.list()] == ["results/kept"])


@needs_sources
def test_objects_travel_as_ids(stored, client):
    facts = stored("objects").facts
    (fact,) = facts["object"]
    assert fact["seen"] == ["mine", 2.0 * (1 << 16), fact["mine"]]
    assert fact["method"] == ["mine", 2.0 * (1 << 16), "SharedArray"]
    assert fact["tracked"] == ""
    (made,) = facts["object result"]
    assert made["seen"][:2] == ["made by a task", float(1 << 16)]
    assert made["label"] == "made by a task" and made["id"]
    assert "there is no persistent object" in facts["deleted"][0]["text"]
    wait_until(lambda: client.list() == [])


@needs_sources
def test_nothing_is_left_of_killed_workers(stored, client):
    (fact,) = stored("killed", workers=1).facts["killed"]
    assert fact == {"kept": [True, True], "made": 65535.0, "mine": 3.0 * 65536}
    wait_until(lambda: client.list() == [])


@needs_sources
@pytest.mark.parametrize(
    "part, text", [("writing", "read-only"), ("setting", "persistent objects do not change")]
)
def test_a_task_that_writes_to_what_is_persistent_fails(stored, part, text):
    done = stored(part, check=False)
    assert done.returncode != 0 and text in done.stdout + done.stderr


@needs_sources
def test_an_id_of_nothing_is_named_in_the_error(stored):
    done = stored("gone", check=False)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "there is no persistent object shma-0000000000000001-12345 in the store at" in output
    assert os.uname().nodename in output


@needs_sources
@pytest.mark.kills_daemon
def test_without_a_store_objects_travel_by_files(stored, daemon):
    daemon.stop()
    done = stored("without_ids")
    total = 256 * 256 * 0.5
    assert done.facts["array"][0]["seen"] == ["PersistentArray", 0, total, None]
    assert done.facts["array"][0]["tracked"] != ""  # it is a file
    assert done.facts["result"] == [{"kind": "PersistentArray", "id": None, "sum": 6.0}]
    (fact,) = done.facts["object"]
    assert fact["seen"] == ["mine", 2.0 * (1 << 16), 0] and fact["made"] == "made by a task"
    assert done.stderr.count("goes on without the store") == 1
    for part, text in (("writing", "read-only"), ("setting", "persistent objects do not change")):
        done = stored(part, check=False)
        assert done.returncode != 0 and text in done.stdout + done.stderr
    done = stored("without_ids", check=False, configuration="fallback = no\n")
    assert done.returncode != 0 and "Disconnected" in done.stdout + done.stderr
    assert done.facts == {}


# --- the contract, for those who have no sources at hand ------------------------------------------
#
# What PyCOMPSs 3.3 imports and calls, read in util/storages/persistent.py (load_storage_library,
# init, finish, getByID, is_psco), worker/piper/piper_worker.py (initWorker, finishWorker),
# worker/piper/commons/executor.py (…PostFork), worker/commons/worker.py (TaskContext around
# task_execution) and runtime/task/worker.py (getByID, __pipelining__).

CALLS = {
    "init": [((), {"config_file_path": "x"})],
    "finish": [((), {})],
    "getByID": [(("id",), {})],
    "TaskContext": [(("logger", []), {"config_file_path": "x"})],
    "initWorker": [((), {"config_file_path": "x"})],
    "finishWorker": [((), {})],
    "initWorkerPostFork": [((), {})],
    "finishWorkerPostFork": [((), {})],
}


@pytest.fixture
def storage_api(shm, monkeypatch):
    """The module that PyCOMPSs imports, on the path that it is documented to be on."""
    monkeypatch.syspath_prepend(pycompss.storage_path())
    import storage.api

    yield storage.api
    storage.api.finish()
    for name in ("storage", "storage.api"):
        sys.modules.pop(name)


def test_what_pycompss_imports_is_there_and_takes_its_arguments(storage_api):
    for name, calls in CALLS.items():
        for args, kwargs in calls:
            inspect.signature(getattr(storage_api, name)).bind(*args, **kwargs)
    assert not hasattr(storage_api, "__pipelining__")


def is_psco(x):
    """As PyCOMPSs decides it."""
    return "getID" in dir(x) and x.getID() not in [None, "None"]


def test_nothing_but_what_is_persistent_has_an_id(storage_api, shm):
    x = storage_api.PersistentArray(np.ones((3, 4)))
    assert not is_psco(x)
    x.makePersistent()
    x.makePersistent()
    identifier = x.getID()
    assert is_psco(x) and len(identifier.split()) == 1 and "://" not in identifier
    for other in (x[1:], x.T, x.reshape(-1), x.view(), x + 1, x.copy(), np.asarray(x),
                  shm.share(np.ones(1 << 15)), pickle.loads(pickle.dumps(x))):  # fmt: skip
        assert not is_psco(other)
    x.deletePersistent()
    x.deletePersistent()
    assert not is_psco(x) and x[0, 0] == 1
    with pytest.raises(shmstore.NotFound, match=identifier):
        storage_api.getByID(identifier)
    with pytest.raises(shmstore.InvalidArgument, match="view"):
        x[1:].makePersistent()


def test_a_worker_and_its_process_as_pycompss_calls_them(storage_api, shm, tmp_path):
    configuration = tmp_path / "storage.conf"
    configuration.write_text("\n")
    storage_api.init(config_file_path=str(configuration))
    x = storage_api.PersistentArray(np.arange(100000.0))
    x.makePersistent()
    worker = """
import logging, os, sys
from storage.api import initWorker, finishWorker
initWorker(config_file_path=sys.argv[1])
pid = os.fork()
if pid == 0:
    from storage.api import initWorkerPostFork, finishWorkerPostFork, TaskContext, getByID
    initWorkerPostFork()
    context = TaskContext(logging.getLogger(), [], config_file_path=sys.argv[1])
    context.__enter__()
    x = getByID(sys.argv[2])
    y = type(x)(x * 2)
    y.makePersistent()
    context.values = [x, y]
    context.__exit__(*sys.exc_info())
    print(x.getID(), y.getID(), x.flags.writeable, flush=True)
    finishWorkerPostFork()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
sys.stdin.read()
finishWorker()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", worker, configuration, x.getID()], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": pycompss.storage_path()},
    )  # fmt: skip
    mine, made, writeable = process.stdout.readline().split()
    assert mine == x.getID() and writeable == "False"
    y = storage_api.getByID(made)  # its process has ended, the worker has not
    assert y[-1] == 2 * 99999.0
    del y
    process.communicate()
    assert process.returncode == 0
    with pytest.raises(shmstore.NotFound):
        storage_api.getByID(made)  # now it has
    assert storage_api.getByID(x.getID())[-1] == 99999.0
    storage_api.finish()
    with pytest.raises(shmstore.NotFound):
        storage_api.getByID(mine)


def test_what_a_killed_application_left_is_taken_away(storage_api, shm, script):
    done = script(
        "import os, numpy as np\n"
        "from shmstore.pycompss import PersistentArray as P\n"
        "P(np.ones(9)).makePersistent(); P(np.ones(9), 'alias').makePersistent()\n"
        "os.kill(os.getpid(), 9)"
    )
    assert done.returncode == -9
    wait_until(lambda: len(shm.list()) == 2)  # its marker is gone, when the store knows of its end
    storage_api.init()
    assert [info["name"] for info in shm.list() if info["kept"]] == ["alias"]
    assert storage_api.getByID("alias").getID()


class Thing(pycompss.StorageObject):
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def test_objects(storage_api, shm):
    large, small = np.ones(1 << 15), np.ones(3)
    shared, matrix = shm.share(large), large.reshape(256, -1).view(np.matrix)
    thing = Thing(large=large, small=small, text="x", shared=shared, matrix=matrix,
                  nested={"list": [large * 2]}, few=shared[:2])  # fmt: skip
    assert not is_psco(thing)
    thing.makePersistent()
    identifier = thing.getID()
    assert is_psco(thing) and len(shm.list("pycompss/")) == 1 + 1 + 4  # marker, object, arrays
    thing.makePersistent()
    with pytest.raises(AttributeError, match="'text'.*persistent objects do not change"):
        thing.text = "y"
    with pytest.raises(ValueError, match="read-only"):
        thing.large[0] = 2
    del thing, shared, large, matrix
    back = storage_api.getByID(identifier)
    assert back.getID() == identifier and back.text == "x" and type(back.matrix) is np.matrix
    assert back.large.sum() == 1 << 15 and back.nested["list"][0].sum() == 2 << 15
    assert back.few.tolist() == [1, 1] and back.shared.sum() == 1 << 15
    assert pickle.loads(pickle.dumps([back]))[0].getID() == identifier
    again = storage_api.getByID(identifier, identifier)
    assert [one.getID() for one in again] == [identifier] * 2
    back.deletePersistent()
    assert not is_psco(back)
    assert len(shm.list("pycompss/")) == 1
    back.text = "y"  # an ordinary object again


def test_aliases(storage_api, shm):
    x = storage_api.PersistentArray([1, 2, 3], alias="grid")
    storage_api.makePersistent(x)
    assert storage_api.getByID("grid").tolist() == [1, 2, 3]
    thing = Thing(values=np.ones(1 << 15))
    storage_api.makePersistent(thing, "thing")
    with pytest.raises(shmstore.AlreadyExists):
        Thing(values=np.ones(1 << 15)).makePersistent("thing")
    storage_api.finish()
    assert storage_api.getByID("thing").values.sum() == 1 << 15
    storage_api.deletePersistent(thing)
    storage_api.deletePersistent(x)
    assert [info["name"] for info in shm.list() if info["kept"]] == []
    shm.put("other", [1], keep=True)
    with pytest.raises(shmstore.NotFound, match="other is an array"):
        storage_api.getByID("other")
    with pytest.raises(shmstore.NotFound):
        storage_api.getByID("nothing")


def test_an_application_goes_on_with_a_new_daemon(storage_api, shm, daemon):
    old = storage_api.PersistentArray(np.ones(9))
    old.makePersistent()
    assert daemon.stop() == 0
    daemon.start()
    x, thing = storage_api.PersistentArray(np.arange(9)), Thing(values=np.ones(1 << 15))
    x.makePersistent()
    thing.makePersistent()
    assert x.getID() != old.getID()
    sweep(daemon.client())  # as the next one does it
    assert storage_api.getByID(x.getID())[-1] == 8
    assert storage_api.getByID(thing.getID()).values.sum() == 1 << 15
    storage_api.finish()
    wait_until(lambda: not any(info["name"] for info in shm.list()), "the end of its marker")


@pytest.mark.kills_daemon
def test_the_end_of_an_application_needs_no_daemon(storage_api, shm, daemon):
    x = storage_api.PersistentArray(np.ones(9))
    x.makePersistent()
    assert daemon.stop() == 0
    storage_api.finish()
    storage_api.finish()
    assert x[0] == 1
    daemon.start()
    storage_api.init()
    assert len(shm.list("pycompss/")) == 1
    storage_api.finish()


def test_threads_begin_one_application(storage_api, shm):
    barrier, made = threading.Barrier(8), []

    def make(value):
        barrier.wait()
        x = storage_api.PersistentArray([value])
        x.makePersistent()
        made.append(x)

    threads = [threading.Thread(target=make, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(x[0] for x in made) == list(range(8))
    assert len({info["attrs"]["program"] for info in shm.list() if info["attrs"]}) == 1


def test_only_what_applications_made_is_taken_away(storage_api, shm):
    """Names that begin as theirs do are anybody's, an alias too."""
    tokens = "matmul", "0123456789abcdef"
    mine = [f"pycompss/{token}/{name}" for token in tokens for name in ("A", "b" * 16)]
    for name in mine:
        shm.put(name, [1], keep=True, attrs={"program": "mine"})
    array, thing = "pycompss/run/x", "pycompss/fedcba9876543210/0123456789abcdef"
    storage_api.PersistentArray([1, 2], alias=array).makePersistent()
    Thing(values=np.ones(1 << 15)).makePersistent(thing)
    for _ in range(2):
        storage_api.init()  # an application
        storage_api.finish()
    assert {info["name"] for info in shm.list()} == {*mine, array, thing, thing + ".0"}
    assert storage_api.getByID(array).tolist() == [1, 2]
    assert storage_api.getByID(thing).values.sum() == 1 << 15


def test_an_object_is_deleted_with_its_own_arrays_only(storage_api, shm):
    kept = shm.put("block.csv", [1], keep=True), shm.put("block.7", [1], keep=True)
    block, other = Thing(values=np.ones(1 << 15)), Thing(values=np.ones(1 << 15))
    block.makePersistent("block")
    other.makePersistent("block.other")
    block.deletePersistent()
    names = "block.csv", "block.7", "block.other", "block.other.0"
    assert {info["name"] for info in shm.list() if info["kept"]} == set(names) and kept


def test_what_cannot_be_stored_leaves_nothing(storage_api, shm):
    thing = Thing(values=np.ones(1 << 15), log=logging.getLogger, lock=lambda: None)
    before = len(shm.list())
    with pytest.raises((pickle.PicklingError, AttributeError)):
        thing.makePersistent()
    assert len([i for i in shm.list("pycompss/") if "/" in i["name"][9:]]) == 0
    assert not is_psco(thing) and len(shm.list()) >= before


def test_configurations(storage_api, tmp_path, daemon):
    path = tmp_path / "storage.conf"
    path.write_text(f"# comment\nsocket = {daemon.socket}\n")
    storage_api.init(config_file_path=str(path))
    path.write_text("host1\n")
    for line in ("host1", "socket =", "fallback = maybe"):
        path.write_text(line + "\n")
        with pytest.raises(shmstore.InvalidArgument, match=f"storage.conf:1: '{line}'"):
            storage_api.initWorker(config_file_path=str(path))


@pytest.mark.kills_daemon
def test_without_a_store_it_does_the_same_without_ids(daemon, script):
    daemon.stop()
    done = script("""
import os, pickle, warnings
import numpy as np, shmstore
from shmstore.pycompss import PersistentArray, StorageObject, configure, persistent
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    persistent.init()
    x = PersistentArray(np.arange(30000.))
    persistent.initWorkerPostFork()
assert len(caught) == 1 and "goes on without the store" in str(caught[0].message), caught
def fails(error, call):
    try:
        call()
    except error as raised:
        return str(raised)
    raise SystemExit("it was done")
x.makePersistent()
y = pickle.loads(pickle.dumps(x))
for one in (x, y):
    assert type(one) is PersistentArray and one.getID() is None and one[-1] == 29999
    fails(ValueError, lambda: one.fill(0))
    one.deletePersistent()
assert type(pickle.loads(pickle.dumps(x[:3]))) is np.ndarray
fails(shmstore.InvalidArgument, x[1:].makePersistent)
class Thing(StorageObject):
    pass
thing = Thing()
thing.values, thing.few, thing.text = [np.ones(30000)], np.ones(3), "x"
thing.makePersistent()
thing.makePersistent()
for one in (thing, pickle.loads(pickle.dumps(thing, protocol=5))):  # as PyCOMPSs does it
    assert one.getID() is None and one.values[0].sum() == 30000 and one.few.sum() == 3
    assert "persistent objects do not change" in fails(AttributeError,
                                                       lambda: setattr(one, "text", "y"))
    fails(ValueError, lambda: one.values[0].fill(0))
thing.deletePersistent()
thing.text = "y"
# What is to stay cannot go by files.
fails(shmstore.Disconnected, lambda: PersistentArray([1], alias="stays"))
fails(shmstore.Disconnected, lambda: thing.makePersistent("stays"))
fails(shmstore.Disconnected, lambda: persistent.getByID("stays"))
persistent.finish()
configure(fallback=False)
for call in (persistent.init, lambda: PersistentArray([1]), thing.makePersistent,
             persistent.initWorkerPostFork):
    fails(shmstore.Disconnected, call)
configure(fallback=True)
with open("storage.conf", "w") as file:
    file.write("fallback = no")
fails(shmstore.Disconnected, lambda: persistent.initWorker("storage.conf"))
""", cwd=daemon.folder)
    assert done.returncode == 0, done.stderr


def test_the_path_is_printed():
    done = subprocess.run(
        [sys.executable, "-m", "shmstore.pycompss"], capture_output=True, text=True, check=True
    )
    assert done.stdout == pycompss.storage_path() + "\n"
    assert os.path.exists(os.path.join(pycompss.storage_path(), "storage", "api.py"))
