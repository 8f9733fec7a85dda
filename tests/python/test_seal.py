"""Drafts, co-writers, sealing."""

import contextlib
import ctypes
import gc
import os
import pickle
import signal

import numpy as np
import pytest
from conftest import FULL, wait_until

import shmstore


def mapping_of(array, pid="self"):
    """The line of /proc/self/maps that the array lies in."""
    address = array.__array_interface__["data"][0]
    for line in open(f"/proc/{pid}/maps"):
        low, high = (int(text, 16) for text in line.split()[0].split("-"))
        if low <= address < high:
            return line.split()
    raise AssertionError("not mapped")


def test_with_seals(client):
    with client.create("x", 3) as w:
        w[:] = [1, 2, 3]
        view = w[1:]
    assert w.shm.state == "sealed" and not w.flags.writeable
    with pytest.raises(ValueError):
        w[0] = 5
    assert client.attach("x").tolist() == [1, 2, 3] and view.tolist() == [2, 3]


def test_with_aborts_on_an_exception(client):
    with pytest.raises(KeyError, match="mine") as caught:
        with client.create("x", 3) as w:
            w[:] = 1
            raise KeyError("mine")
    assert caught.value.__context__ is None
    assert not client.exists("x")
    assert w.tolist() == [1, 1, 1]  # what is still referred to stays readable
    with client.create("x", 4) as again:
        again[:] = 2
    assert client.attach("x").shape == (4,)
    with pytest.raises(shmstore.Error):
        w.seal()
    del w, caught
    gc.collect()
    assert client.stats()["arrays"] == 1


def test_with_leaves_what_another_handle_sealed(client):
    w = client.create("x", 4)
    w[:] = 7
    assert client.attach("x", "r+").seal().shm.state == "sealed"
    with pytest.raises(KeyError):
        with w:
            raise KeyError
    assert client.attach("x").tolist() == [7] * 4
    del w
    gc.collect()
    assert not client.exists("x")


@pytest.mark.parametrize("fails", [False, True])
def test_with_leaves_an_empty_array_that_another_handle_sealed(client, fails):
    w = client.create("x", 0, keep=True)
    sibling = client.attach("x", "r+").seal()
    with contextlib.suppress(KeyError), w:
        if fails:
            raise KeyError
    again = client.attach("x")
    assert again.shape == (0,) and again.shm.state == "sealed"
    del w, sibling, again
    gc.collect()
    assert client.exists("x") and client.holders("x") == []


def test_with_aborts_an_empty_draft(client):
    w = client.create("x", 0)
    with pytest.raises(KeyError):
        with w:
            raise KeyError
    assert not client.exists("x")
    del w
    gc.collect()
    assert client.stats()["arrays"] == 0


def test_with_aborts_an_anonymous_draft(client):
    with pytest.raises(ZeroDivisionError):
        with client.create(None, 3):
            1 / 0
    gc.collect()
    assert client.stats()["arrays"] == 0


def test_with_leaves_others_alone(client):
    s = client.create("s", 3, mutable=True)
    with s:
        s[:] = 1
    assert s.flags.writeable and s.shm.state == "mutable"
    with pytest.raises(KeyError):
        with s:
            raise KeyError
    x = client.put("x", [1])
    with x, client.attach("x") as y:
        pass
    assert client.exists("s") and x.tolist() == y.tolist() == [1]


def test_seal_by_hand(client):
    w = client.create("x", 3)
    w[:] = 7
    r = w.seal()
    assert r is w and not r.flags.writeable and r.shm.sealed == "soft"
    assert w.seal() is w and w.seal(hard=False).shm.sealed == "soft"
    with client.create("y", 3) as v:
        v[:] = 1
        v.seal()
    assert v.shm.state == "sealed"
    with pytest.raises(shmstore.InvalidArgument):
        np.zeros(3).view(shmstore.SharedArray).seal()


def test_seal_through_a_view(client):
    w = client.create("x", 3)
    view = w[1:]
    assert view.seal() is view
    assert client.info("x")["state"] == "sealed" and not view.flags.writeable


def test_seal_of_a_mutable_array(client):
    s = client.create("s", 3, "i8", mutable=True)
    s[:] = 4
    assert s.seal().shm.state == "sealed"
    assert client.attach("s").tolist() == [4, 4, 4]
    with pytest.raises(shmstore.InvalidArgument):
        client.attach("s", "r+")


def test_hard_seal_leaves_old_views_harmless(client):
    w = client.create("x", 4096, "u1")
    w[:] = 1
    view = w[:10]
    w.seal(hard=True)
    view[:] = 9  # numpy's flag was taken before
    assert client.attach("x").sum() == 4096
    assert w.shm.sealed == "hard"


