"""Sources of raw samples, and what brings them to a method in batches."""

from __future__ import annotations

from nearfar.data.annotate import Annotated, targets_of, unique_paths
from nearfar.data.arrays import ArraySource, open_arrays
from nearfar.data.concat import Concat, labelled
from nearfar.data.digits import digits
from nearfar.data.folder import ImageFiles, ImageFolder, open_folder
from nearfar.data.hf import HFSource, open_hf
from nearfar.data.loader import Loader
from nearfar.data.memorymap import MemoryMap, memory_map
from nearfar.data.open import open_data, view_size
from nearfar.data.shards import TarShards, open_shards
from nearfar.data.source import (
    BadSample,
    Data,
    Fault,
    Source,
    Subset,
    TooManyFaults,
    class_counts,
    column,
    labels_of,
    whole,
)
from nearfar.data.split import holdout, long_tail, without_test
from nearfar.data.wrapped import Wrapped

__all__ = [
    "Annotated",
    "ArraySource",
    "BadSample",
    "Concat",
    "Data",
    "Fault",
    "HFSource",
    "ImageFiles",
    "ImageFolder",
    "Loader",
    "MemoryMap",
    "Source",
    "Subset",
    "TarShards",
    "TooManyFaults",
    "Wrapped",
    "class_counts",
    "column",
    "digits",
    "holdout",
    "labelled",
    "labels_of",
    "long_tail",
    "memory_map",
    "open_arrays",
    "open_data",
    "open_folder",
    "open_hf",
    "open_shards",
    "targets_of",
    "unique_paths",
    "view_size",
    "whole",
    "without_test",
]
