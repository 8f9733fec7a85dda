"""What a worker process needs before its first task."""

import multiprocessing

import shmstore as shm

#: A fresh interpreter: nothing of the driver is inherited.
START = multiprocessing.get_context("spawn")

HOLD_BYTES = 4 << 30


def start_worker():
    """Lets the worker hold on to the arrays that it opened, for its next tasks."""
    shm.hold_opened(HOLD_BYTES)


def ready():
    """A task that does nothing: there is a worker when it is done."""
