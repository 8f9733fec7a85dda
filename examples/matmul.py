"""Blocked matrix product by tasks: N x N blocks of B x B doubles, N^3 tasks `c += a @ b`.

    python examples/matmul.py [--backend pool|joblib|dask|ray|pycompss] [--data store|copy|file]
                              [--blocks N] [--edge B] [--workers N]

The program is the same for every engine and every way of the data; the result is compared with what
one process computes. Starts the daemon that it needs itself.
"""

import sys

from tasks import blas, command, programs  # noqa: F401 - blas sets the number of threads


def main(arguments=None):
    options = command.parser(__doc__.splitlines()[0])
    options.add_argument("--blocks", type=command.positive, default=4, help="blocks on each side")
    options.add_argument("--edge", type=command.positive, default=512, help="rows of a block")
    job = options.parse_args(arguments)
    n = job.blocks
    command.refuse_too_large(options, 3 * n**2 * 8 * job.edge**2)
    print(f"{n} x {n} blocks of {job.edge} x {job.edge} doubles, {n**3} tasks")
    return command.run(programs.Matmul(job.edge, n, n, n), job)


if __name__ == "__main__":
    sys.exit(main())
