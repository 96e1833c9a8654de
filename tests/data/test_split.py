"""Held-out samples: stratified, reproducible, disjoint, and numbered as before."""

from __future__ import annotations

import numpy as np
import pytest

from nearfar.data import ArraySource, Subset, holdout, without_test


def source(labels: object, num: int = 0) -> ArraySource:
    count = num or len(labels)  # type: ignore[arg-type]
    return ArraySource(np.zeros((count, 2, 2), np.uint8), labels)


def positions(subset: object) -> list[int]:
    assert isinstance(subset, Subset)
    return subset.positions.tolist()


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_every_class_in_proportion(share: float) -> None:
    labels = np.repeat([0, 1, 2, 3], [100, 40, 17, 1])[np.random.default_rng(0).permutation(158)]
    data = holdout(source(labels), share)
    assert data.holdout
    train, test = positions(data.train), positions(data.test)
    assert len(test) == int(np.ceil(158 * share))
    assert sorted(train + test) == list(range(158))
    assert data.test.labels is not None
    counts = np.bincount(data.test.labels, minlength=4)
    assert (np.abs(counts - len(test) / 158 * np.bincount(labels)) < 1).all()
    assert counts[3] == 0  # the only sample of a class is to be learned from


def test_samples_keep_their_index_and_order() -> None:
    data = holdout(source(np.arange(40) % 3), 0.3)
    for part in (data.train, data.test):
        assert [part[i]["index"] for i in range(len(part))] == positions(part) == sorted(positions(part))
        assert part.labels is not None
        assert [part[i]["label"] for i in range(len(part))] == part.labels.tolist()
        assert part.path(1) == f"array[{positions(part)[1]}]"


def test_a_function_of_the_seed() -> None:
    whole = source(np.arange(60) % 3)
    tests = [positions(holdout(whole, 0.2, seed).test) for seed in (0, 0, 1, 2)]
    assert tests[0] == tests[1]
    assert len({tuple(test) for test in tests}) == 3
    assert positions(holdout(source(None, 60), 0.2).test) == positions(holdout(source(None, 60), 0.2).test)


def test_none_held_out() -> None:
    for data in (holdout(source(None, 5), 0.0), without_test(source(None, 5))):
        assert (len(data.train), len(data.test)) == (5, 0)


def test_too_few() -> None:
    with pytest.raises(ValueError, match="array: expected at least 2 samples, since a lone one"):
        holdout(source(None, 1), 0.0)
    with pytest.raises(ValueError, match=r"data.validation: expected a share that leaves 2 of 3 samples"):
        holdout(source(None, 3), 0.5)
    with pytest.raises(ValueError, match=r"data.validation: expected a share in \[0, 1\), received 1.0"):
        holdout(source(None, 3), 1.0)
    assert len(holdout(source(None, 3), 0.1).train) == 2


def test_subset_checks_positions_and_nests() -> None:
    whole = source(np.arange(10) % 2)
    with pytest.raises(ValueError, match=r"positions: expected numbers from 0 to 9, received \[3, 10\]"):
        Subset(whole, np.array([3, 10]))
    with pytest.raises(ValueError, match="positions: expected one dimension"):
        Subset(whole, np.zeros((2, 2), int))
    inner = Subset(Subset(whole, np.array([9, 5, 1])), np.array([2, 0]))
    assert [inner[i]["index"] for i in range(2)] == [1, 9]
    prints = {whole.fingerprint(), inner.fingerprint(), Subset(whole, np.array([1, 9])).fingerprint()}
    assert len(prints) == 3
