"""Python's arguments made into those of the extension; each function raises InvalidArgument, whose
text names the argument and the limit."""

from __future__ import annotations

import json
import operator
import pwd
from collections.abc import Iterable, Mapping
from typing import Any, Optional

import numpy as np

from . import _ext
from ._array import milliseconds
from ._dtype import dtype_argument, dtype_text
from ._errors import InvalidArgument, shown

_MODES = ("r", "r+", "c")
_EXCLUSIVE = "x"  # of r+: an access of its own


def name_text(name: Any) -> str:
    """A name for the extension: None, which makes an anonymous array, is empty there."""
    if name is None:
        return ""
    if not isinstance(name, str):
        raise InvalidArgument(f"name: {shown(name)} is not a string")
    if not name:
        raise InvalidArgument("name: must not be empty; None makes an anonymous array")
    return encodable(name)


def existing(name: Any) -> str:
    if name is None:
        raise InvalidArgument("name: must not be None; anonymous arrays go by id=")
    return name_text(name)


def encodable(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"name: {name!a} is not valid text") from None
    return name


def access_of(mode: Any, exclusive: bool = False, repair: bool = False) -> str:
    if not isinstance(mode, str) or mode not in _MODES:
        raise InvalidArgument(f"mode: {shown(mode)} is none of 'r', 'r+', 'c'")
    if repair and not exclusive:
        raise InvalidArgument("repair: only with exclusive=True")
    if exclusive and mode != "r+":
        raise InvalidArgument(f"exclusive: needs mode 'r+', not {mode!r}")
    return _EXCLUSIVE if exclusive else str(mode)


def fortran(order: Any) -> bool:
    if not isinstance(order, str) or order not in ("C", "F"):
        raise InvalidArgument(f"order: {shown(order)} is neither 'C' nor 'F'")
    return bool(order == "F")


