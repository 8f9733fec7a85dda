"""Arrays and handles that go to one receiver: through multiprocessing's queues, pipes and pools.

In general nobody can know how often a pickle will be opened; a hand-over lease then lasts for its
grace. What multiprocessing's own pickler makes is read by one process, once, so that the lease ends
when that process has the array: results that are used and dropped give their memory back at once.
"""

from __future__ import annotations

import pickle
import sys
from typing import Any

from ._array import SharedArray
from ._handle import reduce_array
from ._hold import Handle, reduce_handle

_registered = False


def register() -> None:
    """Tells multiprocessing, if it has been imported, how to pickle for one receiver."""
    global _registered
    reduction = sys.modules.get("multiprocessing.reduction")
    pickler = getattr(reduction, "ForkingPickler", None)
    if _registered or pickler is None:
        return
    _registered = True
    pickler.register(SharedArray, _reduce_array)
    pickler.register(Handle, _reduce_handle)


def _reduce_array(array: SharedArray) -> Any:
    return reduce_array(array, pickle.DEFAULT_PROTOCOL, once=True)


def _reduce_handle(handle: Handle) -> Any:
    return reduce_handle(handle, once=True)