def test_a_reader_cannot_seal(client, daemon):
    client.create("s", 3, mutable=True, keep=True)
    x = daemon.client().attach("s")
    with pytest.raises(shmstore.Error):
        x.seal()


def test_a_draft_reserves_its_name_and_waits(client):
    w = client.create("x", 3)
    with pytest.raises(shmstore.TimedOut):
        client.attach("x", timeout=0)
    with pytest.raises(TimeoutError):
        client.attach("x", timeout=0.01)
    with pytest.raises(shmstore.NotSealed):
        client.keep("x")
    w.seal()
    assert client.attach("x", timeout=0).shape == (3,)


def test_two_handles_of_one_draft_in_a_process(client):
    w = client.create("x", 3, "i8")
    v = client.attach("x", "r+")
    v[:] = 3
    assert w.tolist() == [3, 3, 3]
    w.seal()
    del v
    gc.collect()
    assert client.info("x")["leases"] == 1
    del w
    gc.collect()
    assert not client.exists("x")


def test_a_map_to_read_is_read_only(client, script):
    with client.create("x", 4096, "u1") as w:
        w[:] = 1
    result = script(
        "import shmstore as shm, ctypes\n"
        "x = shm.attach('x')\n"
        "a = x.__array_interface__['data'][0]\n"
        "line = next(l for l in open('/proc/self/maps')\n"
        "            if int(l.split('-')[0], 16) <= a < int(l.split('-')[1].split()[0], 16))\n"
        "print(line.split()[1], flush=True)\n"
        "ctypes.memset(a, 5, 1)\n"
    )
    assert result.stdout.split() == ["r--s"]
    assert result.returncode == -signal.SIGSEGV
    assert client.attach("x").sum() == 4096


