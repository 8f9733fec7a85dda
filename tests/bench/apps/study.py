"""Which programs run over which paths at which sizes, and the measuring of one of these cells."""

import sys
from dataclasses import dataclass, field

import engine
import numpy as np
import paths
import schedulers
from tasks import programs

KIB, MIB = 1 << 10, 1 << 20
SIZES = (128 * KIB, 512 * KIB, 2 * MIB, 8 * MIB, 32 * MIB, 128 * MIB)
WORKERS = 2

#: Blocks (rows, inner, columns) by block size. The paper has 8 to 24 on each side; the large ones
#: are few, because the product of two blocks of 128 MiB alone takes seconds.
MATMUL = dict(zip(SIZES, ((8,) * 3, (8,) * 3, (6,) * 3, (4,) * 3, (2,) * 3, (2, 1, 2))))
#: Rounds by fragment size; 16 fragments, 64 dimensions, 4 centres as in the paper.
ROUNDS = dict(zip(SIZES, (20, 20, 20, 20, 20, 10)))
FRAGMENTS = 16

ENGINE_SIZES = (2 * MIB, 32 * MIB)  # of engines with a scheduler of their own
SELECTED = {  # at 128 MiB
    "matmul": ("fork", "npy", "paper", "shmstore", "shmstore_in_place"),
    "kmeans": ("fork", "npy", "paper", "sharedarray", "shmstore", "shmstore_in_place"),
}
QUICK_SIZES = (128 * KIB, 2 * MIB)


@dataclass
class Cell:
    """One program at one size, and what is measured there."""

    program: str
    block_bytes: int
    make: object  # makes the program
    paths: list
    repetitions: int
    suffix: str = ""

    @property
    def label(self):
        return f"{self.program}_{size_text(self.block_bytes)}{self.suffix}"


@dataclass
class Runs:
    """The runs of a path in a cell, one entry each; seconds, per task where a task is named."""

    skipped: str = ""  # why there are none
    wall: list = field(default_factory=list)
    publish: list = field(default_factory=list)
    opened: list = field(default_factory=list)  # mean over the tasks of a run
    warm: list = field(default_factory=list)
    kernel: list = field(default_factory=list)
    closed: list = field(default_factory=list)


def size_text(size):
    return f"{size // MIB}MiB" if size >= MIB else f"{size // KIB}KiB"


def cells(mode):
    """The cells of a mode: "quick", "default" or "full"."""
    chosen = []
    for size in QUICK_SIZES if mode == "quick" else SIZES:
        blocks = (4, 4, 4) if mode == "quick" else MATMUL[size]
        rounds = 4 if mode == "quick" else ROUNDS[size]
        chosen += [matmul(mode, size, blocks), kmeans(mode, size, rounds)]
    if mode == "full":
        chosen.append(kmeans(mode, 256 * MIB, 10, 128))
    return chosen


def matmul(mode, size, blocks):
    edge = int((size // 8) ** 0.5)
    return cell(mode, "matmul", size, lambda: programs.Matmul(edge, *blocks))


def kmeans(mode, size, rounds, dims=64):
    suffix = "" if dims == 64 else f"_d{dims}"
    return cell(
        mode, "kmeans", size, lambda: programs.KMeans(size, FRAGMENTS, rounds, dims), suffix
    )


def cell(mode, program, size, make, suffix=""):
    chosen = list(paths.ALL)
    if mode == "default" and size == SIZES[-1]:
        chosen = [path for path in chosen if path.name in SELECTED[program]]
    engine_sizes = {"quick": QUICK_SIZES[-1:], "default": ENGINE_SIZES, "full": SIZES}[mode]
    if size in engine_sizes:
        chosen += schedulers.ALL
    # Runs of a tenth of a second differ more from each other than those of seconds.
    repetitions = 1 if mode == "quick" else 10 if size < 2 * MIB else 5
    return Cell(program, size, make, chosen, repetitions, suffix)


def measure(cell, say):
    """Runs all paths of a cell in turn, in another order each time. {path name: Runs}."""
    program = cell.make()
    expected, result = program.expected()
    results = {path.name: Runs(skipped=path.missing() or "") for path in cell.paths}
    for repetition in range(cell.repetitions):
        present = [path for path in cell.paths if not results[path.name].skipped]
        turn = repetition * 2 % len(present)
        for path in present[turn:] + present[:turn]:
            say(f"{cell.label} {repetition + 1}/{cell.repetitions} {path.name}")
            try:
                times, outputs = engine.run(program, path(), WORKERS)
            except Exception as error:
                if path not in schedulers.ALL:
                    raise
                # An engine that fails is left out from here on; the study goes on.
                results[path.name].skipped = f"failed: {type(error).__name__}: {error}"[:200]
                say(results[path.name].skipped)
                continue
            compare(cell, path, program, outputs, expected, result)
            add(results[path.name], times)
    return results


def compare(cell, path, program, outputs, expected, result):
    """Ends the study if a path gave another result than one process."""
    wrong = [name for name, array in expected.items() if not np.array_equal(outputs[name], array)]
    if wrong or (result is not None and not np.array_equal(program.result, result)):
        sys.exit(f"{cell.label}: {path.name} computed something else: {wrong[:4]}")


def add(runs, times):
    runs.wall.append(times.wall)
    runs.publish.append(times.publish)
    for name in ("opened", "warm", "kernel", "closed"):
        values = getattr(times, name)
        if values:
            getattr(runs, name).append(sum(values) / len(values))
