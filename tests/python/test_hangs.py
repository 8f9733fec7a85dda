"""That a test that hangs fails, and does not take the run with it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import hangs
from conftest import PATIENCE

HANGING = """
import multiprocessing, os, threading, time

def test_hangs():
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.apply(os._exit, (3,))  # the task is lost, which nobody notices

def waits_in_a_thread(started):
    threading.Thread(target=threading.Event().wait).start()
    started.set()

def test_hangs_with_a_child():
    context = multiprocessing.get_context("fork")
    started = context.Event()
    child = context.Process(target=waits_in_a_thread, args=(started,))
    child.start()
    started.wait()
    child.join()

def test_goes_on():
    pass
"""


def test_a_hang_is_a_failed_test(tmp_path):
    (tmp_path / "test_it.py").write_text(HANGING)
    command = [sys.executable, "-m", "pytest", "-p", "hangs", "-p", "no:cacheprovider", "."]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=dict(
            os.environ,
            PYTHONPATH=str(Path(hangs.__file__).parent),
            SHMSTORE_TEST_LIMIT="2",
            PYTHONUNBUFFERED="",  # as in a log file: what is not flushed would be lost
        ),
        stdin=subprocess.DEVNULL,
        capture_output=True,  # ends only when the children have ended, too
        text=True,
        timeout=PATIENCE * 2,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 failed, 1 passed" in done.stdout
    assert done.stdout.count("hung: its call took more than 2 s") >= 2
    assert "test_hangs hangs in its call" in done.stderr
    assert re.search(r"^process \d+ \(S .*: .*pytest -p hangs", done.stderr, re.M)  # the child


def test_children_are_found():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in hangs.descendants(os.getpid())
