"""The default client: which socket it takes, and starting a daemon."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import PATIENCE, daemon_program, wait_until

import shmstore


@pytest.fixture
def home(tmp_path):
    """An environment without a daemon; the one that gets started there is stopped at the end."""
    if os.path.exists("/run/shmstore/socket"):
        pytest.skip("a system daemon runs here: nothing is started for a user")
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SHMSTORE_")}
    environment.update(XDG_RUNTIME_DIR=str(runtime), SHMSTORE_SELFCHECK="1")
    if "SHMSTORED" in os.environ:  # else the one that was installed with the package is found
        environment["SHMSTORE_DAEMON"] = daemon_program()
    yield environment
    socket = runtime / "shmstore" / "socket"
    for pid in daemons(str(socket)):
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda pid=pid: str(pid) not in os.listdir("/proc"), "the daemon's end")


def daemons(socket):
    """Process ids of the daemons on this socket."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\0")
            state = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"--socket" in command and socket.encode() in command and state != "Z":
            found.append(int(pid))
    return found


def start(environment, text, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_first_use_starts_a_daemon(home):
    process = start(
        home,
        "import shmstore as shm, numpy as np; t = shm.put('t', np.eye(3)); print(t)",
    )
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and errors == ""
    assert output == "[[1. 0. 0.]\n [0. 1. 0.]\n [0. 0. 1.]]\n"
    assert len(daemons(home["XDG_RUNTIME_DIR"] + "/shmstore/socket")) == 1


def test_many_processes_start_one_daemon(home):
    text = (
        "import sys, os, shmstore as shm, numpy as np\n"
        "x = shm.put('t' + sys.argv[1], np.full(10, int(sys.argv[1])), keep=True)\n"
        "print(shm.default_client().store_id, int(x.sum()))\n"
    )
    count = 32
    processes = [start(home, text, i) for i in range(count)]
    outputs = [process.communicate(timeout=PATIENCE * 2) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, outputs
    assert len({output.split()[0] for output, _ in outputs}) == 1
    assert [int(output.split()[1]) for output, _ in outputs] == [i * 10 for i in range(count)]
    assert len(daemons(home["XDG_RUNTIME_DIR"] + "/shmstore/socket")) == 1
    client = shmstore.connect(home["XDG_RUNTIME_DIR"] + "/shmstore/socket")
    assert len(client.list("t")) == count
    for one in client.list("t"):
        client.delete(one["name"])


def test_no_daemon_is_started_when_told_so(home):
    process = start(
        dict(home, SHMSTORE_AUTOSTART="0"),
        "import shmstore as shm\ntry: shm.stats()\nexcept ConnectionError as e: print(type(e))",
    )
    assert process.communicate(timeout=PATIENCE)[0] == "<class 'shmstore.Disconnected'>\n"
    assert daemons(home["XDG_RUNTIME_DIR"] + "/shmstore/socket") == []


def test_an_explicit_socket_is_final(tmp_path, monkeypatch):
    nowhere = str(tmp_path / "nothing")
    with pytest.raises(shmstore.Disconnected, match="nothing"):
        shmstore.connect(nowhere, autostart=True)
    with pytest.raises(ConnectionError):
        shmstore.connect(tmp_path / "nothing")
    for path in ("", 5, "a\0b"):
        with pytest.raises(shmstore.InvalidArgument, match="^path: "):
            shmstore.connect(path)


def test_the_variable_is_read_at_the_first_use(shm, daemon, tmp_path, monkeypatch):
    monkeypatch.setenv("SHMSTORE_SOCKET", str(tmp_path / "nothing"))
    with pytest.raises(shmstore.Disconnected):
        shm.stats()
    monkeypatch.setenv("SHMSTORE_SOCKET", daemon.socket)
    assert shm.stats()["arrays"] == 0
    monkeypatch.setenv("SHMSTORE_SOCKET", str(tmp_path / "nothing"))
    assert shm.stats()["arrays"] == 0
    assert shm.default_client().socket_path == daemon.socket
    assert repr(shm.default_client()) == f"<shmstore.Client {daemon.socket}>"


def test_importing_connects_to_nothing(tmp_path):
    environment = dict(os.environ, SHMSTORE_SOCKET=str(tmp_path / "nothing"))
    process = start(environment, "import shmstore; print(shmstore.__version__)")
    output, errors = process.communicate(timeout=PATIENCE)
    assert output.count(".") == 2 and errors == ""


def test_a_socket_without_permission(daemon):
    os.chmod(daemon.socket, 0)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if os.geteuid() == 0:  # root may connect to anything
                os.setgroups([])
                os.setgid(12345)
                os.setuid(12345)
            daemon.client()
        except PermissionError as error:
            status = 0 if type(error) is shmstore.PermissionDenied else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.chmod(daemon.socket, 0o600)
