"""The job through shmstore. Loader, driver and workers are unrelated processes: each finds the
arrays by name and maps them; none gets a byte of pixels through a pipe.

    demo/pixels      sealed, kept        the loader puts it and exits; it outlives the loader
    demo/centres     a version a round   the driver publishes, workers wait for the next one
    demo/partial/N   a version a round   worker N publishes, the driver waits for the next one
    demo/labels      a draft             the driver creates it, workers fill it together in place
"""

import subprocess
import sys
import time

import kmeans
import measure
import shmstore as shm

WAIT_S = 5  # how long to wait for a version before looking whether a worker died


def newest(name, after):
    """The array of that name with a version above `after` (0: any), once there is one."""
    shm.wait(name, newer_than=after)
    return shm.attach(name)


# --- the processes -------------------------------------------------------------------------------


def load(tiles):
    """Loader: fills the pixels in place, so that they exist once from the start."""
    import pictures  # here, so that workers do not load scikit-learn

    height, width, channels = next(iter(pictures.photographs().values())).shape
    shape = (tiles, height, width, channels)
    with shm.create("demo/pixels", shape, "f4", keep=True) as pixels:
        pictures.fill_tiles(pixels)


def work(number, workers, rounds):
    """Worker: partial sums of its tiles for each version of the centres, labels for the last."""
    pixels = shm.attach("demo/pixels")
    mine = range(number, len(pixels), workers)
    centres = newest("demo/centres", 0)
    for _ in range(rounds):
        sums = kmeans.partial_sums((pixels[t] for t in mine), centres)
        # Held until the next one: without a holder an array that is not kept is gone.
        partial = shm.put(f"demo/partial/{number}", sums, replace=True)
        centres = newest("demo/centres", centres.shm.version)
    labels = shm.attach("demo/labels", mode="r+")
    for tile in mine:
        kmeans.write_labels(pixels[tile], centres, labels[tile])
    del partial


def role(name, *arguments):
    """Starts this file as another process in one of the roles above."""
    command = [sys.executable, __file__, name, *map(str, arguments)]
    return subprocess.Popen(command)


# --- the driver ----------------------------------------------------------------------------------


def wait_for_partial(number, after, process):
    """The next version of a worker's sums; raises if the worker is gone instead."""
    while True:
        try:
            shm.wait(f"demo/partial/{number}", newer_than=after, timeout=WAIT_S)
            return shm.attach(f"demo/partial/{number}")
        except shm.TimedOut:
            if process.poll() is not None:
                raise RuntimeError(f"worker {number} ended with {process.returncode}") from None


def drive(job, say, look):
    """Runs the job. `look(pids)` is called once in the middle, while everybody holds the pixels.
    Returns (centres, labels as a shared array, seconds)."""
    started = time.perf_counter()
    loader = role("load", job.tiles)
    if loader.wait() != 0:
        raise RuntimeError(f"the loader ended with {loader.returncode}")
    pixels = shm.attach("demo/pixels")
    say(f"process {loader.pid} has put demo/pixels ({measure.human(pixels.nbytes)}) and exited")

    centres = shm.put("demo/centres", kmeans.first_centres(pixels[:2], job.colours))
    labels = shm.create("demo/labels", pixels.shape[:3], "u1")
    workers = [role("work", n, job.workers, job.rounds) for n in range(job.workers)]
    try:
        seen = [0] * job.workers
        for number in range(1, job.rounds + 1):
            partials = [wait_for_partial(n, seen[n], workers[n]) for n in range(job.workers)]
            seen = [p.shm.version for p in partials]
            if number == job.rounds // 2:
                paused = time.perf_counter()
                look([w.pid for w in workers])
                started += time.perf_counter() - paused
            # Everybody who reads the old centres keeps them; the name means the new ones at once.
            centres = shm.put("demo/centres", kmeans.moved_centres(centres, partials), replace=True)
        for worker in workers:
            if worker.wait() != 0:
                raise RuntimeError(f"a worker ended with {worker.returncode}")
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    labels = labels.seal(wait=WAIT_S)
    shm.delete("demo/pixels")
    return centres, labels, time.perf_counter() - started


if __name__ == "__main__":
    if sys.argv[1] == "load":
        load(int(sys.argv[2]))
    else:
        work(*map(int, sys.argv[2:5]))
