"""Arrays opened from handles a second time, and held for it."""

import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest

import shmstore
from conftest import wait_until
from shmstore import _opened
from shmstore._errors import shown


@pytest.fixture(autouse=True)
def nothing_held():
    yield
    shmstore.hold_opened(0)


def handle_of(array):
    return pickle.dumps(array)


@pytest.mark.kills_daemon
@pytest.mark.parametrize("mutable", [False, True])
def test_what_is_open_already_needs_no_daemon(daemon, client, mutable):
    x = client.put(None, np.arange(6.0).reshape(2, 3), mutable=mutable)
    whole, part = handle_of(x), handle_of(x[1:, ::2])
    first = pickle.loads(whole)
    daemon.stop(signal.SIGKILL)
    second, rows = pickle.loads(whole), pickle.loads(part)
    assert np.shares_memory(first, second) and second.shm.id == x.shm.id
    assert rows.tolist() == [[3.0, 5.0]]
    assert second.flags.writeable == rows.flags.writeable == mutable


def test_what_was_dropped_is_asked_for_again(client):
    x = client.put(None, np.arange(3.0))
    handle = handle_of(x)
    opened = pickle.loads(handle)
    del opened
    client.delete(id=x.shm.id)
    with pytest.raises(shmstore.NotFound):
        pickle.loads(handle)


def test_released_is_dropped(client):
    x = client.put(None, np.arange(3.0))
    handle = handle_of(x)
    opened = pickle.loads(handle)
    assert shmstore.release(opened)
    assert pickle.loads(handle).tolist() == [0, 1, 2]


def test_two_openings_share_a_lease(client):
    handle = handle_of(client.put(None, np.arange(3.0)))
    first, second = pickle.loads(handle), pickle.loads(handle)
    assert not shmstore.release(first)  # second uses it
    del second
    assert shmstore.release(first)


def test_a_writable_handle_never_makes_a_reader_writable(client):
    x = client.create(None, (4,), "f8", mutable=True)
    reader = x.view()
    reader.flags.writeable = False
    writable, readable = handle_of(x), handle_of(reader)
    for order in ((writable, readable), (readable, writable)):
        opened = [pickle.loads(handle) for handle in order]
        flags = [array.flags.writeable for array in opened]
        assert flags == [handle is writable for handle in order]


def test_sealed_here_is_not_writable_any_more(client):
    x = client.create(None, (4,), "f8", mutable=True)
    handle = handle_of(x)
    opened = pickle.loads(handle)
    opened[:] = 1
    shmstore.hold_opened(1 << 20)
    assert pickle.loads(handle).flags.writeable
    opened.seal()
    assert not pickle.loads(handle).flags.writeable
    y = client.create(None, (4,), "f8", mutable=True)
    handle = handle_of(y)
    opened = pickle.loads(handle)
    y.seal()  # through another lease
    assert not pickle.loads(handle).flags.writeable


def test_a_draft_is_not_mistaken_for_what_it_becomes(client):
    draft = client.create("x", (3,), "f8")
    draft[:] = 5
    writable = handle_of(draft)
    filler = pickle.loads(writable)
    assert filler.flags.writeable
    draft.seal()
    again = pickle.loads(writable)
    assert again.shm.state == "sealed" and not again.flags.writeable


def test_the_daemon_is_asked_again_in_time(client, monkeypatch):
    """Opening renews the sender's hand-over lease, so it must not be skipped for ever."""
    monkeypatch.setattr(_opened, "_ASK_AGAIN_S", -1)
    x = client.put(None, np.arange(3.0))
    handle = handle_of(x)
    opened = pickle.loads(handle)
    client.delete(id=x.shm.id)
    with pytest.raises(shmstore.NotFound):
        pickle.loads(handle)
    assert opened.tolist() == [0, 1, 2]


def is_open(array):
    """Whether this process has a lease that it got for a handle of the array."""
    return any(number == int(array.shm.id) for _, number, _ in list(_opened._opened))


def test_held_are_those_used_last(client):
    arrays = [client.put(None, np.full(8, n)) for n in range(3)]  # 64 bytes each
    handles = [handle_of(array) for array in arrays]
    shmstore.hold_opened(100)
    for handle in handles:
        pickle.loads(handle)
    assert [is_open(array) for array in arrays] == [False, False, True]
    shmstore.hold_opened(128)
    for n in (0, 2, 1, 2, 0):  # the third opening drops 0, the last one 1
        pickle.loads(handles[n])
    assert [is_open(array) for array in arrays] == [True, False, True]
    shmstore.hold_opened(0)
    assert not any(is_open(array) for array in arrays)


