"""Several sources as one, their samples one after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearfar.checks import expect
from nearfar.data.source import BadSample, Source, Subset, column, digest

PRESENT = "present."
OWN = ("index", "group", "sources")


class Concat:
    """Samples of several sources, the first source's first; a sampler of groups decides how batches mix them.

    Args:
        sources: one or more by name, e.g. {"labelled": a, "unlabelled": b}; of a sequence the names are "0", "1", ....
            Class names must agree where sources have any.

    A sample has `index`, which counts through, `group`, the number of its source, and `sources`, the names of all. Its
    fields are those of all sources: what its own lacks holds a filler, and `present.FIELD`, of every field that some
    source lacks, says whether the value is real. `nearfar.batch.by_source` takes a batch apart again.

    Fillers are zeros and empty texts, of images whose sizes differ one pixel; a label is -1 - index, so that no two
    samples without a label seem to be of one class, and 255 (ignore) in every place of a label map.

    Raises:
        ValueError: no source, class names that differ, or a source that holds no sample which can be read.

    Notes: fields are known from the first sample of each source that can be read, when the first sample is asked for.
    """

    def __init__(self, sources: Mapping[str, Source] | Sequence[Source]) -> None:
        expect(len(sources) > 0, "sources", "one or more", "none")
        named = sources if isinstance(sources, Mapping) else {str(i): source for i, source in enumerate(sources)}
        self.names, self.sources = tuple(named), tuple(named.values())
        self.name = " + ".join(sources if isinstance(sources, Mapping) else [source.name for source in sources])
        sizes = [len(source) for source in self.sources]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        classes = {source.class_names for source in self.sources if source.class_names}
        expect(len(classes) <= 1, "sources", "the same class names in all", sorted(classes))
        self.class_names: tuple[str, ...] = next(iter(classes), ())
        self.num_classes = max(source.num_classes for source in self.sources)

    @cached_property
    def labels(self) -> np.ndarray | None:  # int64 [N], as the protocol says
        if all(source.labels is None for source in self.sources):
            return None
        labels = -1 - np.arange(len(self), dtype=np.int64)
        for start, source in zip(self._starts, self.sources, strict=False):
            if source.labels is not None:
                own = labels[start : start + len(source)]
                own[:] = np.where(source.labels >= 0, source.labels, own)
        return labels

    @cached_property
    def shape(self) -> tuple[int, ...]:  # of the images of all sources that have any
        shapes = {source.shape for source in self.sources}
        if len(shapes) == 2 and () in shapes:
            pairs = zip(self.sources, self._firsts, strict=True)
            shapes = {source.shape for source, first in pairs if source.shape or "image" in first}
        return next(iter(shapes)) if len(shapes) == 1 else ()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _find(self, i: int) -> tuple[int, int]:
        expect(0 <= i < len(self), "sample", f"a number from 0 to {len(self) - 1}", i, IndexError)
        number = int(np.searchsorted(self._starts, i, side="right")) - 1
        return number, i - int(self._starts[number])

    def __getitem__(self, i: int) -> dict[str, Any]:
        number, position = self._find(i)
        try:
            sample = self._lacking[number] | self.sources[number][position]
        except BadSample as bad:  # by its number here, so that faults of two sources are two
            raise BadSample(dataclasses.replace(bad.fault, index=i)) from bad
        if isinstance(sample.get("label"), (int, np.integer)) and not sample.get(f"{PRESENT}label", True):
            sample["label"] = -1 - i
        return sample | {"index": i, "group": number, "sources": self.names}

    @cached_property
    def _firsts(self) -> list[dict[str, Any]]:
        return [_first(source) for source in self.sources]

    @cached_property
    def _lacking(self) -> list[dict[str, Any]]:
        """Of every source: the fillers of fields that others have, and what is present."""
        firsts = self._firsts
        known: dict[str, Any] = {}
        for first in firsts:
            known = first | known
        values = {name: value for name, value in known.items() if not name.startswith(PRESENT)}
        partial = {name.removeprefix(PRESENT) for name in known if name.startswith(PRESENT)}
        partial |= {name for name in values if any(first and name not in first for first in firsts)}
        return [
            {name: _filler(name, value, self.shape) for name, value in values.items() if name not in first}
            | {f"{PRESENT}{name}": name in first for name in sorted(partial)}
            for first in firsts
        ]

    def path(self, i: int) -> str:
        """Where sample i lies."""
        number, position = self._find(i)
        return self.sources[number].path(position)

    def column(self, name: str) -> np.ndarray:
        """A column of all sources; "group" is the number of a sample's source."""
        if name == "group":
            return np.repeat(np.arange(len(self.sources)), np.diff(self._starts))
        return np.concatenate([column(source, name) for source in self.sources])

    def fingerprint(self) -> str:
        """Hash of the sources' names and fingerprints."""
        return digest(*self.names, *(source.fingerprint() for source in self.sources))


def labelled(source: Source) -> Source:
    """The samples that have a label, those of 0 or more; the source itself where all have one or none has."""
    if source.labels is None or (source.labels >= 0).all():
        return source
    return Subset(source, np.flatnonzero(source.labels >= 0))


def _first(source: Source) -> dict[str, Any]:
    """The fields of the first sample that can be read; none of a source without samples."""
    for i in range(len(source)):
        try:
            return {name: value for name, value in source[i].items() if name not in OWN}
        except BadSample:  # met again, counted and named where it is drawn
            continue
    expect(len(source) == 0, source.name, "a sample that can be read", f"none of {len(source)}")
    return {}


def _filler(name: str, value: Any, shape: tuple[int, ...]) -> Any:
    """What stands for a field that a sample lacks."""
    if isinstance(value, str):
        return ""
    if isinstance(value, (bool, int, float, np.generic)):
        return type(value)(0)
    known = isinstance(value, (np.ndarray, Tensor))
    expect(known, name, "an array, a tensor, a number or a text", type(value).__name__, TypeError)
    size = (value.shape[0], 1, 1) if name == "image" and not shape else tuple(value.shape)
    fill = 255 if name == "label" else 0
    if isinstance(value, Tensor):
        return torch.full(size, fill, dtype=value.dtype)
    return np.full(size, fill, dtype=value.dtype)
