"""joblib with the store in place of its memory-mapped files.

    with shmstore.joblib.sharing():
        results = joblib.Parallel(n_jobs=8)(joblib.delayed(f)(x, i) for i in range(100))

Inside the ``with`` block an array that joblib would dump to a file and map (one larger than
``Parallel``'s ``max_nbytes``, 1 MB unless set, wherever it is in the arguments) goes through the
store: no file, no clean-up left to a tracker. Large arrays in what the tasks return come back
through the store as well, where joblib pickles them. Processes of loky and of multiprocessing;
threads have nothing to gain and are left alone.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
import time
import warnings
import weakref
from collections.abc import Generator, Iterator
from typing import Any, Optional

import numpy as np
from joblib import _memmapping_reducer as _reducer  # type: ignore[import-untyped]
from joblib import parallel as _parallel

from . import _connect, _errors, _opened
from ._array import SharedArray, lease_around, offset_in
from ._handle import open as _open
from .sharing import _Sharer, in_store, map_leaves, same_bytes

__all__ = ["sharing"]

#: Modes in which tasks write to their arguments.
_WRITING = ("r+", "w+")

#: Errors for which joblib's own way is taken, if the caller chose so.
_NO_STORE = (_errors.Disconnected, _errors.NoCapacity, _errors.QuotaExceeded)


@contextlib.contextmanager
def sharing(
    min_bytes: Optional[int] = None,
    results: Optional[str] = "c",
    *,
    fallback: bool = True,
    client: Any = None,
) -> Iterator[None]:
    """Arguments and results of ``joblib.Parallel`` go through the store inside this block.

    min_bytes: from how many bytes on; None: ``Parallel``'s ``max_nbytes`` for arguments, 1 MB for
        results.
    results: ``"c"``: large arrays in results are writable, private copy-on-write; ``"r"``:
        read-only, so that they are passed on by handle; None: pickled, as joblib does. Found in
        lists, tuples, dicts and dataclasses.
    fallback: without a daemon, or when the store is full, warn once and do as joblib does; False:
        raise.

    ``Parallel``'s ``mmap_mode`` holds for arguments: ``"r"`` (the default) read-only, ``"c"``
    private copies, ``"r+"`` shared among the tasks for writing. An argument is copied into the
    store once per call of ``Parallel`` and kept for its duration; a result of ``"c"`` as long as
    it is used here. Then their memory is given back at once, but what the tasks returned of their
    arguments stays with whoever has it. The block concerns the whole process, all threads; blocks
    may be nested, the innermost counts.

    Without ``fallback``, raises Disconnected when the block begins, without a daemon; calls of
    ``Parallel`` raise Disconnected, NoCapacity or QuotaExceeded.
    """
    if results not in ("c", "r", None):
        raise ValueError(f"results: {results!r} is none of 'c', 'r', None")
    if not fallback and client is None:
        try:
            _connect.default_client()
        except _errors.Disconnected as error:
            raise _wanted(error) from None
    scope = _Scope(min_bytes, results, fallback, client)
    with _lock:
        _scopes.append(scope)
        if len(_scopes) == 1:
            _install()
    try:
        yield
    finally:
        with _lock:
            _scopes.remove(scope)
            if not _scopes:
                _remove()


def _warn(error: Exception) -> None:
    warnings.warn(f"joblib goes on without the store: {error}", RuntimeWarning, stacklevel=2)


def _wanted(error: Exception) -> Exception:
    """An error of the store for a caller who chose not to do without it."""
    return type(error)(f"{error}; shmstore.joblib.sharing(fallback=False) does not go on without "
                       "the store: start a daemon or make room, or leave fallback=False out")


_lock = threading.RLock()
_scopes: list[_Scope] = []


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()  # Whoever pickled an argument at that moment is not here.


os.register_at_fork(after_in_child=_after_fork_in_child)


class _Scope:
    """One ``sharing()`` block: its options, and the arguments it holds for running calls."""

    def __init__(
        self, min_bytes: Optional[int], results: Optional[str], fallback: bool, client: Any
    ) -> None:
        self.min_bytes = min_bytes
        self.results = results
        self.fallback = fallback
        self._client = client
        self._warned = False
        self._calls = 0
        self.failed: Optional[Exception] = None  #: Why an argument of a call could not be pickled.
        # By what joblib keeps files for (a Parallel object), then by id of the argument: the
        # argument, its array in the store, and in which call it was last known to be equal.
        self._held: dict[Any, dict[int, tuple[weakref.ref[Any], SharedArray, int]]] = {}

    def wants(self, reducer: Any, x: Any) -> bool:
        if type(x) is not np.ndarray or x.dtype.hasobject or reducer._mmap_mode is None:
            return False
        if in_store(x):
            return True
        least = self.min_bytes
        if least is None:
            if reducer._max_nbytes is None:
                return False
            least = reducer._max_nbytes + 1
        return bool(x.nbytes >= least) and _reducer._get_backing_memmap(x) is None

    def reduced(self, reducer: Any, x: Any) -> Any:
        """What to pickle for an argument, or None for joblib's own way."""
        mode = reducer._mmap_mode
        if self.fallback and _absent(_store_id(self._client)):
            return None
        try:
            if in_store(x):
                return _handle(x, mode)
            return _handle(self._shared(reducer, x, mode), mode)
        except _errors.InvalidArgument:  # a dtype that the store does not know
            return None
        except _NO_STORE as error:
            if not self.fallback:
                self.failed = _wanted(error)
                raise self.failed from None
            _note_absence(_store_id(self._client), error)
            if not self._warned:
                self._warned = True
                _warn(error)
            return None

    def _shared(self, reducer: Any, x: Any, mode: str) -> SharedArray:
        held = self._held.setdefault(_call_of(reducer), {})
        found = held.get(id(x))
        if found is not None and found[0]() is x:
            shared = found[1]
            if found[2] == self._calls or mode in _WRITING or same_bytes(x, shared):
                held[id(x)] = (found[0], shared, self._calls)
                return shared
            # Changed since an earlier call of the same Parallel object, whose tasks are done.
        client = self._client or _connect.default_client()
        shared = client.put(None, x, mutable=mode in _WRITING)
        # The array stays, unlike the argument, until the call's end: a task may wait for long.
        held[id(x)] = (weakref.ref(x), shared, self._calls)
        held[id(shared)] = (weakref.ref(shared), shared, self._calls)
        return shared

    def call_begins(self) -> None:
        self._calls += 1
        self.failed = None

    def call_ended(self, manager: Any, context: Any) -> None:
        for key in list(self._held):
            if key[0] == id(manager) and context in (None, key[1]):
                # Another thread's call may end now as well.
                held = self._held.pop(key, {})
                leases = [lease_around(shared) for _, shared, _ in held.values()]
                arrays = {(lease.store_id, lease.id) for lease in leases if lease is not None}
                del held, leases
                # One that came back in a result stays: deleted arrays are pickled by value.
                arrays = {array for array in arrays if not _opened.is_open(*array)}
                if not _absent(_store_id(self._client)):
                    _give_back(arrays)

    def store(self) -> Any:
        """What tells a worker which store to use: its id, and its path if that was given."""
        if self._client is None:
            return None
        return self._client.store_id, self._client.socket_path


