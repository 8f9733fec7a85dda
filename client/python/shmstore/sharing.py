"""Explicit sharing: ``share`` puts the large arrays inside any structure into the store; ``empty``,
``zeros``, ``ones``, ``full`` and their ``_like`` forms make arrays there in the first place.

What comes back from ``share`` behaves as what went in and pickles by handle, so it crosses to a
worker process of any task system for a few hundred bytes. The types stay exactly what they are:
for types that pickle would not send by handle (matrix, recarray, masked arrays, pandas, Arrow) a
reduction is registered with ``copyreg`` when the first one is shared; it changes nothing for
objects outside the store.
"""

from __future__ import annotations

import copy
import copyreg
import dataclasses
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Callable, Optional, cast

import numpy as np

from . import _arguments, _by_value, _connect
from ._array import SharedArray, become_reader, lease_around
from ._errors import InvalidArgument, shown

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from ._client import Client, ShapeLike

#: What is smaller is cheaper to send through a pipe than to attach to (equal at about 200 KiB).
MIN_BYTES = 128 * 1024

#: How much is compared at a time; small enough for the second-level cache.
_CHUNK_BYTES = 256 * 1024


def share(x: Any, min_bytes: int = MIN_BYTES, *, client: Optional[Client] = None) -> Any:
    """``x`` with its large arrays in the store, read-only, to be pickled by handle.

    An ndarray of at least ``min_bytes`` is copied into the store once: as long as the result of an
    earlier call lives and the contents are still equal, sharing the same object again returns that
    same result. (Contents are compared, in one pass, unless the array is and was read-only: who has
    a view that can write it, or its flag set for a while, changes it unnoticed.)
    An array that is in the store already is not copied; a draft that this process created is
    sealed, which is how an array made by ``zeros`` or ``create`` is published without any copy.

    Lists, tuples, named tuples, dicts and dataclasses are walked; those on the way to a shared
    array are copied (as ``copy.copy``, as deep as Python may recurse), everything else is left as
    it is. Shared:

    * ndarrays of any layout, and subclasses of ndarray that leave pickling to it, with their
      attributes (``matrix``, ``recarray``, your own); masked arrays, both data and mask
    * DataFrame and Series of pandas: the columns that have a numpy dtype, one array for each
      dtype, and a large numeric index
    * Table, RecordBatch, ChunkedArray and Array of pyarrow, all types, one array for each object

    Passed through as they are, to be pickled by value: what is smaller than ``min_bytes``, dtypes
    that hold Python objects or that the store does not know, pandas columns of other kinds,
    subclasses that pickle in their own way, and whatever is not listed, such as sparse matrices and
    fitted models. A warning tells of such data of ``min_bytes``, once for each kind of object.

    The memory is given back when the result and everything unpickled from it is gone; see
    ``SharedArray`` for how long a pickle keeps it.
    ``client``: where to share, else the default one; each store has a result of its own, also the
    one that a daemon begins when it is started anew. To return an earlier result takes a round
    trip, one for each call.
    Raises NoCapacity, QuotaExceeded, Disconnected; Busy for a draft that others still write;
    InvalidArgument for ``min_bytes`` that is no number.
    """
    from ._report import Report

    sharer = _Sharer(min_bytes, client)
    return map_leaves(x, Report(sharer.large).on(sharer.leaf))


# --- structures -----------------------------------------------------------------------------------


def map_leaves(x: Any, leaf: Callable[[Any], Any]) -> Any:
    """``x`` with ``leaf(y)`` in place of each y in it that is not a container, or ``x`` itself if
    ``leaf`` returned everything as it was. Each object is asked for once; cycles are fine."""
    parents: dict[int, list[int]] = {}
    objects = {id(x): x}
    changed: dict[int, Any] = {}
    todo = [x]
    while todo:
        node = todo.pop()
        children = _children(node)
        if children is None:
            result = leaf(node)
            if result is not node:
                changed[id(node)] = result
            continue
        for child in children:
            parents.setdefault(id(child), []).append(id(node))
            if id(child) not in objects:
                objects[id(child)] = child
                todo.append(child)
    above: set[int] = set()
    rising = list(changed)
    while rising:
        for parent in parents.get(rising.pop(), ()):
            if parent not in above:
                above.add(parent)
                rising.append(parent)
    return _rebuilt(x, above, changed)


