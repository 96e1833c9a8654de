"""Open tar files, and their indices in the cache."""

from __future__ import annotations

import json
import os
import threading
import weakref
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from nearfar.data.tars import Index, Texts

OPEN = 32
"""files that a thread keeps open"""


class Files(threading.local):
    """Files that this thread has open, the latest used last."""

    def __init__(self) -> None:
        self.open: dict[Path, _File] = {}

    def __reduce__(self) -> tuple[type[Files], tuple[()]]:
        return Files, ()  # a worker opens its own

    def number(self, path: Path) -> int:
        """The file's descriptor, good until this thread has asked for OPEN others."""
        found = self.open.pop(path, None) or _File(path)
        self.open[path] = found
        if len(self.open) > OPEN:
            self.open.pop(next(iter(self.open)))
        return found.number


class _File:
    """An open file, closed with its last reference."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self.number)


def save(path: Path, index: Index) -> None:
    """Writes an index."""
    arrays = {
        "keys": index.keys.blob, "ends": index.keys.ends, "first": index.first, "extension": index.extension,
        "offset": index.offset, "size": index.size,
    }  # fmt: skip
    texts = {"extensions": json.dumps(index.extensions), "skipped": json.dumps(index.skipped)}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, texts)


def load(path: Path) -> Index:
    """Reads an index.

    Raises:
        ValueError: the file holds none.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            table = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            texts = {name: json.loads(text) for name, text in file.metadata().items()}
        keys, skipped = Texts(table.pop("keys"), table.pop("ends")), tuple(map(tuple, texts["skipped"]))
        return Index(keys, **table, extensions=tuple(texts["extensions"]), skipped=skipped)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected the index of a shard, received {error}") from error
