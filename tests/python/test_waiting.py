"""Waiting calls: deadlines, threads, Ctrl-C."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import PATIENCE, wait_until

import shmstore


def asleep(pid):
    """Whether every thread of the process sleeps in the kernel."""
    for task in os.listdir(f"/proc/{pid}/task"):
        stat = open(f"/proc/{pid}/task/{task}/stat").read()
        if stat.rsplit(")", 1)[1].split()[0] != "S":
            return False
    return True


def test_wait_returns_the_version(client):
    x = client.put("x", [1], replace=True)
    version = x.shm.version
    assert client.wait("x") == client.wait("x", timeout=0) == version
    assert client.wait("x", newer_than=version - 1) == version
    with pytest.raises(shmstore.TimedOut):
        client.wait("x", newer_than=version, timeout=0)
    with pytest.raises(TimeoutError):
        client.wait("y", timeout=0.02)


def test_wait_for_existence(client, program):
    waiter = program("waiter.py", "wait", "later")
    assert waiter.line() == "waiting"
    wait_until(lambda: asleep(waiter.pid), "the waiter's wait")
    w = client.create("later", 3)
    w.seal()
    assert int(waiter.line()) == w.shm.version


def test_attach_waits_for_a_draft(client, program):
    w = client.create("draft", 3, "i8")
    waiter = program("waiter.py", "attach", "draft")
    assert waiter.line() == "waiting"
    wait_until(lambda: asleep(waiter.pid), "the waiter's wait")
    w[:] = 4
    w.seal()
    assert waiter.line() == "[4, 4, 4]"


def test_attach_newer_than(client):
    x = client.put("x", [1], replace=True)
    got = []
    thread = threading.Thread(
        target=lambda: got.append(client.attach("x", newer_than=x.shm.version).tolist())
    )
    thread.start()
    with pytest.raises(shmstore.TimedOut):
        client.attach("x", newer_than=x.shm.version, timeout=0.02)
    y = client.put("x", [2, 3], replace=True)
    thread.join(PATIENCE)
    assert got == [[2, 3]] and y.shm.version > x.shm.version


def test_a_waiting_thread_holds_nobody_up(client):
    done = []
    threads = [
        threading.Thread(target=lambda: done.append(client.wait("later"))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for i in range(50):
        x = client.put(None, np.full(10, i))
        assert client.attach(id=x.shm.id)[0] == i
    assert done == []
    x = client.put("later", [1])
    for thread in threads:
        thread.join(PATIENCE)
    assert done == [x.shm.version] * 5


def test_other_python_threads_run_while_one_waits(client):
    counted = []
    thread = threading.Thread(target=lambda: client.wait("later"))
    thread.start()
    for i in range(1000):
        counted.append(i)
    x = client.put("later", [1])
    thread.join(PATIENCE)
    assert len(counted) == 1000 and x is not None


WAITS = {
    "wait": lambda c: c.wait("never"),
    "attach": lambda c: c.attach("draft"),
    "newer": lambda c: c.attach("sealed", newer_than=1 << 40),
    "cached": lambda c: c.cached("loading", lambda: [1]),
    "seal": lambda c: c.attach("draft", "r+").seal(wait=None),
    "watch": lambda c: next(c.watch("never")),
}


@pytest.mark.parametrize("how", WAITS)
def test_ctrl_c_ends_a_wait(daemon, client, how):
    """SIGINT in the main thread of a child process that waits."""
    other = daemon.client()
    w = other.create("draft", 3)
    x = other.put("sealed", [1])
    loading, stop = threading.Event(), threading.Event()

    def load():
        loading.set()
        stop.wait()
        return [1]

    loader = threading.Thread(target=lambda: other.cached("loading", load))
    loader.start()
    loading.wait()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(PATIENCE)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            client.exists("x")
            try:
                WAITS[how](client)
            except KeyboardInterrupt:
                # The connection is as good as before.
                status = 0 if client.exists("sealed") and client.put(None, [1])[0] == 1 else 3
        finally:
            os._exit(status)
    try:
        sessions = len(other.holders("sealed"))
        wait_until(lambda: asleep(pid), "the wait")
        # The process also sleeps while it connects: only one that stays asleep waits.
        wait_until(lambda: stays_asleep(pid), "the wait")
        os.kill(pid, signal.SIGINT)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        stop.set()
        loader.join(PATIENCE)
    assert sessions == 1
    wait_until(lambda: len(other.holders("sealed")) == 1, "the end of the child's leases")
    assert client.info("draft")["state"] == "draft"
    w.seal()
    del x


def test_ctrl_c_while_another_thread_waits_too(client, program):
    """The other thread reads from the socket for both."""
    waiter = program("two_waiters.py")
    assert waiter.line() == "waiting"
    wait_until(lambda: stays_asleep(waiter.pid), "the waits")
    waiter.process.send_signal(signal.SIGINT)
    assert waiter.line() == "KeyboardInterrupt"
    x = client.put("first", [1])
    assert waiter.line() == f"first {x.shm.version}"
    assert waiter.finish()[0] == 0


@pytest.mark.kills_daemon
def test_ctrl_c_while_the_daemon_is_away(daemon, program):
    waiter = program("reconnecting.py")
    assert waiter.line() == "connected"
    daemon.stop(signal.SIGKILL)
    waiter.say()
    assert waiter.line() == "trying"
    waiter.process.send_signal(signal.SIGINT)
    assert waiter.line() == "KeyboardInterrupt"
    assert waiter.finish()[0] == 0


def stays_asleep(pid):
    """Asleep, and woken by nothing but time slices of the wait, for a while."""

    def calls():
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[11:13]

    before = calls()
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        if not asleep(pid):
            return False
        time.sleep(0.01)  # tidy: allow(sleep) because the absence of activity takes time to see
    return calls() == before


def test_a_handler_that_does_not_raise_goes_on_waiting(script, client, program):
    waiter = program("waiter.py", "wait", "later")
    assert waiter.line() == "waiting"
    wait_until(lambda: asleep(waiter.pid), "the wait")
    waiter.process.send_signal(signal.SIGWINCH)
    x = client.put("later", [1])
    assert int(waiter.line()) == x.shm.version


def test_sigterm_kills_a_waiting_process(client, program):
    waiter = program("waiter.py", "wait", "later")
    assert waiter.line() == "waiting"
    wait_until(lambda: asleep(waiter.pid), "the wait")
    waiter.process.terminate()
    assert waiter.process.wait(PATIENCE) == -signal.SIGTERM


@pytest.mark.kills_daemon
def test_a_lost_daemon_ends_a_wait(daemon):
    client = daemon.client(reconnect=0)
    x = client.put("x", np.arange(5))
    caught = []

    def wait():
        try:
            client.wait("never")
        except shmstore.Disconnected as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: not thread.is_alive() or thread_asleep(thread), "the wait")
    daemon.stop(signal.SIGKILL)
    thread.join(PATIENCE)
    assert isinstance(caught[0], ConnectionError)
    assert x.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(shmstore.Disconnected):
        client.put("y", [1])
    del x


def thread_asleep(thread):
    stat = open(f"/proc/self/task/{thread.native_id}/stat").read()
    return stat.rsplit(")", 1)[1].split()[0] == "S"


@pytest.mark.kills_daemon
def test_a_client_finds_a_new_daemon(daemon):
    client = daemon.client()
    x = client.put("x", [1, 2])
    daemon.stop()
    daemon.start()
    assert not client.exists("x") and x.tolist() == [1, 2]
    y = client.put("x", [3])
    assert y.tolist() == [3]
    del x, y
    daemon.stop()


@pytest.mark.parametrize("variable, notes", [("1", 1), ("0", 0)])
def test_a_long_wait_says_so_on_a_terminal(daemon, variable, notes):
    terminal, end = os.openpty()
    code = "import shmstore as shm\ntry: shm.wait('never', timeout=5.5)\nexcept shm.TimedOut: pass"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=daemon.environment(SHMSTORE_WAIT_NOTICE=variable),
        stderr=end,
        timeout=PATIENCE,
    )
    os.write(end, b".")  # so that there is something to read
    os.close(end)
    text = os.read(terminal, 4096).decode()
    os.close(terminal)
    assert result.returncode == 0
    assert text.count("has waited 5 s for array 'never'") == notes, text


def test_not_found_says_which_store_was_asked(daemon, client):
    with pytest.raises(shmstore.NotFound) as error:
        client.attach("none")
    assert f"asked was the store at {daemon.socket}" in str(error.value)
    assert "an array that is not kept goes with its last holder" in str(error.value)
    client.put("x", [1], keep=True)
    with pytest.raises(shmstore.AlreadyExists, match="replace=True"):
        client.put("x", [1])
    w = client.create("w", 3)
    with pytest.raises(shmstore.TimedOut, match=f"w' is a draft that pid {os.getpid()} ") as late:
        client.attach("w", timeout=0.01)
    assert w is not None and late


FORSAKEN = {
    "cancelled": """
