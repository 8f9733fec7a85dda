"""The two programs as graphs of tasks over named arrays, the same for every engine.

A program has arrays, name -> ndarray, those that tasks write apart from those they only read, and
`waves()`, a generator that yields lists of tasks and is sent their results. Tasks of a wave that
write the same array run in the order of the list; apart from that at any time, on any worker.
"""

from dataclasses import dataclass

import numpy as np

from tasks import kernels, points


@dataclass
class Task:
    kernel: str  # its name in tasks.kernels
    arrays: tuple  # names of its arrays, the one that it writes last
    extra: tuple = ()  # small arguments, sent along


class Matmul:
    """C = A B in blocks of `edge` x `edge` doubles: rows x inner blocks times inner x columns."""

    name = "matmul"

    def __init__(self, edge, rows, inner, columns):
        self.shape = rows, inner, columns
        random = np.random.default_rng(edge)
        self.inputs = {}
        for letter, high, wide in (("a", rows, inner), ("b", inner, columns)):
            for i in range(high):
                for j in range(wide):
                    block = np.empty((edge, edge))
                    random.random(out=block)
                    self.inputs[letter, i, j] = block
        self.outputs = {
            ("c", i, j): np.zeros((edge, edge)) for i in range(rows) for j in range(columns)
        }
        self.result = None

    def waves(self):
        rows, inner, columns = self.shape
        yield [
            Task("multiply", (("a", i, k), ("b", k, j), ("c", i, j)))
            for k in range(inner)
            for i in range(rows)
            for j in range(columns)
        ]

    def reset(self):
        for block in self.outputs.values():
            block.fill(0)

    def expected(self):
        """The outputs and the result as one process computes them, with numpy alone."""
        blocks = {name: np.zeros_like(block) for name, block in self.outputs.items()}
        for task in next(self.waves()):
            a, b, c = task.arrays
            kernels.multiply(self.inputs[a], self.inputs[b], blocks[c])
        return blocks, None


class KMeans:
    """k-means over fragments of points; every fragment has its labels, written in every round."""

    name = "kmeans"

    def __init__(self, fragment_bytes, fragments, rounds, dims=64, centres=4):
        count = fragment_bytes // (8 * dims)
        self.rounds, self.fragments = rounds, fragments
        self.inputs, self.outputs = {}, {}
        for number in range(fragments):
            fragment = self.inputs["fragment", number] = np.empty((count, dims))
            points.fill(fragment, number)
            self.outputs["labels", number] = np.zeros(count, "i8")
        self.start = points.first_centres(self.inputs["fragment", 0], centres)
        self.result = None

    def waves(self):
        centres = self.start
        for _ in range(self.rounds):
            partials = yield [
                Task("assign", (("fragment", n), ("labels", n)), (centres,))
                for n in range(self.fragments)
            ]
            centres = kernels.moved(centres, partials)
        self.result = centres

    def reset(self):
        for labels in self.outputs.values():
            labels.fill(0)

    def expected(self):
        labels = {name: np.zeros_like(array) for name, array in self.outputs.items()}
        centres = self.start
        for _ in range(self.rounds):
            partials = [
                kernels.assign(fragment, labels["labels", number], centres)
                for (_, number), fragment in self.inputs.items()
            ]
            centres = kernels.moved(centres, partials)
        return labels, centres


def drive(program, run_wave):
    """Runs a program: `run_wave(tasks)` returns the tasks' results in order."""
    waves = program.waves()
    try:
        tasks = next(waves)
        while True:
            tasks = waves.send(run_wave(tasks))
    except StopIteration:
        pass


def levels(tasks):
    """Cuts a wave into waves in which no two tasks write the same array, for engines that know
    nothing of dependencies."""
    depth, cut = {}, []
    for task in tasks:
        level = depth[task.arrays[-1]] = depth.get(task.arrays[-1], -1) + 1
        if level == len(cut):
            cut.append([])
        cut[level].append(task)
    return cut
