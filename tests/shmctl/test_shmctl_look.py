"""status, ls, info, who, watch, gc, doctor, metrics, selfcheck: what people and programs see."""

import json
import os
import pwd
import re
import signal
import subprocess
import time

import pytest
from conftest import PATIENCE, SHMCTL, environment, let_go, shmctl, wait_until


def user_name():
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # as in many containers
        return str(os.getuid())


ME = user_name()


@pytest.fixture
def filled(store):
    store.ctl("create", "sim/grid", "--shape", "1024,1024", "--dtype", "f8")
    store.ctl("create", "sim/mask", "--shape", "10", "--dtype", "bool", "--ttl", "7200")
    store.ctl("create", "counter", "--shape", "4", "--dtype", "i8", "--mutable")
    fields = "[('x', '<f4'), ('', '|V4'), ('p', [('a', '<i2'), ('b', '<i2')]), (('t', 'n'), '<i8')]"
    store.ctl("create", "table", "--shape", "3", "--dtype", fields, "--perms", "0644")
    return store


def table(text):
    """The rows of a table as dicts; cells are separated by two blanks or more."""
    heading, *rows = text.splitlines()
    assert not any(row.endswith(" ") for row in [heading, *rows])
    names = heading.split()
    return [dict(zip(names, re.split(r"\s{2,}", row.strip()))) for row in rows]


# --- status --------------------------------------------------------------------------------------


def test_status_json(filled):
    status = filled.json("status")
    assert {
        "capacity", "used", "pooled", "arrays", "sessions", "fds", "fds_max", "uptime_s",
        "version", "uids",
    } <= set(status)  # fmt: skip
    assert status["arrays"] == 4 and status["sessions"] == 1
    assert status["used"] >= 8 << 20
    (user,) = status["uids"]
    assert {"uid", "bytes", "bytes_max", "arrays", "arrays_max", "leases", "connections"} <= set(
        user
    )
    assert (user["uid"], user["arrays"], user["leases"]) == (os.getuid(), 4, 0)


def test_status_for_people(filled):
    lines = filled.ctl("status").splitlines()
    assert re.fullmatch(r"shmstored \d+\.\d+\.\d+, pid \d+, up \d+s", lines[0])
    assert lines[1] == f"socket       {filled.socket}"
    assert re.fullmatch(r"memory       [█░]{24} 8\.0\d MiB of \d.*iB, .*%", lines[2])
    assert lines[3] == "arrays       4"
    assert lines[4] == "sessions     1"
    assert re.fullmatch(r"descriptors  \d+ of [\d,]+", lines[5])
    assert lines[7].split()[0] == "USER" and lines[8].split()[0] == ME


def test_deleted_memory_that_is_mapped_shows(store):
    store.ctl("create", "x", "--shape", "1000000", "--dtype", "u1")
    code = (
        "import os, sys, shmstore as shm\n"
        "a = shm.attach('x')\n"
        "if os.fork() == 0: sys.stdin.read(); os._exit(0)\n"
        "print('ready', flush=True); os._exit(0)\n"
    )
    child = store.python(code)
    assert child.stdout.readline() == "ready\n"
    child.wait(PATIENCE)
    store.ctl("rm", "x")
    wait_until(lambda: "still mapped by somebody" in store.ctl("status"))
    assert "stay until the processes that map them let go" in store.ctl("gc")
    assert store.json("gc")["pinned_bytes"] >= 1000000
    child.stdin.close()
    wait_until(lambda: store.json("gc")["pinned_bytes"] == 0)
    assert store.ctl("gc") == "nothing to free\n"
    wait_until(lambda: store.json("status")["used"] == 0)


def test_without_a_terminal_there_are_no_escapes(filled):
    for line in (["status"], ["ls", "-l"], ["info", "table"], ["doctor"], ["top"]):
        assert "\x1b" not in filled.ctl(*line)