def _give_back(arrays: set[tuple[int, int]]) -> None:
    """The arrays (store, id) are there for those who have them only; without this they would be
    kept for those who may open one of their handles yet."""
    for store_id, number in arrays:
        try:
            _connect.client_of(store_id, None).delete(id=str(number))
        except _errors.Disconnected:  # and the arrays are gone; not to be waited for again
            return
        except _errors.Error:
            pass


#: Until when a store is not tried again, by its id: a client that has lost its daemon looks for it
#: for some seconds at each call, and there may be a call for each task.
_absent_until: dict[Optional[int], float] = {}
_ABSENT_S = 30


def _absent(store_id: Optional[int]) -> bool:
    """Whether the store was gone a moment ago; None for one that was never reached."""
    return time.monotonic() < _absent_until.get(store_id, 0)


def _note_absence(store_id: Optional[int], error: Exception) -> None:
    if isinstance(error, _errors.Disconnected) and store_id is not None:
        _absent_until[store_id] = time.monotonic() + _ABSENT_S


def _store_id(client: Any) -> Optional[int]:
    """The store of a client, or of the default one; None without: connecting fails at once."""
    known = client if client is not None else _connect._default
    return None if known is None else known.store_id


def _call_of(reducer: Any) -> Any:
    """Names the Parallel object that an argument is pickled for, as joblib's folders do."""
    manager = getattr(reducer._temp_folder_resolver, "__self__", None)
    return id(manager), getattr(manager, "_current_context_id", None)


def _handle(x: Any, mode: str) -> Any:
    """What to pickle for an array of the store; None for one that was deleted, whose data pickle
    would send. Raises Disconnected without its daemon, though pickle would not."""
    opener, arguments, *more = np.ndarray.view(x, SharedArray).__reduce_ex__(5)
    if opener is not _open or more:
        lease = lease_around(x)
        if lease is not None:
            with contextlib.suppress(_errors.NotFound):
                _connect.client_of(lease.store_id, None).info(id=str(lease.id))
        return None
    if mode == "c":
        return _open_private, arguments
    if mode == "r":
        return _open_read_only, arguments
    return opener, arguments


def _open_read_only(*arguments: Any) -> Any:
    x = _open(*arguments)
    x.flags.writeable = False
    return x


def _open_private(*arguments: Any) -> Any:
    return _private(_open(*arguments))


