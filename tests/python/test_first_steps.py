"""What a new user meets first: what is printed, what is gone at once, the end of a `with` block."""

import contextlib
import html
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

import shmstore

# --- the end of a with block ----------------------------------------------------------------------


@pytest.fixture
def grid(client):
    """A mutable array that nobody holds."""
    x = client.create("grid", 1000, "i8", mutable=True, keep=True)
    x[:] = 1
    assert client.release(x)
    return "grid"


MODES = ("r", "r+", "c")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("failed", [False, True])
def test_a_with_block_lets_go_in_every_mode(client, daemon, grid, mode, failed):
    """Another's exclusive attach waited for ever."""
    with contextlib.suppress(KeyError), client.attach(grid, mode) as x:
        view = x[10:]
        assert client.holders(grid)[0]["access"] == mode
        if failed:
            raise KeyError
    assert client.holders(grid) == [] and x.shm is None
    other = daemon.client()
    with other.attach(grid, "r+", exclusive=True, timeout=0) as y:
        y[:] = 2
    assert type(pickle.loads(pickle.dumps(view))) is np.ndarray
    assert client.info(grid)["state"] == "mutable"


def test_what_is_left_behind_a_with_block_is_private(client, daemon, grid):
    with client.attach(grid, "r+") as x:
        view = x[10:]
    assert not x.flags.writeable and x[0] == 1
    with daemon.client().attach(grid, "r+", exclusive=True) as y:
        view[:] = 3
        assert (y == 1).all()


def test_two_handles_of_a_process_end_one_by_one(client, grid):
    with client.attach(grid, "r+") as x:
        with client.attach(grid, "r+") as y:
            y[0] = 5
        assert client.holders(grid)[0]["access"] == "r+"
        x[1] = 6
    assert client.holders(grid) == []
    assert client.attach(grid)[:2].tolist() == [5, 6]


def test_a_with_block_of_a_sealed_array_lets_go(client):
    client.put("x", np.arange(5), keep=True)
    with client.attach("x") as x:
        assert x.sum() == 10
    with x:
        pass
    assert client.holders("x") == [] and x.sum() == 10
    with client.attach(id=client.info("x")["id"]) as x:
        pass
    assert client.holders("x") == []


def test_a_with_block_of_what_was_not_attached_does_nothing(client):
    x = client.put("x", np.arange(5))
    m = client.create("m", 5, mutable=True)
    opened = pickle.loads(pickle.dumps(x))
    for one in (x, m, opened, client.cached("c", lambda: np.ones(3))):
        with one:
            pass
        assert one.shm is not None
    with client.create("w", 5) as w:
        w[:] = 1
    assert w.shm.state == "sealed" and client.exists("w")


def test_a_forked_childs_with_block_ends_nothing(client, grid, script):
    text = (
        "import os, shmstore as shm\n"
        "x = shm.attach('grid', 'r+')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "  with x: pass\n"
        "  os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "print(shm.holders('grid')[0]['access'], x.shm.access)\n"
    )
    assert script(text).stdout == "r+ r+\n"


# --- gone at once ---------------------------------------------------------------------------------

LOST = {
    "put": "shm.put('x', np.zeros(3))",
    "function": "def f():\n  x = shm.put('x', np.zeros(3))\nf()",
    "mutable": "shm.create('x', 3, mutable=True)",
    "seal": "def f():\n  with shm.create('x', 3) as w: w[:] = 0\nf()",
    "put_many": "shm.put_many({'x': np.zeros(3)})",
    "empty": "shm.put('x', [])",
}
HELD = {
    "variable": "x = shm.put('x', np.zeros(3))",
    "kept": "shm.put('x', np.zeros(3), keep=True)",
    "anonymous": "shm.put(None, np.zeros(3))",
    "released": "x = shm.put('x', np.zeros(3)); shm.release(x)",
    "pickled": "import pickle; p = pickle.dumps(shm.put('x', np.zeros(3)))",
    "attached": "x = shm.put('x', np.zeros(3)); y = shm.attach('x'); del x",
    "kept later": "x = shm.put('x', np.zeros(3)); shm.keep('x'); del x",
    "view": "y = shm.put('x', np.zeros(3))[1:]",
    "draft": "shm.create('x', 3)",
    "cached": "shm.cached('x', lambda: np.zeros(3))",
    "forked": "import os\nx = shm.put('x', np.zeros(3))\nif os.fork() == 0: del x",
}