def _children(x: Any) -> Optional[list[Any]]:
    """What a container holds; None for anything that is not one."""
    kind = type(x)
    if kind in _ATOMS:
        return None
    if isinstance(x, list):
        return list(x)
    if isinstance(x, tuple):
        return list(x) if kind is tuple or hasattr(kind, "_make") else None
    if isinstance(x, dict):
        return list(x.values())
    if dataclasses.is_dataclass(kind):
        return [getattr(x, field) for field in _fields(x)]
    return None


_ATOMS = (np.ndarray, str, bytes, int, float, bool, complex, type(None))


def _fields(x: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(x) if hasattr(x, field.name)]


def _rebuilt(x: Any, above: set[int], done: dict[int, Any]) -> Any:
    """Copies of the containers in ``above``; ``done`` maps the ids of what is finished."""
    if id(x) in done:
        return done[id(x)]
    if id(x) not in above:
        return x
    if isinstance(x, tuple):
        items = [_rebuilt(item, above, done) for item in x]
        make = getattr(type(x), "_make", tuple)
        return done.setdefault(id(x), make(items))
    result = done[id(x)] = _copy(x)
    if isinstance(x, list):
        result[:] = [_rebuilt(item, above, done) for item in x]
    elif isinstance(x, dict):
        for key, value in x.items():
            new = _rebuilt(value, above, done)
            if new is not value:
                result[key] = new
    else:
        for field in _fields(x):
            new = _rebuilt(getattr(x, field), above, done)
            if new is not getattr(x, field):
                object.__setattr__(result, field, new)  # frozen ones too
    return result


def _copy(x: Any) -> Any:
    try:
        return copy.copy(x)
    except dataclasses.FrozenInstanceError:  # frozen with slots: copy sets them the usual way
        result = object.__new__(type(x))
        for field in _fields(x):
            object.__setattr__(result, field, getattr(x, field))
        return result


# --- leaves ---------------------------------------------------------------------------------------


class _Sharer:
    """The arguments of one call of ``share``."""

    def __init__(self, min_bytes: int, client: Optional[Client]) -> None:
        if not isinstance(min_bytes, (int, float, np.number)):
            raise InvalidArgument(f"min_bytes: {shown(min_bytes)} is not a number of bytes")
        self.min_bytes = min_bytes
        self.client = client
        #: Store and id of the arrays that were copied into it.
        self.made: list[tuple[int, int]] = []
        self._store_lives = False

    def leaf(self, x: Any) -> Any:
        if isinstance(x, np.ndarray):
            if type(x) is np.ma.MaskedArray:
                return self._masked(x) if _can_follow(x.baseclass) else x
            return self.array(x)
        package = type(x).__module__.partition(".")[0]
        if package == "pandas":
            from ._frames import share_pandas

            return share_pandas(x, self)
        if package == "pyarrow":
            from ._frames import share_arrow

            return share_arrow(x, self)
        return x

    def large(self, nbytes: int) -> bool:
        return nbytes >= self.min_bytes

    def put(self, array: NDArray[Any]) -> SharedArray:
        made = self._store().put(None, array)
        lease = lease_around(made)
        if lease is not None:
            self.made.append((lease.store_id, lease.id))
        return made

    def once(self, x: Any, make: Callable[[Any], Any], same: Callable[[Any, Any], bool]) -> Any:
        store = self._store()
        if not self._store_lives and _known(x, (id(x), store.store_id))[0] is not None:
            # A daemon that was started anew knows nothing of the earlier result; the client learns
            # of that, and the new number of the store, when it asks for something.
            store._ext.ping()
            self._store_lives = True
        return once(x, make, same, store.store_id)

    def _store(self) -> Client:
        return self.client or _connect.default_client()

    def array(self, x: NDArray[Any]) -> NDArray[Any]:
        if in_store(x):
            return _of_store(x)
        if not self.large(x.nbytes) or x.dtype.hasobject or not _can_follow(type(x)):
            return x
        return cast("NDArray[Any]", self.once(x, self._copy, _same_array))

    def _copy(self, x: NDArray[Any]) -> NDArray[Any]:
        try:
            return _as(type(x), self.put(np.asarray(x)), getattr(x, "__dict__", None))
        except InvalidArgument:  # a dtype that the store does not know
            return x

    def _masked(self, x: np.ma.MaskedArray[Any, Any]) -> Any:
        register(np.ma.MaskedArray, _reduce_masked)
        return self.once(x, self._copy_masked, _same_masked)

    def _copy_masked(self, x: np.ma.MaskedArray[Any, Any]) -> Any:
        data, mask = plain(x), np.ma.getmask(x)
        shared_data = self.array(data)
        moved = shared_data is not data and not in_store(data)
        shared_mask = mask
        if mask is not np.ma.nomask:
            mask = plain(mask)
            shared_mask = self.array(mask)
            moved = moved or shared_mask is not mask and not in_store(mask)
        if not moved:
            return x
        # What is not shared is copied: the result must not change with the original.
        if shared_data is data:
            shared_data = data.copy()
        if shared_mask is mask and mask is not np.ma.nomask:
            shared_mask = mask.copy()
        return _masked(shared_data, shared_mask, x.fill_value, x.hardmask, x.baseclass)


