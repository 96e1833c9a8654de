"""Indices of tar files in the cache."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from nearfar.data.tars import Index, Texts


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
