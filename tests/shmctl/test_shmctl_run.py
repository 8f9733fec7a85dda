"""run: a private daemon for one command, its exit status, and the report of what it left."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE, SHMCTL, environment, shmctl, wait_until

NOTHING = "shmctl run: nothing leaked\n"


def run(*command, rc=0, options=(), env=None):
    """Runs a command in `shmctl run`; returns its stdout and the report."""
    return shmctl("run", *options, "--", *command, rc=rc, env=env)


def python(code, rc=0, options=()):
    preamble = "import os, signal, sys, numpy as np, shmstore as shm\n"
    return run(sys.executable, "-c", preamble + code, rc=rc, options=options)


def report(code, rc=0):
    """The JSON report of a Python command."""
    _, errors = python(code, rc=rc, options=["--json"])
    return json.loads(errors.splitlines()[-1])


KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


def test_the_status_is_the_commands():
    assert run("true") == ("", NOTHING)
    run("sh", "-c", "exit 7", rc=7)
    run("sh", "-c", "kill -TERM $$", rc=128 + signal.SIGTERM)
    assert run("sh", "-c", "kill -KILL $$", rc=137) == ("", NOTHING)


def test_a_command_that_cannot_be_run(tmp_path):
    assert run("/none/such", rc=127)[1].startswith("error: not_found: /none/such: ")
    (tmp_path / "data").write_text("x")
    assert run(tmp_path / "data", rc=126)[1].startswith("error: permission_denied: ")


def test_the_command_gets_its_arguments_and_the_socket():
    script = 'echo "$SHMSTORE_SOCKET"; shift; echo "$@"'
    out, _ = run("sh", "-c", script, "sh", "--", "--json", "ls")
    socket, arguments = out.splitlines()
    assert arguments == "--json ls"
    assert not Path(socket).parent.exists()  # gone with the daemon
    out, _ = run("sh", "-c", 'stat -c "%a %F" "$(dirname "$SHMSTORE_SOCKET")"')
    assert out == "700 directory\n"


def test_input_and_output_are_the_commands():
    out, errors = shmctl("run", "--", "sh", "-c", "cat; echo oops >&2", stdin=b"hello\n")
    assert out == "hello\n"
    assert errors == "oops\n" + NOTHING


def test_a_killed_command_leaks_nothing():
    _, errors = python(f"a = shm.put('x', np.ones(1 << 20)); {KILLED}", rc=137)
    assert errors == NOTHING


def test_a_kept_array_is_reported():
    _, errors = python(f"a = shm.put('x', np.ones(1 << 20), keep=True); {KILLED}", rc=137)
    lines = errors.splitlines()
    assert lines[0] == (
        "shmctl run: leaked 1 array, 8,388,608 bytes (8.00 MiB), 0 leases, 1 descriptor"
    )
    assert lines[1] == "shmctl run:   x: float64 (1048576,), 8.00 MiB, sealed, kept"
    assert len(lines) == 2


def test_the_report_as_json():
    answer = report(f"a = shm.put('x', np.ones(1 << 20), keep=True); {KILLED}", rc=137)
    assert answer["exit"] == 137
    assert (answer["leaked_arrays"], answer["leaked_bytes"]) == (1, 8388608)
    assert (answer["leaked_leases"], answer["leaked_fds"]) == (0, 1)
    assert answer["arrays"][0]["name"] == "x" and answer["survivors"] == []
    answer = report("a = shm.put('x', np.ones(1 << 20))")
    assert [answer[key] for key in answer if key.startswith("leaked_")] == [0, 0, 0, 0]
    assert answer["exit"] == 0 and answer["settled"] is True


def ended(pid):
    """True when the process is gone, or a zombie that somebody else has to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True


FORK_A_HOLDER = """
reading, writing = os.pipe()
a = shm.put('x', np.ones(1 << 20))
child = os.fork()
if child == 0:
    os.dup2(os.open('/dev/null', os.O_RDWR), 1); os.dup2(1, 2)
    {child}
    os.write(writing, b'!')
    signal.pause()
os.read(reading, 1)
print(child, flush=True)
"""


