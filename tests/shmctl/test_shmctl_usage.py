"""The command line itself: help, usage errors, exit codes, completions, manual pages."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import SHMCTL, SHMSTORED, environment, shmctl

ROOT = Path(__file__).resolve().parents[2]
MAN = ROOT / "docs" / "man"

COMMANDS = (
    "status ls info who watch top create import export rm seal repair chmod keep "
    "unkeep wait gc doctor metrics selfcheck stop run completion"
).split()

# One right line for each subcommand that talks to a daemon, and does not start one.
WITH_DAEMON = (
    ["status"],
    ["ls"],
    ["ls", "-l", "sim/"],
    ["info", "x"],
    ["who", "x"],
    ["watch"],
    ["top"],
    ["export", "x", "/dev/null"],
    ["rm", "x"],
    ["seal", "x"],
    ["repair", "x"],
    ["chmod", "0600", "x"],
    ["keep", "x"],
    ["unkeep", "x"],
    ["wait", "x"],
    ["gc"],
    ["metrics"],
    ["selfcheck"],
    ["stop"],
)


def help_of(*command):
    out, _ = shmctl(*command, "--help")
    return out


def options_of(command):
    """Long options in the help of a subcommand."""
    return set(re.findall(r"--[a-z][a-z-]+", help_of(command))) - {"--help"}


def test_help_names_every_subcommand():
    listed = re.findall(r"^  ([a-z]+) {2,}\S", help_of(), flags=re.M)
    assert listed == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_is_short_and_has_an_example(command):
    text = help_of(command)
    assert f"Example: shmctl {command}" in text
    assert len(text.splitlines()) <= 25
    assert max(map(len, text.splitlines())) <= 80
    assert help_of(command) == shmctl(command, "-h")[0]


def test_version():
    out, _ = shmctl("--version")
    header = (ROOT / "include/shmstore/version.hpp").read_text()
    version = re.search(r'VERSION_STRING "([^"]+)"', header).group(1)
    assert out == f"shmctl {version}\n"


@pytest.mark.parametrize("line", WITH_DAEMON, ids=" ".join)
def test_no_daemon_is_status_3(line, tmp_path):
    for place in (["--socket", tmp_path / "s", *line], [*line, "--socket", tmp_path / "s"]):
        out, errors = shmctl(*place, rc=3)
        assert out == ""
        assert errors.startswith("error: disconnected: ")
        assert str(tmp_path / "s") in errors


def test_the_variable_is_final_too(tmp_path):
    env = environment(SHMSTORE_SOCKET=str(tmp_path / "s"))
    for line in (["ls"], ["create", "x", "--shape", "1", "--dtype", "f8"]):
        _, errors = shmctl(*line, rc=3, env=env)
        assert errors.startswith("error: disconnected: ")


@pytest.mark.parametrize(
    "line, says",
    [
        ("bogus", "there is no subcommand 'bogus'"),
        ("ls --bogus", "--bogus"),
        ("ls -l -1", "excludes"),
        ("info", "NAME is required"),
        ("rm", "NAME is required"),
        ("create x --dtype f8", "--shape is required"),
        ("create x --shape 3", "--dtype is required"),
        ("create x --shape 3,y --dtype f8", "'3,y' is no shape"),
        ("create x --shape 3,,4 --dtype f8", "no shape"),
        ("create x --shape -3 --dtype f8", "no shape"),
        ("create x --shape 3 --dtype f8 --order X", "'X' is none of C, F"),
        ("create x --shape 3 --dtype f8 --ttl 5 --no-keep", "excludes"),
        ("create x --shape 3 --dtype f8 --perms 0648", "'0648' is no octal number"),
        ("import x.npy", "NAME is required"),
        ("chmod 9 x", "'9' is no octal number"),
        ("wait x --timeout soon", "'soon' is no number of seconds"),
        ("wait x --timeout -1", "'-1' is no number of seconds"),
        ("wait x --newer-than -1", "-1"),
        ("keep x --ttl nan", "no number of seconds"),
        ("top -n many", "many"),
        ("run", "CMD is required"),
        ("run python -c pass", "put -- before the command"),
        ("completion tcsh", "'tcsh' is none of bash, fish, zsh"),
        ("ls a b", "not expected"),
        ("ls --socket", "PATH"),
    ],
)
def test_wrong_usage_is_status_2(line, says):
    out, errors = shmctl(*line.split(), rc=2)
    assert out == ""
    assert errors.startswith("error: usage: ")
    assert says in errors
    assert errors.count("\n") == 1


def test_nothing_at_all_prints_the_help_and_is_status_2():
    out, errors = shmctl(rc=2)
    assert out == ""
    assert errors == help_of()


def test_globals_stand_anywhere(store):
    expected = store.ctl("ls", "--json")
    socket = ["--socket", store.socket]
    for line in (
        [*socket, "--json", "ls"],
        ["ls", *socket, "--json"],
        ["--json", "ls", *socket],
        ["ls", "--json", f"--socket={store.socket}"],
    ):
        assert shmctl(*line)[0] == expected


def test_a_name_may_be_the_name_of_a_subcommand(store):
    store.ctl("create", "status", "--shape", "1", "--dtype", "f8")
    assert store.json("info", "status")["name"] == "status"
    assert store.ctl("rm", "status") == "removed status\n"


def test_output_that_cannot_be_written_is_an_error(store):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [SHMCTL, "--socket", store.socket, "status"],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(),
            check=False,
        )
    assert done.returncode == 1
    assert b"standard output" in done.stderr


# --- completions ---------------------------------------------------------------------------------


def completed_by_bash(words, cwd):
    """What bash offers for the last of `words`."""
    script = (
        'source <("$1" completion bash); shift\n'
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}\n'
        '_shmctl; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    env = environment(PATH=f"{Path(SHMCTL).parent}:{os.environ['PATH']}")
    done = subprocess.run(
        ["bash", "-c", script, "bash", SHMCTL, *words],
        capture_output=True,
        text=True,
        env=env,
        cwd=cwd,
        check=True,
    )
    return set(done.stdout.split())


def test_bash_completes_every_subcommand_and_option(tmp_path):
    assert completed_by_bash(["shmctl", ""], tmp_path) == set(COMMANDS)
    for command in COMMANDS:
        offered = completed_by_bash(["shmctl", command, "--"], tmp_path) - {"--help"}
        assert offered == options_of(command), command
    assert completed_by_bash(["shmctl", "completion", ""], tmp_path) == {"bash", "zsh", "fish"}


def test_bash_completes_names_of_arrays(store, tmp_path):
    for name in ("sim/a", "sim/b", "other"):
        store.ctl("create", name, "--shape", "1", "--dtype", "f8")
    (tmp_path / "grid.npy").touch()
    line = ["shmctl", "--socket", store.socket]
    assert completed_by_bash([*line, "rm", "other", "sim/"], tmp_path) == {"sim/a", "sim/b"}
    assert completed_by_bash([*line, "info", "o"], tmp_path) == {"other"}
    assert completed_by_bash([*line, "chmod", ""], tmp_path) >= {"0600", "0644"}
    assert completed_by_bash([*line, "chmod", "0600", "o"], tmp_path) == {"other"}
    assert completed_by_bash([*line, "import", "g"], tmp_path) == {"grid.npy"}
    assert completed_by_bash([*line, "export", "other", "g"], tmp_path) == {"grid.npy"}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_scripts_know_every_subcommand_and_option(shell):
    script, _ = shmctl("completion", shell)
    for command in COMMANDS:
        pattern = rf"^\s*'{command}:" if shell == "zsh" else rf" -a {command} -d "
        assert re.search(pattern, script, flags=re.M), command
        for option in options_of(command):
            pattern = rf"{option}\b" if shell == "zsh" else rf"-l {option[2:]}\b"
            assert re.search(pattern, script), f"{command} {option}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_valid(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(shmctl("completion", shell)[0])
    subprocess.run([shell, "-n", script], check=True)


def test_fish_completes(store, tmp_path):
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    store.ctl("create", "sim/a", "--shape", "1", "--dtype", "f8")
    script = tmp_path / "script.fish"
    script.write_text(shmctl("completion", "fish")[0])

    def offered(line):
        env = environment(
            PATH=f"{Path(SHMCTL).parent}:{os.environ['PATH']}",
            HOME=str(tmp_path),
            SHMSTORE_SOCKET=store.socket,
        )
        code = f"source {script}; complete -C '{line}'"
        done = subprocess.run(
            ["fish", "--no-config", "-c", code], capture_output=True, text=True, env=env, check=True
        )
        return {row.split("\t")[0] for row in done.stdout.splitlines()}

    assert set(COMMANDS) <= offered("shmctl ")
    assert offered("shmctl info ") == {"sim/a"}
    assert {"--long", "--names"} <= offered("shmctl ls --")


# --- manual pages --------------------------------------------------------------------------------


def manual(page):
    """The text of a manual page, without roff's escapes."""
    text = (MAN / page).read_text()
    return re.sub(r"\\f.", "", text.replace("\\-", "-"))


