"""The same job without a store: multiprocessing pickles the pixels to each worker, and centres,
sums and labels travel through pipes. Every worker holds all pixels, as in any task whose workers
read what they need when they need it; which tiles it works on is the same as through the store."""

import multiprocessing
import time

import kmeans
import numpy as np


def work(pixels, number, workers, rounds, pipe):
    mine = range(number, len(pixels), workers)
    centres = pipe.recv()
    for _ in range(rounds):
        pipe.send(kmeans.partial_sums((pixels[t] for t in mine), centres))
        centres = pipe.recv()
    labels = np.empty((len(mine), *pixels.shape[1:3]), "u1")
    for row, tile in enumerate(mine):
        kmeans.write_labels(pixels[tile], centres, labels[row])
    pipe.send(labels)


def start(context, pixels, number, job):
    mine, theirs = context.Pipe()
    arguments = (pixels, number, job.workers, job.rounds, theirs)
    process = context.Process(target=work, args=arguments, daemon=True)
    process.start()
    theirs.close()
    return process, mine


def drive(job, look):
    """Runs the job. `look(pids)` is called once in the middle. Returns (labels, seconds)."""
    import pictures  # here, so that workers do not load scikit-learn

    started = time.perf_counter()
    height, width, channels = next(iter(pictures.photographs().values())).shape
    pixels = np.empty((job.tiles, height, width, channels), "f4")
    pictures.fill_tiles(pixels)

    centres = kmeans.first_centres(pixels[:2], job.colours)
    context = multiprocessing.get_context("spawn")  # fork would share pages until written
    workers = [start(context, pixels, n, job) for n in range(job.workers)]
    pipes = [pipe for _, pipe in workers]
    for pipe in pipes:
        pipe.send(centres)
    for number in range(1, job.rounds + 1):
        partials = [pipe.recv() for pipe in pipes]
        if number == job.rounds // 2:
            paused = time.perf_counter()
            look([process.pid for process, _ in workers])
            started += time.perf_counter() - paused
        centres = kmeans.moved_centres(centres, partials)
        for pipe in pipes:
            pipe.send(centres)
    labels = np.empty(pixels.shape[:3], "u1")
    for number, pipe in enumerate(pipes):
        labels[number :: job.workers] = pipe.recv()
    for process, _ in workers:
        process.join()
    return labels, time.perf_counter() - started
