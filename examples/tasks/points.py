"""Input of k-means: small squares cut out of the two photographs that ship inside scikit-learn, one
in each row, repeated until the fragment is full; noise where scikit-learn or Pillow is missing."""

import functools

import numpy as np

HEIGHT = 8  # pixels of a square from top to bottom; as wide as the dimensions ask for


@functools.lru_cache(maxsize=1)
def pictures():
    """The photographs in grey, 0 to 1; an empty list if they cannot be loaded."""
    try:
        from sklearn.datasets import load_sample_images

        return [image.mean(axis=2) / 255 for image in load_sample_images().images]
    except ImportError:
        return []


def source():
    """Where the points come from, in words."""
    return "squares of two photographs" if pictures() else "noise (no scikit-learn, no Pillow)"


@functools.lru_cache(maxsize=1)
def squares(dims):
    """All squares of the photographs that do not overlap, `dims` pixels each, in rows."""
    width = dims // HEIGHT
    if dims % HEIGHT or not pictures():
        return np.random.default_rng(1).random((8192, dims))
    cut = []
    for picture in pictures():
        rows, columns = picture.shape[0] // HEIGHT, picture.shape[1] // width
        whole = picture[: rows * HEIGHT, : columns * width]
        tiles = whole.reshape(rows, HEIGHT, columns, width).swapaxes(1, 2)
        cut.append(tiles.reshape(-1, dims))
    return np.concatenate(cut)


def fill(fragment, number):
    """Fills fragment `number`, an array (points, dims), in place: every fragment differently."""
    rows = squares(fragment.shape[1])
    rows = np.roll(rows, number * len(rows) // 16, axis=0) * (1 + number / 64)
    for start in range(0, len(fragment), len(rows)):
        part = fragment[start : start + len(rows)]
        part[:] = rows[: len(part)]


def first_centres(fragment, count):
    """Distinct points of a fragment, drawn at random: where the search starts."""
    distinct = np.unique(fragment[: 1 << 14], axis=0)
    chosen = np.random.default_rng(7).choice(len(distinct), count, replace=False)
    return np.ascontiguousarray(distinct[np.sort(chosen)])