async def main():
    try:
        await asyncio.wait_for(asyncio.to_thread(shm.wait, "never"), 0.2)
    except asyncio.TimeoutError:
        print("cancelled")
asyncio.run(main())
""",
    "raised": """
pool = concurrent.futures.ThreadPoolExecutor()
future = pool.submit(shm.attach, "draft")
future.add_done_callback(lambda f: print(type(f.exception()).__name__))
print("waits", flush=True)
raise KeyError("mine")
""",
    "interrupted": """
pool = concurrent.futures.ThreadPoolExecutor()
future = pool.submit(shm.wait, "never")
print("waits", flush=True)
os.kill(os.getpid(), signal.SIGINT)
signal.pause()
""",
    "answered": """
pool = concurrent.futures.ThreadPoolExecutor()
def work():
    print("got", shm.wait("later"))
pool.submit(work)
threading.Timer(0.3, lambda: shm.put("later", [1], keep=True)).start()
""",
}


@pytest.mark.parametrize("how", FORSAKEN)
def test_a_wait_that_nobody_waits_for_does_not_keep_a_program_from_ending(client, script, how):
    w = client.create("draft", 3)
    imports = "import asyncio, concurrent.futures, os, signal, threading, time\n"
    result = script(imports + "import shmstore as shm\n" + FORSAKEN[how])
    expected = {
        "cancelled": ("cancelled\n", 0),
        "raised": ("waits\nDisconnected\n", 1),
        "interrupted": ("waits\n", -signal.SIGINT),
        "answered": ("got 1\n", 0),
    }
    assert (result.stdout, result.returncode) == expected[how], result.stderr
    assert w.shm.state == "draft"
