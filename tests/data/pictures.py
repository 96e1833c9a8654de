"""Small image files for the tests of data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """A colour image of low frequency, which JPEG keeps nearly as it is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write(path: Path, seed: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
    """A PNG or other file by extension, in folders made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    smooth(*size, seed).save(path)
    return path


def classes(root: Path, *, num: int = 6, sizes: bool = False, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    """`num` images a class; with `sizes` of several sizes."""
    for c, name in enumerate(names):
        for i in range(num):
            write(root / name / f"{i}.png", 100 * c + i, (8 + i % 3, 8) if sizes else (8, 8))
    return root


def truncate(path: Path, share: float = 0.6) -> Path:
    """Cuts a file short."""
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    return path
