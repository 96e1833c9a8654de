"""Small WebDataset shards for the tests of data."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from data.pictures import smooth

Samples = Mapping[str, Mapping[str, bytes]]


def encoded(image: Image.Image, kind: str = "png") -> bytes:
    """A picture as the content of a file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def tar(path: Path, members: list[tuple[str, bytes]], kind: int = tarfile.GNU_FORMAT) -> Path:
    """An archive of named contents, written by Python's tarfile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample(number: int, *, classes: int = 2, size: int = 8) -> dict[str, bytes]:
    """A picture, its class, a caption and a JSON file."""
    return {
        "png": encoded(smooth(size, size, number)),
        "cls": str(number % classes).encode(),
        "txt": f"picture {number}".encode(),
        "json": b'{"style": {"id": %d}, "name": "%s", "weight": 0.5}' % (number % 3, (b"cat", b"dog")[number % 2]),
    }


def shards(root: Path, sizes: tuple[int, ...] = (5, 7, 8), name: str = "s", **options: int) -> Path:
    """Shards of so many samples each, numbered through; the pattern of their names."""
    number = 0
    for shard, size in enumerate(sizes):
        members = []
        for _ in range(size):
            members += [(f"{number:04}.{end}", raw) for end, raw in sample(number, **options).items()]
            number += 1
        tar(root / f"{name}-{shard:02}.tar", members)
    return root / f"{name}-{{00..{len(sizes) - 1:02}}}.tar"


def pixels(number: int, size: int = 8) -> np.ndarray:
    """The picture of a sample, uint8 [3, H, W]."""
    return np.asarray(smooth(size, size, number)).transpose(2, 0, 1)


def cut(path: Path, size: int) -> Path:
    """The file's first bytes alone."""
    path.write_bytes(path.read_bytes()[:size])
    return path