def test_in_an_ascii_locale_everything_is_ascii(filled):
    env = environment(SHMSTORE_SOCKET=filled.socket)
    env["LC_ALL"] = "C"
    for line in (["status"], ["ls"], ["doctor"], ["top"]):
        assert shmctl(*line, env=env)[0].isascii()


# --- ls, info, who -------------------------------------------------------------------------------


def test_ls_without_arrays(store):
    assert store.ctl("ls") == "no arrays\n"
    assert store.ctl("ls", "sim/") == "no arrays under sim/\n"
    assert store.ctl("ls", "-1") == ""
    assert store.json("ls") == []


def test_ls(filled):
    text = filled.ctl("ls")
    rows, total = text.rsplit("\n", 2)[:2]
    assert total == "4 arrays, 8.00 MiB"
    rows = table(rows)
    assert [row["NAME"] for row in rows] == ["counter", "sim/grid", "sim/mask", "table"]
    grid = rows[1]
    assert (grid["DTYPE"], grid["SHAPE"], grid["SIZE"]) == ("float64", "(1024, 1024)", "8.00 MiB")
    assert (grid["STATE"], grid["HELD"]) == ("sealed", "0")
    assert re.fullmatch(r"\d+s", grid["AGE"])
    assert rows[0]["STATE"] == "mutable"
    assert rows[3]["DTYPE"] == "{x, p, n}"


def test_ls_long(filled):
    rows = table(filled.ctl("ls", "-l").rsplit("\n", 2)[0])
    by_name = {row["NAME"]: row for row in rows}
    assert by_name["table"]["PERMS"] == "rwr-r-" and by_name["table"]["STATE"] == "hard"
    assert by_name["counter"]["PERMS"] == "rw----" and by_name["counter"]["OWNER"] == ME
    assert by_name["sim/mask"]["KEPT"] == "1h" and by_name["sim/grid"]["KEPT"] == "yes"
    assert by_name["sim/grid"]["VER"] == "1"


def test_ls_with_a_prefix(filled):
    assert filled.ctl("ls", "-1", "sim/") == "sim/grid\nsim/mask\n"
    assert [info["name"] for info in filled.json("ls", "sim/m")] == ["sim/mask"]
    for prefix in (f"~{os.getuid()}/sim/", f"~{ME}/sim/"):
        assert filled.ctl("ls", "-1", prefix) == "sim/grid\nsim/mask\n"
        assert len(filled.json("ls", prefix)) == 2
    assert len(filled.json("ls", f"~{ME}")) == 4
    assert filled.json("ls", "~65533/") == []
    assert filled.refused("ls", "~nobody-has-this-name/", "--json")[0] == "invalid_argument"


def test_ls_of_more_than_a_page(store):
    names = [f"many/{i:03}" for i in range(300)]
    child = store.holder(f"[shm.put(f'many/{{i:03}}', np.ones(1)) for i in range({len(names)})]")
    assert store.ctl("ls", "-1").split() == names
    assert [info["name"] for info in store.json("ls")] == names
    let_go(child)
    wait_until(lambda: store.json("ls") == [])


def test_info(filled):
    text = filled.ctl("info", "table")
    lines = dict(line.split(None, 1) for line in text.splitlines()[1:])
    assert text.startswith("table\n")
    assert lines["dtype"].startswith("[('x', '<f4'), ('', '|V4'), ")
    assert lines["size"] == "60 B"
    assert lines["state"] == "sealed (nobody can change it)"
    assert lines["owner"] == f"{ME}, perms 0644"
    assert lines["kept"] == "until it is deleted"
    assert lines["held"] == "by   nobody"
    assert "dtype     float64  <f8\n" in filled.ctl("info", "sim/grid")
    assert "size      8.00 MiB (8,388,608 bytes)\n" in filled.ctl("info", "sim/grid")
    listed = {info["name"]: info for info in filled.json("ls")}
    assert filled.json("info", "table") == listed["table"]


