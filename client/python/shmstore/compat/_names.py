"""Names of other libraries as names of the store, and errors of the store as theirs."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .. import (
    AlreadyExists,
    Error,
    InvalidArgument,
    NoCapacity,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
)

#: What the store allows in names, without "=", which begins an escape here.
_PLAIN = re.compile(rb"[A-Za-z0-9._/:@+,-]")


def to_store(name: str) -> str:
    """Any text as a name of the store: what that does not allow becomes ``=XX``, two hexadecimal
    digits for each byte of UTF-8."""
    out, before = "", ""
    for byte in os.fsencode(name):
        char = chr(byte)
        allowed = _PLAIN.fullmatch(bytes((byte,))) is not None
        if not out and char in "-/" or char == before and char in "./":
            allowed = False
        out += char if allowed else f"={byte:02X}"
        before = char if allowed else ""
    return out


def from_store(name: str) -> str:
    """The text that ``to_store`` made this name of."""
    raw = re.sub(rb"=([0-9A-F]{2})", lambda m: bytes((int(m[1], 16),)), name.encode())
    return os.fsdecode(raw)


#: What the system's calls would say.
_NUMBERS: tuple[tuple[type[Error], int], ...] = (
    (NotFound, errno.ENOENT),
    (AlreadyExists, errno.EEXIST),
    (PermissionDenied, errno.EACCES),
    (NoCapacity, errno.ENOMEM),
    (QuotaExceeded, errno.ENOMEM),
    (InvalidArgument, errno.EINVAL),
)


@contextmanager
def os_errors(name: object, hints: Mapping[int, str] = {}) -> Iterator[None]:  # noqa: B006
    """Raises the OSError that the system's own calls would, with errno and file name. ``hints``:
    what to say more, by errno."""
    try:
        yield
    except Error as error:
        for kind, number in _NUMBERS:
            if isinstance(error, kind):
                hint = f" ({hints[number]})" if number in hints else ""
                raise OSError(number, os.strerror(number) + hint, name) from error
        raise
