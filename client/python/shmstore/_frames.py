"""pandas and Arrow for ``share``. Neither is imported unless an object of theirs is met."""

from __future__ import annotations

import importlib
import operator
import weakref
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from . import _by_value
from ._array import SharedArray, array_on, lease_around, offset_in
from .sharing import in_store, plain, register, same_attributes, same_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .sharing import _Sharer


def _pandas_module() -> Any:
    return importlib.import_module("pandas")


def _arrow_module() -> Any:
    return importlib.import_module("pyarrow")


# --- pandas ---------------------------------------------------------------------------------------
#
# Columns of the same dtype lie one after the other in one array of the store. A frame of the store
# is pickled as these arrays, once each, and where in them its columns are; that holds for slices
# and selections of such a frame too.


def share_pandas(x: Any, sharer: _Sharer) -> Any:
    pd = _pandas_module()
    if type(x) not in (pd.DataFrame, pd.Series):
        return x
    _register_pandas()
    return sharer.once(x, lambda frame: _copy_pandas(frame, sharer), _same_pandas)


def _register_pandas() -> None:
    """Both: a column of a frame is a Series."""
    pd = _pandas_module()
    register(pd.DataFrame, _reduce_pandas)
    register(pd.Series, _reduce_pandas)


def _columns(x: Any) -> list[Any]:
    """The columns as Series; a Series is its own."""
    return [x.iloc[:, i] for i in range(x.shape[1])] if x.ndim == 2 else [x]


def _values(column: Any) -> Optional[NDArray[Any]]:
    """A column's memory, if it is of a numpy dtype without objects."""
    if not isinstance(column.dtype, np.dtype) or column.dtype.hasobject:
        return None
    values = column.to_numpy(copy=False)
    return plain(values) if values.dtype == column.dtype else None


def _index_values(index: Any) -> Optional[NDArray[Any]]:
    pd = _pandas_module()
    return _values(index) if type(index) is pd.Index else None


def _copy_pandas(x: Any, sharer: _Sharer) -> Any:
    columns = _columns(x)
    values = [_values(column) for column in columns]
    groups: dict[str, list[int]] = {}
    for i, array in enumerate(values):
        if array is not None and not in_store(array):
            groups.setdefault(array.dtype.str, []).append(i)
    parts: dict[int, Any] = {
        i: array for i, array in enumerate(values) if array is not None and in_store(array)
    }
    changed = False
    for members in groups.values():
        arrays = [values[i] for i in members]
        if not sharer.large(sum(array.nbytes for array in arrays if array is not None)):
            continue
        rows = _put_rows(arrays, sharer)
        changed = True
        for i, row in zip(members, rows):
            parts[i] = row
    # What is not shared is copied: the result must not change with the original.
    whole = [parts[i] if i in parts else col.array.copy() for i, col in enumerate(columns)]
    index = x.index
    labels = _index_values(index)
    if labels is not None and not in_store(labels) and sharer.large(labels.nbytes):
        index, changed = _index(sharer.put(labels), index.name), True
    return _pandas(type(x), whole, index, _header(x)) if changed else x


def _put_rows(arrays: list[Any], sharer: _Sharer) -> list[NDArray[Any]]:
    """The arrays as rows of one array of the store."""
    from . import _connect

    client = sharer.client or _connect.default_client()
    with client.create(None, (len(arrays), len(arrays[0])), arrays[0].dtype) as block:
        for row, array in zip(block, arrays):
            row[...] = array
    return [block[i] for i in range(len(arrays))]


def _header(x: Any) -> Any:
    """What is neither columns nor index: the names, and what the user hung on it."""
    names = x.columns if x.ndim == 2 else x.name
    return names, dict(x.attrs), x.flags.allows_duplicate_labels


