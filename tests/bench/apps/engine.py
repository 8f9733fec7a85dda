"""A task engine as small as it can be: forked workers, one pipe each, one task at a time.

The same for every data path, so that what differs between two runs is the path: how the arrays of
the master get to a worker (`publish`, then `open` in the worker) and what the worker has to do so
that others see what it wrote (`write_back`, then, when the task's arrays are dropped, `leave`).
"""

import collections
import gc
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import time
from dataclasses import dataclass, field

from tasks import kernels
from tasks.programs import drive

clock = time.perf_counter

FORK = multiprocessing.get_context("fork")


@dataclass
class Times:
    """What a run took, in seconds; lists have an entry for each task."""

    wall: float = 0.0  # from plain arrays in the master to the last result, publishing included
    publish: float = 0.0
    opened: list = field(default_factory=list)  # until all arguments were usable
    warm: list = field(default_factory=list)  # the same, of tasks whose arrays the worker had had
    kernel: list = field(default_factory=list)
    closed: list = field(default_factory=list)


# --- the worker -----------------------------------------------------------------------------------


def serve(pipe, path, others):
    """A worker's life: tasks in, results and times out, until the pipe is closed."""
    for other in others:
        other.close()  # so that a worker sees the end when the master closes or dies
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    path.start_worker()
    pipe.send("ready")
    seen = set()
    while True:
        try:
            message = pipe.recv_bytes()
        except EOFError:
            break
        pipe.send(carry_out(message, path, seen))
    os._exit(0)  # nothing that was inherited is ours to clean up


def carry_out(message, path, seen):
    started = clock()
    kernel, names, references, extra = pickle.loads(message)
    last = len(references) - 1
    arrays = [path.open(reference, n == last) for n, reference in enumerate(references)]
    opened = clock()
    result = getattr(kernels, kernel)(*arrays, *extra)
    computed = clock()
    path.write_back(references[last], arrays[last])
    arrays.clear()
    path.leave()
    closed = clock()
    warm = seen.issuperset(names)
    seen.update(names)
    return result, opened - started, computed - opened, closed - computed, warm


# --- the master -----------------------------------------------------------------------------------


class Workers:
    """Forked worker processes; a context manager."""

    def __init__(self, path, count):
        self.path, self.count = path, count

    def __enter__(self):
        self.pipes, self.processes = [], []
        for _ in range(self.count):
            mine, theirs = FORK.Pipe()
            process = FORK.Process(target=serve, args=(theirs, self.path, [*self.pipes, mine]))
            process.start()
            theirs.close()
            self.pipes.append(mine)
            self.processes.append(process)
        for pipe in self.pipes:
            pipe.recv()
        return self

    def __exit__(self, *_):
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join()

    def run_wave(self, tasks, references, times, done=None):
        """Results of the tasks in order. `done(number)` is called after each.

        Raises EOFError when a worker has died.
        """
        results = [None] * len(tasks)
        ready, behind = chains(tasks)
        free, busy = list(self.pipes), {}
        finished = 0
        while finished < len(tasks):
            while ready and free:
                number, pipe = ready.popleft(), free.pop()
                task = tasks[number]
                wanted = [references[name] for name in task.arrays]
                pipe.send_bytes(pickle.dumps((task.kernel, task.arrays, wanted, task.extra), 5))
                busy[pipe] = number
            for pipe in multiprocessing.connection.wait(busy):
                number = busy.pop(pipe)
                results[number], opened, kernel, closed, warm = pipe.recv()
                free.append(pipe)
                times.opened.append(opened)
                times.kernel.append(kernel)
                times.closed.append(closed)
                if warm:
                    times.warm.append(opened)
                if number in behind:
                    ready.append(behind[number])
                finished += 1
                if done is not None:
                    done(finished)
        return results


def chains(tasks):
    """Numbers of the tasks that may start at once, and for the others {task before: task}."""
    last_writer, ready, behind = {}, collections.deque(), {}
    for number, task in enumerate(tasks):
        target = task.arrays[-1]
        if target in last_writer:
            behind[last_writer[target]] = number
        else:
            ready.append(number)
        last_writer[target] = number
    return ready, behind


def run(program, path, workers=2, done=None):
    """Runs a program over a data path. Returns (Times, outputs by name); the outputs are collected
    after the clock has stopped."""
    program.reset()
    gc.collect()
    if hasattr(path, "run"):  # it has an engine of its own
        return path.run(program, workers)
    times = Times()
    try:
        path.prepare(program.inputs, program.outputs)
        if path.inherits:  # What is published before the fork is what workers inherit.
            publish(program, path, times)
        with Workers(path, workers) as crew:
            if not path.inherits:
                publish(program, path, times)
            started = clock()
            drive(program, lambda tasks: crew.run_wave(tasks, path.references, times, done))
            times.wall = times.publish + clock() - started
            outputs = {name: path.collect(name) for name in program.outputs}
        return times, outputs
    finally:
        path.finish()


def publish(program, path, times):
    started = clock()
    path.publish(program.inputs, program.outputs)
    times.publish = clock() - started
