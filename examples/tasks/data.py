"""How arrays get to tasks and back: three ways, by the name of the option --data.

A way turns the driver's arrays into references (`share` for what tasks read, `output` for what they
write); `perform` runs in the worker and makes arrays of them again. An engine only carries
references.
"""

import os

import numpy as np
import shmstore as shm
from tasks import ending, kernels


class Copy:
    """The engine's own way: arrays are arguments, and what a task has written is its result."""

    def share(self, array):
        return array

    def output(self, array):
        return array

    def array(self, reference):
        """In the driver: the array of a reference."""
        return reference

    def close(self):
        pass


class Store(Copy):
    """Arrays are in the store. What tasks read travels as a handle; what they write is kept under a
    name, and each task in turn has it exclusively, in place."""

    def __init__(self):
        self.names = []

    def share(self, array):
        return shm.share(array, min_bytes=0)

    def output(self, array):
        name = f"tasks/{os.getpid()}/{len(self.names)}"
        x = shm.put(name, array, mutable=True, keep=True)
        shm.release(x)
        self.names.append(name)
        return Exclusive(name)

    def array(self, reference):
        return shm.attach(reference.name) if isinstance(reference, Exclusive) else reference

    def close(self):
        for name in self.names:
            shm.delete(name)


class Exclusive:
    """A reference to an array that one task at a time writes. A task that fails or dies in between
    leaves it broken: the next one, or the driver, gets an error that names it."""

    def __init__(self, name):
        self.name = name

    def open(self):
        return shm.attach(self.name, "r+", exclusive=True)

    def write_back(self, array):
        """Nothing to do: it was written in place, and is handed over when the task drops it."""

    def give_up(self, array, error):
        """Ends the exclusive access as the end of a `with` block with that error does."""
        array.__exit__(type(error), error, error.__traceback__)


class File(Copy):
    """Arrays are .npy files, read and written back by every task, as PyCOMPSs does by default."""

    def __init__(self):
        self.folder = ending.make_folder()
        self.count = 0

    def share(self, array):
        self.count += 1
        file = NpyFile(os.path.join(self.folder, f"{self.count}.npy"))
        file.write_back(array)
        return file

    output = share

    def array(self, reference):
        return reference.open()

    def close(self):
        ending.remove_folder(self.folder)


class NpyFile:
    """A reference to an array in a file."""

    def __init__(self, path):
        self.path = path

    def open(self):
        return np.load(self.path)

    def write_back(self, array):
        np.save(self.path, array)


WAYS = {"store": Store, "copy": Copy, "file": File}
REFERENCES = (Exclusive, NpyFile)


# --- in the worker --------------------------------------------------------------------------------


def perform(kernel, references, extra):
    """Runs a kernel, given by name, over the arrays of references; it writes the last one.

    Returns (what the last reference is from now on, or None if it stays what it is; the kernel's
    result).
    """
    arrays = [x.open() if isinstance(x, REFERENCES) else x for x in references]
    if not arrays[-1].flags.writeable:
        arrays[-1] = arrays[-1].copy()  # the engine's memory is not ours to change
    target, written = references[-1], arrays[-1]
    try:
        result = getattr(kernels, kernel)(*arrays, *extra)
    except BaseException as error:
        if isinstance(target, Exclusive):
            target.give_up(written, error)
        raise
    if isinstance(target, REFERENCES):
        target.write_back(written)
        return None, result
    # Others see what was written to a mapped file.
    return (None if target is written and isinstance(written, np.memmap) else written), result
