"""The data paths that the small engine can take, one class each.

A path publishes the master's arrays (`publish`, which fills `references`: name -> what is sent to
a worker), opens references in a worker, after the task writes back what was written and, once the
task's arrays are dropped, leaves; gives the master the result (`collect`, a plain array) and takes
everything away again (`finish`).
"""

import mmap
import os
import pickle
import tempfile
from multiprocessing import resource_tracker, shared_memory

import numpy as np
import shmstore as shm
from tasks import ending

try:
    import SharedArray
except ImportError:
    SharedArray = None

TMPFS = "/dev/shm" if os.path.ismount("/dev/shm") else tempfile.gettempdir()
HOLD_BYTES = 1 << 40  # a worker of the study never runs out of room


class Path:
    inherits = False  # publish before the workers are forked

    def __init__(self):
        self.references = {}

    @classmethod
    def missing(cls):
        """Why this path cannot be taken here, or None."""
        return None

    def prepare(self, inputs, outputs):
        """In the master, before the clock starts."""

    def start_worker(self):
        """In the worker, before its first task."""

    def open(self, reference, writable):
        """In the worker: the array."""
        raise NotImplementedError

    def write_back(self, reference, array):
        """In the worker, after a task: what it wrote, for others to see."""

    def leave(self):
        """In the worker, when nothing refers to the task's arrays any more."""

    def finish(self):
        self.references.clear()


class Inherited(Path):
    """Forked workers have the master's arrays; what they write is in anonymous shared memory. The
    lower bound: it moves nothing, but the arrays have to be there before the workers are."""

    name = "fork"
    inherits = True

    def publish(self, inputs, outputs):
        self.arrays = dict(inputs)
        for name, block in outputs.items():
            shared = mmap.mmap(-1, block.nbytes)
            self.arrays[name] = np.frombuffer(shared, block.dtype).reshape(block.shape)
        self.references = {name: name for name in self.arrays}

    def open(self, reference, writable):
        return self.arrays[reference]

    def collect(self, name):
        return self.arrays[name]

    def finish(self):
        super().finish()
        self.arrays = {}


class NpyFile(Path):
    """A .npy file for each array, in a tmpfs: how PyCOMPSs passes arrays by default. A task reads
    its arguments and writes back what it changed."""

    name = "npy"

    def publish(self, inputs, outputs):
        self.folder = ending.make_folder(TMPFS)
        for number, (name, array) in enumerate({**inputs, **outputs}.items()):
            self.references[name] = f"{self.folder}/{number}.npy"
            np.save(self.references[name], array)

    def open(self, reference, writable):
        return np.load(reference)

    def write_back(self, reference, array):
        np.save(reference, array)

    def collect(self, name):
        return np.load(self.references[name])

    def finish(self):
        if self.references:
            ending.remove_folder(self.folder)
        super().finish()


class SharedArrays(Path):
    """SharedArray: segments in /dev/shm, attached by name for each task, also to write."""

    name = "sharedarray"

    @classmethod
    def missing(cls):
        return "SharedArray is not installed" if SharedArray is None else None

    def create(self, name, array, number):
        address = f"shm://shmbench-{os.getpid()}-{number}"
        SharedArray.create(address, array.shape, array.dtype)[:] = array
        self.references[name] = address

    def publish(self, inputs, outputs):
        for number, (name, array) in enumerate({**inputs, **outputs}.items()):
            self.create(name, array, number)

    def open(self, reference, writable):
        return SharedArray.attach(reference)

    def collect(self, name):
        return np.array(self.open(self.references[name], False))

    def finish(self):
        for address in self.references.values():
            SharedArray.delete(address)
        super().finish()


class PaperScheme(SharedArrays):
    """What the paper added to PyCOMPSs: every array is a file; read-only arguments are in a
    SharedArray as well, which a worker attaches once and keeps."""

    name = "paper"

    def __init__(self):
        super().__init__()
        self.files = NpyFile()  # before the fork: workers have it too

    def publish(self, inputs, outputs):
        self.files.publish(inputs, outputs)
        for number, (name, array) in enumerate(inputs.items()):
            self.create(name, array, number)
        self.segments = list(self.references.values())
        for name in outputs:
            self.references[name] = self.files.references[name]

    def start_worker(self):
        self.attached = {}

    def open(self, reference, writable):
        if writable:
            return self.files.open(reference, writable)
        array = self.attached.get(reference)
        if array is None:
            array = self.attached[reference] = super().open(reference, writable)
        return array

    def write_back(self, reference, array):
        self.files.write_back(reference, array)

    def collect(self, name):
        return self.files.collect(name)

    def finish(self):
        if not self.references:
            return
        self.files.finish()
        self.references = dict(enumerate(self.segments))
        super().finish()


