"""Arrays and handles that go to one receiver: through multiprocessing's queues, pipes and pools.

In general nobody can know how often a pickle will be opened; a hand-over lease then lasts for its
grace. What a queue, a pipe or Process itself pickles is read by one process, once. Such a handle
has a number and a hand-over lease of its own, which ends when that process has mapped the array:
results that are used and dropped give their memory back at once.

Their pickler alone does not tell: programs call ``ForkingPickler.dumps`` as well, and send the
bytes to several processes. So the caller of the pickler has to be one of multiprocessing's own
carriers.
"""

from __future__ import annotations

import pickle
import sys
from typing import Any

from ._array import SharedArray
from ._handle import reduce_array
from ._hold import Handle, reduce_handle

#: Whose messages are read once, by one process. (torch's queues pickle by themselves.)
_CARRIERS = frozenset(
    (
        "multiprocessing.connection",
        "multiprocessing.queues",
        "multiprocessing.popen_spawn_posix",
        "multiprocessing.popen_forkserver",
        "torch.multiprocessing.queue",
    )
)

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
    return reduce_array(array, pickle.DEFAULT_PROTOCOL, once=_is_carried())


def _reduce_handle(handle: Handle) -> Any:
    return reduce_handle(handle, once=_is_carried())


def _is_carried() -> bool:
    """Whether a carrier pickles this. For a reducer that the pickler's C code has called."""
    caller = sys._getframe(2)
    if caller.f_globals.get("__name__") == "multiprocessing.reduction" and caller.f_back:
        caller = caller.f_back
    return caller.f_globals.get("__name__") in _CARRIERS
