"""create, import, export, rm, keep, unkeep, seal, chmod, wait."""

import ast
import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
from conftest import PATIENCE, SHMCTL, environment, let_go, wait_until

INFO_KEYS = {
    "id", "name", "dtype", "shape", "order", "nbytes", "state", "version", "perms", "uid",
    "leases", "kept", "ttl_s", "created", "sealed", "attrs",
}  # fmt: skip


def exported(store, name):
    """The array, by way of a .npy file."""
    path = store.folder / "exported.npy"
    store.ctl("export", name, path)
    return np.load(path)


def create(store, name, *arguments):
    return store.json("create", name, "--shape", "3,4", "--dtype", "f8", *arguments)


# --- create --------------------------------------------------------------------------------------


def test_create_makes_zeros_and_keeps_them(store):
    before = time.time()
    info = create(store, "sim/grid")
    assert INFO_KEYS <= set(info)
    assert info["name"] == "sim/grid"
    assert (info["dtype"], info["shape"], info["order"]) == ("<f8", [3, 4], "C")
    assert (info["nbytes"], info["state"], info["version"]) == (96, "sealed", 1)
    assert (info["perms"], info["uid"]) == ("0600", os.getuid())
    assert info["kept"] is True and info["ttl_s"] is None and info["attrs"] == {}
    assert before - 1 <= info["created"] <= info["sealed"] + 1 <= time.time() + 2
    assert info["id"].isdigit()
    array = exported(store, "sim/grid")
    assert array.dtype == np.float64 and array.shape == (3, 4) and not array.any()
    assert store.json("info", "sim/grid")["leases"] == 0


def test_create_says_what_it_made(store):
    line = ["create", "x", "--shape", "2,3", "--dtype", "f4", "--ttl", "120"]
    assert store.ctl(*line) == "created x: float32 (2, 3), 24 B, sealed, kept for 2m\n"
    line = ["create", "m", "--shape", "2", "--dtype", "i4", "--mutable"]
    assert store.ctl(*line) == "created m: int32 (2,), 8 B, mutable, kept\n"


@pytest.mark.parametrize(
    "text, shape",
    [("3,4", (3, 4)), ("(3, 4)", (3, 4)), ("3x4", (3, 4)), ("5", (5,)), ("5,", (5,)), ("()", ())]
    + [("0", (0,)), ("2,0,3", (2, 0, 3)), ("1," * 63 + "1", (1,) * 64)],
)
def test_shapes(store, text, shape):
    info = store.json("create", "x", "--shape", text, "--dtype", "u1")
    assert tuple(info["shape"]) == shape
    assert exported(store, "x").shape == shape


@pytest.mark.parametrize(
    "text",
    "f8 <f8 =f8 >f8 float64 double d float32 f4 f2 half f16 longdouble int32 i4 >i4 i intp q "
    "uint8 B u1 int8 b bool ? b1 complex128 c16 F complex64 M8[ns] datetime64[D] M8[25s] m8 "
    "timedelta64[us] S5 U7 V3 >U2".split()
    + ["[('x', '<f4'), ('n', '>i2', (2, 3))]", "[('a', 'u1'), ('', 'V3'), ('b', '<i4')]"],
)
def test_dtypes_are_what_numpy_makes_of_them(store, text):
    info = store.json("create", "x", "--shape", "3", "--dtype", text)
    array = exported(store, "x")
    if text.startswith("["):
        expected = np.lib.format.descr_to_dtype(ast.literal_eval(text))
    else:
        expected = np.dtype(text)
    assert array.dtype == expected
    assert info["nbytes"] == 3 * expected.itemsize
    assert array.tobytes() == bytes(info["nbytes"])


@pytest.mark.parametrize("text", ["f3", "O", "object", "T", "zz", "", "M8[x]", "i4x"])
def test_dtypes_that_do_not_work(store, text):
    code, says = store.refused("create", "x", "--shape", "1", "--dtype", text)
    assert code == "invalid_argument" and says.startswith("dtype: ")
    assert store.json("ls") == []