def test_who(store):
    store.ctl("create", "x", "--shape", "3", "--dtype", "f8", "--mutable")
    assert store.ctl("who", "x") == "nobody holds x\n"
    assert store.json("who", "x") == []
    reader = store.holder("shm.attach('x')")
    writer = store.holder("shm.attach('x', mode='r+')")
    rows = {row["pid"]: row for row in store.json("who", "x")}
    assert set(rows) == {reader.pid, writer.pid}
    assert set(rows[reader.pid]) >= {"pid", "command", "uid", "access", "since"}
    assert rows[reader.pid]["access"] == "r" and rows[writer.pid]["access"] == "r+"
    assert rows[reader.pid]["uid"] == os.getuid()
    assert abs(rows[reader.pid]["since"] - time.time()) < PATIENCE
    people = {row["PID"]: row for row in table(store.ctl("who", "x"))}
    assert people[str(writer.pid)]["ACCESS"] == "r+" and people[str(writer.pid)]["USER"] == ME
    assert people[str(reader.pid)]["COMMAND"].startswith("python")
    assert store.refused("who", "none")[0] == "not_found"


def test_exclusive_and_broken(store):
    store.ctl("create", "x", "--shape", "3", "--dtype", "f8", "--mutable")
    holder = store.holder("shm.attach('x', 'r+', exclusive=True)")
    (row,) = table(store.ctl("who", "x"))
    assert (row["PID"], row["ACCESS"]) == (str(holder.pid), "x")
    code, text = store.refused("export", "x", "-")
    assert code == "busy" and f"pid {holder.pid} " in text
    assert store.refused("seal", "x", "--wait", "0.05")[0] == "timed_out"
    holder.kill()
    wait_until(lambda: store.json("info", "x")["state"] == "broken")
    assert f"\nstate     broken: pid {holder.pid} (python" in store.ctl("info", "x")
    assert " broken " in store.ctl("ls", "-l")
    code, text = store.refused("export", "x", "-")
    assert code == "aborted" and f"pid {holder.pid} " in text
    assert store.ctl("repair", "x") == "x is usable again, with what is in it\n"
    assert store.ctl("repair", "x") == "x was not broken\n"
    assert store.json("repair", "x")["state"] == "mutable"
    store.ctl("export", "x", "/dev/null")
    store.ctl("rm", "x")
    assert store.refused("repair", "x")[0] == "not_found"


def test_repair_waits_for_who_repairs(store):
    store.ctl("create", "x", "--shape", "3", "--dtype", "f8", "--mutable")
    store.holder("shm.attach('x', 'r+', exclusive=True)").kill()
    wait_until(lambda: store.json("info", "x")["state"] == "broken")
    repairer = store.holder("shm.attach('x', 'r+', exclusive=True, repair=True)")
    code, text = store.refused("repair", "x")
    assert code == "busy" and f"pid {repairer.pid} " in text
    assert store.refused("repair", "x", "--wait", "0.05")[0] == "timed_out"
    repairer.kill()
    store.ctl("repair", "x", "--wait", "60")
    assert store.json("info", "x")["state"] == "mutable"


def test_handles_in_flight(store):
    store.ctl("create", "x", "--shape", "3", "--dtype", "f8", "--mutable")
    holder = store.holder("(lambda h: (h, __import__('pickle').dumps(h)))(shm.handle('x'))")
    rows = {row["PID"]: row for row in table(store.ctl("who", "x"))}
    assert rows[str(holder.pid)]["ACCESS"] == "h"
    assert f"1 in flight, pid {holder.pid}" in rows["-"]["COMMAND"]
    assert "\nin flight 1 handle\n" in store.ctl("info", "x")
    assert store.json("info", "x")["in_flight"] == 1


