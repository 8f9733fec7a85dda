"""Arrays of the store as files and back: a tree of names becomes a tree of .npy files.

``save("sim/", "out")`` writes the array ``sim/a/b`` to ``out/a/b.npy``; ``load("sim/", "out")``
reads it back. Any program that reads .npy can read the files. An array's ``attrs``, where it has
any, are in ``b.attrs.json`` beside it.
"""

from __future__ import annotations

import ast
import contextlib
import json
import operator
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Optional, Union

import numpy as np

from . import _connect
from ._errors import InvalidArgument, NotFound, TimedOut

if TYPE_CHECKING:
    from ._array import SharedArray
    from ._client import Client

    Folder = Union[str, os.PathLike[str]]

_SUFFIX = ".npy"
_HEADER_BYTES_MAX = 1 << 20

#: Of each version of the format: bytes of the header's length, and its encoding.
_VERSIONS = {(1, 0): (2, "latin1"), (2, 0): (4, "latin1"), (3, 0): (4, "utf8")}
_ATTRS_SUFFIX = ".attrs.json"

#: Arguments of ``create`` that a file determines: errors that begin so name the file.
_OF_A_FILE = ("name:", "shape:", "dtype:", "attrs:")


def save(prefix: str, directory: Folder, *, client: Optional[Client] = None) -> dict[str, Path]:
    """Writes the arrays whose name begins with ``prefix`` into ``directory``; returns the path of
    each by name.

    The part of ``prefix`` up to its last slash is left out of the paths: ``save("sim/run", d)``
    writes ``sim/run1`` to ``d/run1.npy``, and another user's, if one may read it, to
    ``d/~1000/run1.npy``, unless ``prefix`` begins with ``~``: then for that user's only, without
    this folder. Drafts are left out, and so is what is deleted meanwhile.
    Each file appears whole or not at all; one that is there is replaced, and no other is touched.
    A mutable array is saved as it is while it is read.

    Raises NotFound when there is nothing to save, InvalidArgument for a name that is no path, Busy
    for a mutable array that somebody has exclusively, Aborted for a broken one, OSError. What was
    written before the error stays.
    """
    client = client or _connect.default_client()
    owner, wanted = _owner(prefix)
    tree = len(wanted[: wanted.rfind("/") + 1])
    written = {}
    for entry in client.list(prefix):
        name = entry["name"]
        if name is None or entry["state"] == "draft":
            continue
        other, local = _owner(name)
        path = Path(directory, *_components(("" if owner else other) + local[tree:]))
        try:
            array = client.attach(name, timeout=0)
        except (NotFound, TimedOut):  # gone since it was listed, or made anew and still a draft
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path.with_name(path.name + _SUFFIX)) as file:
            np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
        _save_attrs(path.with_name(path.name + _ATTRS_SUFFIX), entry["attrs"])
        written[name] = path.with_name(path.name + _SUFFIX)
    if not written:
        raise NotFound(f"prefix: there is no array whose name begins with {prefix!r}")
    return written


def load(
    prefix: str,
    directory: Folder,
    *,
    client: Optional[Client] = None,
    **options: Any,
) -> dict[str, SharedArray]:
    """Reads the .npy files below ``directory`` into the store; returns the arrays by name, which is
    ``prefix`` and the file's path without ``.npy``.

    The bytes are read into shared memory directly. The arrays are gone with the returned dict
    unless ``keep=True``. Options are those of ``create``: ``keep, ttl, perms, replace, mutable,
    timeout, hard``.

    Raises AlreadyExists (unless ``replace``), NotFound when there is no such file, InvalidArgument
    for a file that is damaged, holds Python objects, or whose path is no name. Arrays loaded before
    the error stay only if they are kept.
    """
    client = client or _connect.default_client()
    root = Path(directory)
    arrays = {}
    for path in sorted(root.rglob("*" + _SUFFIX)):
        if path.is_file():
            name = prefix + path.relative_to(root).as_posix()[: -len(_SUFFIX)]
            arrays[name] = _load_file(client, name, path, options)
    if not arrays:
        raise NotFound(f"directory: there is no {_SUFFIX} file below {os.fspath(directory)!r}")
    return arrays


def _owner(name: str) -> tuple[str, str]:
    """``~alice/`` or nothing, and the rest."""
    user, slash, rest = name.partition("/") if name.startswith("~") else ("", "", name)
    return user + slash, rest


def _components(name: str) -> list[str]:
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise InvalidArgument(f"name: {name!r} cannot be the path of a file")
    return parts


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` when it is complete."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".saving-")
    try:
        with open(handle, "wb") as file:
            yield file
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    """The process's; there is no call that only asks."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o077


def _save_attrs(path: Path, attrs: dict[str, Any]) -> None:
    if attrs:
        with _replacing(path) as file:
            file.write(json.dumps(attrs).encode())
    elif os.path.lexists(path):  # not where the name is too long for a file
        path.unlink(missing_ok=True)


def _load_file(client: Client, name: str, path: Path, options: dict[str, Any]) -> SharedArray:
    attrs_path = path.with_name(path.name[: -len(_SUFFIX)] + _ATTRS_SUFFIX)
    # Not is_file(), which raises where a name is too long for there to be such a file.
    attrs = _attrs(attrs_path) if os.path.isfile(attrs_path) else None
    with open(path, "rb", buffering=0) as file:
        shape, fortran, dtype = _header(file, path)
        order = "F" if fortran else "C"
        try:
            draft = client.create(name, shape, dtype, order=order, attrs=attrs, **options)
        except InvalidArgument as error:
            if not str(error).startswith(_OF_A_FILE):
                raise
            raise InvalidArgument(f"file: {path} cannot be an array: {error}") from None
        with draft as array:
            flat = array.T if fortran else array
            _read_all(file, np.ndarray((array.nbytes,), np.uint8, flat), path)
    return array


def _attrs(path: Path) -> dict[str, Any]:
    try:
        attrs: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"file: {path} is no JSON: {error}") from None
    if not isinstance(attrs, dict):
        raise InvalidArgument(f"file: {path} holds no attrs, but a {type(attrs).__name__}")
    return attrs


def _header(file: Any, path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and dtype. numpy reads versions 1 and 2 in public only."""
    try:
        version = np.lib.format.read_magic(file)
        width, encoding = _VERSIONS[version]
        length = int.from_bytes(_exactly(file, width), "little")
        header = ast.literal_eval(_exactly(file, length).decode(encoding))
        shape, fortran = tuple(map(operator.index, header["shape"])), bool(header["fortran_order"])
        dtype: np.dtype[Any] = np.lib.format.descr_to_dtype(header["descr"])
    except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError) as error:
        raise InvalidArgument(f"file: {path} is no .npy file that is known: {error}") from None
    if dtype.hasobject:
        raise InvalidArgument(f"file: {path} holds Python objects, which cannot be shared")
    return shape, fortran, dtype


def _exactly(file: Any, size: int) -> bytes:
    if size > _HEADER_BYTES_MAX:
        raise ValueError(f"a header of {size} bytes")
    data = b""
    while len(data) < size:
        part = file.read(size - len(data))
        if not part:
            raise ValueError("it is cut off")
        data += part
    return data


def _read_all(file: Any, memory: Any, path: Path) -> None:
    done = 0
    while done < memory.size:
        count = file.readinto(memoryview(memory)[done:])
        if not count:
            raise InvalidArgument(f"file: {path} is cut off after {done} of {memory.size} bytes")
        done += count