@pytest.mark.parametrize(
    "dtype, text, value",
    [
        ("bool", "true", True),
        ("bool", "0", False),
        ("i1", "-128", -128),
        ("u1", "255", 255),
        ("i8", "-9223372036854775808", -(2**63)),
        ("u8", "18446744073709551615", 2**64 - 1),
        (">i4", "+7", 7),
        ("f8", "0.1", 0.1),
        (">f8", "-1e300", -1e300),
        ("f4", "1e-3", 1e-3),
        ("f2", "0.1", 0.1),
        ("f2", "6e-8", 6e-8),
        ("f2", "65504", 65504),
        ("f2", "-inf", -np.inf),
        ("f8", "inf", np.inf),
        ("longdouble", "0.1", np.longdouble("0.1")),
        (">g", "-2.5", -2.5),
        ("c16", "1+2j", 1 + 2j),
        ("c8", "-1e-3-2e+2j", -1e-3 - 2e2j),
        ("c16", "(3-j)", 3 - 1j),
        (">c16", "4j", 4j),
        ("c16", "5", 5),
        ("M8[ns]", "2024-05-01T12:34:56.789", np.datetime64("2024-05-01T12:34:56.789", "ns")),
        ("M8[D]", "1969-12-31", np.datetime64("1969-12-31", "D")),
        ("M8[M]", "2024-05", np.datetime64("2024-05", "M")),
        ("M8[Y]", "1960", np.datetime64("1960", "Y")),
        ("M8[25s]", "2024-05-01", np.datetime64("2024-05-01", "25s")),
        (">M8[us]", "2024-05-01 12:00", np.datetime64("2024-05-01T12:00", "us")),
        ("M8[h]", "1969-12-31T23:30", np.datetime64("1969-12-31T23", "h")),
        ("M8[s]", "-5", np.datetime64(-5, "s")),
        ("m8[ms]", "1500", np.timedelta64(1500, "ms")),
        ("S5", "hallo", b"hallo"),
        ("S5", "", b""),
        ("U4", "naïf", "naïf"),
        (">U3", "日本", "日本"),
        ("U2", "𝄞", "𝄞"),
    ],
)
def test_fill(store, dtype, text, value):
    store.ctl("create", "x", "--shape", "1000,3", "--dtype", dtype, "--fill", text)
    array = exported(store, "x")
    expected = np.full((1000, 3), value, dtype=np.dtype(dtype))
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "c16", "longdouble"])
def test_fill_with_nan(store, dtype):
    store.ctl("create", "x", "--shape", "7", "--dtype", dtype, "--fill", "nan")
    assert np.isnan(exported(store, "x")).all()


@pytest.mark.parametrize("dtype", ["M8[ns]", "m8[s]", ">M8[D]"])
def test_fill_with_not_a_time(store, dtype):
    store.ctl("create", "x", "--shape", "7", "--dtype", dtype, "--fill", "NaT")
    assert np.isnat(exported(store, "x")).all()


@pytest.mark.parametrize(
    "dtype, text",
    [
        ("u1", "256"), ("u1", "-1"), ("i2", "1.5"), ("i4", "7x"), ("i4", ""), ("bool", "maybe"),
        ("f8", "abc"), ("f4", "1e40"), ("f2", "65520"), ("f8", "1e999"), ("f8", " 1"),
        ("c16", "1+2"), ("c16", "j1"), ("M8[D]", "2024-13-01"), ("M8[D]", "2024-02-30"),
        ("M8[D]", "2024-01-01T25:00"), ("M8[ns]", "3000-01-01"), ("m8[s]", "2024-01-01"),
        ("S2", "abc"), ("U1", "ab"), ("V4", "1"), ("[('x', '<f4')]", "1"),
    ],
)  # fmt: skip
def test_fill_that_does_not_fit(store, dtype, text):
    code, says = store.refused("create", "x", "--shape", "3", "--dtype", dtype, "--fill", text)
    assert code == "invalid_argument"
    assert says.startswith(f"fill: '{text}' cannot be stored as ")
    assert store.json("ls") == []


def test_fill_zero_is_for_every_dtype(store):
    for dtype in ("V4", "[('x', '<f4')]", "f8"):
        store.ctl("create", "x", "--shape", "3", "--dtype", dtype, "--fill", "0", "--replace")
        assert not exported(store, "x").tobytes().strip(b"\0")


def test_create_options_arrive(store):
    attrs = '{"unit": "K", "n": [1, 2]}'
    info = create(store, "x", "--order", "F", "--perms", "640", "--attrs", attrs, "--ttl", "99.5")
    assert info["order"] == "F" and info["perms"] == "0640"
    assert info["attrs"] == {"unit": "K", "n": [1, 2]}
    assert 0 < info["ttl_s"] <= 99.5
    assert info["seal"] == "hard"  # others may open it
    assert np.isfortran(exported(store, "x"))
    assert create(store, "h", "--hard")["seal"] == "hard"
    assert create(store, "s")["seal"] == "soft"
    assert create(store, "m", "--mutable")["state"] == "mutable"


