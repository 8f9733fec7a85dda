"""Several processes: pools, killed clients, the end of the interpreter, a full /dev/shm."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import wait_until


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("kind", ["pool", "executor", "process"])
def test_arrays_through_pools(program, kind, method):
    pool = program("pool.py", kind, method)
    assert pool.finish() == (0, "done\n")


def test_a_killed_client_leaves_nothing(client, program):
    x = program("holder.py", "plain")
    x.line()
    kept = program("holder.py", "kept", "keep")
    kept.line()
    assert client.exists("plain") and client.exists("kept")
    x.kill()
    kept.kill()
    wait_until(lambda: not client.exists("plain"), "the end of the killed client's array")
    stats = client.stats
    wait_until(lambda: stats()["used"] - stats()["records"] == 8 << 20, "the end of its memory")
    assert client.info("kept")["leases"] == 0 and client.attach("kept")[-1] == 1
    client.delete("kept")
    wait_until(lambda: client.stats()["used"] == 0, "the end of the kept one")


def test_a_reader_keeps_what_others_delete(client, program):
    holder = program("holder.py", "x")
    holder.line()
    x = client.attach("x")
    holder.kill()
    for i in range(20):
        y = client.put("refill", np.full(1 << 20, i, "f8"))
        assert x[0] == x[-1] == 1 and y[-1] == i
        del y


ENDS = {
    "globals": "x = shm.put('a', np.ones(1000)); y = x[1:]; z = [y]; z.append(z)",
    "module": "import sys; sys.keep = shm.put('a', np.ones(1000))",
    "draft": "w = shm.create('a', 10)",
    "with": "w = shm.create('a', 10).__enter__()",
    "exception": "x = shm.put('a', [1]); w = shm.attach('a'); sys.exit(0)",
    "thread": (
        "import threading\n"
        "t = threading.Thread(target=shm.wait, args=('never',), daemon=True)\n"
        "t.start(); x = shm.put('a', np.ones(1000))"
    ),
    "threads": (
        "import threading\n"
        "def churn():\n"
        "    while True: shm.put(None, np.ones(100))\n"
        "for _ in range(3): threading.Thread(target=churn, daemon=True).start()\n"
        "x = shm.put('a', np.ones(1000))"
    ),
    "loaders": (
        "import threading, time\n"
        "inside = threading.Barrier(4)\n"
        "def load():\n"
        "    inside.wait()\n"
        "    while True: time.monotonic()\n"
        "for i in range(3):\n"
        "    threading.Thread(target=shm.cached, args=(f'k{i}', load), daemon=True).start()\n"
        "inside.wait()"
    ),
    "client": "c = shm.connect(os.environ['SHMSTORE_SOCKET']); x = c.put('a', [1]); del c",
    "atexit": (
        "import atexit\nx = shm.put('a', np.ones(10))\n"
        "atexit.register(lambda: print(shm.attach('a').sum(), shm.exists('b')))"
    ),
    "destructor": (
        "class Late:\n"
        "    def __init__(self): self.x = shm.put('a', np.ones(10)); self.shm = shm\n"
        "    def __del__(self): assert self.x[1:][0] == 1 and self.shm.exists('a')\n"
        "late = Late()"
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_interpreter_ends_cleanly(client, script, end):
    for _ in range(3):
        result = script("import os, sys, numpy as np, shmstore as shm\n" + ENDS[end])
        assert result.returncode == 0 and result.stderr == "", result
    wait_until(lambda: client.stats()["arrays"] == 0, "the end of their arrays")


def test_a_small_dev_shm_changes_nothing(daemon, script):
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode != 0:
        pytest.skip("cannot mount here")
    text = (
        "import numpy as np, shmstore as shm, os\n"
        "assert os.statvfs('/dev/shm').f_blocks * os.statvfs('/dev/shm').f_frsize == 64 << 20\n"
        "x = shm.put('x', np.ones(16 << 20))\n"
        "print(int(x.sum()))\n"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount + ' && exec "$0" -c "$1"', sys.executable, text],
        env=daemon.environment(),
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{16 << 20}\n", done.stderr


def test_a_signal_that_kills_is_no_error_of_ours(script):
    result = script(
        "import shmstore as shm, numpy as np, os, signal\n"
        "x = shm.put('x', np.ones(1 << 20))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert result.returncode == -signal.SIGKILL and result.stderr == ""
