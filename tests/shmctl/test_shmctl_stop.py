"""stop, and what doctor, ls and errors say of the stores that a user has or lacks."""

import json
import os
import pwd
import re
import resource
import signal
import subprocess
import sys

import pytest
from conftest import PATIENCE, SHMCTL, SHMSTORED, environment, shmctl, wait_until
from test_shmctl_run import ended
from test_shmctl_usage import ROOT

SYSTEM_STORE = os.path.exists("/run/shmstore/socket")


@pytest.fixture
def private(tmp_path):
    """Surroundings in which the first client starts a store; it is stopped at the end."""
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    env = environment(XDG_RUNTIME_DIR=str(runtime))
    yield env
    subprocess.run([SHMCTL, "stop"], env=env, capture_output=True, check=False)


@pytest.mark.skipif(SYSTEM_STORE, reason="this machine has a system-wide store")
def test_stop_ends_the_store_that_a_client_has_started(private):
    for options in ((), ("--json",)):
        shmctl("create", "x", "--shape", "3", "--dtype", "f8", env=private)
        status = json.loads(shmctl("status", "--json", env=private)[0])
        out, errors = shmctl("stop", *options, env=private)
        assert ended(status["pid"]) and errors == ""
        socket = f"{private['XDG_RUNTIME_DIR']}/shmstore/socket"
        if options:
            assert json.loads(out)["stopped"] == [
                {"pid": status["pid"], "socket": socket, "arrays": 1}
            ]
        else:
            said = f"stopped shmstored (pid {status['pid']}), {socket}: 1 array ("
            assert out.startswith(said) and out.endswith(" KiB) went with it\n")
        assert not os.path.exists(socket)
        shmctl("stop", env=private, rc=3)


@pytest.mark.skipif(SYSTEM_STORE, reason="this machine has a system-wide store")
def test_ls_without_a_store_says_so(private):
    out, errors = shmctl("ls", env=private, rc=3)
    assert out == ""
    assert errors.startswith("error: disconnected: no daemon at /run/shmstore/socket or ")
    assert "there is no store, so there are no arrays" in errors
    assert "turned off" not in errors


def test_stop_of_a_given_socket_is_seen_by_who_waits(store):
    assert "it held no arrays" in store.ctl("stop")
    assert store.process.wait(PATIENCE) == 0


def test_a_path_that_a_shell_made_of_a_user_is_explained(store):
    user = pwd.getpwuid(os.getuid())
    if user.pw_dir in ("/", "") or os.path.basename(user.pw_dir) != user.pw_name:
        pytest.skip("this user's home is not named after the user")
    for line in (["info"], ["ls"], ["rm"]):
        code, text = store.refused(*line, f"{user.pw_dir}/sim/grid")
        assert code == "invalid_argument"
        assert f"if ~{user.pw_name}/sim/grid was meant, quote it" in text
    assert "was meant" not in store.refused("info", "/none/such/grid")[1]


def limited():
    os.nice(5)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))


def test_doctor_names_what_a_daemon_has_from_its_starter(tmp_path):
    socket = str(tmp_path / "s")
    daemon = subprocess.Popen(
        [SHMSTORED, "--socket", socket],
        stderr=subprocess.DEVNULL,
        env=environment(),
        preexec_fn=limited,
    )
    try:
        wait_until(lambda: os.path.exists(socket), "the socket")
        out, _ = shmctl("--socket", socket, "doctor")
        line = re.search(r"^WARN  its process +(.*(?:\n {10,}.*)*)", out, flags=re.M).group(1)
        assert "200 open files (ulimit -n)" in line and re.search(r"nice \d+", line)
        assert re.search(rf"^OK    store +{re.escape(socket)}: pid {daemon.pid}, ", out, flags=re.M)
    finally:
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(PATIENCE) == 0


IN_A_MACHINE_OF_ITS_OWN = """
import json, os, subprocess, sys, time
shmctl, shmstored = sys.argv[1:]
subprocess.check_call(["mount", "-t", "tmpfs", "-o", "mode=755", "none", "/run"])
subprocess.check_call(["mount", "-t", "tmpfs", "-o", "mode=1777", "none", "/tmp"])
os.makedirs("/run/user/0", 0o700)
os.environ.pop("XDG_RUNTIME_DIR", None)
def ctl(*line):
    done = subprocess.run([shmctl, *line], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else done.stderr
def start(*line):
    daemon = subprocess.Popen([shmstored, *line], stderr=subprocess.PIPE, text=True)
    while "listening" not in daemon.stderr.readline():
        assert daemon.poll() is None
    return daemon
cron = start("--socket", "/tmp/shmstore-0/socket")     # a job without a session
joined = json.loads(ctl("status", "--json"))["pid"]
session = start()
used = json.loads(ctl("status", "--json"))["pid"]
other = start("--socket", "/tmp/elsewhere")
answers = dict(
    pids=[cron.pid, session.pid, other.pid], joined=joined, used=used, doctor=ctl("doctor"),
    missing=ctl("info", "x"), stop=ctl("stop", "--all", "--json"),
    codes=[daemon.wait() for daemon in (cron, session, other)], again=ctl("stop", "--all"))
os.makedirs("/run/systemd/system")
open("/run/systemd/system/shmstored.socket", "w").close()
create = [shmctl, "create", "--shape", "1", "--dtype", "f8"]
answers["notes"] = [subprocess.run([*create, name], capture_output=True, text=True).stderr
                    for name in ("a", "b")]
ctl("stop")
print(json.dumps(answers))
"""