def plain(x: Any) -> NDArray[Any]:
    """The same memory as an exact ndarray, whatever the subclass makes of views."""
    return x if type(x) is np.ndarray else np.ndarray.view(x, np.ndarray)


def in_store(x: Any) -> bool:
    """Whether pickling a SharedArray of this memory sends a handle."""
    lease = lease_around(x)
    return lease is not None and lease.access != "c"


def _of_store(x: NDArray[Any]) -> NDArray[Any]:
    """An array of the store as something that is pickled by handle; a draft of ours is sealed."""
    lease = lease_around(x)
    own_draft = lease is not None and lease.state == "draft" and lease.creator
    if own_draft and not cast("Any", lease).inherited:
        np.ndarray.view(x, SharedArray).seal()
        become_reader(x, cast("Any", lease))
    if isinstance(x, SharedArray) or not _can_follow(type(x)):
        return x
    if type(x) in _PLAIN:
        return np.ndarray.view(x, SharedArray)
    register(type(x), _reduce_subclass)
    return x


#: Types whose instances come back as SharedArray itself.
_PLAIN = (np.ndarray, np.memmap, SharedArray)


def _can_follow(kind: Any) -> bool:
    """Whether instances can be made again from memory and ``__dict__``: the class leaves pickling
    to ndarray."""
    ndarray: Any = np.ndarray
    return kind in _PLAIN or (
        kind.__reduce__ is ndarray.__reduce__
        and kind.__reduce_ex__ is ndarray.__reduce_ex__
        and kind.__setstate__ is ndarray.__setstate__
    )


def _as(kind: type, shared: NDArray[Any], attributes: Optional[dict[str, Any]]) -> NDArray[Any]:
    if kind in _PLAIN:
        return shared
    register(kind, _reduce_subclass)
    result = cast("NDArray[Any]", shared.view(kind))
    if attributes:
        result.__dict__.update(attributes)
    return result


def _masked(data: Any, mask: Any, fill_value: Any, hard: bool, kind: type = np.ndarray) -> Any:
    """``kind``: what ``.data`` is to be."""
    register(np.ma.MaskedArray, _reduce_masked)
    data = plain(data)
    if kind not in _PLAIN:
        data = data.view(kind)
    if mask is not np.ma.nomask:
        mask = plain(mask)
    return np.ma.MaskedArray(
        data, mask=mask, copy=False, keep_mask=False, fill_value=fill_value, hard_mask=hard
    )


# --- pickling by handle ---------------------------------------------------------------------------

_reductions: dict[type, Callable[[Any], Any]] = {}


def register(kind: type, reduction: Callable[[Any], Any]) -> None:
    """Makes ``reduction`` the way to pickle instances of exactly ``kind``, unless there is one."""
    if kind not in _reductions and kind not in copyreg.dispatch_table:
        _reductions[kind] = reduction
        copyreg.pickle(kind, reduction)


def reduce_by_value(x: Any) -> Any:
    """For a pickler's ``reducer_override``: what pickles the data instead of a handle, or
    NotImplemented where pickle does that anyway."""
    if isinstance(x, SharedArray):
        return np.asarray(x).__reduce_ex__(5)
    if type(x) in _reductions:
        return x.__reduce_ex__(5)
    return NotImplemented


def _reduce_subclass(x: NDArray[Any]) -> Any:
    if not in_store(x) or _by_value.wanted():
        return x.__reduce_ex__(2)
    handle = np.ndarray.view(x, SharedArray)
    return _open_subclass, (type(x), handle, getattr(x, "__dict__", None) or None)


