"""The arithmetic of the two programs, on plain arrays. Knows nothing of engines and stores.

Sums are added in the same order wherever the memory is, so results are equal to the bit.
"""

import numpy as np

PANEL = 256  # rows of a product at a time: the intermediate result stays small
CHUNK = 1024  # points at a time: with their scores they stay in the second-level cache


def multiply(a, b, c):
    """c += a @ b, in place."""
    for start in range(0, len(a), PANEL):
        rows = slice(start, start + PANEL)
        c[rows] += a[rows] @ b


def assign(fragment, labels, centres):
    """One step of k-means over a fragment, points in rows: writes the index of each point's nearest
    centre to `labels`; returns, per centre, the sum of its points and in the last column their
    number."""
    sums = np.zeros((len(centres), fragment.shape[1] + 1))
    weights = -2 * centres.T
    squares = np.square(centres).sum(axis=1)
    indices = np.arange(len(centres))[:, np.newaxis]
    for start in range(0, len(fragment), CHUNK):
        points = fragment[start : start + CHUNK]
        nearest = (points @ weights + squares).argmin(axis=1)
        labels[start : start + CHUNK] = nearest
        chosen = (nearest == indices).astype(fragment.dtype)
        sums[:, :-1] += chosen @ points
        sums[:, -1] += chosen.sum(axis=1)
    return sums


def moved(centres, partials):
    """The means of all partial sums; a centre without points stays where it is."""
    total = np.zeros_like(partials[0])
    for partial in partials:
        total += partial
    counts = total[:, -1:]
    return np.divide(total[:, :-1], counts, out=centres.copy(), where=counts > 0)
