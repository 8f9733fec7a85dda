"""k-means over colours, cut into parts that processes can share out. Knows nothing of stores.

A picture is a *tile*; pixels have the shape (tiles, height, width, 3). Workers take tiles in turn,
add up the colours nearest to each centre, and the driver adds the workers' sums in their order:
the same arithmetic in the same order, whoever holds the memory, so results are equal to the bit.
"""

import numpy as np

CHUNK = 16384  # pixels at a time: scores of 16 centres stay in the second-level cache


def first_centres(tiles, colours, seed=7):
    """Distinct colours of the pictures, drawn at random: where the search starts."""
    distinct = np.unique(tiles.reshape(-1, 3), axis=0)
    chosen = np.random.default_rng(seed).choice(len(distinct), colours, replace=False)
    return np.ascontiguousarray(distinct[np.sort(chosen)], dtype="f4")


def nearest(pixels, centres):
    """Index of the nearest centre for each row of `pixels`."""
    scores = pixels @ (-2 * centres.T)
    scores += np.square(centres).sum(axis=1)
    return scores.argmin(axis=1)


def chunks(tile):
    rows = tile.reshape(-1, 3)
    for start in range(0, len(rows), CHUNK):
        yield slice(start, start + CHUNK), rows[start : start + CHUNK]


def partial_sums(tiles, centres):
    """Per centre: the sum of the nearest pixels' red, green, blue, and how many they are."""
    colours = len(centres)
    sums = np.zeros((colours, 4))
    for tile in tiles:
        for _, rows in chunks(tile):
            labels = nearest(rows, centres)
            for channel in range(3):
                sums[:, channel] += np.bincount(labels, rows[:, channel], colours)
            sums[:, 3] += np.bincount(labels, minlength=colours)
    return sums


def moved_centres(centres, partials):
    """The means of all workers' sums; a centre that nothing is near to stays where it is."""
    total = sum(partials)
    counts = total[:, 3:]
    means = np.divide(total[:, :3], counts, out=centres.astype("f8"), where=counts > 0)
    return means.astype("f4")


def write_labels(tile, centres, out):
    """Fills `out` (one byte per pixel) with the index of each pixel's nearest centre."""
    flat = out.reshape(-1)
    for where, rows in chunks(tile):
        flat[where] = nearest(rows, centres)
