"""What PyCOMPSs imports for ``--storage_impl``; see shmstore.pycompss.persistent.

There is no ``__pipelining__``. With it the worker asks for all objects of a task at once, and then
puts its parameters into the objects instead of the objects into its parameters (reveal_objects in
pycompss/runtime/task/worker.py, up to 3.3 at least), so that the task gets the ids.
"""

from shmstore.pycompss.persistent import (
    PersistentArray,
    StorageObject,
    TaskContext,
    deletePersistent,
    finish,
    finishWorker,
    finishWorkerPostFork,
    getByID,
    init,
    initWorker,
    initWorkerPostFork,
    makePersistent,
)

__all__ = [
    "PersistentArray",
    "StorageObject",
    "TaskContext",
    "deletePersistent",
    "finish",
    "finishWorker",
    "finishWorkerPostFork",
    "getByID",
    "init",
    "initWorker",
    "initWorkerPostFork",
    "makePersistent",
]