def test_stores_of_cron_and_session_are_found_and_told_apart():
    alone = ["unshare", "--mount", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not make namespaces")
    for program in (SHMCTL, SHMSTORED, sys.executable):
        if program.startswith(("/tmp/", "/run/")):
            pytest.skip("the programs would be hidden")
    line = [*alone, sys.executable, "-c", IN_A_MACHINE_OF_ITS_OWN, SHMCTL, SHMSTORED]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    cron, session, other = answers["pids"]
    assert answers["joined"] == cron  # started first, and found by a session
    assert answers["used"] == session
    for pid in answers["pids"]:
        assert f"pid {pid}" in answers["doctor"]
    assert "arrays of one store are not in the other" in answers["doctor"]
    assert answers["missing"].startswith("error: not_found: ")
    assert "another of this user is at /tmp/shmstore-0/socket" in answers["missing"]
    stopped = json.loads(answers["stop"])["stopped"]
    assert sorted(one["pid"] for one in stopped) == sorted(answers["pids"])
    assert answers["codes"] == [0, 0, 0]
    assert answers["again"] == "no daemon of this user runs\n"
    # Who starts a private store beside the machine's, which is down, says so; others do not.
    assert "the machine's is installed but does not run" in answers["notes"][0]
    assert answers["notes"][1] == ""


BESIDE_A_USER_MANAGER = """
import json, os, subprocess, sys, time
manager, root, shmctl, shmstored = sys.argv[1:]
subprocess.check_call(["mount", "-t", "tmpfs", "-o", "mode=755", "none", "/run"])
for folder in ("/run/systemd/system", "/run/user/0", "/run/config/systemd/user"):
    os.makedirs(folder, 0o700)
os.environ.update(XDG_RUNTIME_DIR="/run/user/0", XDG_CONFIG_HOME="/run/config")
for name in ("shmstored.socket", "shmstored.service"):
    source = f"{root}/systemd/user/{name}" + (".in" if name.endswith("service") else "")
    text = open(source).read().replace("@bindir@/shmstored", shmstored)
    open(f"/run/config/systemd/user/{name}", "w").write(text)
systemd = subprocess.Popen([manager, "--user"], stdout=2)
while not os.path.exists("/run/user/0/systemd/private"):
    if systemd.poll() is not None:
        sys.exit(77)
    time.sleep(0.01)
def ctl(*line):
    return subprocess.run([shmctl, *line], capture_output=True, text=True).stdout
def pid():
    return json.loads(ctl("status", "--json"))["pid"]
def unit_of(pid):
    return open(f"/proc/{pid}/cgroup").read()
def user_socket(verb):
    # Refused while the service of the same name is still ending.
    until = time.monotonic() + 60
    while subprocess.call(["systemctl", "--user", verb, "shmstored.socket"]) != 0:
        if time.monotonic() > until:
            sys.exit("the socket unit: " + verb + " failed")
        time.sleep(0.1)
ctl("create", "x", "--shape", "3", "--dtype", "f8")
first = pid()
answers = dict(started_in=unit_of(first), own=unit_of("self"))
user_socket("start")                                    # takes the path; the store has it back
deadline = time.monotonic() + 60
while not (names := ctl("ls", "-1")) and time.monotonic() < deadline:
    time.sleep(0.01)
answers.update(first=first, then=pid(), names=names)
ctl("stop")
user_socket("stop")
user_socket("start")
ctl("create", "y", "--shape", "3", "--dtype", "f8")     # the other order: one store, the unit's
answers.update(unit=unit_of(pid()))
ctl("stop")
systemd.terminate()
print(json.dumps(answers))
"""


def test_a_store_beside_a_user_manager_is_one_and_outlives_its_starter():
    manager = "/usr/lib/systemd/systemd"
    alone = ["unshare", "--mount", "--pid", "--fork", "--mount-proc"]
    if not os.path.exists(manager) or not os.path.exists("/usr/bin/systemd-run"):
        pytest.skip("systemd is not installed")
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not make namespaces")
    if any(program.startswith("/run/") for program in (SHMCTL, SHMSTORED, sys.executable)):
        pytest.skip("the programs would be hidden")
    line = [*alone, sys.executable, "-c", BESIDE_A_USER_MANAGER, manager, str(ROOT), SHMCTL]
    done = subprocess.run(
        [*line, SHMSTORED], env=environment(), capture_output=True, text=True, timeout=300
    )
    if done.returncode == 77:
        pytest.skip("no user manager can run here")
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    assert answers["started_in"] != answers["own"]
    assert "run-" in answers["started_in"]
    assert answers["then"] == answers["first"] and answers["names"] == "x\n"
    assert "shmstored.service" in answers["unit"]
