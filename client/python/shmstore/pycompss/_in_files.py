"""What ``in_place`` makes where there is no store: the same for the program and its tasks, but
PyCOMPSs passes it by its files, and each task changes a copy of its own, as with any INOUT object.
"""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Optional

import numpy as np

from .. import _errors
from . import _in_place
from ._in_place import InPlace, InPlaceArray


class FileTicket(NamedTuple):
    """What comes first in its file: which array it is, as long as the program runs."""

    key: str
    name: str

    def __str__(self) -> str:
        return f"array {self.name!r}" if self.name else "array"


class FileArray(InPlaceArray):
    """What a task gets: an ndarray, as an InPlaceArray that is not in the store."""

    __slots__ = ("_file_ticket",)
    _file_ticket: FileTicket

    def __reduce_ex__(self, protocol: Any) -> Any:
        ticket = getattr(self, "_file_ticket", None)
        if ticket is None:  # a view
            return np.array(self).__reduce_ex__(protocol)
        return _opened, (_First(ticket), np.asarray(self))


class InFiles(InPlace):
    """An array that the main program holds, until a task has changed a copy of it."""

    __slots__ = ("_array", "_file_ticket", "_half_written")

    def __init__(self, array: Any, ticket: FileTicket) -> None:
        """Private: use ``in_place``."""
        self._array = array
        self._file_ticket = ticket
        self._half_written = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self._array.dtype
        return dtype

    def _label(self) -> str:
        return str(self._file_ticket)

    def read(self) -> InPlaceArray:
        self._check()
        return _array(self._array, self._file_ticket, False)

    def is_read(self) -> bool:
        return False  # Nobody waits for that.

    @contextlib.contextmanager
    def writing(self) -> Iterator[list[InPlaceArray]]:
        self._check()
        changed = self._array.copy(order="K")  # What read() gave stays as it is.
        try:
            yield [_array(changed, self._file_ticket, True)]
        except BaseException:
            self._half_written = True
            raise
        self._array = changed

    def _check(self) -> None:
        if self._half_written:
            text = f"{self._label()} is half-written: the task that had it failed"
            raise _errors.Aborted(text)

    def __reduce__(self) -> Any:
        self._check()
        return _opened, (_First(self._file_ticket), self._array)


def in_files(source: Any, name: Optional[str]) -> InFiles:
    """``in_place`` without a store."""
    return InFiles(np.array(source, order="K"), FileTicket(uuid.uuid4().hex, name or ""))


def _array(array: Any, ticket: FileTicket, writeable: bool) -> FileArray:
    if writeable and not array.flags.writeable:  # from a task that was given it to read
        array = array.copy(order="K")
    result: FileArray = np.ndarray.view(array, FileArray)
    result._file_ticket = ticket
    result.flags.writeable = writeable
    return result


# --- opening --------------------------------------------------------------------------------------


class _First:
    """A ticket on its way: it comes out before the contents, so that looking at it is cheap."""

    def __init__(self, ticket: FileTicket) -> None:
        self._ticket = ticket

    def __reduce__(self) -> Any:
        return _first, tuple(self._ticket)


def _first(key: str, name: str) -> FileTicket:
    ticket = FileTicket(key, name)
    _in_place.found(ticket)
    return ticket


#: The keys of the arrays that the task which runs in this process changes.
_changing: set[str] = set()


@contextlib.contextmanager
def changing(tickets: Iterable[FileTicket]) -> Iterator[None]:
    """Inside the block the arrays are opened writable."""
    added = {ticket.key for ticket in tickets} - _changing
    _changing.update(added)
    try:
        yield
    finally:
        _changing.difference_update(added)  # not those of a task that this one runs in


def _opened(ticket: FileTicket, array: Any) -> Any:
    """What unpickling calls: the array in a task, an ``InFiles`` in the main program."""
    context = sys.modules.get("pycompss.util.context")
    if context is not None and context.CONTEXT.in_worker():
        return _array(array, ticket, ticket.key in _changing)
    return InFiles(array, ticket)