def test_the_manual_has_every_subcommand_and_option():
    text = manual("shmctl.1")
    for command in COMMANDS:
        assert re.search(rf"^(\.B )?{command}\b", text, flags=re.M), command
        for option in options_of(command):
            assert option in text, f"{command} {option}"


def test_the_daemons_manual_has_every_option():
    done = subprocess.run([SHMSTORED, "--help"], capture_output=True, text=True, check=True)
    options = set(re.findall(r"--[a-z][a-z-]+", done.stdout))
    assert "--capacity" in options
    text = manual("shmstored.8")
    assert {option for option in options if option not in text} == set()


def test_the_overview_has_every_error_code():
    header = (ROOT / "include/shmstore/error.hpp").read_text()
    codes = re.findall(r"^  ([a-z_]+) = \d+,", header, flags=re.M)
    assert len(codes) == 13
    text = manual("shmstore.7")
    assert [code for code in codes if f".B {code}\n" not in text] == []


@pytest.mark.parametrize("page", sorted(path.name for path in MAN.glob("*.[1-8]")))
def test_manual_pages_format_without_complaint(page):
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", MAN / page], capture_output=True, check=True
    )
    assert done.stderr == b""


@pytest.mark.parametrize("page", sorted(path.name for path in MAN.glob("*.[1-8]")))
def test_manual_pages_have_a_date(page):
    assert re.match(r"\.TH [A-Z]+ [1-8] \d{4}-\d\d-\d\d ", (MAN / page).read_text())
