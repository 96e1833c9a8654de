"""Several sources as one, their samples one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nearfar.checks import expect
from nearfar.data.source import Source, column, digest


class Concat:
    """Samples of several sources, the first source's first; `sampler.kind` single-group or mixed-groups mixes them.

    Args:
        sources: one or more; classes are the same ones in all that have labels, so class names must agree. Labels are
            kept when every source has them.

    A sample has the fields of its own source, and `group`, the number of that source; `index` counts through. The
    column "group" holds the same numbers.

    Raises:
        ValueError: no source, or class names that differ.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        expect(len(sources) > 0, "sources", "one or more", "none")
        self.sources = tuple(sources)
        self.name = " + ".join(source.name for source in sources)
        sizes = [len(source) for source in sources]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        named = {source.class_names for source in sources if source.class_names}
        expect(len(named) <= 1, "sources", "the same class names in all", sorted(named))
        self.class_names: tuple[str, ...] = next(iter(named), ())
        shapes = {source.shape for source in sources}
        self.shape: tuple[int, ...] = next(iter(shapes)) if len(shapes) == 1 else ()
        labels = [source.labels for source in sources if source.labels is not None]
        self.labels = np.concatenate(labels) if len(labels) == len(sources) else None
        self.num_classes = 0 if self.labels is None else max(source.num_classes for source in sources)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _find(self, i: int) -> tuple[int, int]:
        expect(0 <= i < len(self), "sample", f"a number from 0 to {len(self) - 1}", i, IndexError)
        number = int(np.searchsorted(self._starts, i, side="right")) - 1
        return number, i - int(self._starts[number])

    def __getitem__(self, i: int) -> dict[str, Any]:
        number, position = self._find(i)
        sample = dict(self.sources[number][position])
        if self.labels is None:
            sample.pop("label", None)  # a batch has a field of all its samples or of none
        return sample | {"index": i, "group": number}

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
        """Hash of the sources' fingerprints."""
        return digest(*(source.fingerprint() for source in self.sources))