def _open_subclass(kind: type, array: NDArray[Any], attributes: Optional[dict[str, Any]]) -> Any:
    return _as(kind, array, attributes)


def _reduce_masked(x: np.ma.MaskedArray[Any, Any]) -> Any:
    mask = np.ma.getmask(x)
    if _by_value.wanted() or not in_store(x) and not in_store(plain(mask)):
        return x.__reduce_ex__(2)
    parts = (_to_send(plain(x)), _to_send(mask), x.fill_value, x.hardmask)
    return _masked, parts if x.baseclass in _PLAIN else (*parts, x.baseclass)


def _to_send(x: Any) -> Any:
    if x is np.ma.nomask:
        return x
    x = plain(x)
    return np.ndarray.view(x, SharedArray) if in_store(x) else x


# --- once -----------------------------------------------------------------------------------------

_lock = threading.Lock()
#: By the id of the object and of the store.
_shared: dict[tuple[int, int], tuple[weakref.ref[Any], weakref.ref[Any], bool]] = {}


def once(
    x: Any, make: Callable[[Any], Any], same: Callable[[Any, Any], bool], store: int
) -> Any:
    """``make(x)``, or the result of an earlier call for this object and ``store`` that is alive and
    ``same``."""
    key = (id(x), store)
    known, was_constant = _known(x, key)
    constant = _is_constant(x)
    if known is not None and (constant and was_constant and in_store(known) or same(x, known)):
        return known
    made = make(x)
    if made is x:
        return x
    with _lock:
        other, _ = _known(x, key)
        if other is not None and other is not known:
            return other  # another thread was faster
        try:
            _shared[key] = (weakref.ref(x, _Forget(key)), weakref.ref(made), constant)
        except TypeError:  # no weak references to this type: shared anew each time
            pass
    return made


def _known(x: Any, key: tuple[int, int]) -> tuple[Any, bool]:
    found = _shared.get(key)
    return (found[1](), found[2]) if found is not None and found[0]() is x else (None, False)


def results(x: Any) -> list[Any]:
    """What ``once`` has made of this object and is alive, for whichever stores."""
    found = [_known(x, key)[0] for key in list(_shared) if key[0] == id(x)]
    return [made for made in found if made is not None]


def _is_constant(x: Any) -> bool:
    """Whether x is a plain array and no array in its chain of bases may be written."""
    if type(x) is not np.ndarray:
        return False
    while isinstance(x, np.ndarray):
        if x.flags.writeable:
            return False
        x = x.base
    return x is None or isinstance(x, bytes)


class _Forget:
    """Takes an entry out when its object is gone, unless the id has a new owner already."""

    def __init__(self, key: tuple[int, int]) -> None:
        self._key = key

    def __call__(self, reference: weakref.ref[Any]) -> None:
        # Without the lock: garbage collection may call this while this thread holds it.
        found = _shared.get(self._key)
        if found is not None and found[0] is reference:
            _shared.pop(self._key, None)


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _same_array(x: NDArray[Any], shared: NDArray[Any]) -> bool:
    attributes, known = getattr(x, "__dict__", None) or {}, getattr(shared, "__dict__", None) or {}
    return same_attributes(attributes, known) and same_bytes(plain(x), plain(shared))


def _same_masked(x: Any, shared: Any) -> bool:
    mask, shared_mask = np.ma.getmask(x), np.ma.getmask(shared)
    if (mask is np.ma.nomask) != (shared_mask is np.ma.nomask) or x.hardmask != shared.hardmask:
        return False
    if not same_bytes(np.asarray(x.fill_value), np.asarray(shared.fill_value)):
        return False
    return same_bytes(plain(x), plain(shared)) and (
        mask is np.ma.nomask or same_bytes(plain(mask), plain(shared_mask))
    )


