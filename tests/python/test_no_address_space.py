"""A create that the store has granted, and this process then cannot map, leaves all as it was."""

import numpy as np
import pytest

import shmstore

#: Makes as much address space impossible as every one of these arrays needs.
LIMIT = """
import resource, numpy as np, shmstore, shmstore.compat.sharedarray, shmstore.compat.shared_memory
shmstore.exists("x")  # Everything that is needed is there.
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (16 << 20), resource.RLIM_INFINITY))
SIZE = 64 << 20
try:
    {call}
except (MemoryError, OSError) as error:
    print("refused:", error)
"""

CALLS = [
    'shmstore.create("x", SIZE, "u1", mutable=True, keep=True, replace=True)',
    'shmstore.create("x", SIZE, "u1", keep=True, replace=True)',
    'shmstore.zeros(SIZE, "u1", name="x", mutable=True, keep=True, replace=True)',
    'shmstore.create("y", SIZE, "u1", mutable=True, keep=True)',
    'shmstore.zeros(SIZE, "u1", name="y", mutable=True, keep=True)',
    'shmstore.compat.sharedarray.create("y", SIZE, "u1")',
    'shmstore.compat.shared_memory.SharedMemory("y", create=True, size=SIZE)',
]


@pytest.mark.parametrize("call", CALLS)
def test_what_cannot_be_mapped_replaces_nothing_and_is_not_kept(client, script, call):
    client.put("x", np.arange(4.0), keep=True)
    result = script(LIMIT.format(call=call))
    assert result.stdout.startswith("refused:"), result
    assert [info["name"] for info in client.list()] == ["x"]
    assert client.attach("x").tolist() == [0, 1, 2, 3]


def test_a_mutable_array_replaces_as_soon_as_it_is_made(client):
    old = client.put("x", np.arange(4.0), keep=True)
    new = client.create("x", 3, "i8", mutable=True, keep=True, replace=True)
    assert new.shm.state == "mutable" and new.shm.version == old.shm.version + 1
    assert client.attach("x").shape == (3,)
    filled = client.put("x", np.ones(5), mutable=True, replace=True)
    assert filled.shm.version == new.shm.version + 1
    filled[0] = 2
    assert client.attach("x").tolist() == [2, 1, 1, 1, 1]
    with pytest.raises(shmstore.AlreadyExists):
        client.create("x", 3, mutable=True, keep=True)