def count(value: Any, field: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidArgument(f"{field}: {shown(value)} is not an integer") from None
    if not 0 <= number < 1 << 64:
        raise InvalidArgument(f"{field}: {shown(number)} is not between 0 and 2^64-1")
    return number


def array_id(id: Any) -> int:
    """An id is a decimal text everywhere."""
    if isinstance(id, str) and is_decimal(id):
        return count(int(id), "id")
    raise InvalidArgument(f"id: {shown(id)} is not a decimal number in a string, as x.shm.id")


def is_decimal(text: str) -> bool:
    """Of at most 20 digits, which 64 bits have: Python refuses to read very long numbers."""
    return text.isascii() and text.isdigit() and len(text) <= 20


def dims_of(shape: Any) -> list[int]:
    if not isinstance(shape, Iterable):
        shape = (shape,)
    return [count(dim, "shape") for dim in shape]


def permissions(perms: Any) -> int:
    number = count(perms, "perms")
    if number & ~0o666:
        raise InvalidArgument(f"perms: {number:#o} has bits outside 0o666")
    return number


def attrs_text(attrs: Optional[Mapping[str, Any]]) -> str:
    if attrs is None:
        return ""
    if not isinstance(attrs, Mapping):
        raise InvalidArgument(f"attrs: {type(attrs).__name__} is not a mapping")
    try:
        text = json.dumps(dict(attrs), allow_nan=False, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument("attrs: a text in it is not valid (it has half a surrogate pair)"
                              ) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"attrs: {error}") from None
    return text


def source(array: Any) -> np.ndarray[Any, Any]:
    """What ``put`` copies from."""
    refuse_masked(array, "array")
    try:
        found = np.asarray(array)
    except (TypeError, ValueError) as error:  # nested sequences of different lengths, for example
        raise InvalidArgument(f"array: {error}") from None
    if found.dtype == object and not isinstance(array, np.ndarray):
        raise InvalidArgument(f"array: {_no_array(array)}")
    return found


def refuse_masked(array: Any, field: str) -> None:
    """Raises for a masked array, also in nested lists and tuples: numpy takes its data only."""
    todo, seen = [array], set()
    while todo:
        node = todo.pop()
        if isinstance(node, np.ma.MaskedArray):
            raise InvalidArgument(
                f"{field}: a masked array would lose its mask; share(x) keeps it, "
                "put(name, x.data) and put(name, np.ma.getmaskarray(x)) are its parts, "
                "x.filled() has the mask's value in it"
            )
        if isinstance(node, (list, tuple)) and id(node) not in seen:
            seen.add(id(node))
            todo.extend(x for x in node if isinstance(x, (list, tuple, np.ma.MaskedArray)))


def _no_array(x: Any) -> str:
    """What to do with something that numpy makes an array of objects of."""
    package, _, rest = type(x).__module__.partition(".")
    if x is None:
        return "None is no array"
    if package == "scipy" and rest.startswith("sparse"):
        parts = [part for part in ("data", "indices", "indptr", "row", "col", "offsets")
                 if isinstance(getattr(x, part, None), np.ndarray)]  # fmt: skip
        way = "put its parts: " + ", ".join(f"x.{part}" for part in parts) if parts else ""
        return f"a {type(x).__name__} is not one array; {way or 'x.tocsr() has parts to put'}"
    if isinstance(x, Mapping):
        return f"a {type(x).__name__} is not an array; put_many(x) puts each of its values"
    if package == "pandas":
        dtype = getattr(x, "dtype", None)
        if getattr(dtype, "categories", None) is not None:
            return "pandas categories are Python objects; put the codes (x.codes, x.cat.codes)"
        return (
            f"a {type(x).__name__} of pandas with Python objects or missing values is not an array "
            "of numbers; share(x) keeps it, x.to_numpy(dtype) makes an array of it"
        )
    return (
        f"numpy makes Python objects of a {type(x).__name__}, which cannot be shared; "
        "np.asarray(x, dtype) makes numbers or texts of it, if it can"
    )


def layout(shape: Any, dtype: Any) -> tuple[list[int], np.dtype[Any], str]:
    """Shape and dtype as numpy.empty takes them: a sub-array's dimensions go into the shape."""
    dims = dims_of(shape)
    element = dtype_argument(dtype)
    if element.subdtype is not None:
        element, inner = element.subdtype
        dims += inner
    return dims, element, dtype_text(element)


def options(
    order: Any = "C",
    mutable: bool = False,
    keep: bool = False,
    ttl: Optional[float] = None,
    perms: int = 0o600,
    attrs: Optional[Mapping[str, Any]] = None,
    replace: bool = False,
    timeout: Optional[float] = 0,
    late: bool = False,
    hard: bool = False,
) -> _ext.Options:
    return _ext.Options(
        fortran(order),
        bool(mutable),
        bool(keep),
        milliseconds(ttl, "ttl"),
        permissions(perms),
        attrs_text(attrs),
        bool(replace),
        bool(hard),
        milliseconds(timeout),
        bool(late),
    )


def target(name: Any, id: Any) -> dict[str, Any]:
    """What names an array for an administrative request."""
    if id is not None:
        if name is not None:
            raise InvalidArgument("id: cannot be given together with a name")
        return {"id": str(array_id(id))}
    return {"name": _ext.resolve_name(existing(name))}


def prefix(prefix: Any) -> dict[str, Any]:
    """``~alice/x`` → uid and the rest."""
    if not isinstance(prefix, str):
        raise InvalidArgument(f"prefix: {shown(prefix)} is not a string")
    encodable(prefix)
    if not prefix.startswith("~"):
        return {"prefix": prefix} if prefix else {}
    user, _, rest = prefix[1:].partition("/")
    if is_decimal(user):
        uid = int(user)
        if uid >= 1 << 32:
            raise InvalidArgument(f"prefix: uid {user} is not below 2^32")
    else:
        try:
            uid = pwd.getpwnam(user).pw_uid
        except (KeyError, ValueError):  # ValueError: a null character
            raise InvalidArgument(f"prefix: there is no user {shown(user)}") from None
    return {"prefix": rest, "uid": uid}
