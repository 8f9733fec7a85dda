"""What both programs do around the program itself: options, daemons, the engine, the check."""

import argparse
import contextlib
import os
import sys
import time

import numpy as np
from tasks import backends, data, ending, nodes

COUNT_MAX = 1_000_000  # of workers, rounds, rows, MiB
GIB = 1 << 30


def parser(description):
    """Options of both programs."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--backend", choices=backends.NAMES, default="pool", help="the engine")
    options.add_argument(
        "--data",
        choices=data.WAYS,
        default="store",
        help="store: arrays in the store, handles travel; copy: the engine's own way; "
        "file: .npy files",
    )
    options.add_argument("--workers", type=positive, default=2, help="worker processes")
    options.add_argument(
        "--nodes",
        type=positive,
        help="dask with --data store: daemons, with the workers shared out among them "
        "(default 2, with one worker 1)",
    )
    return options


def positive(text):
    """For options: a count."""
    number = int(text)
    if not 1 <= number <= COUNT_MAX:
        raise argparse.ArgumentTypeError(f"must be from 1 to {COUNT_MAX}")
    return number


def mebibytes(text):
    """For options: a size in MiB, which may have a fraction."""
    number = float(text)
    if not 0 < number <= COUNT_MAX:  # false for what is no number, too
        raise argparse.ArgumentTypeError(f"must be more than 0 and at most {COUNT_MAX} MiB")
    return number


def refuse_too_large(options, nbytes):
    """Ends the program, with what the machine has, if its arrays cannot be in memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if nbytes > memory:
        options.error(
            f"this needs {nbytes / GIB:.3g} GiB for its arrays, the machine has {memory / GIB:.3g}"
        )


def run(program, options):
    """Runs a program as the options say and checks it; the exit status."""
    try:
        kind = backends.load(options.backend)
    except backends.Missing as missing:
        print(missing, file=sys.stderr)
        return 3
    ending.on_signals()
    stores = node_count(kind, options)
    if kind.crosses_nodes and stores > options.workers:
        print(f"--nodes {stores}: needs as many --workers, here {options.workers}", file=sys.stderr)
        return 2
    with contextlib.ExitStack() as stack:
        if stores:
            sockets = stack.enter_context(nodes.started(stores, here=not kind.crosses_nodes))
            print(f"{stores} private daemon{'s' if stores > 1 else ''}")
        else:
            sockets = []
        try:
            backend = stack.enter_context(kind(options.workers, options.data, sockets))
        except ValueError as error:
            print(f"{options.backend}: {error}", file=sys.stderr)
            return 2
        started = time.perf_counter()
        backend.run(program)
        print(f"{options.backend}, {options.data}: {time.perf_counter() - started:.3f} s")
        outputs = {name: np.array(backend.collect(name)) for name in program.outputs}
        backend.report()
    return check(program, outputs)


def node_count(kind, options):
    """How many daemons the run needs."""
    if options.data != "store" or not kind.own_stores:
        return 0
    return options.nodes or (min(2, options.workers) if kind.crosses_nodes else 1)


def check(program, outputs):
    """Compares with what one process computes; says so; the exit status."""
    expected, result = program.expected()
    wrong = [name for name, array in expected.items() if not np.array_equal(outputs[name], array)]
    if result is not None and not np.array_equal(program.result, result):
        wrong.append("result")
    if wrong:
        print(f"WRONG: {len(wrong)} arrays differ from one process's: {wrong[:4]}")
        return 1
    print(f"checked: {len(expected)} arrays are equal, bit for bit, to what one process computes")
    return 0
