"""k-means by tasks: one task for each fragment of the points in each round.

    python examples/kmeans.py [--backend pool|joblib|dask|ray|pycompss] [--data store|copy|file]
                              [--fragments N] [--mib SIZE] [--dims N] [--centres N] [--rounds N]
                              [--workers N] [--nodes N]

The points are small squares of two photographs (noise without scikit-learn and Pillow). A task
reads its fragment, writes the labels of its points in place, and returns partial sums, of which the
driver makes the next centres. The result is compared with what one process computes. Starts the
daemons that it needs itself.
"""

import sys

from tasks import blas, command, points, programs  # noqa: F401 - blas sets the number of threads


def main(arguments=None):
    options = command.parser(__doc__.splitlines()[0])
    options.add_argument("--fragments", type=command.positive, default=16)
    options.add_argument("--mib", type=command.mebibytes, default=2, help="size of a fragment")
    options.add_argument("--dims", type=command.positive, default=64)
    options.add_argument("--centres", type=command.positive, default=4)
    options.add_argument("--rounds", type=command.positive, default=20)
    job = options.parse_args(arguments)
    size = int(job.mib * (1 << 20))
    if size // (8 * job.dims) < job.centres:
        options.error("a fragment must have at least as many points as there are centres")
    command.refuse_too_large(options, job.fragments * size)
    print(
        f"{job.fragments} fragments of {job.mib:g} MiB, {job.dims} dimensions, {job.centres} "
        f"centres, {job.rounds} rounds: {points.source()}"
    )
    program = programs.KMeans(size, job.fragments, job.rounds, job.dims, job.centres)
    return command.run(program, job)


if __name__ == "__main__":
    sys.exit(main())
