"""numpy's dtypes as the texts that the store keeps, and back.

The text is ``dtype.str``, or for structured dtypes the literal of ``dtype.descr``, which also says
padding. What that cannot say (overlapping or reordered fields, foreign scalar types) and what
cannot be shared (objects, StringDType) is InvalidArgument.
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
        raise InvalidArgument(f"dtype: {dtype} holds Python objects, which cannot be shared")
    if dtype.subdtype is not None:
        raise InvalidArgument(f"dtype: {dtype} is a sub-array; give its dimensions in the shape")
    try:
        text = dtype.str if dtype.fields is None and dtype.names is None else ascii(dtype.descr)
        same = bool(dtype_of(text) == dtype)
    except (TypeError, ValueError):
        same = False
    if not same:
        raise InvalidArgument(f"dtype: {dtype} has a layout that dtype.descr cannot say")
    return text


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
    descr = ast.literal_eval(text)
    if not descr:  # np.dtype([]), which descr_to_dtype does not know
        return np.dtype([])
    return np.lib.format.descr_to_dtype(descr)