def test_what_is_too_large_to_be_held_pushes_nothing_out(client):
    arrays = [client.put(None, np.full(size, 1.0)) for size in (8, 8, 17)]
    shmstore.hold_opened(128)
    for array in arrays:
        pickle.loads(handle_of(array))
    assert [is_open(array) for array in arrays] == [True, True, False]


def test_held_outlives_its_creators_lease(daemon, client):
    x = daemon.client(grace=0).put(None, np.arange(4.0))
    handle, number = handle_of(x), x.shm.id
    shmstore.hold_opened(1 << 20)
    pickle.loads(handle)
    del x
    assert pickle.loads(handle).tolist() == [0, 1, 2, 3]
    assert client.holders(id=number)
    shmstore.hold_opened(0)
    wait_until(lambda: client.stats()["arrays"] == 0, "the array's end")


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("another", [True, False])
def test_what_is_only_held_is_not_in_ones_own_way(daemon, client, by_name, another):
    x = client.create("grid", (4,), "f8", mutable=True, keep=True)
    handle, number = handle_of(x), x.shm.id
    other = client.put(None, np.arange(3.0), mutable=True)
    shmstore.hold_opened(1 << 20)
    pickle.loads(handle)[:] = 1
    pickle.loads(handle_of(other))
    del x
    asking = daemon.client() if another else client
    which = {"name": "grid"} if by_name else {"id": number}
    with asking.attach(**which, mode="r+", exclusive=True, timeout=0) as alone:
        assert alone.shm.access == "x" and alone.tolist() == [1] * 4
    assert is_open(other)
    again = pickle.loads(handle)  # used, not only held
    with pytest.raises(shmstore.Busy):
        asking.attach(**which, mode="r+", exclusive=True, timeout=0)
    del again
    with asking.handle(id=number).attach("r+", exclusive=True, timeout=0):
        pass


def test_a_forked_child_holds_nothing(client):
    shmstore.hold_opened(1 << 20)
    handle = handle_of(client.put(None, np.arange(4.0)))
    pickle.loads(handle)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            empty = not _opened._held and not _opened._opened and not _opened._held_bytes_max
            x = pickle.loads(handle)  # over a session of its own
            status = 0 if empty and x.tolist() == [0, 1, 2, 3] else 2
        finally:
            os._exit(status)
    ended = wait_until(lambda: [status] if (status := os.waitpid(child, os.WNOHANG))[0] else None)
    assert os.waitstatus_to_exitcode(ended[0][1]) == 0


@pytest.mark.parametrize("value", [-1, 1.5, "1", None, True])
def test_bad_sizes(value):
    with pytest.raises(shmstore.InvalidArgument, match="^max_bytes"):
        shmstore.hold_opened(value)


OPENS_AND_DROPS = """
import os, pickle, sys
import shmstore

handle = sys.stdin.buffer.read()

def still_held():
    number = pickle.loads(handle).shm.id
    return any(who["pid"] == os.getpid() for who in shmstore.holders(id=number))

print(still_held(), flush=True)
child = os.fork()
if child == 0:
    print(still_held(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def with_setting(daemon, handle, setting):
    return subprocess.run(
        [sys.executable, "-c", OPENS_AND_DROPS],
        input=handle,
        capture_output=True,
        env=daemon.environment(SHMSTORE_HOLD_OPENED=setting),
    )


@pytest.mark.parametrize(
    "setting, held", [("1.5MiB", True), ("4096", True), ("4095", False), ("", False)]
)
def test_the_environment_can_say_it(daemon, client, setting, held):
    x = client.put(None, np.arange(512.0))
    done = with_setting(daemon, handle_of(x), setting)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split() == [str(held)] * 2  # the process, and a forked child


@pytest.mark.parametrize("setting", ["1GB", "-1", "1e9", "nan", "all", "9" * 400 + "T"])
def test_what_is_no_size_in_the_environment(daemon, setting):
    done = with_setting(daemon, b"", setting)
    text = done.stderr.decode()
    assert done.returncode == 1
    assert f"SHMSTORE_HOLD_OPENED: {shown(setting)} is not a number of bytes" in text


def test_what_is_no_size_at_a_fork(client, monkeypatch):
    handle = handle_of(client.put(None, np.arange(4.0)))
    shmstore.hold_opened(1 << 20)
    pickle.loads(handle)
    monkeypatch.setenv("SHMSTORE_HOLD_OPENED", "all")
    child = os.fork()
    if child == 0:
        os._exit(0 if _opened._held_bytes == 0 == _opened._held_bytes_max else 2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
