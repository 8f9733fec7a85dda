"""shmstore.compat.shared_memory: CPython's own tests, and what the tracker gets wrong."""

import gc
import inspect
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.shared_memory
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import shmstore
from shmstore.compat import shared_memory
from shmstore.compat.shared_memory import ShareableList, SharedMemory, SharedMemoryManager

RUNNER = Path(__file__).parent.parent / "run_cpython_shm_tests.py"
METHODS = ("fork", "spawn", "forkserver")


@pytest.fixture
def store(shm):
    """The default client is the test's daemon's, also in child processes."""
    multiprocessing.forkserver._forkserver._stop()  # one that runs has another environment
    yield shm
    shared_memory._created._reset()  # the next test has another daemon
    gc.collect()


def holders(name):
    try:
        return {holder["pid"] for holder in shmstore.holders("mp/" + name)}
    except shmstore.NotFound:
        return set()


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)  # tidy: allow(sleep) because this waits for a condition


@pytest.mark.parametrize("method", METHODS)
def test_cpythons_own_tests_pass(daemon, method):
    result = subprocess.run(
        [sys.executable, str(RUNNER), method],
        env=daemon.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    if result.returncode == 77:
        pytest.skip("this Python comes without its tests")
    assert result.returncode == 0, result.stdout


def test_signatures_are_those_of_the_standard_library():
    standard, manager = multiprocessing.shared_memory, multiprocessing.managers.SharedMemoryManager
    for ours, theirs in (
        (SharedMemory, standard.SharedMemory),
        (ShareableList, standard.ShareableList),
        (SharedMemoryManager.SharedMemory, manager.SharedMemory),
        (SharedMemoryManager, manager),
    ):
        mine = dict(inspect.signature(ours).parameters)
        if ours is SharedMemory and sys.version_info < (3, 13):
            assert mine.pop("track").kind is inspect.Parameter.KEYWORD_ONLY
        assert list(mine) == list(inspect.signature(theirs).parameters)
    public = {name for name in dir(standard.SharedMemory) if not name.startswith("_")}
    assert public == {name for name in dir(SharedMemory) if not name.startswith("_")}


def test_a_process_that_attaches_destroys_nothing(store, script):
    block = SharedMemory(create=True, size=100)
    result = script(
        "import sys\nfrom shmstore.compat.shared_memory import SharedMemory\n"
        "SharedMemory(sys.argv[1]).buf[0] = 7\n",
        block.name,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert block.buf[0] == 7
    assert SharedMemory(block.name).buf[0] == 7
    block.unlink()


def test_a_killed_creator_leaves_nothing(store, daemon):
    code = (
        "from shmstore.compat.shared_memory import SharedMemory\nimport time\n"
        "b = SharedMemory(create=True, size=1 << 20)\nclosed = SharedMemory(create=True, size=10)\n"
        "closed.close()\nprint(b.name, closed.name, flush=True)\ninput()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=daemon.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    names = process.stdout.readline().split()
    blocks = [SharedMemory(name) for name in names]
    process.kill()
    _, errors = process.communicate()
    assert errors == ""
    for name, block in zip(names, blocks):
        until(lambda name=name: holders(name) == {os.getpid()})
        assert block.buf[0] == 0
        block.close()
        until(lambda name=name: not shmstore.exists("mp/" + name))


def test_a_process_that_forgets_unlink_leaves_nothing_and_says_nothing(store, script):
    result = script(
        "from shmstore.compat.shared_memory import SharedMemory\n"
        "print(SharedMemory(create=True, size=100).name)"
    )
    assert (result.returncode, result.stderr) == (0, "")
    with pytest.raises(FileNotFoundError):
        SharedMemory(result.stdout.strip())


def test_closed_and_not_unlinked_it_is_there_for_others(store, script):
    block = SharedMemory(create=True, size=100)
    block.buf[:3] = b"abc"
    block.close()
    block.close()
    assert block.buf is None
    again = SharedMemory(block.name)
    assert bytes(again.buf[:3]) == b"abc"
    again.close()
    result = script(
        "import sys\nfrom shmstore.compat.shared_memory import SharedMemory\n"
        "b = SharedMemory(sys.argv[1])\nprint(bytes(b.buf[:3]))\nb.unlink()",
        block.name,
    )
    assert (result.returncode, result.stdout) == (0, "b'abc'\n")


def test_a_block_unlinked_elsewhere_is_not_held_by_its_creator(store, script):
    """Whether it was closed before or after, and though this process does nothing any more."""
    first, second = (SharedMemory(create=True, size=1 << 20) for _ in range(2))
    first.close()
    code = (
        "import sys\nfrom shmstore.compat.shared_memory import SharedMemory\n"
        "for name in sys.argv[1:]: SharedMemory(name).unlink()"
    )
    assert script(code, first.name, second.name).returncode == 0
    second.close()
    until(lambda: shmstore.stats()["used"] == 0)


def test_untracked_blocks_stay_until_unlink(store, script):
    code = (
        "from shmstore.compat.shared_memory import SharedMemory\n"
        "print(SharedMemory(create=True, size=100, track=False).name)"
    )
    name = script(code).stdout.strip()
    block = SharedMemory(name, track=False)
    block.unlink()
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)


def test_views_outlive_close_and_unlink(store):
    """The standard library's crash, or its BufferError."""
    block = SharedMemory(create=True, size=800)
    array = np.ndarray((100,), "f8", block.buf)
    view, part = block.buf, block.buf[8:16]
    array[:] = np.arange(100)
    block.close()
    block.unlink()
    del block
    gc.collect()
    assert array.sum() == 4950
    assert np.frombuffer(part, "f8")[0] == 1 and len(view) == 800
    del array, view, part
    gc.collect()
    until(lambda: shmstore.stats()["used"] == 0)


def make(value):
    block = SharedMemory(create=True, size=8)
    block.buf[0] = value
    block.close()
    return block.name


def make_and_send(pipe, value):
    pipe.send(make(value))


@pytest.mark.parametrize("method", METHODS)
def test_a_result_made_by_a_worker_that_has_ended(store, method):
    context = multiprocessing.get_context(method)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=make_and_send, args=(there, 5))
    process.start()
    there.close()  # a worker that cannot start is an EOFError, not a wait for ever
    name = here.recv()
    process.join()
    block = SharedMemory(name)
    assert block.buf[0] == 5
    block.unlink()


def test_results_of_a_pool(store):
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for value, name in enumerate(pool.map(make, range(20))):
            block = SharedMemory(name)
            assert block.buf[0] == value
            block.close()
            block.unlink()
        until(lambda: shmstore.stats()["used"] == 0)  # also not held by the workers


def test_a_forked_child_reads_and_lets_go(store):
    block = SharedMemory(create=True, size=100)
    block.buf[0] = 1

    def child():
        assert block.buf[0] == 1
        block.buf[1] = 2
        block.close()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0 and block.buf[1] == 2
    assert SharedMemory(block.name).buf[1] == 2
    block.unlink()


def test_it_is_an_array_of_the_store(store):
    block = SharedMemory("named block", create=True, size=64)
    array = shmstore.attach("mp/named=20block", "r+")
    assert array.dtype == "u1" and array.shape == (64,) and not array.any()
    array[5] = 9
    assert block.buf[5] == 9 and block.name == "named block"
    with pytest.raises(FileExistsError) as caught:
        SharedMemory("named block", create=True, size=64)
    assert caught.value.filename == "/named block"
    block.unlink()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_by_name(store, protocol):
    block = SharedMemory(create=True, size=10)
    again = pickle.loads(pickle.dumps(block, protocol))
    assert type(again) is SharedMemory and again.name == block.name
    items = ShareableList([1, "two", None])
    again = pickle.loads(pickle.dumps(items, protocol))
    assert type(again) is ShareableList and list(again) == [1, "two", None]
    block.unlink()
    items.shm.unlink()


def test_no_name_or_no_room(store):
    for name in ("", "/"):
        with pytest.raises(OSError):
            SharedMemory(name, create=True, size=10)
    with pytest.raises(ValueError):
        SharedMemory("a\0b", create=True, size=10)
    with pytest.raises(OSError):
        SharedMemory(create=True, size=1 << 50)
    assert shmstore.list("mp/") == []


def test_a_managers_blocks_end_with_it(store):
    with SharedMemoryManager(ctx=multiprocessing.get_context("spawn")) as manager:
        block = manager.SharedMemory(size=100)
        items = manager.ShareableList([1, 2, 3])
        names = [block.name, items.shm.name]
        block.close()
        assert SharedMemory(block.name).size == 100
        for name in names:
            assert manager._process.pid in holders(name)
    for name in names:
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)