class SharedMemory(Path):
    """multiprocessing.shared_memory: blocks attached by name for each task, also to write."""

    name = "mp_shm"

    def __init__(self):
        super().__init__()
        self.blocks = {}
        # Before the fork: a tracker of a worker's own would unlink the blocks when the worker ends.
        resource_tracker.ensure_running()

    def publish(self, inputs, outputs):
        for name, array in {**inputs, **outputs}.items():
            block = shared_memory.SharedMemory(create=True, size=array.nbytes)
            self.blocks[name] = block
            self.references[name] = (block.name, array.shape, array.dtype.str)
            self.array_on(block, array.shape, array.dtype)[:] = array

    @staticmethod
    def array_on(block, shape, dtype):
        return np.ndarray(shape, dtype, buffer=block.buf)

    def start_worker(self):
        self.open_blocks = []

    def open(self, reference, writable):
        name, shape, dtype = reference
        block = shared_memory.SharedMemory(name)
        self.open_blocks.append(block)
        return self.array_on(block, shape, dtype)

    def leave(self):
        for block in self.open_blocks:
            block.close()
        self.open_blocks.clear()

    def collect(self, name):
        _, shape, dtype = self.references[name]
        return np.array(self.array_on(self.blocks[name], shape, dtype))

    def finish(self):
        for block in self.blocks.values():
            block.close()
            block.unlink()
        self.blocks.clear()
        super().finish()


class Store(Path):
    """This store: inputs are shared, outputs are mutable arrays written in place; a worker gets
    handles, pickled once, and holds on to what it opened (`shm.hold_opened`)."""

    name = "shmstore"
    hold_bytes = HOLD_BYTES

    def __init__(self):
        super().__init__()
        # No grace for what is pickled: the master holds everything until the run is over.
        self.client = shm.connect(os.environ["SHMSTORE_SOCKET"], grace=0)

    def publish(self, inputs, outputs):
        share, put = shm.share, self.client.put
        self.arrays = {name: share(x, 0, client=self.client) for name, x in inputs.items()}
        for name, block in outputs.items():
            self.arrays[name] = put(None, block, mutable=True)
        self.references = {name: pickle.dumps(x, 5) for name, x in self.arrays.items()}

    def start_worker(self):
        self.client.stats()  # connects
        shm.hold_opened(self.hold_bytes)

    def open(self, reference, writable):
        return pickle.loads(reference)

    def collect(self, name):
        return np.array(self.arrays[name])

    def finish(self):
        self.arrays = {}
        super().finish()


class StoreCold(Store):
    """The same with workers that hold nothing: every argument of every task is attached anew."""

    name = "shmstore_cold"
    hold_bytes = 0


class StoreInPlace(Store):
    """The same for a program that makes its arrays in the store in the first place (`shm.empty`
    instead of `numpy.empty`): publishing is to seal them."""

    name = "shmstore_in_place"

    def prepare(self, inputs, outputs):
        self.arrays = {}
        for name, array in inputs.items():
            self.arrays[name] = shm.empty_like(array, client=self.client)
            np.copyto(self.arrays[name], array)
        for name, block in outputs.items():
            self.arrays[name] = self.client.put(None, block, mutable=True)

    def publish(self, inputs, outputs):
        for name in inputs:
            shm.share(self.arrays[name])
        self.references = {name: pickle.dumps(x, 5) for name, x in self.arrays.items()}


class StoreExclusive(Store):
    """The same, but whoever writes an array has it exclusively for that task: what is right where
    the engine does not see to it that there is one writer."""

    name = "shmstore_exclusive"

    def publish(self, inputs, outputs):
        super().publish(inputs, {})
        self.names = []
        for number, (name, block) in enumerate(outputs.items()):
            kept = f"bench/{number}"
            shm.release(self.client.put(kept, block, mutable=True, keep=True))
            self.names.append(kept)
            self.references[name] = kept

    def open(self, reference, writable):
        if not writable:
            return super().open(reference, writable)
        return self.client.attach(reference, "r+", exclusive=True)

    def collect(self, name):
        return np.array(self.client.attach(self.references[name]))

    def finish(self):
        for name in self.names:
            self.client.delete(name)
        super().finish()


ALL = (
    Inherited,
    NpyFile,
    PaperScheme,
    SharedArrays,
    SharedMemory,
    Store,
    StoreInPlace,
    StoreExclusive,
    StoreCold,
)
