"""What a SharedArray is: views, results, flags, lifetime, release."""

import copy
import gc
import sys
import weakref

import numpy as np
import pytest

import shmstore
from shmstore import SharedArray


def plain(value):
    return type(value) is np.ndarray


def leases(client, name):
    return client.info(name)["leases"]


def test_put_returns_a_read_only_array_of_the_store(client):
    source = np.arange(12.0).reshape(3, 4)
    x = client.put("grid", source)
    assert type(x) is SharedArray and isinstance(x, np.ndarray)
    assert np.array_equal(x, source) and x.dtype == source.dtype
    assert type(np.atleast_1d(x)) is SharedArray
    assert not x.flags.writeable
    with pytest.raises(ValueError):
        x[0, 0] = 1
    with pytest.raises(ValueError):
        x.flags.writeable = True
    source[:] = 0
    assert x[2, 3] == 11


def test_shm_says_what_the_store_knows(client):
    x = client.put("a/b", np.zeros((2, 3), "i4"), perms=0o640)
    s = x.shm
    info = client.info("a/b")
    assert s.id == info["id"] and s.id.isdigit()
    assert s.name == "a/b" and s.version == info["version"] >= 1
    assert s.state == "sealed" and s.access == "r" and s.sealed == "hard"
    assert s.perms == 0o640 and s.nbytes == 24
    assert client.put(None, [1, 2]).shm.name is None


def test_views_stay_shared_arrays(client):
    x = client.put("x", np.arange(24.0).reshape(4, 6))
    views = [x[1:], x[1], x[:, ::2], x[::-1], x.T, x.reshape(6, 4), x.ravel(), x[...], x.view(),
             x[None], x.swapaxes(0, 1), x[1:][1:], x.view("u1"), x.diagonal(), x.squeeze()]
    for view in views:
        assert type(view) is SharedArray
        assert view.shm == x.shm
        assert np.shares_memory(view, x)


def test_results_are_plain_and_have_no_lease(client):
    x = client.put("x", np.arange(12.0).reshape(3, 4))
    results = [
        x + 1, 1 + x, -x, x + x, np.sqrt(x), x.sum(axis=0), x.mean(axis=1), x @ x.T, x > 3,
        x[x > 3], x[[0, 1]], x[:, [1, 2]], x[np.ix_([0, 1], [1])], x.copy(), x.copy("F"),
        x.astype("f4"), x.astype("f8"), x.flatten(), x.repeat(2), x.take([0, 1]), x.cumsum(),
        x.argsort(), x.argmax(axis=0), x.dot(np.ones(4)), x.dot(x.T), x.round(), x.clip(0, 1),
        x.byteswap(), x.conj() * 1, x.compress([True, False, True], axis=0), x.T.ravel(), x.std(0),
        np.zeros_like(x), np.empty_like(x), np.sort(x), np.concatenate([x, x]),
        np.where(x > 1, x, 0),
        np.array(x), np.copy(x), np.roll(x, 1), np.tile(x, 2), np.dot(x, x.T), np.inner(x, x),
        np.unique(x), np.add.outer(x[0], x[0]), np.einsum("ij->i", x), copy.copy(x),
        copy.deepcopy(x), x[[[0]], [[1]]],
    ]  # fmt: skip
    for result in results:
        assert plain(result), type(result)
        assert not np.shares_memory(result, x)
    before = leases(client, "x")
    del x
    assert before == 1 and not client.exists("x")
    assert results[0][0, 1] == 2


def test_full_reductions_are_scalars(client):
    x = client.put("x", np.arange(12.0))
    for value in (x.sum(), x.max(), x.mean(), np.dot(x, x), x[3], np.sum(x), x.all(), x.argmax()):
        assert isinstance(value, (np.generic, float, int)), type(value)
    zero_d = client.put("z", np.array(3.5))
    assert zero_d.shape == () and zero_d[()] == 3.5 and float(zero_d) == 3.5
    assert isinstance(zero_d + 1, np.generic)
    assert type(zero_d[...]) is SharedArray


def test_computing_in_place(client):
    x = client.create("x", (4,), "f8", mutable=True)
    x[:] = 1
    same = x
    x += 2
    assert x is same and type(x) is SharedArray
    assert np.add(x, 1, out=x) is x
    np.multiply(x[1:], 2, out=x[1:])
    assert x.tolist() == [4, 8, 8, 8]
    assert client.attach("x").tolist() == [4, 8, 8, 8]
    x.sort()
    x.fill(7)
    assert client.attach("x").tolist() == [7] * 4


def test_without_a_lease(client):
    x = client.put("x", np.arange(4.0))
    bare = np.zeros(3).view(SharedArray)
    assert bare.shm is None
    assert np.lib.stride_tricks.as_strided(x, (2,), (8,), subok=True).shm == x.shm
    outside = np.lib.stride_tricks.as_strided(x, (2, 100), (0, 8), subok=True)
    assert outside.shm is None


def test_plain_views_keep_the_memory_too(client):
    x = client.put("x", np.arange(4.0))
    flat = np.asarray(x)
    window = memoryview(x)
    assert plain(flat)
    del x
    gc.collect()
    assert flat.tolist() == [0, 1, 2, 3] and client.exists("x")
    del flat
    assert window[2] == 2 and client.exists("x")
    del window
    assert not client.exists("x")


def test_the_last_view_ends_the_lease(client):
    x = client.put("x", np.arange(100.0))
    view = x[10:20]
    del x
    gc.collect()
    assert client.exists("x") and view[0] == 10
    part = view[::2]
    del view
    assert part.tolist() == [10, 12, 14, 16, 18] and client.exists("x")
    del part
    assert not client.exists("x")


