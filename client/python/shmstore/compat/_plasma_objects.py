"""How Plasma's objects lie in the store: names, sizes, pickles."""

from __future__ import annotations

import io
import pickle
import secrets
import struct
from typing import TYPE_CHECKING, Any, Optional, cast

from ..sharing import reduce_by_value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .. import SharedArray

TREE = "plasma/"
LENGTH = struct.Struct("<Q")
_ID_BYTES = 20
_ALIGNMENT = 64


class ObjectID:
    """The name of an object: 20 bytes. Hashable, comparable, picklable."""

    __slots__ = ("_binary",)

    def __init__(self, object_id: bytes) -> None:
        if not isinstance(object_id, bytes) or len(object_id) != _ID_BYTES:
            raise ValueError(f"Object ID must by {_ID_BYTES} bytes, is {object_id!r}")
        self._binary = object_id

    @staticmethod
    def from_random() -> ObjectID:
        """A new id."""
        return ObjectID(secrets.token_bytes(_ID_BYTES))

    def binary(self) -> bytes:
        """The 20 bytes."""
        return self._binary

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectID) and self._binary == other._binary

    def __hash__(self) -> int:
        return hash(self._binary)

    def __repr__(self) -> str:
        return f"ObjectID({self._binary.hex()})"

    def __reduce__(self) -> Any:
        return ObjectID, (self._binary,)


def name_of(object_id: ObjectID) -> str:
    if not isinstance(object_id, ObjectID):
        raise TypeError(f"{object_id!r} is not an ObjectID")
    return TREE + object_id.binary().hex()


def id_of(name: Any) -> Optional[ObjectID]:
    try:
        return ObjectID(bytes.fromhex(name[len(TREE) :]))
    except ValueError:  # somebody else's array
        return None


def sizes_of(entry: Any) -> tuple[int, int]:
    metadata_size = entry["attrs"].get("metadata_size", 0)
    return entry["nbytes"] - LENGTH.size - metadata_size, metadata_size


def split(memory: SharedArray) -> tuple[NDArray[Any], NDArray[Any]]:
    """Data and metadata."""
    (metadata_size,) = LENGTH.unpack(memory[-LENGTH.size :].tobytes())
    data_size = memory.size - LENGTH.size - metadata_size
    return memory[:data_size], memory[data_size : data_size + metadata_size]


# A pickled object: how many buffers, for each its offset and length, the pickle's likewise, then
# the buffers at multiples of 64, the pickle last.


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        return reduce_by_value(obj)  # a handle would not live as long as the object


def pickled(value: Any) -> list[tuple[int, memoryview]]:
    """Offsets and bytes to write there."""
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    parts = [buffer.raw() for buffer in buffers] + [stream.getbuffer()]
    offset = LENGTH.size * (1 + 2 * len(parts))
    places, placed = [len(buffers)], []
    for part in parts:
        offset = -(-offset // _ALIGNMENT) * _ALIGNMENT
        places += [offset, part.nbytes]
        placed.append((offset, part))
        offset += part.nbytes
    return [(0, memoryview(struct.pack(f"<{len(places)}Q", *places))), *placed]


def unpickled(data: NDArray[Any]) -> Any:
    memory = memoryview(cast(Any, data))
    (count,) = LENGTH.unpack_from(memory)
    places = struct.unpack_from(f"<{2 * count + 2}Q", memory, LENGTH.size)
    parts = [memory[at : at + size] for at, size in zip(places[::2], places[1::2])]
    return pickle.loads(parts[-1], buffers=parts[:-1])
