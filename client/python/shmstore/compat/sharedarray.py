"""SharedArray's interface: ``import shmstore.compat.sharedarray as SharedArray``.

``create``, ``attach``, ``delete`` and ``list``, with ``shm://`` (the default) and ``file://``
names, arrays whose ``base`` has ``msync``, ``mlock``, ``munlock``, ``name``, ``addr`` and ``size``,
and the same exceptions. Arrays named ``shm://x`` are the mutable arrays ``x`` of the store, kept
until deleted: ``shmstore.attach("x", "r+")`` is the same memory. Files have SharedArray's format.

Different on purpose: names are private to the user and may have slashes; dtypes keep their byte
order and fields; a dimension below zero is ValueError; there is no limit by /dev/shm.
"""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
import operator
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import InvalidArgument, default_client
from .._dtype import dtype_of, dtype_text
from ._names import from_store, os_errors, to_store

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

__all__ = [
    "MS_ASYNC",
    "MS_INVALIDATE",
    "MS_SYNC",
    "SharedArray",
    "attach",
    "create",
    "delete",
    "list",
    "mlock",
    "msync",
    "munlock",
]

#: Flags of msync(2).
MS_ASYNC, MS_INVALIDATE, MS_SYNC = 1, 2, 4

#: Trees in the namespace that belong to the other modules of this package.
_OTHERS = ("mp/", "plasma/")


class ArrayDesc(NamedTuple):
    """Description of an attachable array; what ``list`` returns."""

    name: bytes
    dtype: type
    dims: tuple[int, ...]


SharedArray = ArrayDesc  # upstream's name for the class


class _MapOwner(np.ndarray):
    """The bytes that an array lies in; its ``base``. ``size`` is their number."""

    _name: str

    @property
    def name(self) -> str:
        """The name that ``create`` or ``attach`` was given."""
        return self._name

    @property
    def addr(self) -> int:
        """Address of the first byte."""
        return int(self.__array_interface__["data"][0])

    def msync(self, flags: int) -> None:
        """Writes a file's pages back; msync(2). ``flags``: MS_SYNC or MS_ASYNC, MS_INVALIDATE."""
        _system("msync", self, ctypes.c_int(operator.index(flags)))

    def mlock(self) -> None:
        """Keeps the pages in memory; mlock(2)."""
        _system("mlock", self)

    def munlock(self) -> None:
        """Undoes ``mlock``; munlock(2)."""
        _system("munlock", self)


_libc = ctypes.CDLL(None, use_errno=True)


def _system(call: str, memory: _MapOwner, *more: Any) -> None:
    start = memory.addr & -mmap.PAGESIZE
    length = memory.addr + memory.size - start
    function = getattr(_libc, call)
    if function(ctypes.c_void_p(start), ctypes.c_size_t(length), *more) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def msync(array: NDArray[Any], flags: int) -> None:
    """``array.base.msync(flags)``, as SharedArray 2 has it; views will do."""
    _owner(array).msync(flags)


def mlock(array: NDArray[Any]) -> None:
    """``array.base.mlock()``, as SharedArray 2 has it; views will do."""
    _owner(array).mlock()


def munlock(array: NDArray[Any]) -> None:
    """``array.base.munlock()``, as SharedArray 2 has it; views will do."""
    _owner(array).munlock()


def _owner(array: Any) -> _MapOwner:
    while isinstance(array, np.ndarray):
        if isinstance(array, _MapOwner):
            return array
        array = array.base
    raise ValueError("not a shared array")


def create(name: str, shape: Any, dtype: DTypeLike = float) -> NDArray[Any]:
    """Makes an array of zeros, shared read-write at once, that stays until ``delete``.

    Raises FileExistsError; OSError with EINVAL for a name that cannot be, with ENOMEM when the
    store is full; ValueError for a shape or a dtype that cannot be shared.
    """
    kind = np.dtype(dtype)
    dims = _dims(shape)
    if kind.itemsize == 0:
        raise ValueError("unsupported data type has element size of 0!")
    if len(dims) > 64:
        raise ValueError("number of dimensions must be within [0, 64]")
    text = dtype_text(kind)  # ValueError for objects
    path = _path(name)
    if path is not None:
        return _create_file(name, path, dims, kind, text)
    # Where programs look for SharedArray's files there are none.
    hint = f"it is in the store, not in /dev/shm; shmstore.exists({_shm(name)!r}) tells"
    with os_errors(name, {errno.EEXIST: hint}):
        # Pages of a new array are fresh from the kernel: zeros. Filling it here would be too late,
        # somebody else may have attached and written.
        array = default_client().create(_shm(name), dims, kind, mutable=True, keep=True)
    return _array(name, array, dims, kind, False)


