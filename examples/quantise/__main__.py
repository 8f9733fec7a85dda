"""Colour quantisation of two photographs by k-means, by several processes over one array.

    python examples/quantise [--out FOLDER] [--colours N] [--rounds N] [--workers N] [--mib N]

Starts a private daemon, does the job through the store, does it again with a copy of the pixels in
each process, compares time, memory and every pixel's result, and stops the daemon. Needs NumPy,
scikit-learn and Pillow, and shmstored and shmctl beside this Python or on PATH.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# One arithmetic thread per process: the job's processes are its parallelism.
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import measure  # noqa: E402
import numpy as np  # noqa: E402
import pictures  # noqa: E402
import shmstore as shm  # noqa: E402
import with_copies  # noqa: E402
import with_store  # noqa: E402

# At the end: there is a kmeans beside that folder's tasks as well as one here.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from tasks import ending  # noqa: E402
from tasks.command import refuse_too_large  # noqa: E402
from tasks.nodes import program, wait_until_it_answers  # noqa: E402


def parse_arguments():
    parser = argparse.ArgumentParser(prog="examples/quantise", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="folder of pictures")
    parser.add_argument("--colours", type=int, default=16, help="centres, at most 256")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--workers", type=int, default=4, help="worker processes")
    parser.add_argument("--mib", type=int, default=256, help="least size of the pixels")
    job = parser.parse_args()
    if not (2 <= job.colours <= 256 and job.rounds >= 2 and job.workers >= 1 and job.mib >= 1):
        parser.error("colours 2 to 256, rounds from 2, workers and mib from 1")
    refuse_too_large(parser, job.mib << 20)
    job.tiles = pictures.tiles_for(job.mib << 20)
    return job


# --- programs of the store -----------------------------------------------------------------------


@contextlib.contextmanager
def private_daemon():
    """A daemon of our own on its own socket, which everybody below us uses; stopped by its pid."""
    with tempfile.TemporaryDirectory(prefix="shmstore-demo-") as folder:
        socket = f"{folder}/socket"
        command = [program("shmstored"), "--socket", socket, "--log-level", "warning"]
        daemon = subprocess.Popen(command)
        try:
            os.environ["SHMSTORE_SOCKET"] = socket
            wait_until_it_answers(daemon, socket)
            yield daemon.pid
        finally:
            daemon.terminate()
            daemon.wait()


def shmctl(*arguments):
    """Runs shmctl and returns what it prints; a refusal ends the demo."""
    return subprocess.run(
        [program("shmctl"), *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def show(*arguments):
    print(f"\n    $ shmctl {' '.join(arguments)}")
    print("".join(f"    {line}\n" for line in shmctl(*arguments).splitlines()), end="")


# --- the two runs --------------------------------------------------------------------------------


def say(text):
    print(f"  {text}", flush=True)


def run_with_store(job, daemon):
    """Returns (centres, labels as plain memory, seconds, what was held in the middle)."""
    held, before = [], measure.shmem()

    def look(workers):
        held.append(measure.held_by([os.getpid(), daemon, *workers]))
        say(f"{job.workers} workers attached, round {job.rounds // 2} of {job.rounds} done:")
        show("ls", "-l")
        show("who", "demo/pixels")
        grown = measure.human(max(0, measure.shmem() - before))
        print(f"\n    Shmem of this machine has grown by {grown}\n")

    centres, labels, seconds = with_store.drive(job, say, look)
    return np.array(centres), np.array(labels), seconds, held[0]


def run_with_copies(job):
    held = []
    look = lambda workers: held.append(measure.held_by([os.getpid(), *workers]))  # noqa: E731
    labels, seconds = with_copies.drive(job, look)
    return labels, seconds, held[0]


def print_table(store, copies):
    (store_s, store_held), (copies_s, copies_held) = store, copies
    rows = (
        ("wall time", f"{store_s:.1f} s", f"{copies_s:.1f} s"),
        ("shared, held once", store_held.shared, copies_held.shared),
        ("private to each process", store_held.private, copies_held.private),
        ("all memory (PSS)", store_held.total, copies_held.total),
    )
    print(f"\n  {'':<26}{'store':>12}{'copies':>12}")
    for name, *cells in rows:
        cells = [c if isinstance(c, str) else measure.human(c) for c in cells]
        print(f"  {name:<26}{cells[0]:>12}{cells[1]:>12}")
    saved = measure.human(max(0, copies_held.total - store_held.total))
    print(f"\n  the store holds the pixels once: {saved} less for the same job\n")


def main():
    job = parse_arguments()
    ending.on_signals()
    names = " and ".join(pictures.photographs())
    print(f"Colour quantisation of two photographs ({names}), tiled {job.tiles // 2} times each")
    print(f"{job.colours} colours, {job.rounds} rounds, {job.workers} worker processes\n")
    with private_daemon() as daemon:
        print("1. through the store")
        centres, labels, store_s, store_held = run_with_store(job, daemon)
        say(f"done in {store_s:.1f} s")
        if shm.list():
            sys.exit(f"arrays were left behind:\n{shmctl('ls', '-l')}")
        verdict = shmctl("selfcheck")
    print("\n2. the same with a pickled copy of the pixels in each process")
    copied, copies_s, copies_held = run_with_copies(job)
    say(f"done in {copies_s:.1f} s")

    print_table((store_s, store_held), (copies_s, copies_held))
    different = np.count_nonzero(labels != copied)
    if different:
        sys.exit(f"{different:,} of {labels.size:,} labels differ between the two runs")
    say(f"the labels of all {labels.size:,} pixels are equal in both")
    for path in pictures.save_quantised(job.out, centres, labels):
        say(f"picture: {path}")
    print(verdict, end="")


if __name__ == "__main__":
    main()
