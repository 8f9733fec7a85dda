"""numpy's dtypes as the texts that the store keeps, and back.

The text is ``dtype.str``, or for structured dtypes the literal of ``dtype.descr``, which also says
padding. A structure that numpy calls aligned (``isalignedstruct``) ends with a padding of no bytes,
``('', '|V0')``, which means nothing to others and which ``descr`` never has. What the text cannot
say (overlapping or reordered fields, types that other packages add to numpy) and what cannot be
shared (objects, StringDType) is InvalidArgument. The character ``c`` is ``S1``, as in numpy's files
and pickles.
"""

from __future__ import annotations

import ast
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from ._errors import InvalidArgument

if TYPE_CHECKING:
    from numpy.typing import DTypeLike


def dtype_argument(dtype: DTypeLike) -> np.dtype[Any]:
    """``np.dtype(dtype)``, its complaints as InvalidArgument."""
    try:
        return np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError) as error:
        raise InvalidArgument(f"dtype: {error}") from None


@functools.lru_cache(maxsize=1024)
def _simple_text(dtype: np.dtype[Any]) -> str:
    if dtype.hasobject or dtype.kind == "T":
        raise InvalidArgument(
            f"dtype: {dtype} holds Python objects, which cannot be shared; texts of a fixed length "
            "can (x.astype('U')), and numbers"
        )
    if dtype.subdtype is not None:
        raise InvalidArgument(f"dtype: {dtype} is a sub-array; give its dimensions in the shape")
    try:
        plain = dtype.fields is None and dtype.names is None
        text = dtype.str if plain else ascii(_descr(dtype))
        same = bool(dtype_of(text) == dtype)
    except (TypeError, ValueError):
        same = False
    if not same:
        raise InvalidArgument(f"dtype: {_reason(dtype)}")
    return text


def _descr(dtype: np.dtype[Any]) -> list[Any]:
    """``dtype.descr`` with the mark of aligned structures."""
    fields: Any = dtype.fields or {}
    inner: Any
    found: list[Any] = []
    for entry in dtype.descr:
        name = entry[0][1] if isinstance(entry[0], tuple) else entry[0]
        inner = fields[name][0].base if name in fields else None
        nested = inner is not None and inner.names is not None
        found.append((entry[0], _descr(inner), *entry[2:]) if nested else entry)
    return [*found, _ALIGNED] if dtype.isalignedstruct else found


_ALIGNED = ("", "|V0")


def _reason(dtype: np.dtype[Any]) -> str:
    """Why there is no text, and what else can be done."""
    for field in (dtype, *(field[0].base for field in (dtype.fields or {}).values())):
        package = field.type.__module__.partition(".")[0]
        if field.names is None and package != "numpy":
            bits = f"u{field.itemsize}" if field.itemsize in (1, 2, 4, 8) else f"V{field.itemsize}"
            return (
                f"{dtype} is a type that {package} added to numpy, and the store knows numpy's own "
                f"only; share its bits: x.view({bits!r}), and .view({field.name}) of what comes out"
            )
    return (
        f"{dtype} has fields that overlap or are out of order, which dtype.descr cannot say; "
        "numpy.lib.recfunctions.repack_fields(x) puts them in order"
    )


def dtype_text(dtype: np.dtype[Any]) -> str:
    """The text for ``dtype``. Raises InvalidArgument if there is none."""
    # Dtypes that differ in metadata, titles or alignment only may be equal, and so share a cache
    # entry: the text of a structured dtype is made anew.
    if dtype.names is not None:
        return str(_simple_text.__wrapped__(dtype))
    return _simple_text(dtype)


@functools.lru_cache(maxsize=1024)
def dtype_of(text: str) -> np.dtype[Any]:
    """The dtype of a text."""
    if not text.startswith("["):
        return np.dtype(text)
    return _dtype_of_descr(ast.literal_eval(text))


def _dtype_of_descr(descr: list[Any]) -> np.dtype[Any]:
    aligned = bool(descr) and descr[-1] == _ALIGNED
    names, titles, formats, offsets, offset = [], [], [], [], 0
    for label, what, *shape in descr:
        inner = _dtype_of_descr(what) if isinstance(what, list) else np.dtype(what)
        field = np.dtype((inner, shape[0])) if shape else inner
        title, name = label if isinstance(label, tuple) else (None, label)
        if name or inner.names is not None or inner.type is not np.void:  # else padding
            names.append(name)
            titles.append(title)
            formats.append(field)
            offsets.append(offset)
        offset += field.itemsize
    return np.dtype({"names": names, "formats": formats, "titles": titles, "offsets": offsets,
                     "itemsize": offset}, align=aligned)  # fmt: skip