def attach(name: str, ro: bool = False) -> NDArray[Any]:
    """The array ``name``, writable unless ``ro``.

    Raises FileNotFoundError; PermissionError for a sealed array of the store unless ``ro``; OSError
    for a file that is no array. Waits while the array is a draft that somebody fills.
    """
    path = _path(name)
    if path is not None:
        return _attach_file(name, path, ro)
    with os_errors(name):
        try:
            array = default_client().attach(_shm(name), "r" if ro else "r+")
        except InvalidArgument as error:
            if "mode" in str(error) or "seal" in str(error):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name) from error
            raise
    return _array(name, array, array.shape, array.dtype, not array.flags.c_contiguous)


def delete(name: str) -> None:
    """Takes the name away; the memory goes with the last array attached to it.

    Raises FileNotFoundError; OSError for a file that is no array.
    """
    path = _path(name)
    if path is not None:
        _attach_file(name, path, True)
        with _file_errors(name):
            os.unlink(path)
        return
    with os_errors(name):
        default_client().delete(_shm(name))


def list() -> tuple[ArrayDesc, ...]:  # noqa: A001 - upstream's name
    """The arrays in the store that ``attach`` could attach, files not included."""
    found = []
    for entry in default_client().list():
        name = entry["name"]
        if not name or name.startswith(("~", *_OTHERS)) or entry["state"] == "draft":
            continue
        kind = dtype_of(entry["dtype"]).type
        found.append(ArrayDesc(os.fsencode(from_store(name)), kind, tuple(entry["shape"])))
    return tuple(found)


# --- names, shapes --------------------------------------------------------------------------------


def _path(name: Any) -> Any:
    """The path of a ``file://`` name, None for one of the store."""
    if not isinstance(name, str):
        raise TypeError(f"name must be str, not {type(name).__name__}")
    kind, mark, rest = name.partition("://")
    if not mark or kind == "shm":
        return None
    if kind != "file":
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
    return rest


def _shm(name: str) -> str:
    bare = name[len("shm://") :] if name.startswith("shm://") else name
    store = to_store(bare.lstrip("/"))
    if not store or len(store) > 255 or "\0" in name:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
    return store


def _dims(shape: Any) -> tuple[int, ...]:
    if shape is None:
        raise TypeError("Use () not None as shape arguments")
    dims: tuple[int, ...]
    try:
        dims = (operator.index(shape),)
    except TypeError:
        dims = tuple(operator.index(dim) for dim in shape)
    if any(dim < 0 for dim in dims):
        raise ValueError("negative dimensions are not allowed")
    return dims


def _array(
    name: str, memory: Any, dims: tuple[int, ...], kind: np.dtype[Any], fortran: bool
) -> NDArray[Any]:
    """An exact ndarray at the start of ``memory``, whose base is a _MapOwner of all of it."""
    buffer = memory.T if fortran else memory
    nbytes = len(buffer) if isinstance(buffer, mmap.mmap) else buffer.nbytes
    owner = np.ndarray.__new__(_MapOwner, (nbytes,), np.uint8, buffer)
    owner._name = name
    return np.ndarray(dims, kind, owner, order="F" if fortran else "C")


# --- files ----------------------------------------------------------------------------------------
#
# SharedArray's format: the elements, then at the very end this record (packed): magic of 16 bytes,
# number of bytes, numpy's type number, item size, number of dimensions, the dimensions padded to
# NPY_MAXDIMS, which is 64 since numpy 2 and was 32. The type number says neither byte order nor
# fields; for a dtype that needs them its text is put between elements and record, where SharedArray
# does not look: text, its length, a magic.

