"""What ``share`` says about large data that it leaves to be pickled by value: a warning, once for
each kind of object.

How much an object holds is a guess from its attributes: nothing is pickled for it, and no object of
the user's is asked for its state. It is to take no time: what is beyond the limits is not told.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Set
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Callable

import numpy as np

from ._array import SharedArray
from ._frames import arrow_by_value, by_value_columns
from ._listing import size_text
from .sharing import in_store

#: So many objects are looked at in one of the user's, and in one container of it.
_OBJECTS_MAX = 1000
#: And so many in one call of share.
_CALL_OBJECTS_MAX = 5000
#: So many of one type are looked into in one call.
_LOOKS_MAX = 20

_ATOMS = (type(None), bool, int, float, complex, str, type, ModuleType, FunctionType,
          BuiltinFunctionType)  # fmt: skip

_told: set[str] = set()


class Report:
    """Of one call of ``share``."""

    def __init__(self, large: Callable[[int], bool]) -> None:
        self._large = large
        self._objects = _CALL_OBJECTS_MAX
        self._looks: dict[type, int] = {}

    def on(self, leaf: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """``leaf``, which shares one object, and what it leaves is noted."""

        def noted(x: Any) -> Any:
            shared = leaf(x)
            self._note(x, shared)
            return shared

        return noted

    def _note(self, x: Any, shared: Any) -> None:
        if issubclass(type(x), (*_ATOMS, bytes, bytearray, SharedArray)):
            return
        kind = type(x).__name__
        if issubclass(type(x), np.ndarray):
            if shared is x and not in_store(x) and self._large(x.nbytes):
                self._tell(f"{kind} of dtype {x.dtype}", x.nbytes, "its dtype or class cannot be")
            return
        package = type(x).__module__.partition(".")[0]
        if package == "pandas" and hasattr(x, "iloc"):
            names, nbytes = by_value_columns(shared)
            if names and self._large(nbytes):
                which = ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")
                what = kind if x.ndim == 1 else f"{kind}: columns {which}"
                self._tell(what, nbytes, "only numpy's dtypes without objects can be")
            return
        if shared is x and kind not in _told:
            nbytes = arrow_by_value(x) if package == "pyarrow" else self._bytes_inside(x)
            if self._large(nbytes):
                self._tell(kind, nbytes, "arrays, pandas, Arrow and containers of them can be")

    def _bytes_inside(self, x: Any) -> int:
        looks = self._looks.get(type(x), 0)
        if looks >= _LOOKS_MAX or self._objects <= 0:
            return 0
        self._looks[type(x)] = looks + 1
        nbytes, objects = bytes_inside(x, self._objects)
        self._objects -= objects
        return nbytes

    def _tell(self, what: str, nbytes: int, why: str) -> None:
        if what in _told:
            return
        _told.add(what)
        warnings.warn(
            f"shmstore: share does not put this {what} into the store ({why}): its "
            f"{size_text(nbytes)} are pickled by value",
            UserWarning,
            stacklevel=6,
        )


def bytes_inside(x: Any, objects_max: int = _CALL_OBJECTS_MAX) -> tuple[int, int]:
    """About how many bytes of arrays outside the store an object of any kind refers to; and how
    many objects were looked at, numbers and texts among them."""
    total, todo, seen, looked = 0, [x], {id(x): x}, 1
    while todo and len(seen) < _OBJECTS_MAX and looked < objects_max:
        node = todo.pop()
        kind = type(node)
        if issubclass(kind, np.ndarray):
            total += 0 if in_store(node) else node.nbytes
            if node.dtype != object:
                continue
        elif issubclass(kind, (bytes, bytearray)):
            total += len(node)
            continue
        elif kind.__module__ == "torch" and kind.__name__ in ("Tensor", "Parameter"):
            total += int(node.nbytes)
            continue
        children = _children(node)
        looked += len(children)
        for child in children:
            if not issubclass(type(child), _ATOMS) and id(child) not in seen:
                seen[id(child)] = child
                todo.append(child)
    return total, looked


def _children(x: Any) -> list[Any]:
    kind = type(x)
    try:
        if issubclass(kind, np.ndarray):  # of objects
            return list(x.flat[:_OBJECTS_MAX])
        if issubclass(kind, Mapping):
            return [value for value, _ in zip(x.values(), range(_OBJECTS_MAX))]
        if issubclass(kind, (list, tuple, Set)):
            return [item for item, _ in zip(x, range(_OBJECTS_MAX))]
        if kind.__module__.partition(".")[0] in ("builtins", "shmstore", "threading"):
            return []
        slots = [name for base in kind.__mro__ for name in _slots(base)]
        found = [getattr(x, name) for name in slots if hasattr(x, name)]
        state = getattr(x, "__dict__", None)
        if state:
            found.extend(list(state.values())[:_OBJECTS_MAX])
        elif not found and kind.__module__.partition(".")[0] == "sklearn" and _has_state(kind):
            # Its trees are not Python's, and quick. Another's may take seconds.
            found.append(x.__getstate__())
    except Exception:
        # Whatever a class of the user's raises: this is for a warning only.
        return []
    return found


def _slots(base: type) -> list[str]:
    slots = base.__dict__.get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _has_state(kind: type) -> bool:
    return getattr(kind, "__getstate__", None) is not getattr(object, "__getstate__", None)
