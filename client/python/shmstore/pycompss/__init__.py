"""PyCOMPSs with its arrays in the store.

    from pycompss.api.parameter import IN, INOUT, Type
    from shmstore.pycompss import RRO, Shared, in_place, task

    @task(a={Type: IN, RRO: True}, b={Type: IN, RRO: True}, c={Type: INOUT, Shared: True})
    def multiply(a, b, c):
        c += a @ b

    multiply(a, b, in_place(numpy.zeros((n, n))))

``task`` is PyCOMPSs' decorator; a parameter marked ``RRO`` (recurrent, read-only) is put into the
store when it is first passed, and travels as a handle; one marked ``Shared`` is an array of the
store that the tasks change where it is. Arrays that are in the store already, from
``shmstore.share`` or ``shmstore.put``, need no mark and no decorator of ours.

``PersistentArray`` and ``StorageObject`` are for programs that use PyCOMPSs' storage interface; the
package for its option ``--storage_impl`` is in the folder ``storage_path()``, which
``python -m shmstore.pycompss`` prints.

Names that need PyCOMPSs raise ImportError when it is not installed; the rest does not need it.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

#: Where each public name is, and whether its module imports PyCOMPSs.
_WHERE = {
    "InPlace": "_in_place",
    "RRO": "_task",
    "Shared": "_task",
    "compss_delete_object": "_task",
    "configure": "_config",
    "in_place": "_in_place",
    "task": "_task",
    "PersistentArray": "persistent",
    "StorageObject": "persistent",
}

__all__ = [*sorted(_WHERE), "storage_path"]


def storage_path() -> str:
    """The folder to put on PYTHONPATH so that ``import storage.api`` finds the store."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "storage_impl")


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
