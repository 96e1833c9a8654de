"""P classes of K samples, and batches that branch along a path."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from nearfar.samplers import Hierarchical, PerClass


@pytest.mark.parametrize(("num_classes", "num_per_class"), [(1, 5), (4, 3), (7, 1), (3, 8)])
def test_every_batch_has_p_classes_of_k_samples(num_classes: int, num_per_class: int) -> None:
    labels = np.random.default_rng(0).integers(0, 7, 200) * 3
    sampler = PerClass(labels, num_classes, num_per_class, seed=1)
    batches = list(sampler.batches(0))
    assert len(batches) == 200 // (num_classes * num_per_class)
    for batch in batches:
        assert sorted(Counter(labels[batch].tolist()).values()) == [num_per_class] * num_classes
        assert len(set(batch.tolist())) == len(batch)
        assert len(set(labels[batch].reshape(num_classes, num_per_class)[:, 0].tolist())) == num_classes


def test_classes_and_samples_come_once_before_they_come_again() -> None:
    labels = np.repeat(np.arange(6), 8)
    batches = list(PerClass(labels, 3, 4, seed=0, length=8).batches(0))
    for first in range(0, 8, 2):
        assert sorted(set(labels[np.concatenate(batches[first : first + 2])].tolist())) == list(range(6))
    for first in (0, 4):  # four batches hold two visits of every class, which are all its samples
        assert sorted(np.concatenate(batches[first : first + 4]).tolist()) == list(range(48))


def test_classes_that_do_not_divide_are_all_as_likely() -> None:
    labels = np.repeat(np.arange(5), [50, 2, 4, 9, 30])
    counts = np.zeros(5)
    for epoch in range(40):
        for batch in PerClass(labels, 3, 2, length=25).batches(epoch):
            counts += np.bincount(labels[batch], minlength=5) / 2
    assert ((counts - 600) ** 2 / 600).sum() < 18.5  # 40 x 25 x 3 / 5 visits each; chi-squared, p = 0.001


def test_a_small_class_repeats_its_samples_evenly() -> None:
    labels = np.array([0] * 10 + [1] * 2 + [-1] * 3)
    for batch in PerClass(labels, 2, 5, length=6).batches(0):
        assert sorted(Counter(batch[labels[batch] == 1].tolist()).values()) == [2, 3]
        assert batch.max() < 12


@pytest.mark.oracle("hmlc", 5)
def test_levels_branch_as_asked_and_renamed_children_change_nothing() -> None:
    rng = np.random.default_rng(0)
    paths = rng.integers(0, (4, 3, 5), (3000, 3))
    sampler = Hierarchical(paths, (2, 3, 2, 4), seed=5)
    renamed = paths.copy()
    renamed[:, 1] += 10 * renamed[:, 0]  # ids unique over parents instead of below them
    again = Hierarchical(renamed, (2, 3, 2, 4), seed=5)
    assert sampler.num_batches(0) == 3000 // 48
    for batch, other in zip(sampler.batches(0), again.batches(0), strict=True):
        np.testing.assert_array_equal(batch, other)
        levels = [len(set(map(tuple, paths[batch, : level + 1].tolist()))) for level in range(3)]
        assert levels == [2, 6, 12]
        assert len(set(batch.tolist())) == 48
        for level, partners in enumerate((24, 8, 4)):
            seen = Counter(map(tuple, paths[batch, : level + 1].tolist()))
            assert set(seen.values()) == {partners}


def test_a_node_with_few_children_gives_them_twice() -> None:
    paths = np.array([[0, 0], [0, 0], [0, 0], [0, 0], [1, 0], [1, 1], [1, 1], [1, 0], [2, -1]])
    for batch in Hierarchical(paths, (2, 2, 2), length=3).batches(0):
        assert sorted(batch.tolist()) == list(range(8))


def test_per_class_is_one_level() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 60)
    for a, b in zip(PerClass(labels, 3, 4).batches(2), Hierarchical(labels[:, None], (3, 4)).batches(2), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PerClass([0, 0, 1, -1], 3, 1), "num_classes_per_batch: expected at most the 2 classes there are"),
        (lambda: PerClass([0, 1], 0, 1), "num_classes_per_batch: expected 1 or more, received 0"),
        (lambda: PerClass([0, 1], 1, 0), "num_per_class: expected 1 or more, received 0"),
        (lambda: PerClass([], 1, 1), r"labels: expected 1 dimension\(s\), not empty, received shape \(0,\)"),
        (lambda: PerClass([[0]], 1, 1), r"labels: expected 1 dimension\(s\)"),
        (lambda: PerClass([-1, -1], 1, 1), "num_classes_per_batch: expected at most the 0 classes"),
        (lambda: PerClass([0, 1], 1, 1, length=-1), "length: expected 0 or more batches, received -1"),
        (lambda: PerClass([0, 1], 1, 1, seed=-1), "seed: expected 0 or more, received -1"),
        (lambda: Hierarchical([[0, 1]], (1, 1)), r"nums: expected 3 numbers, .* received \[1, 1\]"),
        (lambda: Hierarchical([[0]], (1, 0)), r"nums: expected numbers of 1 or more, received \[1, 0\]"),
        (lambda: Hierarchical([[0], [1]], (3, 1)), "nums: expected at most the 2 classes there are, received 3"),
        (lambda: Hierarchical([[0, -1]], (1, 1, 1)), "paths: expected at least one path without negative ids"),
        (lambda: Hierarchical([0, 1], (1, 1)), r"paths: expected 2 dimension\(s\), not empty, received shape \(2,\)"),
    ],
)
def test_refuses(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_refuses_labels_that_are_no_integers() -> None:
    with pytest.raises(TypeError, match="labels: expected integers, received float64"):
        PerClass([0.0, 1.0], 1, 1)