def _pandas(kind: Any, parts: list[Any], index: Any, header: Any) -> Any:
    pd = _pandas_module()
    _register_pandas()
    names, attrs, duplicates = header
    # A pandas array that wraps a numpy array is given as that, or it would count as its own dtype.
    series = [
        pd.Series(plain(part) if isinstance(part, np.ndarray) else part, index=index, copy=False)
        for part in parts
    ]
    if kind is pd.Series:
        result: Any = series[0]
        result.name = names
    else:
        result = pd.DataFrame(dict(enumerate(series)), index=index, copy=False)
        result.columns = names
    result.attrs.update(attrs)
    result.flags.allows_duplicate_labels = duplicates
    return result


def by_value_columns(x: Any) -> tuple[list[Any], int]:
    """The columns of a frame that are not in the store, and about how many bytes they have."""
    columns = _columns(x)
    left = [
        column
        for column, array in zip(columns, map(_values, columns))
        if array is None or not in_store(array)
    ]
    return [column.name for column in left], sum(int(column.array.nbytes) for column in left)


def _index(labels: NDArray[Any], name: Any) -> Any:
    pd = _pandas_module()
    return pd.Index(plain(labels), copy=False, name=name)


def _reduce_pandas(x: Any) -> Any:
    columns = _columns(x)
    arrays = [_values(column) for column in columns]
    labels = _index_values(x.index)
    shared = any(array is not None and in_store(array) for array in (*arrays, labels))
    if not shared or _by_value.wanted():
        return x.__reduce_ex__(2)
    blocks: list[SharedArray] = []
    found: dict[int, int] = {}  # which block, by array id
    parts = [
        _placed(array, blocks, found) if array is not None and in_store(array) else column.array
        for array, column in zip(arrays, columns)
    ]
    index = x.index
    if labels is not None and in_store(labels):
        index = (_placed(labels, blocks, found), index.name)
    return _open_pandas, (type(x), blocks, parts, index, _header(x))


def _placed(array: NDArray[Any], blocks: list[SharedArray], found: dict[int, int]) -> Any:
    """Where in which block the array is; the block is added to those to send."""
    lease = lease_around(array)
    assert lease is not None
    if lease.id not in found:
        found[lease.id] = len(blocks)
        blocks.append(array_on(lease))
    offset = offset_in(lease, array)
    return found[lease.id], array.dtype.str, array.shape, offset, array.strides


def _open_pandas(kind: Any, blocks: list[Any], parts: list[Any], index: Any, header: Any) -> Any:
    def view(place: Any) -> NDArray[Any]:
        block, dtype, shape, offset, strides = place
        memory = blocks[block] if blocks[block].flags.c_contiguous else blocks[block].T
        return np.ndarray(shape, dtype, memory, offset, strides)

    if isinstance(index, tuple):
        index = _index(view(index[0]), index[1])
    arrays = [view(part) if isinstance(part, tuple) else part for part in parts]
    return _pandas(kind, arrays, index, header)


def _same_pandas(x: Any, shared: Any) -> bool:
    if x.shape != shared.shape or not x.index.identical(shared.index):
        return False
    names, attrs, duplicates = _header(x)
    shared_names, shared_attrs, shared_duplicates = _header(shared)
    if not same_attributes(attrs, shared_attrs) or duplicates != shared_duplicates:
        return False
    if not (names.identical(shared_names) if x.ndim == 2 else names == shared_names):
        return False
    return all(map(_same_column, _columns(x), _columns(shared)))


def _same_column(a: Any, b: Any) -> bool:
    values, shared = _values(a), _values(b)
    if values is None or shared is None:
        if a.dtype == object == b.dtype:  # To equals, 1, 1.0 and True are the same.
            return all(map(operator.is_, a.to_numpy(), b.to_numpy()))
        return bool(a.dtype == b.dtype and a.equals(b))
    return same_bytes(values, shared)


# --- Arrow ----------------------------------------------------------------------------------------
#
# An Arrow object becomes one array of bytes in the store, its IPC stream, and the shared object is
# read from there: all buffers lie in it. Objects derived from it (slices, columns) are pickled by
# value.

_streams: dict[int, tuple[weakref.ref[Any], Any]] = {}  # by id of the shared object