def test_a_killed_managers_blocks_end_too(store):
    manager = SharedMemoryManager(ctx=multiprocessing.get_context("spawn"))
    manager.start()
    block = manager.SharedMemory(size=100)
    manager._process.kill()
    manager._process.join()
    until(lambda: holders(block.name) == {os.getpid()})
    block.close()
    until(lambda: not shmstore.exists("mp/" + block.name))


UNREGISTERED = (
    "from multiprocessing import resource_tracker\n"
    "from shmstore.compat.shared_memory import SharedMemory\n"
    "import sys\n"
    "b = SharedMemory(*sys.argv[1:]) if sys.argv[1:] else SharedMemory(create=True, size=100)\n"
    "b.buf[0] = 7\n"
    "resource_tracker.unregister(b._name, 'shared_memory')\n"
    "print(b.name)\n"
)


def test_a_block_taken_from_the_tracker_outlives_its_creator(store, script):
    """The idiom printed a KeyError, and the block was lost."""
    done = script(UNREGISTERED)
    assert (done.returncode, done.stderr) == (0, "")
    block = SharedMemory(done.stdout.strip())
    assert block.buf[0] == 7
    block.unlink()
    with pytest.raises(FileNotFoundError):
        SharedMemory(block.name)


def test_who_attaches_and_takes_a_block_from_the_tracker_changes_nothing(store, script):
    block = SharedMemory(create=True, size=100)
    done = script(UNREGISTERED, block.name)
    assert (done.returncode, done.stderr) == (0, "") and block.buf[0] == 7
    assert not shmstore.info("mp/" + block.name)["kept"]
    block.unlink()


