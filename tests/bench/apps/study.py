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
ROUNDS = dict(zip(SIZES, (20, 20, 20, 20, 20, 8)))
FRAGMENTS = 16

ENGINE_SIZES = (128 * KIB, 2 * MIB, 32 * MIB)  # of engines with a scheduler of their own
SELECTED = {"fork", "npy", "paper", "sharedarray", "shmstore"}  # at 128 MiB of matmul
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
    repetitions = 1 if mode == "quick" else 5
    engine_sizes = QUICK_SIZES[-1:] if mode == "quick" else ENGINE_SIZES
    chosen = []
    for size in QUICK_SIZES if mode == "quick" else SIZES:
        engines = schedulers.ALL if mode == "full" or size in engine_sizes else ()
        few = mode == "default" and size == SIZES[-1]
        own = [path for path in paths.ALL if not few or path.name in SELECTED]
        blocks = (4, 4, 4) if mode == "quick" else MATMUL[size]
        edge = int((size // 8) ** 0.5)
        chosen.append(
            Cell(
                "matmul",
                size,
                lambda edge=edge, blocks=blocks: programs.Matmul(edge, *blocks),
                [*own, *engines],
                repetitions,
            )
        )
        rounds = 4 if mode == "quick" else ROUNDS[size]
        chosen.append(kmeans(size, rounds, 64, engines, repetitions))
    if mode == "full":
        chosen.append(kmeans(256 * MIB, 8, 128, (), repetitions, "_d128"))
    return chosen


def kmeans(size, rounds, dims, engines, repetitions, suffix=""):
    return Cell(
        "kmeans",
        size,
        lambda: programs.KMeans(size, FRAGMENTS, rounds, dims),
        [*paths.ALL, *engines],
        repetitions,
        suffix,
    )


def measure(cell, say):
    """Runs all paths of a cell in turn, in another order each time. {path name: Runs}."""
    program = cell.make()
    expected, result = program.expected()
    results = {path.name: Runs(skipped=path.missing() or "") for path in cell.paths}
    present = [path for path in cell.paths if not results[path.name].skipped]
    for repetition in range(cell.repetitions):
        turn = repetition * 2 % len(present)
        for path in present[turn:] + present[:turn]:
            say(f"{cell.label} {repetition + 1}/{cell.repetitions} {path.name}")
            times, outputs = engine.run(program, path(), WORKERS)
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
