"""From a DataConfig to data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nearfar.checks import expect, expect_choice
from nearfar.config import DataConfig
from nearfar.config.inputs import parse_sources
from nearfar.data.annotate import annotate
from nearfar.data.arrays import open_arrays
from nearfar.data.concat import Concat
from nearfar.data.digits import digits
from nearfar.data.folder import ImageFiles, open_folder
from nearfar.data.hf import HFSource, open_hf
from nearfar.data.memorymap import memory_map
from nearfar.data.shards import TarShards, open_shards
from nearfar.data.source import Data, Source
from nearfar.data.split import holdout, without_test

PHOTOGRAPH = 224
"""side of the views of photographs"""


def open_data(
    config: DataConfig, *, datasets: Mapping[str, Callable[[DataConfig], Data | Source]] | None = None
) -> Data:
    """The data that a config describes: read, mapped into memory if made of files, and split.

    `source` "folder" takes a folder of images, or a .npy or .npz file; "webdataset" tar shards; "hf" a dataset of
    Hugging Face; "digits" ships with scikit-learn; other names are looked up in `datasets`. Without a split of its own,
    `config.validation` of the samples is held out. Columns named by `config.target` and `config.levels` are read too.
    Several of `config.sources` become one `Concat`; all of them have a split of their own, or none has.

    Args:
        config: what to open.
        datasets: further sources by name.

    Raises:
        ValueError, FileNotFoundError: unknown source, nothing there, not images; the message says what was found.
    """
    if config.sources:
        return _joined(config, datasets or {})
    found = annotate(_opened(config, datasets or {}), config)
    return found if isinstance(found, Data) else holdout(found, config.validation)


def _joined(config: DataConfig, named: Mapping[str, Callable[[DataConfig], Data | Source]]) -> Data:
    """The sources of a config as one; the same share of each is held out."""
    parts = {
        name: _opened(dataclasses.replace(config, root=folder, sources=()), named)
        for name, folder in parse_sources(config.sources).items()
    }
    split = {name: part for name, part in parts.items() if isinstance(part, Data)}
    whole = {name: part for name, part in parts.items() if not isinstance(part, Data)}
    expect(not split or not whole, "data.sources", "a split of their own in all folders, or in none",
           f"one in {', '.join(split)}, none in {', '.join(whole)}")  # fmt: skip
    if whole and config.validation == 0:
        return without_test(Concat(whole))  # type: ignore[arg-type]  # labels and shape are read when asked for
    split = split or {name: holdout(part, config.validation) for name, part in whole.items()}
    train, test = ({name: getattr(part, which) for name, part in split.items()} for which in ("train", "test"))
    return Data(Concat(train), Concat(test), any(part.holdout for part in split.values()))  # type: ignore[arg-type]


def _opened(config: DataConfig, named: Mapping[str, Callable[[DataConfig], Data | Source]]) -> Data | Source:
    """One source, mapped into memory if made of files, with its own split where it has one."""
    expect_choice("data.source", config.source, ["folder", "webdataset", "hf", "digits", *sorted(named)])
    if config.source == "digits":
        found: Data | Source = digits(channels=config.channels)
    elif config.source in named:
        found = named[config.source](config)
    elif config.source in ("webdataset", "hf"):
        options: dict[str, Any] = {
            "image": config.image_column, "label": config.label_column, "columns": config.columns,
            "channels": config.channels or 3, "shorter": shorter_side(config), "cache": config.cache,
            "max_bad_share": config.max_bad_share,
        }  # fmt: skip
        if config.source == "webdataset":
            found = open_shards(config.root, cache_gb=config.cache_gb, **options)
        else:
            found = open_hf(config.root, **options)
    elif Path(config.root).suffix.lower() in (".npy", ".npz") and not Path(config.root).is_dir():
        found = open_arrays(config.root, channels=config.channels)
    else:
        found = open_folder(config.root, channels=config.channels or 3, shorter=shorter_side(config))
    if isinstance(found, Data):
        return Data(_mapped(found.train, config), _mapped(found.test, config), found.holdout)
    return _mapped(found, config)


def shorter_side(config: DataConfig) -> int:
    """Shorter side to which larger image files are reduced: a quarter above the views, which crop and enlarge."""
    return math.ceil(1.25 * (config.image_size or PHOTOGRAPH))


def view_size(config: DataConfig, source: Source) -> int:
    """Side of the views: the configured one, else the source's own, but 224 for photographs."""
    own = min(source.shape[1:]) if source.shape else PHOTOGRAPH
    return config.image_size or min(own, PHOTOGRAPH)


def _mapped(source: Source, config: DataConfig) -> Source:
    if not isinstance(source, (ImageFiles, TarShards, HFSource)) or getattr(source, "columns", ()):
        return source
    return memory_map(source, memory_gb=config.memory_gb, cache=config.cache, max_bad_share=config.max_bad_share)
