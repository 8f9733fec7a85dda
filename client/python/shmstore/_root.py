"""The plain ndarray between a lease and the SharedArrays on it: see array_type.cpp for why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from . import _ext
from ._dtype import dtype_of

if TYPE_CHECKING:
    from typing import Literal

    from numpy.typing import NDArray


def root_on(lease: _ext.Lease) -> NDArray[Any]:
    """The whole array of a lease. Raises BufferError when the lease has been released."""
    dtype, order = dtype_of(lease.dtype), cast("Literal['C', 'F']", lease.order)
    return np.ndarray.__new__(np.ndarray, lease.shape, dtype, buffer_of(lease), 0, None, order)


def buffer_of(lease: _ext.Lease) -> memoryview:
    """The lease, as what it is to numpy."""
    # To the type checker; Python can only say since 3.12 that a class exports a buffer.
    return cast("memoryview", lease)