def _private(x: Any) -> Any:
    """The same array, or view of it, in copy-on-write memory."""
    lease = lease_around(x)
    if lease is None:
        return x
    client = _connect.client_of(lease.store_id, None)
    whole = client.attach(id=str(lease.id), mode="c")
    memory = whole if whole.flags.c_contiguous else whole.T
    offset = offset_in(lease, x)
    return np.ndarray.__new__(SharedArray, x.shape, x.dtype, memory, offset, x.strides)


# --- in joblib ------------------------------------------------------------------------------------
#
# joblib has no interface for this: the reducers for ndarray are its own in every executor, and the
# executor outlives the call. So four of its functions are replaced while a block is open. Each
# asks here first and otherwise does what it did.

_forward = _reducer.ArrayMemmapForwardReducer.__call__
_batch_reduce = _parallel.BatchedCalls.__reduce__
_call = _parallel.Parallel.__call__
_clean = _reducer.TemporaryResourcesManager._clean_temporary_resources


def _install() -> None:
    _reducer.ArrayMemmapForwardReducer.__call__ = _forward_or_share
    _parallel.BatchedCalls.__reduce__ = _reduce_batch
    _parallel.Parallel.__call__ = _counted_call
    _reducer.TemporaryResourcesManager._clean_temporary_resources = _clean_and_drop


def _remove() -> None:
    _reducer.ArrayMemmapForwardReducer.__call__ = _forward
    _parallel.BatchedCalls.__reduce__ = _batch_reduce
    _parallel.Parallel.__call__ = _call
    _reducer.TemporaryResourcesManager._clean_temporary_resources = _clean


def _innermost() -> Optional[_Scope]:
    with _lock:
        return _scopes[-1] if _scopes else None


def _forward_or_share(self: Any, a: Any) -> Any:
    scope = _innermost()
    reduced = scope.reduced(self, a) if scope is not None and scope.wants(self, a) else None
    return _forward(self, a) if reduced is None else reduced


def _counted_call(self: Any, iterable: Any) -> Any:
    for scope in list(_scopes):
        scope.call_begins()
    try:
        found = _call(self, iterable)
    except pickle.PicklingError:
        _raise_failed()
        raise
    return _generated(found) if isinstance(found, Generator) else found


def _generated(found: Any) -> Any:
    try:
        yield from found
    except pickle.PicklingError:
        _raise_failed()
        raise


def _raise_failed() -> None:
    """In place of loky's own error, which does not say why."""
    for scope in list(_scopes):
        if scope.failed is not None:
            raise scope.failed from None


def _clean_and_drop(self: Any, context_id: Any = None, *args: Any, **kwargs: Any) -> Any:
    for scope in list(_scopes):
        scope.call_ended(self, context_id)
    return _clean(self, context_id, *args, **kwargs)


def _reduce_batch(self: Any) -> Any:
    kind, arguments = _batch_reduce(self)[:2]
    scope = _innermost()
    if scope is None or scope.results is None:
        return kind, arguments
    least = 1_000_000 if scope.min_bytes is None else scope.min_bytes
    options = (least, scope.results, scope.fallback, scope.store())
    return _open_batch, (kind, arguments, options)


def _open_batch(kind: Any, arguments: Any, options: Any) -> Any:
    return _SharingBatch(kind(*arguments), options)


class _SharingBatch:
    """In the worker: a batch of tasks that shares what it returns."""

    def __init__(self, batch: Any, options: Any) -> None:
        self._batch = batch
        self._options = options

    def __len__(self) -> int:
        return len(self._batch)

    def __call__(self) -> Any:
        least, mode, fallback, store = self._options
        results = self._batch()
        try:
            if fallback and _absent(_store_id(None) if store is None else store[0]):
                return results
            client = None if store is None else _connect.client_of(*store)
            sharer = _Sharer(least, client)
            shared = map_leaves(results, sharer.leaf)
        except _NO_STORE as error:
            if not fallback:
                raise _wanted(error) from None
            _note_absence(_store_id(None) if store is None else store[0], error)
            _warn(error)
            return results
        if mode != "c" or shared is results:
            return shared
        return _Results(shared, sharer.made)


class _Results:
    """Results on their way back, to be opened as private copies."""

    def __init__(self, results: Any, made: list[tuple[int, int]]) -> None:
        self._results = results
        self._made = made

    def __reduce__(self) -> Any:
        return _open_results, (self._results, self._made)


def _open_results(results: Any, made: list[tuple[int, int]]) -> Any:
    """made: the arrays (store, id) that were made for these results and are of use to nobody else.
    Every store counts from the same number: an id alone may be somebody's in another one."""
    opened = set()

    def leaf(x: Any) -> Any:
        lease = lease_around(x) if isinstance(x, SharedArray) else None
        if lease is None:
            return x
        if (lease.store_id, lease.id) in made:
            opened.add((lease.store_id, lease.id))
        return _private(x)

    private = map_leaves(results, leaf)
    _give_back(opened)
    return private