@pytest.mark.parametrize("options", [[], ["-W", "error"], ["-X", "dev"]])
@pytest.mark.parametrize("what", LOST)
def test_an_array_that_is_gone_at_once_is_told(daemon, what, options):
    # Within a millisecond: on a busy machine that may take several tries.
    text = (
        f"import warnings, numpy as np, shmstore as shm\nshm.list()\ntext = {LOST[what]!r}\n"
        "for i in range(1000):\n"
        "  exec(compile(text, 'statement', 'exec'))\n"
    )
    done = run(daemon, text, *options)
    assert done.returncode == 0, done
    assert done.stderr.count("ResourceWarning: shmstore: array 'x' is gone, because nothing") == 1
    assert "keep=True" in done.stderr


@pytest.mark.parametrize("what", HELD)
def test_nothing_is_told_of_an_array_that_is_held(daemon, what):
    done = run(daemon, f"import numpy as np, shmstore as shm\n{HELD[what]}", "-W", "always")
    assert (done.returncode, done.stderr) == (0, "")


def run(daemon, text, *options):
    return subprocess.run(
        [sys.executable, *options, "-c", text],
        env=daemon.environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip


SHOWN = "warnings.warn('shmstore: gone', ResourceWarning)"
FILTERS = {
    "nothing": ([], "", True),
    "an unrelated -W": (["-W", "error::UserWarning"], "", True),
    "-W default": (["-W", "default"], "", True),
    "-W ignore": (["-W", "ignore"], "", False),
    "-W ignore of the kind": (["-W", "ignore::ResourceWarning"], "", False),
    "simplefilter": ([], "warnings.simplefilter('ignore')", False),
    "simplefilter of the kind": ([], "warnings.simplefilter('ignore', ResourceWarning)", False),
    "none": ([], "warnings.resetwarnings()", True),
}


@pytest.mark.parametrize("case", FILTERS)
def test_who_filters_warnings_stays_in_charge(daemon, case):
    options, before, shown = FILTERS[case]
    text = f"import warnings\n{before}\nimport shmstore\n{SHOWN}"
    done = run(daemon, text, *options)
    assert done.returncode == 0 and ("shmstore: gone" in done.stderr) is shown, done


# --- what is printed ------------------------------------------------------------------------------


def test_shm_prints_permissions_in_octal(client):
    x = client.put("x", np.zeros(3), perms=0o640)
    assert "perms=0o640" in repr(x.shm) and repr(x.shm).startswith("Shm(id='")
    assert x.shm.perms == 0o640 and tuple(x.shm)[5] == 0o640


def test_list_prints_as_a_table_and_is_a_list_of_dicts(client):
    assert client.list() == [] and repr(client.list()) == "(no arrays)"
    x = client.put("a+b", np.zeros((3, 4)), perms=0o644)
    y = client.put(None, np.zeros((1 << 18,)))
    client.put("kept", 5, keep=True, ttl=600)
    found = client.list()
    assert isinstance(found, list) and isinstance(found[0], dict)
    assert json.loads(json.dumps(found)) == found and found[:1] == [found[0]]
    head, *rows = repr(found).splitlines()
    assert head.split() == "name dtype shape size state version perms leases kept".split()
    assert len(rows) == 3 and any("3×4" in row and "0644" in row for row in rows)
    assert any(f"%{y.shm.id}" in row and "2.0 MiB" in row for row in rows)
    assert len({row.index("sealed") for row in rows}) == 1
    text = found._repr_html_()
    assert "<td>a+b</td>" in text and text.count("<tr>") == 4
    assert "command" in repr(client.holders("kept") or client.holders("a+b"))
    assert x.shm is not None


def test_a_table_moves_no_cursor_and_closes_no_tag(client):
    client.put("x", np.zeros(3), keep=True)
    found = client.list()
    found[0]["name"] = "\x1b[2J<b>"
    assert "\x1b" not in repr(found) and "?[2J<b>" in repr(found)
    assert html.escape("?[2J<b>") in found._repr_html_() and "<b>" not in found._repr_html_()


def test_a_table_is_a_list_whatever_is_in_it(client):
    found = client.list()
    found.append(3)
    assert repr(found) == "[3]" and "[3]" in found._repr_html_()
    assert pickle.loads(pickle.dumps(client.list())) == []
