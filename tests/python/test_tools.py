"""tools/ and the build's own messages: what is installed, what is named when it is missing, and
what a failed stage shows last. Nothing is installed here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASIC = "bash env dirname sed awk sort head tail grep cat tr mkdir cksum paste rm touch date"


def bare_path(folder, **programs):
    """A folder for $PATH with the basic programs, and with shell scripts of these texts."""
    folder.mkdir()
    for name in BASIC.split():
        (folder / name).symlink_to(shutil.which(name))
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def setup(purpose, folder):
    """tools/setup as an ordinary user of a bare machine without sudo."""
    path = bare_path(folder, id="echo 1000")
    return subprocess.run(
        [shutil.which("bash"), str(ROOT / "tools" / "setup"), purpose],
        env={"PATH": path, "HOME": str(folder), "PYTHON": "/nonexistent"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def pasted_line(done):
    """The one line that root has to paste, as words."""
    assert done.returncode == 1, done
    if "is not one that tools/setup can install on" in done.stderr:
        pytest.skip("not Debian or Ubuntu")
    lines = [line for line in done.stderr.splitlines() if line.startswith("apt-get ")]
    assert len(lines) == 1, done.stderr
    return lines[0].split()


def test_setup_without_root_or_sudo_prints_the_line_to_paste(tmp_path):
    words = pasted_line(setup("demo", tmp_path / "bin"))
    assert {"g++", "cmake", "ninja-build", "nlohmann-json3-dev", "libcli11-dev"} <= set(words)


def test_setup_installs_what_the_command_needs(tmp_path):
    of = {
        purpose: {word.rstrip("-16") for word in pasted_line(setup(purpose, tmp_path / purpose))}
        for purpose in ("demo", "bench", "quick", "test")
    }
    only_developers = {"clang-tidy", "clang-format", "zsh", "fish", "ccache", "man-db"}
    assert only_developers <= of["test"]
    assert not only_developers & of["quick"]
    assert "doctest-dev" not in of["demo"] and "doctest-dev" in of["bench"] & of["quick"]
    assert of["demo"] < of["bench"] < of["quick"] < of["test"]


def test_a_build_names_all_that_is_missing_at_once(tmp_path):
    if shutil.which("cmake") is None or shutil.which("ninja") is None:
        pytest.skip("needs CMake and Ninja")
    nothing = ["-DCMAKE_FIND_ROOT_PATH=/nonexistent", "-DCMAKE_FIND_ROOT_PATH_MODE_INCLUDE=ONLY"]
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nprintf /nonexistent\n")
    python.chmod(0o755)
    done = subprocess.run(
        ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(tmp_path / "build"), *nothing,
         "-DSHMSTORE_PYTHON=ON", f"-DPython_EXECUTABLE={python}"],
        env=dict(os.environ, CXX="/nonexistent"),
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode != 0
    text = " ".join(done.stderr.split())
    assert done.stderr.count("CMake Error") == 1, done.stderr
    for what in ("compiler", "Boost", "nlohmann_json", "CLI11", "Python.h"):
        assert what in text.partition("Missing:")[2], done.stderr
    assert "apt-get install g++ libboost" in text


def test_a_failed_stage_ends_with_the_assertion(tmp_path):
    """Sixty skips and a daemon's log came last."""
    (tmp_path / "test_one.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('n', range(70))\n"
        "def test_skipped(n):\n"
        "    exec(compile(f'{chr(10) * n}pytest.skip(str(n))', f'file{n}', 'exec'))\n"
        "def test_fails():\n"
        "    print('a log line\\n' * 200)\n"
        "    assert 41 + 1 == 43\n"
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    script = (
        f". {ROOT}/tools/lib/common.sh; set +e; logs={tmp_path}/logs\n"
        f"stage() {{ cd {tmp_path}; {sys.executable} -m pytest test_one.py; }}\n"
        "logged stage stage\n"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert "assert (41 + 1) == 43" in done.stdout.strip().splitlines()[-1], done.stdout
    assert "SKIPPED" not in done.stdout