def test_versions_and_replace(store):
    create(store, "x")
    code, says = store.refused("create", "x", "--shape", "1", "--dtype", "f8")
    assert code == "already_exists" and "x" in says
    assert create(store, "x", "--replace")["version"] == 2
    store.ctl("rm", "x")
    assert create(store, "x")["version"] == 3


@pytest.mark.parametrize(
    "line, field",
    [
        (["bad//name", "--shape", "1", "--dtype", "f8"], "name: "),
        (["~nobody-has-this-name/x", "--shape", "1", "--dtype", "f8"], "name: "),
        (["x", "--shape", "4294967296,4294967296", "--dtype", "f8"], "shape: "),
        (["x", "--shape", "1," * 64 + "1", "--dtype", "f8"], "shape: "),
        (["x", "--shape", "1", "--dtype", "f8", "--perms", "0777"], "perms: "),
        (["x", "--shape", "1", "--dtype", "f8", "--attrs", "[1]"], "attrs: "),
        (["x", "--shape", "1", "--dtype", "f8", "--attrs", "{"], "attrs: "),
    ],
)
def test_create_refuses_what_is_out_of_range(store, line, field):
    code, says = store.refused("create", *line)
    assert code == "invalid_argument"
    assert says.startswith(field)
    assert store.json("ls") == []


def test_more_than_the_store_holds_is_no_capacity(store):
    code, says = store.refused("create", "x", "--shape", str(2**50), "--dtype", "u1")
    assert code in ("no_capacity", "quota_exceeded")
    assert "free" in says or "left" in says
    assert store.json("ls") == []