@pytest.mark.parametrize("child", ["pass", "b = shm.attach('x')", "c = shm.put('y', np.ones(9))"])
def test_a_surviving_child_is_named_and_left_alone(child):
    out, errors = python(FORK_A_HOLDER.format(child=child) + KILLED, rc=137)
    pid = int(out)
    try:
        assert re.search(
            rf"^shmctl run:   pid {pid} still holds 8,388,608 bytes \(8\.00 MiB\): .*python"
            if child != "c = shm.put('y', np.ones(9))"
            else rf"^shmctl run:   pid {pid} still holds 8,\d{{3}},\d{{3}} bytes \(8\.\d+ MiB\): ",
            errors,
            flags=re.M,
        )
        assert "nothing leaked" not in errors
        assert not ended(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_survivor_in_the_json_report():
    _, errors = python(FORK_A_HOLDER.format(child="pass") + KILLED, rc=137, options=["--json"])
    answer = json.loads(errors.splitlines()[-1])
    (survivor,) = answer["survivors"]
    try:
        assert survivor["nbytes"] == 8 << 20 and "python" in survivor["command"]
        assert answer["leaked_bytes"] == 8 << 20
    finally:
        os.kill(survivor["pid"], signal.SIGKILL)


def test_a_daemonised_survivor_is_found_too():
    code = """
reading, writing = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    os.dup2(os.open('/dev/null', os.O_RDWR), 1); os.dup2(1, 2)
    a = shm.put('x', np.ones(1 << 20))
    os.write(writing, str(os.getpid()).encode())
    signal.pause()
print(os.read(reading, 20).decode(), flush=True)
"""
    out, errors = python(code)
    try:
        assert "leaked 1 array, 8,388,608 bytes (8.00 MiB), 1 lease, " in errors
        assert f"pid {int(out)} still holds " in errors
    finally:
        os.kill(int(out), signal.SIGKILL)


def test_survivors_without_memory_are_nobodys_business():
    code = "import subprocess as s\n" + (
        "print(s.Popen(['sleep', '1000'], stdout=s.DEVNULL, stderr=s.DEVNULL).pid, flush=True)"
    )
    out, errors = python(code)
    os.kill(int(out), signal.SIGKILL)
    assert errors == NOTHING


def test_workers_that_end_by_themselves_are_no_leak():
    code = """
import multiprocessing
def work(array):
    return float(array.sum())
if __name__ == '__main__':
    pool = multiprocessing.get_context('fork').Pool(2)
    a = shm.put('x', np.ones(1 << 20))
    print(pool.map(work, [a, a]), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    out, errors = python(code, rc=137)
    assert out == "[1048576.0, 1048576.0]\n"
    # The pickled handles hold the array for a while longer, and nobody knows that they are gone.
    assert "still holds" not in errors


def test_a_hand_over_that_nobody_took_is_no_leak_and_said():
    code = "import pickle; a = shm.put(None, np.ones(9)); pickle.dumps(a)"
    _, errors = python(code)
    first, second = errors.splitlines()
    assert first + "\n" == NOTHING
    assert second.startswith("shmctl run: 1 array, 72 bytes, handed over and not taken: ")
    answer = report(code)
    assert (answer["leaked_arrays"], answer["leaked_leases"], answer["leaked_fds"]) == (0, 0, 0)
    assert (answer["handed_over_arrays"], answer["handed_over_bytes"]) == (1, 72)
    # Kept, or held by a process as well, it has leaked.
    answer = report("import pickle; a = shm.put('x', np.ones(9), keep=True); pickle.dumps(a)")
    assert (answer["leaked_arrays"], answer["handed_over_arrays"]) == (1, 0)


def test_a_socket_of_ones_own(tmp_path):
    socket = tmp_path / "s"
    for options in (["--socket", socket], [f"--socket={socket}"]):
        out, errors = run("sh", "-c", 'echo "$SHMSTORE_SOCKET"', options=options)
        assert out == f"{socket}\n" and errors == NOTHING
        assert not socket.exists()
    out, _ = shmctl("--socket", socket, "run", "--", "sh", "-c", 'echo "$SHMSTORE_SOCKET"')
    assert out == f"{socket}\n"


def test_a_socket_that_is_taken(store):
    _, errors = run("true", rc=3, options=["--socket", store.socket])
    assert errors.startswith("error: disconnected: the private daemon did not start: ")
    assert store.ctl("ls") == "no arrays\n"


def test_a_daemon_that_is_missing():
    env = dict(environment(), SHMSTORE_DAEMON="/none/shmstored")
    _, errors = run("true", rc=3, env=env)
    assert errors == (
        "error: disconnected: $SHMSTORE_DAEMON is /none/shmstored, which is no program\n"
    )


def test_a_daemon_that_dies_meanwhile():
    code = "import json, subprocess\n" + (
        f"out = subprocess.check_output([{SHMCTL!r}, 'status', '--json'])\n"
        "os.kill(json.loads(out)['pid'], signal.SIGKILL)\n"
        "sys.exit(5)"
    )
    _, errors = python(code, rc=5)
    assert errors.startswith("error: disconnected: the private daemon ended before the command: ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_are_passed_on(number):
    code = (
        "import signal, sys\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(42))\n"
        "print('ready', flush=True)\n"
        "while True: signal.pause()\n"
    )
    child = subprocess.Popen(
        [SHMCTL, "run", "--", sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    _, errors = child.communicate(timeout=PATIENCE)
    assert child.returncode == 42
    assert errors == NOTHING


def test_the_daemon_does_not_outlive_a_killed_run(tmp_path):
    child = subprocess.Popen(
        [SHMCTL, "run", "--", SHMCTL, "watch", "--json"],
        stdout=subprocess.DEVNULL,
        env=environment(TMPDIR=str(tmp_path)),
    )

    def children():
        listed = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]

    pids = wait_until(lambda: len(children()) == 2 and children(), "daemon and command")
    child.kill()
    child.wait()
    for pid in pids:
        wait_until(lambda pid=pid: ended(pid), "the end of daemon and command")