def share_arrow(x: Any, sharer: _Sharer) -> Any:
    pa = _arrow_module()
    if not isinstance(x, (pa.Table, pa.RecordBatch, pa.ChunkedArray, pa.Array)):
        return x
    if isinstance(x, pa.ExtensionArray) or _stream_of(x) is not None:
        return x
    if not sharer.large(x.nbytes):
        return x
    return sharer.once(x, lambda data: _copy_arrow(data, sharer), _same_arrow)


def _copy_arrow(x: Any, sharer: _Sharer) -> Any:
    from . import _connect

    pa = _arrow_module()
    form, batches, schema = _batches(x)
    sizer = pa.MockOutputStream()
    _write(sizer, schema, batches)
    client = sharer.client or _connect.default_client()
    with client.create(None, (sizer.size(),), np.uint8) as stream:
        _write(pa.FixedSizeBufferWriter(pa.py_buffer(stream)), schema, batches)
    return _open_arrow(form, stream)


def _write(sink: Any, schema: Any, batches: list[Any]) -> None:
    pa = _arrow_module()
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _same_arrow(x: Any, shared: Any) -> bool:
    """Arrow's arrays do not change, but those made without a copy of NumPy's or of other memory do
    as that does."""
    form, stream = _stream_of(shared)
    known, batches, schema = _batches(x)
    comparison = _Comparison(stream)
    try:
        with _arrow_module().PythonFile(comparison, mode="w") as sink:
            _write(sink, schema, batches)
    except _Different:
        return False
    return known == form and comparison.done == len(stream)


class _Different(Exception):
    """What is written is not what was expected."""


class _Comparison:
    """A file that compares what is written to it with the bytes that it is expected to be."""

    closed = False

    def __init__(self, expected: NDArray[Any]) -> None:
        self._expected = np.asarray(expected)
        self.done = 0

    def write(self, data: Any) -> int:
        part = np.frombuffer(data, np.uint8)
        if not same_bytes(part, self._expected[self.done : self.done + part.size]):
            raise _Different
        self.done += part.size
        return part.size

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def _batches(x: Any) -> tuple[str, list[Any], Any]:
    """The object as record batches, and what kind it was."""
    pa = _arrow_module()
    if isinstance(x, pa.Table):
        return "table", x.to_batches(), x.schema
    if isinstance(x, pa.RecordBatch):
        return "batch", [x], x.schema
    schema = pa.schema([pa.field("", x.type)])
    chunks = x.chunks if isinstance(x, pa.ChunkedArray) else [x]
    batches = [pa.RecordBatch.from_arrays([chunk], schema=schema) for chunk in chunks]
    return ("chunks" if isinstance(x, pa.ChunkedArray) else "array"), batches, schema


def _open_arrow(form: str, stream: Any) -> Any:
    pa = _arrow_module()
    table = pa.ipc.open_stream(pa.py_buffer(stream)).read_all()
    if form == "table":
        result: Any = table
    elif form == "chunks":
        result = table.column(0)
    else:
        result = table.to_batches()[0] if table.num_rows else _empty_batch(table.schema)
        if form == "array":
            result = result.column(0)
    register(type(result), _reduce_arrow)
    key = id(result)
    _streams[key] = (weakref.ref(result, lambda _: _streams.pop(key, None)), (form, stream))
    return result


def _empty_batch(schema: Any) -> Any:
    pa = _arrow_module()
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def _stream_of(x: Any) -> Any:
    found = _streams.get(id(x))
    return found[1] if found is not None and found[0]() is x else None


def arrow_by_value(x: Any) -> int:
    """The bytes of an object of Arrow that is not in the store."""
    return 0 if _stream_of(x) is not None else int(getattr(x, "nbytes", 0))


def _reduce_arrow(x: Any) -> Any:
    stream = _stream_of(x)
    if stream is None or _by_value.wanted():
        return x.__reduce_ex__(2)
    return _open_arrow, stream