def fill_together(client, program, nbytes, writers, victim):
    """`writers` processes fill slices of one draft; `victim` (an index) is killed half-way."""
    w = client.create("draft", nbytes // 8, "u8")
    pieces = [program("cowriter.py", "draft", i, writers) for i in range(writers)]
    for piece in pieces:
        assert piece.line() == "half"
    with pytest.raises(shmstore.Busy) as busy:
        w.seal()
    for piece in pieces:
        assert str(piece.pid) in str(busy.value)
    if victim is not None:
        pieces[victim].kill()
    for i, piece in enumerate(pieces):
        if i != victim:
            piece.say()
            assert piece.line() == "filled"
    for i, piece in enumerate(pieces):
        if i != victim:
            piece.say()
    w.seal(wait=60)
    for i, piece in enumerate(pieces):
        assert i == victim or piece.finish()[0] == 0
    return w


@pytest.mark.parametrize("victim", [None, 3])
def test_co_writers_fill_one_draft(client, program, script, victim):
    nbytes, writers = (1 << 30 if FULL else 16 << 20), 8
    w = fill_together(client, program, nbytes, writers, victim)
    part = nbytes // 8 // writers
    for i in range(writers):
        piece = w[i * part : (i + 1) * part]
        if i == victim:
            assert (piece[: part // 2] == i + 1).all()
        else:
            assert (piece == i + 1).all()
    result = script(
        "import shmstore as shm, numpy as np\n"
        "x = shm.attach('draft')\n"
        "try: x[0] = 1\n"
        "except ValueError: print(int(x.sum()))\n"
    )
    assert int(result.stdout) == int(w.sum())
    assert client.info("draft")["leases"] == 1


def test_an_aborted_draft_tells_its_co_writers(client, program):
    w = client.create("draft", 1024, "u8")
    piece = program("cowriter.py", "draft", 0, 1)
    assert piece.line() == "half"
    assert shmstore.release(w) is True
    assert not client.exists("draft")
    piece.say()
    assert piece.line() == "filled"  # its memory is still there
    piece.say("seal")
    assert piece.line() == "aborted"
    assert piece.finish()[0] == 0


def test_waiters_of_an_aborted_draft_are_told(daemon, client, program):
    w = client.create("draft", 4)
    waiter = program("waiter.py", "attach", "draft")
    assert waiter.line() == "waiting"
    wait_until(lambda: blocked(waiter.pid), "the waiter's wait")
    with pytest.raises(KeyError):
        with w:
            raise KeyError
    assert waiter.line() == "Aborted"


def blocked(pid):
    """Whether the process waits for a message."""
    try:
        call = open(f"/proc/{pid}/syscall").read().split()[0]
    except PermissionError:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] == "S"
    return call in {"7", "271", "73"}  # poll, ppoll: x86-64, arm64


def test_a_killed_creator_leaves_nothing(client, program):
    creator = program("creator.py", "draft")
    assert creator.line() == "half"
    assert client.info("draft")["state"] == "draft"
    creator.kill()
    wait_until(lambda: not client.exists("draft"), "the end of the draft")
    wait_until(lambda: client.stats()["arrays"] == 0, "the end of the memory")


def test_writing_through_a_view_after_a_soft_seal_is_the_creators_business(client):
    w = client.create("x", 16, "u1")
    view, plain, buffer = w[:], np.asarray(w), memoryview(w)
    w[:] = 0
    w.seal()
    assert mapping_of(w)[1] == "r--s" and mapping_of(view)[1] == "rw-s"
    view[0], plain[1], buffer[2] = 3, 4, 5  # all stay valid
    assert client.attach("x")[:4].tolist() == w[:4].tolist() == [3, 4, 5, 0]
    assert os.getpid() in [one["pid"] for one in client.holders("x")]
    assert view.shm.name == "x" and pickle.loads(pickle.dumps(view[1:3])).tolist() == [4, 5]
    del w, view, plain
    gc.collect()
    assert bytes(buffer[:3]) == b"\3\4\5"


MAKERS = {
    "put": "x = shm.put('x', np.ones(4096, 'u1'))",
    "put hard": "x = shm.put('x', np.ones(4096, 'u1'), hard=True)",
    "put strided": "x = shm.put('x', np.ones(8192, 'u1')[::2])",
    "create": "with shm.create('x', 4096, 'u1') as x: x[:] = 1",
    "create hard": "with shm.create('x', 4096, 'u1', hard=True) as x: x[:] = 1",
    "create, view": "x = shm.create('x', 4096, 'u1'); v = x[:]; v[:] = 1; x.seal()",
    "view sealed": "w = shm.create('x', 4096, 'u1'); w[:] = 1; x = w[:].seal()",
    "mutable": "x = shm.create('x', 4096, 'u1', mutable=True); x[:] = 1; x.seal()",
    "cached": "x = shm.cached('x', lambda: np.ones(4096, 'u1'))",
    "cached, filled": "x = shm.cached('x', lambda out: out.fill(1), shape=4096, dtype='u1')",
    "shared": "x = share(np.ones(4096, 'u1'), 0); y = shm.put('x', x)",
    "shared draft": "x = shm.create('x', 4096, 'u1'); x[:] = 1; x = share(x)",
}


@pytest.mark.parametrize("maker", MAKERS)
def test_code_that_ignores_the_flag_cannot_change_what_was_sealed(client, script, maker):
    """As scipy.linalg with overwrite_a, bottleneck.replace or torch.from_numpy do."""
    result = script(
        "import shmstore as shm, ctypes, numpy as np\n"
        "from shmstore.sharing import share\n"
        f"{MAKERS[maker]}\n"
        "assert not x.flags.writeable and x.sum() == 4096\n"
        "shm.keep('x')\n"
        "a = x.__array_interface__['data'][0]\n"
        "line = next(l for l in open('/proc/self/maps')\n"
        "            if int(l.split('-')[0], 16) <= a < int(l.split('-')[1].split()[0], 16))\n"
        "print(line.split()[1][:3], flush=True)\n"
        "ctypes.memset(a, 5, 1)\n"
    )
    assert result.stdout.split() == ["r--"], result.stderr
    assert result.returncode == -signal.SIGSEGV
    assert client.attach("x").sum() == 4096


def test_scipy_in_place_on_a_sealed_array(client, script):
    pytest.importorskip("scipy")
    client.put("x", np.eye(64) + 1.0, keep=True)
    script(
        "import shmstore as shm, numpy as np, scipy.linalg\n"
        "x = shm.put('y', np.asfortranarray(np.eye(64) + 1.0), keep=True)\n"
        "scipy.linalg.inv(x, overwrite_a=True, check_finite=False)\n"
    )
    assert (client.attach("y") == client.attach("x")).all()


def test_a_sealed_array_that_was_moved_is_released_and_pickled(client):
    with client.create("x", (4, 5), "i4", order="F") as w:
        w[:] = np.arange(20).reshape(4, 5)
    again = pickle.loads(pickle.dumps(w))
    assert again.flags.f_contiguous and again.tolist() == w.tolist() and again.shm.id == w.shm.id
    with pytest.raises(ValueError):
        w.flags.writeable = True
    view = w[1:]
    assert shmstore.release(w) is False
    del view, again
    gc.collect()
    assert shmstore.release(w) is True and w.shape == (0,)
    assert [one["pid"] for one in client.holders("x")] == [0]  # the pickled handle
