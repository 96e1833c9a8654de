"""Several sources as one."""

from __future__ import annotations

import numpy as np
import pytest

from nearfar.batch import collate
from nearfar.data import ArraySource, Concat, Loader, Source, Subset, column
from nearfar.samplers import Sequential

RNG = np.random.default_rng(0)
FIRST = ArraySource(RNG.integers(0, 256, (5, 3, 4, 4), dtype=np.uint8), np.arange(5) % 2, name="first")
SECOND = ArraySource(RNG.integers(0, 256, (3, 3, 4, 4), dtype=np.uint8), np.array([2, 0, 2]), name="second")
BARE = ArraySource(RNG.integers(0, 256, (2, 3, 6, 6), dtype=np.uint8), name="bare")


def test_samples_stand_one_after_another() -> None:
    both = Concat([FIRST, SECOND])
    assert isinstance(both, Source)
    assert (len(both), both.num_classes, both.shape, both.name) == (8, 3, (3, 4, 4), "first + second")
    assert both.labels is not None
    assert both.labels.tolist() == [0, 1, 0, 1, 0, 2, 0, 2]
    for i in range(8):
        own = FIRST[i] if i < 5 else SECOND[i - 5]
        sample = both[i]
        np.testing.assert_array_equal(sample["image"], own["image"])
        assert (sample["index"], sample["group"], sample["label"]) == (i, int(i >= 5), own["label"])
    assert both.path(6) == SECOND.path(1)
    assert both.fingerprint() != Concat([SECOND, FIRST]).fingerprint()


def test_columns() -> None:
    both = Concat([FIRST, SECOND])
    assert column(both, "group").tolist() == [0] * 5 + [1] * 3
    assert column(Subset(both, np.array([6, 0])), "group").tolist() == [1, 0]
    assert column(Subset(both, np.array([7, 0])), "label").tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"sampler.column: expected a column of first, received path"):
        column(both, "path")
    assert column(Concat([both, FIRST]), "group").tolist() == [0] * 8 + [1] * 5


def test_labels_are_kept_where_all_have_them() -> None:
    mixed = Concat([FIRST, BARE])
    assert mixed.labels is None
    assert mixed.num_classes == 0
    assert mixed.shape == ()
    assert "label" not in collate([mixed[0], mixed[1]])


def test_a_loader_reads_it() -> None:
    both = Concat([FIRST, SECOND])
    batches = list(Loader(both, Sequential(8, 3)).epoch(0))
    assert [b["group"].tolist() for b in batches] == [[0, 0, 0], [0, 0, 1], [1, 1]]


def test_refuses() -> None:
    with pytest.raises(ValueError, match="sources: expected one or more"):
        Concat([])
    with pytest.raises(IndexError, match="sample: expected a number from 0 to 7, received 8"):
        Concat([FIRST, SECOND])[8]
    images = RNG.integers(0, 256, (2, 3, 4, 4), dtype=np.uint8)
    names = [ArraySource(images, np.array([0, 1]), class_names=c) for c in (("a", "b"), ("b", "a"))]
    with pytest.raises(ValueError, match="the same class names in all"):
        Concat(names)