def same_attributes(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    """Whether two dicts have the same keys and values. Values that cannot be compared, as lists of
    arrays, are taken for different."""
    return a.keys() == b.keys() and all(_same_value(a[key], b[key]) for key in a)


def _same_value(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return not a.dtype.hasobject and same_bytes(plain(a), plain(b))
    try:
        return bool(a == b)
    except Exception:
        # Whatever a class of the user's raises.
        return False


def same_bytes(a: Any, b: Any) -> bool:
    """Whether two arrays have the same dtype, shape and, bit for bit, contents."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.nbytes == 0:
        return True
    if a.flags.f_contiguous and b.flags.f_contiguous:
        a, b = a.T, b.T
    if a.flags.c_contiguous and b.flags.c_contiguous:
        return _same_flat(a, b)
    rows = max(1, _CHUNK_BYTES * len(a) // a.nbytes)
    return all(
        _same_flat(np.ascontiguousarray(a[i : i + rows]), np.ascontiguousarray(b[i : i + rows]))
        for i in range(0, len(a), rows)
    )


def _same_flat(a: NDArray[Any], b: NDArray[Any]) -> bool:
    x, y = a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8)
    return all(
        np.array_equal(x[i : i + _CHUNK_BYTES], y[i : i + _CHUNK_BYTES])
        for i in range(0, x.size, _CHUNK_BYTES)
    )


# --- arrays made in the store ---------------------------------------------------------------------


def empty(
    shape: ShapeLike,
    dtype: DTypeLike = float,
    order: str = "C",
    *,
    name: Optional[str] = None,
    client: Optional[Client] = None,
    **options: Any,
) -> SharedArray:
    """``numpy.empty`` in the store: a draft, anonymous unless it has a ``name``.

    It is written like any array and published without a copy: by ``share(x)`` or ``x.seal()``, or
    at the end of a ``with`` block. The other keywords are those of ``create``; with
    ``mutable=True`` the array is shared read-write from the start.
    """
    return (client or _connect.default_client()).create(name, shape, dtype, order=order, **options)


def zeros(
    shape: ShapeLike, dtype: DTypeLike = float, order: str = "C", **options: Any
) -> SharedArray:
    """``numpy.zeros`` in the store; see ``empty``."""
    return _zeroed(empty(shape, dtype, order, **options))


def ones(
    shape: ShapeLike, dtype: DTypeLike = float, order: str = "C", **options: Any
) -> SharedArray:
    """``numpy.ones`` in the store; see ``empty``."""
    return _filled(empty(shape, dtype, order, **options), 1)


def full(
    shape: ShapeLike,
    fill_value: ArrayLike,
    dtype: Optional[DTypeLike] = None,
    order: str = "C",
    **options: Any,
) -> SharedArray:
    """``numpy.full`` in the store; see ``empty``."""
    _arguments.refuse_masked(fill_value, "fill_value")
    kind = np.asarray(fill_value).dtype if dtype is None else dtype
    return _filled(empty(shape, kind, order, **options), fill_value)


def empty_like(
    prototype: ArrayLike,
    dtype: Optional[DTypeLike] = None,
    order: str = "K",
    shape: Optional[ShapeLike] = None,
    **options: Any,
) -> SharedArray:
    """An array in the store with shape, dtype and order of ``prototype``; see ``empty``.

    Always a SharedArray, also for subclasses; orders ``"A"`` and ``"K"`` are ``"F"`` for what is
    F-contiguous and not C-contiguous, else ``"C"``.
    """
    like = np.asarray(prototype)
    if order in ("A", "K"):
        order = "F" if like.flags.f_contiguous and not like.flags.c_contiguous else "C"
    kind = like.dtype if dtype is None else dtype
    return empty(like.shape if shape is None else shape, kind, order, **options)


def zeros_like(prototype: ArrayLike, *args: Any, **options: Any) -> SharedArray:
    """``numpy.zeros_like`` in the store; arguments as ``empty_like``."""
    return _zeroed(empty_like(prototype, *args, **options))


def ones_like(prototype: ArrayLike, *args: Any, **options: Any) -> SharedArray:
    """``numpy.ones_like`` in the store; arguments as ``empty_like``."""
    return _filled(empty_like(prototype, *args, **options), 1)


def full_like(
    prototype: ArrayLike, fill_value: ArrayLike, *args: Any, **options: Any
) -> SharedArray:
    """``numpy.full_like`` in the store; arguments as ``empty_like``."""
    _arguments.refuse_masked(fill_value, "fill_value")
    return _filled(empty_like(prototype, *args, **options), fill_value)


def _filled(x: SharedArray, value: ArrayLike) -> SharedArray:
    np.copyto(x, value, casting="unsafe")
    return x


def _zeroed(x: SharedArray) -> SharedArray:
    # Zero bytes, as numpy.zeros has them: 0 assigned to a string is "0".
    flat = x if x.flags.c_contiguous else x.T
    np.ndarray((x.nbytes,), np.uint8, flat).fill(0)
    return x