_RECORDS = (struct.Struct("=16sQiii64q"), struct.Struct("=16sQiii32q"))
_MAGIC = b"[SharedArray]"
_BYTES_MAX = 2**63 - 1
_TEXT = struct.Struct("=I12s")
_TEXT_MAGIC = b"[shm dtype]"


def _create_file(
    name: str, path: str, dims: tuple[int, ...], kind: np.dtype[Any], text: str
) -> NDArray[Any]:
    nbytes = kind.itemsize * math.prod(dims)
    tail = b""
    if _dtype_of_number(kind.num, kind.itemsize) != kind:
        tail = text.encode() + _TEXT.pack(len(text.encode()), _TEXT_MAGIC)
    padded = dims + (0,) * (64 - len(dims))
    tail += _RECORDS[0].pack(_MAGIC, nbytes, kind.num, kind.itemsize, len(dims), *padded)
    with _file_errors(name):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            os.ftruncate(fd, nbytes + len(tail))
            os.pwrite(fd, tail, nbytes)
            memory = mmap.mmap(fd, nbytes + len(tail))
        except (OSError, OverflowError):
            os.unlink(path)
            raise
        finally:
            os.close(fd)
    return _array(name, memory, dims, kind, False)


def _attach_file(name: str, path: str, ro: bool) -> NDArray[Any]:
    with _file_errors(name):
        fd = os.open(path, os.O_RDONLY if ro else os.O_RDWR)
        try:
            access = mmap.ACCESS_READ if ro else mmap.ACCESS_WRITE
            memory = mmap.mmap(fd, 0, access=access)
        except ValueError:  # an empty file
            raise OSError("No SharedArray at this address") from None
        finally:
            os.close(fd)
    found = _record(memory)
    if found is None:
        raise OSError("No SharedArray at this address")
    dims, kind = found
    return _array(name, memory, dims, kind, False)


@contextmanager
def _file_errors(name: str) -> Iterator[None]:
    """Errors of the system name the array as the caller did."""
    try:
        yield
    except OverflowError as error:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name) from error
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), name) from error


def _record(memory: mmap.mmap) -> Any:
    """Shape and dtype of a file, or None when it is no array."""
    for record in _RECORDS:
        start = len(memory) - record.size
        if start < 0:
            continue
        magic, nbytes, number, itemsize, ndim, *padded = record.unpack_from(memory, start)
        if magic.rstrip(b"\0") != _MAGIC or not 0 <= ndim <= len(padded):
            continue
        dims = tuple(padded[:ndim])
        if min(dims, default=0) < 0:
            continue
        kind = _text_before(memory, start, nbytes) or _dtype_of_number(number, itemsize)
        if kind is None or kind.itemsize != itemsize or itemsize * math.prod(dims) != nbytes:
            continue
        if nbytes > start or itemsize * math.prod(max(dim, 1) for dim in dims) > _BYTES_MAX:
            continue
        return dims, kind
    return None


def _text_before(memory: mmap.mmap, end: int, nbytes: int) -> Any:
    if end - _TEXT.size < nbytes:
        return None
    length, magic = _TEXT.unpack_from(memory, end - _TEXT.size)
    start = end - _TEXT.size - length
    if magic.rstrip(b"\0") != _TEXT_MAGIC or start < nbytes:
        return None
    try:
        return dtype_of(memory[start : start + length].decode())
    except (ValueError, TypeError, SyntaxError):
        return None


_KINDS: dict[int, np.dtype[Any]] = {
    np.dtype(char).num: np.dtype(char) for char in np.typecodes["All"] if char != "O"
}


def _dtype_of_number(number: int, itemsize: int) -> Any:
    """The dtype of numpy's type number; None for objects and what is unknown."""
    kind = _KINDS.get(number)
    if kind is None or itemsize <= 0:
        return None
    if kind.kind in "SV":
        return np.dtype(f"{kind.kind}{itemsize}")
    if kind.kind == "U":
        return np.dtype(f"U{itemsize // 4}")
    return kind


