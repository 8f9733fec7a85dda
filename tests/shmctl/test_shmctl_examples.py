"""The examples of `shmctl SUBCOMMAND --help` and of the manual run as they are written."""

import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE, SHMCTL, environment
from test_shmctl_usage import COMMANDS, MAN, help_of

# In this order each finds what it needs; the others follow in that of the help.
ORDER = "create import export seal repair chmod keep wait ls who info rm unkeep".split()
NOT_HERE = ("watch", "top", "stop")  # the first two never end; the last one ends the test's daemon


@pytest.fixture
def folder(tmp_path):
    """A folder with the files that the examples name, and a private daemon's surroundings."""
    folder = tmp_path / "empty"
    (folder / ".bash_completion.d").mkdir(parents=True)
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }"
    text = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header.ljust(117) + b"\n"
    for name in ("grid.npy", "photo.npy"):
        (folder / name).write_bytes(text + bytes(24))
    (folder / "job.py").write_text("print('done')\n")
    (folder / "test_job.py").write_text("def test_job():\n    pass\n")
    return folder


def run(line, folder, store):
    path = f"{Path(SHMCTL).parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    surroundings = environment(SHMSTORE_SOCKET=store.socket, HOME=str(folder), PATH=path)
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=surroundings, timeout=PATIENCE * 2,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_the_examples_of_the_help_run(folder, store):
    examples = {c: re.search(r"^Example: (.+)$", help_of(c), re.M).group(1) for c in COMMANDS}
    order = [*ORDER, *(c for c in COMMANDS if c not in [*ORDER, *NOT_HERE])]
    for command in order:
        if command in ("seal", "import"):
            store.ctl("rm", "sim/grid")
        if command in ("seal", "unkeep"):
            store.ctl("create", "sim/grid", "--shape", "3", "--dtype", "f8", "--mutable")
        status, output = run(examples[command], folder, store)
        # The doctor's status is what it thinks of this machine.
        assert status == 0 or command == "doctor", f"{examples[command]}: {output}"
        if command == "create":
            store.ctl("create", "sim/mask", "--shape", "3", "--dtype", "?")


def test_the_examples_of_the_manual_run(folder, store):
    page = (MAN / "shmctl.1").read_text()
    text = re.search(r"^\.SH EXAMPLES\n\.nf\n(.*?)^\.fi", page, re.M | re.S).group(1)
    lines = text.replace(r"\-", "-").replace(r"\(aq", "'").splitlines()
    for line in lines:
        if "| jq" in line and shutil.which("jq") is None:
            continue
        status, output = run(line, folder, store)
        assert status == 0, f"{line}: {output}"
