"""top on a terminal of its own (a pty): what it shows, how it ends, what it leaves behind."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios

import pytest
from conftest import PATIENCE, SHMCTL, environment, wait_until

ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"


class Terminal:
    """`shmctl top` as the foreground program of a terminal."""

    def __init__(self, socket, *arguments, rows=24, columns=80, **variables):
        self.text = ""
        self.fd, self.inner = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self.inner)
        self.process = subprocess.Popen(
            [SHMCTL, "top", "--socket", socket, "-i", "0.02", *arguments],
            stdin=self.inner,
            stdout=self.inner,
            stderr=self.inner,
            env=environment(**variables),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def resize(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self):
        while select.select([self.fd], [], [], 0.01)[0]:
            self.text += os.read(self.fd, 65536).decode(errors="replace")

    def until(self, *texts):
        """Reads until all of `texts` stand in one screen drawn after this call; returns it."""
        self.text = ""

        def seen():
            self.read()
            assert self.process.poll() is None, f"top ended: {self.text}"
            whole = self.text.split("\x1b[H")[1:-1]
            return next((s for s in whole if all(t in s for t in texts)), None)

        return wait_until(seen, f"{texts} on the screen")

    def keys(self, text):
        os.write(self.fd, text.encode())

    def end(self):
        """Waits for the end; returns the exit status and what was printed after the screen."""

        def ended():
            self.read()
            return self.process.poll() is not None

        wait_until(ended, "the end of top")
        self.read()
        assert self.text.count(ENTER) <= 1 and self.text.count(LEAVE) == 1
        assert "\x1b[?25h" in self.text and "\x1b[?7h" in self.text
        assert termios.tcgetattr(self.inner) == self.before
        os.close(self.fd)
        os.close(self.inner)
        return self.process.returncode, self.text.split(LEAVE)[1]


@pytest.fixture
def filled(store):
    for i in range(30):
        store.ctl("create", f"array/{i:02}", "--shape", str(1000 * (i + 1)), "--dtype", "u1")
    return store


def plain(screen):
    """The lines of a screen without escapes."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen).replace("\r", "").split("\n")


def test_it_shows_the_largest_first_and_what_does_not_fit(filled):
    terminal = Terminal(filled.socket)
    lines = plain(terminal.until("array/29"))
    assert len(lines) == 24
    assert lines[0].startswith("shmstored ") and "30 arrays" in lines[0]
    assert lines[0].endswith("q quits")
    assert "░" in lines[1] and " of " in lines[1]
    assert lines[3].startswith("USER")
    assert lines[6].split() == ["NAME", "SIZE", "HELD", "STATE", "KEPT", "OWNER", "AGE"]
    assert [line.split()[0] for line in lines[7:10]] == ["array/29", "array/28", "array/27"]
    assert lines[-1] == "and 14 more"
    assert max(map(len, lines)) <= 80
    terminal.keys("q")
    assert terminal.end() == (0, "")


def test_no_line_is_cut_off(filled):
    """Clearing the rest of a line that fills the width would clear its last letter."""
    terminal = Terminal(filled.socket)
    screen = terminal.until("array/29")
    assert max(map(len, plain(screen))) == 80
    assert re.search(r"\x1b\[[KJ]", screen) and not re.search(r"[^\n]\x1b\[[KJ]", screen)
    terminal.keys("q")
    assert terminal.end() == (0, "")


def test_it_follows_the_store_and_the_size_of_the_terminal(filled):
    terminal = Terminal(filled.socket)
    terminal.until("and 14 more")
    filled.ctl("rm", "array/29")
    terminal.until("29 arrays", "and 13 more")
    terminal.resize(12, 60)
    lines = plain(terminal.until("and 25 more"))
    assert len(lines) == 12
    terminal.resize(50, 120)
    lines = plain(terminal.until("array/00"))
    assert len(lines) == 36
    terminal.keys("q")
    assert terminal.end()[0] == 0


@pytest.mark.parametrize("key", ["\x03", "\x04", "Q"])
def test_keys_that_end_it(store, key):
    terminal = Terminal(store.socket)
    terminal.until("no arrays")
    terminal.keys("x" + key)
    assert terminal.end() == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_that_end_it(store, number):
    terminal = Terminal(store.socket)
    terminal.until("no arrays")
    terminal.process.send_signal(number)
    assert terminal.end() == (0, "")


def test_ctrl_z_gives_the_terminal_back(store):
    terminal = Terminal(store.socket)
    terminal.until("no arrays")
    terminal.text = ""
    terminal.keys("\x1a")

    def stopped():
        terminal.read()
        done = os.waitid(
            os.P_PID, terminal.process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        )
        return done is not None

    wait_until(stopped, "the stop")
    terminal.read()
    assert LEAVE in terminal.text
    assert termios.tcgetattr(terminal.inner) == terminal.before
    terminal.process.send_signal(signal.SIGCONT)
    terminal.until("no arrays")
    terminal.text = ""
    terminal.keys("q")
    assert terminal.end()[0] == 0


def test_colours_are_for_terminals_that_want_them(store):
    for variables, wanted in (({}, True), ({"NO_COLOR": "1"}, False)):
        terminal = Terminal(store.socket, **variables)
        assert ("\x1b[1m" in terminal.until("no arrays")) == wanted
        terminal.keys("q")
        assert terminal.end()[0] == 0


def test_it_ends_after_a_count(store):
    terminal = Terminal(store.socket, "-n", "3")
    assert terminal.end() == (0, "")
    assert len(re.findall(r"\x1b\[H\x1b\[K(?:\x1b\[1m)?shmstored", terminal.text)) == 3


def test_it_says_after_the_screen_that_the_daemon_went_away(store):
    terminal = Terminal(store.socket)
    terminal.until("no arrays")
    store.process.send_signal(signal.SIGTERM)
    store.process.wait(PATIENCE)
    status, rest = terminal.end()
    assert status == 3
    assert "disconnected: " in rest


def test_without_a_terminal_it_prints_once(filled):
    lines = filled.ctl("top").splitlines()
    assert len(lines) == 7 + 30
    assert "q quits" not in lines[0]
    answer = json.loads(filled.ctl("top", "--json"))
    assert len(answer["arrays"]) == 30 and answer["status"]["arrays"] == 30