def test_a_block_given_back_to_the_tracker_ends_with_its_creator(store, script):
    done = script(UNREGISTERED + "resource_tracker.register(b._name, 'shared_memory')\n")
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(FileNotFoundError):
        SharedMemory(done.stdout.strip())


def test_a_closed_block_is_taken_from_the_tracker_by_its_name(store, script):
    done = script(UNREGISTERED.replace("resource_tracker.un", "b.close(); resource_tracker.un"))
    assert (done.returncode, done.stderr) == (0, "")
    SharedMemory(done.stdout.strip()).unlink()


def test_the_tracker_hears_of_other_resources(store, script):
    done = script(
        "import shmstore.compat.shared_memory, multiprocessing.shared_memory as standard\n"
        "from multiprocessing import resource_tracker\n"
        "a = standard.SharedMemory(create=True, size=100)\n"
        "resource_tracker.unregister(a._name, 'shared_memory')\n"
        "resource_tracker.register(a._name, 'shared_memory')\n"
        "a.unlink()\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_memory_is_there_under_its_private_names(store):
    block = SharedMemory(create=True, size=10)
    block._mmap[3] = 9
    assert block.buf[3] == 9 and block._fd == -1 and len(block._mmap) == 10
    view = block._mmap[:4]
    block.close()
    assert block._mmap is None and block._fd == -1 and view[3] == 9
    block.unlink()


def test_texts_that_are_not_ascii_are_the_standard_librarys(store):
    """Cut, as there; bytes are not. The page says so."""
    text = "grün" * 20
    items = ShareableList([text.encode()])
    assert items[0].decode() == text and "cuts a text that is not ASCII" in shared_memory.__doc__
    items.shm.unlink()
