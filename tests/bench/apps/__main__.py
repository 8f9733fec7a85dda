"""tools/bench --apps: the paper's two programs over every data path, side by side.

Runs matmul and k-means at block sizes from 128 KiB to 128 MiB with two worker processes, one
arithmetic thread each. All paths of a size are run in turn, in another order each time, five times
over, small ones ten; results are compared with what one process computes. Prints a table for each
cell, and writes, if asked, a flat JSON object and the plots.
"""

import argparse
import json
import os
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "examples"))
os.environ["PYTHONPATH"] = str(ROOT / "examples")  # for the workers of engines

from tasks import blas  # noqa: E402,F401 - before numpy

import chart  # noqa: E402
import checks  # noqa: E402
import report  # noqa: E402
import study  # noqa: E402
from tasks import command, ending, nodes  # noqa: E402


def arguments():
    parser = argparse.ArgumentParser(prog="tools/bench --apps", description=__doc__.split("\n")[0])
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="one repetition of small programs")
    how.add_argument("--full", action="store_true", help="all paths at all sizes, and 256 MiB")
    parser.add_argument("--json", metavar="FILE", help="writes the results there")
    parser.add_argument("--plots", metavar="FOLDER", help="writes a plot for each program there")
    parser.add_argument("--only", metavar="TEXT", help="cells whose name contains this")
    parser.add_argument("--repetitions", type=command.positive, metavar="N", help="of every cell")
    return parser.parse_args()


def main():
    options = arguments()
    ending.on_signals()
    mode = "full" if options.full else "quick" if options.quick else "default"
    cells = [cell for cell in study.cells(mode) if (options.only or "") in cell.label]
    for cell in cells:
        cell.repetitions = options.repetitions or cell.repetitions
    extra = {"apps_mode": mode, "machine": report.machine(ROOT), "load_start": os.getloadavg()[0]}
    measured = []
    with nodes.started(1):
        if options.only is None:
            extra.update(checks.run(mode, say))
        for cell in cells:
            started = time.monotonic()
            results = study.measure(cell, say)
            say(f"{cell.label}: {time.monotonic() - started:.0f} s")
            measured.append((cell, results))
            print(report.table(cell, results), flush=True)
            extra["load_end"] = os.getloadavg()[0]
            write(options, measured, extra)
    print(report.summary({**report.flat(measured), **extra}))


def write(options, measured, extra):
    """After every cell: what a study that is stopped has measured is not lost."""
    if options.json:
        numbers = {**report.flat(measured), **extra}
        pathlib.Path(options.json).write_text(json.dumps(numbers, indent=2) + "\n")
    if options.plots:
        chart.write(measured, pathlib.Path(options.plots), extra["machine"])


def say(text):
    print(f"  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
