"""The input, two photographs that ship inside scikit-learn, and the output, the same as PNG."""

import math
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def photographs():
    """{file stem: float32 array (height, width, 3) of 0..1}; both have the same size."""
    loaded = load_sample_images()
    names = [Path(name).stem for name in loaded.filenames]
    return {n: np.asarray(i, dtype="f4") / 255 for n, i in zip(names, loaded.images)}


def tiles_for(bytes_min):
    """How many tiles reach `bytes_min`: each photograph equally often."""
    pictures = list(photographs().values())
    rounds = math.ceil(bytes_min / sum(p.nbytes for p in pictures))
    return rounds * len(pictures)


def fill_tiles(out):
    """Fills (tiles, height, width, 3) with the photographs in turn."""
    pictures = list(photographs().values())
    for index, tile in enumerate(out):
        tile[:] = pictures[index % len(pictures)]


def save_quantised(folder, centres, labels):
    """Writes each photograph with every pixel in its centre's colour, beside the original."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for (name, original), tile in zip(photographs().items(), labels):
        pair = np.concatenate([original, centres[tile]], axis=1)
        path = folder / f"{name}-{len(centres)}-colours.png"
        Image.fromarray(np.rint(pair * 255).clip(0, 255).astype("u1")).save(path)
        paths.append(path)
    return paths