def test_no_keep_ends_with_the_command(store):
    line = ["create", "x", "--shape", "2", "--dtype", "f8", "--no-keep", "--socket", store.socket]
    done = subprocess.run(
        [SHMCTL, *line], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout == "created x: float64 (2,), 16 B, sealed, not kept\n"
    assert done.stderr.startswith("note: not kept: x ends with this command")
    assert store.json("ls") == []


def test_only_create_and_import_start_a_daemon(tmp_path):
    env = environment(XDG_RUNTIME_DIR=str(tmp_path), HOME=str(tmp_path))
    if os.path.exists("/run/shmstore/socket"):
        pytest.skip("this machine has a system-wide store")

    def run(*line):
        return subprocess.run([SHMCTL, *line], capture_output=True, text=True, env=env, check=False)

    for line in (["ls"], ["rm", "x"], ["keep", "x"]):
        done = run(*line)
        assert done.returncode == 3 and done.stderr.startswith("error: disconnected: ")
    assert not (tmp_path / "shmstore" / "socket").exists()
    env["SHMSTORE_AUTOSTART"] = "0"
    assert run("create", "x", "--shape", "1", "--dtype", "f8").returncode == 3
    del env["SHMSTORE_AUTOSTART"]
    try:
        done = run("create", "x", "--shape", "1", "--dtype", "f8")
        assert done.returncode == 0, done.stderr
        assert run("ls", "-1").stdout == "x\n"
    finally:
        os.kill(json.loads(run("status", "--json").stdout)["pid"], signal.SIGTERM)
        wait_until(lambda: not (tmp_path / "shmstore" / "socket").exists(), "the daemon's end")


# --- rm, keep, unkeep ----------------------------------------------------------------------------


def test_rm(store):
    for name in "abc":
        create(store, name)
    assert store.ctl("rm", "a", "b") == "removed a\nremoved b\n"
    assert [info["name"] for info in store.json("ls")] == ["c"]
    assert store.json("rm", "c") == {"removed": ["c"]}


def test_rm_goes_on_past_one_that_is_refused(store):
    create(store, "a")
    create(store, "c")
    done = subprocess.run(
        [SHMCTL, "--socket", store.socket, "rm", "a", "b", "c"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == "removed a\nremoved c\n"
    assert done.stderr.startswith("error: not_found: ") and done.stderr.count("\n") == 1
    assert store.json("ls") == []


def test_rm_of_an_array_that_is_held(store):
    create(store, "x")
    child = store.holder("shm.attach('x')")
    store.ctl("rm", "x")
    assert store.refused("info", "x")[0] == "not_found"
    assert store.json("status")["used"] > 0
    let_go(child)
    wait_until(lambda: store.json("status")["used"] == 0, "the memory's release")


def test_keep_and_unkeep(store):
    child = store.holder("shm.put('x', np.ones(5))")
    assert store.json("info", "x")["kept"] is False
    assert store.ctl("keep", "x") == "x is kept\n"
    let_go(child)
    wait_until(lambda: store.json("info", "x")["leases"] == 0)
    info = store.json("keep", "x", "--ttl", "3600")
    assert info["kept"] is True and 0 < info["ttl_s"] <= 3600
    assert store.ctl("keep", "x", "--ttl", "7200") == "x is kept for 2h\n"
    assert store.ctl("unkeep", "x") == "x is gone: nobody held it\n"
    assert store.json("ls") == []


def test_unkeep_of_what_is_held(store):
    create(store, "x")
    child = store.holder("shm.attach('x')")
    assert store.json("unkeep", "x") == {"name": "x", "exists": True}
    let_go(child)
    wait_until(lambda: store.json("ls") == [])


def test_a_time_to_live_ends_an_array(store):
    create(store, "x", "--ttl", "0.05")
    wait_until(lambda: store.json("ls") == [])


@pytest.mark.parametrize("line", [["rm", "x"], ["keep", "x"], ["unkeep", "x"], ["info", "x"]])
def test_a_missing_array_is_not_found(store, line):
    code, says = store.refused(*line)
    assert code == "not_found" and "x" in says


def test_a_foreign_name_space(store):
    code, _ = store.refused("info", "~65533/x")
    assert code == ("not_found" if os.getuid() == 0 else "permission_denied")


# --- seal, chmod, wait ---------------------------------------------------------------------------


def test_seal_of_a_mutable_array(store):
    create(store, "x", "--mutable")
    assert store.ctl("seal", "x") == "x is sealed\n"
    assert store.json("info", "x")["state"] == "sealed"
    assert store.ctl("seal", "x") == "x was sealed already\n"


def test_seal_hard(store):
    create(store, "x", "--mutable")
    info = store.json("seal", "x", "--hard")
    assert (info["state"], info["seal"]) == ("sealed", "hard")


def test_seal_hard_of_a_softly_sealed_array(store):
    create(store, "x")
    assert store.json("info", "x")["seal"] == "soft"
    assert store.ctl("seal", "x", "--hard") == "x is sealed\n"
    assert store.json("info", "x")["seal"] == "hard"


def test_seal_is_busy_while_others_write(store):
    create(store, "x", "--mutable")
    child = store.holder("shm.attach('x', mode='r+')")
    code, says = store.refused("seal", "x")
    assert code == "busy" and str(child.pid) in says
    code, says = store.refused("seal", "x", "--wait", "0.05")
    assert code in ("busy", "timed_out")
    waiting = subprocess.Popen(
        [SHMCTL, "--socket", store.socket, "seal", "x", "--wait", "60"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    wait_until(lambda: len(store.json("who", "x")) == 2)
    let_go(child)
    assert waiting.communicate(timeout=PATIENCE)[0] == "x is sealed\n"
    assert waiting.returncode == 0


def test_seal_of_anothers_draft(store):
    child = store.holder("shm.create('x', (4,), 'f8')")
    code, says = store.refused("seal", "x")
    assert code == "busy" and str(child.pid) in says
    let_go(child)
    wait_until(lambda: store.json("ls") == [])


def test_chmod(store):
    create(store, "x", "--hard")
    assert store.ctl("chmod", "0644", "x") == "x has perms 0644\n"
    assert store.json("chmod", "600", "x")["perms"] == "0600"
    assert store.refused("chmod", "0777", "x")[0] == "invalid_argument"
    create(store, "soft")
    code, says = store.refused("chmod", "0644", "soft")
    assert code == "invalid_argument" and "hard" in says
    assert store.refused("chmod", "0600", "none")[0] == "not_found"


def test_wait(store):
    code, _ = store.refused("wait", "x", "--timeout", "0.05")
    assert code == "timed_out"
    waiting = subprocess.Popen(
        [SHMCTL, "wait", "x", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(SHMSTORE_SOCKET=store.socket),
    )
    wait_until(lambda: store.json("status")["sessions"] >= 2)
    create(store, "x")
    assert waiting.communicate(timeout=PATIENCE)[0] == '{"name":"x","version":1}\n'
    assert store.ctl("wait", "x", "--timeout", "0") == "x is there, version 1\n"
    assert store.refused("wait", "x", "--newer-than", "1", "--timeout", "0")[0] == "timed_out"
    create(store, "x", "--replace")
    assert store.json("wait", "x", "--newer-than", "1") == {"name": "x", "version": 2}


def test_wait_ends_with_ctrl_c_and_leaves_nothing(store):
    waiting = subprocess.Popen(
        [SHMCTL, "wait", "x", "--socket", store.socket], env=environment()
    )
    wait_until(lambda: store.json("status")["sessions"] >= 2)
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(PATIENCE) == -signal.SIGINT
    wait_until(lambda: store.json("status")["sessions"] == 1)