def test_cycles_are_collected(client):
    x = client.put("x", np.zeros(10))
    cycle = [x]
    cycle.append(cycle)
    del x, cycle
    gc.collect()
    assert not client.exists("x")


def test_arrays_outlive_the_client(daemon):
    x = daemon.client().put("x", np.arange(3))
    gc.collect()
    assert x.tolist() == [0, 1, 2]
    assert daemon.client().exists("x")
    del x
    gc.collect()
    assert not daemon.client().exists("x")


def test_weak_references(client):
    x = client.put("x", np.zeros(3))
    reference = weakref.ref(x)
    del x
    assert reference() is None


# --- release --------------------------------------------------------------------------------------


def test_release_ends_the_lease_now(client):
    x = client.put("x", np.arange(4.0))
    assert shmstore.release(x) is True
    assert not client.exists("x")
    assert x.shape == (0,) and x.size == 0 and x.shm is None and x.dtype == "f8"
    assert (x + 1).size == 0 and repr(x)
    assert shmstore.release(x) is True
    assert client.release(x) is True


def test_release_waits_for_views(client):
    x = client.put("x", np.arange(4.0))
    view = x[1:]
    assert shmstore.release(x) is False
    assert x.tolist() == [0, 1, 2, 3] and client.exists("x")
    del view
    flat = np.asarray(x)
    assert shmstore.release(x) is False
    del flat
    window = memoryview(x)
    assert shmstore.release(x) is False
    window.release()
    del window
    other = x
    assert shmstore.release(x) is False
    del other
    box = {"x": x}
    assert shmstore.release(x) is False
    box.clear()
    assert shmstore.release(x) is True
    assert not client.exists("x")


def test_release_of_a_view(client):
    x = client.put("x", np.arange(10.0))
    view = x[2:]
    assert shmstore.release(view) is False
    del x
    part = view[1:]
    assert shmstore.release(view) is False
    del view
    assert shmstore.release(part) is True
    assert part.size == 0 and not client.exists("x")


def test_release_of_an_attribute_and_an_element(client):
    class Holder:
        pass

    holder = Holder()
    holder.x = client.put("x", np.zeros(3))
    ended = [shmstore.release(holder.x)]  # pytest's assert would refer to the array itself
    box = [client.put("y", np.zeros(3))]
    ended.append(shmstore.release(box[0]))
    ended.append(shmstore.release(client.put("z", np.zeros(3))))
    assert ended == [True, True, True] and client.list() == []


def test_release_by_way_of_a_view_is_no_release(client):
    """Whatever leads from a view to memory that the view needs must not end its lease."""
    x = client.put("x", np.arange(4.0))
    views = [x[1:], np.asarray(x), memoryview(x), np.asarray(x)[1:].view(SharedArray)]
    del x
    while views:
        view = views.pop()
        owner = view.obj if isinstance(view, memoryview) else view.base
        del views[len(views) :]
        while isinstance(owner, np.ndarray):
            assert shmstore.release(owner) is False
            owner = owner.base
        assert client.exists("x") and np.asarray(view)[-1] == 3
        ended = shmstore.release(view.obj if isinstance(view, memoryview) else view.base)
        assert ended is False and np.asarray(view)[-1] == 3
        del owner
    del view
    assert not client.exists("x")


def test_release_through_the_base_of_the_only_view(client):
    for make in (lambda x: x[1:], np.asarray, memoryview):
        view = make(client.put("x", np.arange(4.0)))
        ended = shmstore.release(view.obj if isinstance(view, memoryview) else view.base)
        assert ended is False
        assert np.asarray(view)[-1] == 3 and client.exists("x")
        del view
        assert not client.exists("x")


def test_release_of_what_never_was_in_the_store(client):
    with pytest.raises(shmstore.InvalidArgument):
        shmstore.release(np.zeros(3))
    with pytest.raises((shmstore.InvalidArgument, TypeError)):
        shmstore.release("x")


def test_release_of_a_draft_drops_it(client):
    w = client.create("w", (4,))
    assert client.info("w")["state"] == "draft"
    assert shmstore.release(w) is True
    assert not client.exists("w")


def test_release_keeps_other_holders(client, daemon):
    x = client.put("x", np.arange(4.0))
    y = client.attach("x")
    z = daemon.client().attach("x")
    assert shmstore.release(x) is True
    assert y.tolist() == z.tolist() == [0, 1, 2, 3]
    assert leases(client, "x") == 2


@pytest.mark.kills_daemon
def test_release_without_a_daemon(daemon):
    client = daemon.client(reconnect=0)
    x = client.put("x", np.arange(4.0))
    daemon.stop()
    assert x.tolist() == [0, 1, 2, 3]
    assert shmstore.release(x) is True
    assert x.size == 0


def test_reference_counts_do_not_grow(client):
    x = client.put("x", np.arange(12.0).reshape(3, 4))
    operations = [
        lambda: x[1:], lambda: x[[0]], lambda: x + 1, lambda: np.sort(x), lambda: x.shm,
        lambda: x.copy(), lambda: x[0, 0], lambda: client.attach("x"), lambda: np.asarray(x),
    ]  # fmt: skip
    for operation in operations:
        operation()
        counts = [sys.getrefcount(x), sys.getrefcount(x.base), sys.getrefcount(None)]
        for _ in range(50):
            operation()
        assert [sys.getrefcount(x), sys.getrefcount(x.base)] == counts[:2]
    assert leases(client, "x") == 1