def test_arrays_without_a_name_go_by_their_id(store, tmp_path):
    store.holder("(lambda a: (a, __import__('pickle').dumps(a)))(shm.put(None, np.ones(3)))")
    (info,) = store.json("ls")
    target = "%" + info["id"]
    assert info["name"] is None
    assert store.ctl("ls").splitlines()[1].split()[0] == target
    assert store.ctl("ls", "-1") == ""
    assert store.json("info", target) == info
    assert store.ctl("info", target).startswith(target + "\n")
    holders = store.ctl("who", target).splitlines()
    assert len(holders) == 3
    assert any(row.split()[0] == "-" and "hand-over" in row for row in holders)
    store.ctl("export", target, tmp_path / "a.npy")
    assert store.ctl("rm", target) == f"removed {target}\n"
    assert store.json("info", target)["state"] == "dying"
    assert store.refused("info", "%none")[0] == "invalid_argument"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, who may open what another user made")
def test_a_foreign_array_without_a_name_goes_by_its_id(store):
    """An id is asked for as it is, not looked up in the list, which has one's own arrays only."""
    os.chmod(store.folder, 0o711)
    os.chmod(store.socket, 0o666)
    other = store.python(
        "import os, sys, numpy as np, shmstore as shm\n"
        "shm.handle(shm.put(None, [1]))  # imports what the other user may not be able to\n"
        "os.setgroups([]), os.setgid(12345), os.setuid(12345)\n"
        "c = shm.connect(os.environ['SHMSTORE_SOCKET'])\n"
        "sealed, shared = c.put(None, np.ones(3)), c.create(None, 3, mutable=True)\n"
        "shared = c.handle(shared)  # which others may seal\n"
        "print(shared.id, sealed.shm.id, flush=True)\n"
        "sys.stdin.read()\n"
    )
    shared, sealed = ("%" + id for id in other.stdout.readline().split())
    assert store.json("ls") == []
    assert f"id        {sealed[1:]}\n" in store.ctl("info", sealed)
    assert store.ctl("seal", sealed) == f"{sealed} was sealed already\n"
    assert store.ctl("repair", shared) == f"{shared} was not broken\n"
    assert store.ctl("seal", shared) == f"{shared} is sealed\n"
    assert store.ctl("chmod", "0400", shared) == f"{shared} has perms 0400\n"
    assert "holder" in store.ctl("unkeep", shared)
    assert store.refused("keep", shared)[0] == "invalid_argument"


def test_a_named_array_goes_by_its_id_as_well(store):
    store.ctl("create", "x", "--shape", "3", "--dtype", "f8")
    target = "%" + store.json("info", "x")["id"]
    assert "x\n" in store.ctl("info", target)
    assert store.ctl("keep", target, "--ttl", "3600") == f"{target} is kept for 1h\n"
    assert store.ctl("chmod", "0400", target) == f"{target} has perms 0400\n"
    assert store.ctl("unkeep", target) == f"{target} is gone: nobody held it\n"
    assert store.refused("info", target)[0] == "not_found"


# --- watch ---------------------------------------------------------------------------------------


