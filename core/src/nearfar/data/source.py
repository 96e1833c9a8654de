"""What a source of raw samples is, its parts, and what is wrong with one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from nearfar.checks import expect


@runtime_checkable
class Source(Protocol):
    """A map-style dataset of raw samples: reading one twice gives the same.

    A source that can read many at once also has `batch(positions) -> Batch`, equal to collating single samples.

    Attributes:
        name: short, for people.
        num_classes: 0 without labels.
        class_names: one a class, or none.
        shape: (C, H, W) of every image; () when sizes differ or are not known.
        labels: int64 [N], or None; known without reading a sample.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    shape: tuple[int, ...]
    labels: np.ndarray | None

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Any]:
        """A sample: `index`, `image` uint8 [C, H, W], `label` if there is one, and others.

        `index` is the position in the source; a Subset keeps that of the whole.

        Raises:
            BadSample: this sample cannot be read.
        """
        ...

    def path(self, i: int) -> str:
        """Where sample i lies, for people: a file, or the source's name and a number."""
        ...

    def fingerprint(self) -> str:
        """Hash of names, sizes and times or of content, to tell whether a resumed run sees the same data."""
        ...


@dataclass(frozen=True)
class Fault:
    """A sample that could not be used: its stable number, where it lies, and why."""

    index: int
    path: str
    reason: str


class BadSample(ValueError):
    """One sample cannot be read; a loader puts another in its place and keeps the fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"{fault.path}: {fault.reason}")
        self.fault = fault


class TooManyFaults(ValueError):
    """More samples cannot be read than `max_bad_share` allows."""

    def __init__(self, faults: Sequence[Fault], num_samples: int, max_bad_share: float) -> None:
        first = "; ".join(f"{fault.path} ({fault.reason})" for fault in faults[:5])
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        super().__init__(
            f"unreadable samples: expected at most a share of {max_bad_share:g} of {num_samples}, "
            f"received {len(faults)}: {first}{more}"
        )


def allowed_faults(max_bad_share: float, num_samples: int) -> int:
    """Unreadable samples that are put up with: the share, but one in any case unless the share is 0."""
    return 0 if max_bad_share == 0 else max(1, int(max_bad_share * num_samples))


@dataclass
class Data:
    """What training learns from and what it is judged on.

    Args:
        train: the training samples.
        test: the validation samples; empty with data.validation=0 and no split of the source's own.
        holdout: whether `test` was held out of the training data, for want of such a split.
    """

    train: Source
    test: Source
    holdout: bool = False


class Subset:
    """Some samples of a source, which keep their index.

    Args:
        source: the whole.
        positions: int64 [M], of the samples that belong.
    """

    def __init__(self, source: Source, positions: np.ndarray, name: str = "") -> None:
        positions = np.asarray(positions, dtype=np.int64)
        expect(positions.ndim == 1, "positions", "one dimension", positions.shape)
        if len(positions):
            low, high = int(positions.min()), int(positions.max())
            expect(low >= 0 and high < len(source), "positions", f"numbers from 0 to {len(source) - 1}", [low, high])
        self.source, self.positions, self.name = source, positions, name or source.name
        self.num_classes, self.class_names, self.shape = source.num_classes, source.class_names, source.shape
        self.labels = None if source.labels is None else source.labels[positions]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.source[int(self.positions[i])]

    def path(self, i: int) -> str:
        """Where sample i lies."""
        return self.source.path(int(self.positions[i]))

    def fingerprint(self) -> str:
        """Hash of the whole's fingerprint and the positions."""
        return digest(self.source.fingerprint(), self.positions)


def column(source: Source, name: str) -> np.ndarray:
    """A column of a source, one value or row a sample, known without reading samples: "label", or what it names.

    Sources with more columns than labels have a method `column(name)`; a Subset passes on its part.

    Raises:
        ValueError: the source has no such column.
    """
    if name == "label" and source.labels is not None:
        return source.labels
    if isinstance(source, Subset):
        return column(source.source, name)[source.positions]
    found = getattr(source, "column", lambda _: None)(name)
    expect(found is not None, "sampler.column", f"a column of {source.name}", name)
    return np.asarray(found)


def whole(source: Source) -> Source:
    """The source under nested subsets, where a sample's `index` is its position."""
    while isinstance(source, Subset):
        source = source.source
    return source


def class_counts(source: Source) -> tuple[int, ...]:
    """Samples of every class, those without a label left out; empty without labels."""
    if source.labels is None:
        return ()
    return tuple(np.bincount(source.labels[source.labels >= 0], minlength=source.num_classes).tolist())


def labels_of(source: Source, index: Tensor) -> Tensor | None:
    """Labels [M] of the samples that were delivered, by their `index`; None without labels.

    A sample that cannot be read is replaced by another, so `source.labels` by position would be another sample's.
    """
    labels = whole(source).labels
    return None if labels is None else torch.from_numpy(labels)[index]


def digest(*parts: str | np.ndarray) -> str:
    """A short stable hash of texts and arrays."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        head, body = (
            (f"{part.dtype.str}{part.shape}", np.ascontiguousarray(part).data)
            if isinstance(part, np.ndarray)
            else ("s", part.encode())
        )
        state.update(f"{head}:{len(body)}:".encode())
        state.update(body)
    return state.hexdigest()


def check_labels(labels: Any, num_samples: int, class_names: Sequence[str] = ()) -> tuple[np.ndarray, int]:
    """Labels as int64 [N] and the number of classes.

    Raises:
        ValueError: not one integer from 0 a sample, or one without a name.
    """
    array = np.asarray(labels)
    array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    expect(array.dtype.kind in "iu", "labels", "integers", array.dtype)
    expect(array.shape == (num_samples,), "labels", f"one a sample, shape [{num_samples}]", array.shape)
    low, high = (int(array.min()), int(array.max())) if num_samples else (0, -1)
    expect(low >= 0, "labels", "0 or more", low)
    expect(not class_names or high < len(class_names), "labels", f"below the {len(class_names)} class names", high)
    return array.astype(np.int64), len(class_names) or high + 1