def watching(store, *arguments):
    child = subprocess.Popen(
        [SHMCTL, "--socket", store.socket, "watch", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    wait_until(lambda: store.json("status")["sessions"] >= 2, "the watch")
    return child


def test_watch(store):
    # The subscription may be a moment behind its session: until it is there nothing is printed.
    child = watching(store, "sim/", "--json")
    os.set_blocking(child.stdout.fileno(), False)
    first = ""
    attempt = 0
    while not first.endswith("\n"):
        store.ctl("create", f"sim/probe{attempt}", "--shape", "1", "--dtype", "f8")
        attempt += 1
        first += child.stdout.readline()
        assert attempt < 1000
    os.set_blocking(child.stdout.fileno(), True)
    assert json.loads(first)["event"] in ("created", "sealed")
    store.ctl("create", "other", "--shape", "1", "--dtype", "f8")
    store.ctl("create", "sim/x", "--shape", "1", "--dtype", "f8")
    store.ctl("unkeep", "sim/x")
    events = []
    while not events or events[-1] != ("deleted", "sim/x"):
        event = json.loads(child.stdout.readline())
        events.append((event["event"], event["name"]))
    assert ("sealed", "sim/x") in events
    assert "other" not in {name for _, name in events}
    child.send_signal(signal.SIGINT)
    assert child.wait(PATIENCE) == -signal.SIGINT
    child.stdout.close()


def test_watch_for_people_ends_after_a_count(store):
    child = watching(store, "-n", "3")
    attempt = 0
    while child.poll() is None:
        store.ctl("create", f"x{attempt}", "--shape", "1", "--dtype", "f8")
        attempt += 1
        assert attempt < 1000
    lines = child.stdout.read().splitlines()
    child.stdout.close()
    assert child.returncode == 0 and len(lines) == 3
    for line in lines:
        pattern = r"\d\d:\d\d:\d\d  (created |sealed  |kept    )  x\d+(  version 1)?"
        assert re.fullmatch(pattern, line)


def test_watch_ends_with_the_daemon(store):
    child = watching(store)
    store.process.send_signal(signal.SIGTERM)
    store.process.wait(PATIENCE)
    assert child.wait(PATIENCE) == 3
    child.stdout.close()


# --- gc, metrics, selfcheck, doctor --------------------------------------------------------------


def test_gc_json(store):
    assert {"freed_bytes", "pinned_bytes"} <= set(store.json("gc"))


def test_metrics(filled):
    text = filled.ctl("metrics")
    assert text.endswith("# EOF\n")
    names = set()
    for line in text.splitlines():
        assert re.fullmatch(r"# .*|[a-zA-Z_:][\w:]*(\{[^}]*\})? -?[\d.eE+-]+", line), line
        names.add(line.split("{")[0].split(" ")[0])
    assert any(name.startswith("shmstore_") for name in names)
    assert filled.json("metrics")["text"].endswith("# EOF\n")


def test_selfcheck(filled):
    assert filled.ctl("selfcheck") == "selfcheck: clean\n"
    assert filled.json("selfcheck") == {"clean": True, "problems": []}


def test_doctor(filled):
    text = filled.ctl("doctor")
    findings = [line for line in text.splitlines() if not line.startswith(" ")]
    assert all(re.match(r"(OK  |WARN)  \S", line) for line in findings)
    for what in ("socket", "daemon", "capacity", "descriptors", "selfcheck", "kernel", "memory",
                 "cgroup", "huge pages", "memory probe", "client pidfds", "open files",
                 "overcommit"):  # fmt: skip
        assert any(line[6:].startswith(what) for line in findings), what
    assert filled.socket in findings[0] and "mode 0600" in findings[0]
    answer = filled.json("doctor")
    assert answer["ok"] is True
    assert {"level", "what", "text", "advice"} == set(answer["checks"][0])


def test_doctor_without_a_daemon(tmp_path):
    out, errors = shmctl("doctor", "--socket", tmp_path / "s", rc=3)
    assert re.search(r"^FAIL  daemon +disconnected: ", out, flags=re.M)
    assert errors == ""
    answer = json.loads(shmctl("doctor", "--json", "--socket", tmp_path / "s", rc=3)[0])
    assert answer["ok"] is False
    if os.path.exists("/run/shmstore/socket"):
        pytest.skip("this machine has a system-wide store")
    env = environment(XDG_RUNTIME_DIR=str(tmp_path))
    out, _ = shmctl("doctor", env=env)
    assert "none runs; the first client starts " in out
    out, _ = shmctl("doctor", env=dict(env, SHMSTORE_AUTOSTART="0"), rc=3)
    assert "SHMSTORE_AUTOSTART=0" in out


def test_doctor_with_something_else_on_the_path(tmp_path):
    (tmp_path / "s").write_text("no socket")
    out, _ = shmctl("doctor", "--socket", tmp_path / "s", rc=3)
    assert "is no socket" in out
